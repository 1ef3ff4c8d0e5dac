package identity

import (
	"slices"

	"github.com/picosnitch/picosnitch/internal/event"
)

func keyOf(id event.ProcessID) key { return key{id.PID, id.Start / tick} }

// isCoarse reports whether id may be from /proc. A kernel thread that started exactly on a tick looks the same; it
// is found by its exact start before this matters.
func isCoarse(id event.ProcessID) bool { return id.Exec == 0 && id.Start%tick == 0 }

// find returns the process of id. Of two processes that used a pid within one tick the exact one is taken. A
// coarse process learns its start from the first exact id.
func (t *Table) find(id event.ProcessID) *process {
	first := t.procs[keyOf(id)]
	for pr := first; pr != nil; pr = pr.next {
		if pr.start == id.Start && !pr.coarse {
			return pr
		}
	}
	for pr := first; pr != nil; pr = pr.next {
		if pr.coarse {
			if !isCoarse(id) {
				pr.start, pr.coarse = id.Start, false
			}
			return pr
		}
	}
	if isCoarse(id) {
		return first
	}
	return nil
}

// process returns the process of id, a new one if it is not known.
func (t *Table) process(id event.ProcessID) *process {
	if pr := t.find(id); pr != nil {
		return pr
	}
	k := keyOf(id)
	pr := &process{key: k, start: id.Start, next: t.procs[k]}
	t.procs[k] = pr
	return pr
}

// lookup returns the image of id or nil.
func (t *Table) lookup(id event.ProcessID) *image {
	if id.IsZero() {
		return nil
	}
	if pr := t.find(id); pr != nil {
		return pr.match(id)
	}
	return nil
}

func (pr *process) search(exec uint32) (int, bool) {
	// Nearly always there is one image, or the newest is meant.
	if n := len(pr.images); n > 0 && pr.images[n-1].exec == exec {
		return n - 1, true
	}
	return slices.BinarySearchFunc(pr.images, exec, func(im *image, exec uint32) int {
		switch {
		case im.exec < exec:
			return -1
		case im.exec > exec:
			return 1
		}
		return 0
	})
}

// image returns the image with that exec count or nil.
func (pr *process) image(exec uint32) *image {
	if i, ok := pr.search(exec); ok && !pr.images[i].coarse {
		return pr.images[i]
	}
	return nil
}

// match is image for ids of either kind: a coarse id means the newest image; a coarse image that is alone is meant
// by any id, and learns its exec count from it.
func (pr *process) match(id event.ProcessID) *image {
	if im := pr.image(id.Exec); im != nil {
		return im
	}
	n := len(pr.images)
	if n == 0 {
		return nil
	}
	if isCoarse(id) {
		return pr.images[n-1]
	}
	if im := pr.images[0]; n == 1 && im.coarse {
		im.exec, im.coarse = id.Exec, false
		return im
	}
	return nil
}

// adopt decides what a coarse image is when the process is seen to exec. When /proc named the very file of this
// exec, /proc was read after it: it is the same image. Else it is the image before this one.
func (t *Table) adopt(pr *process, p *event.Process) *image {
	if len(pr.images) == 0 || !pr.images[0].coarse {
		return nil
	}
	im := pr.images[0]
	im.coarse = false
	if f := im.facts.root(); f.process != nil && sameFile(f.process.File, p.File) {
		im.exec = p.ID.Exec
		return im
	}
	if p.ID.Exec > 0 {
		im.exec = p.ID.Exec - 1
	}
	return nil
}

// sameFile compares what /proc can tell of a file: no generation, and on btrfs and overlayfs another device.
func sameFile(a, b event.FileID) bool {
	return !a.IsZero() && a.Inode == b.Inode && a.Ctime == b.Ctime && a.Size == b.Size
}

// add makes an image of pr with facts of its own that are not known yet.
func (t *Table) add(pr *process, id event.ProcessID, exec uint32) *image {
	im := &image{id: id, exec: exec, source: event.SourceUnknown, proc: pr}
	im.facts = &facts{owner: im}
	i, _ := pr.search(exec)
	pr.images = slices.Insert(pr.images, i, im)
	t.live.push(im)
	if t.Len() > t.limit {
		t.evict(im)
	}
	if pr.dead {
		t.end(im)
		return im
	}
	for _, older := range pr.images[:len(pr.images)-1] {
		if !older.ended {
			t.end(older)
		}
	}
	return im
}

// fill takes p's facts for im.
func (t *Table) fill(im *image, p *event.Process) {
	f := im.facts.root()
	if f.owner != im {
		f = &facts{owner: im} // the shared facts are the parent's, and stay
		im.facts = f
	}
	im.forked = false
	known := *p
	f.process = &known
	im.started, im.source = p.Started, p.Source
}

// setParent sets who forked pr. What a fork told is final; what else is known does not change either, so that an
// adopter never takes the place of the real parent.
func (t *Table) setParent(pr *process, parent event.ProcessID, fork bool) {
	if parent.IsZero() || pr.forked || !fork && pr.up() != nil {
		return
	}
	up := t.find(parent)
	if up == pr {
		return // a process is not its own parent, whatever the numbers say
	}
	if up == nil {
		up = t.process(parent)
	}
	im := up.match(parent)
	if im == nil {
		t.stats.UnknownParents++
		im = t.add(up, parent, parent.Exec)
	}
	pr.parent, pr.forked = im, fork
}

// up is the parent's image, if it is not forgotten.
func (pr *process) up() *image {
	if pr.parent == nil || pr.parent.gone {
		return nil
	}
	return pr.parent
}

// end moves an image to the dead.
func (t *Table) end(im *image) {
	if im.ended {
		return
	}
	t.live.remove(im)
	im.ended = true
	t.dead.push(im)
}
