package identity

import "slices"

// list is an intrusive list in the order of push.
type list struct {
	front, back *image
	n           int
}

func (l *list) push(im *image) {
	im.prev, im.next = l.back, nil
	if l.back != nil {
		l.back.next = im
	} else {
		l.front = im
	}
	l.back = im
	l.n++
}

func (l *list) remove(im *image) {
	if im.prev != nil {
		im.prev.next = im.next
	} else {
		l.front = im.next
	}
	if im.next != nil {
		im.next.prev = im.prev
	} else {
		l.back = im.prev
	}
	im.prev, im.next = nil, nil
	l.n--
}

// mark stamps, with a new round, every image that a living one needs: the nearest MaxAncestors.
func (t *Table) mark() {
	t.round++
	for im := t.live.front; im != nil; im = im.next {
		t.climb(im)
	}
}

// climb stamps the ancestors of im. One above which enough was stamped already is not climbed again, so the whole of mark
// costs little more than one step per living image.
func (t *Table) climb(im *image) {
	pr := im.proc
	for need := uint8(MaxAncestors); need > 0; need-- {
		if pr.parent != nil && pr.parent.gone {
			pr.parent = nil // let go of its memory
		}
		up := pr.parent
		if up == nil || up.round == t.round && up.need >= need {
			return
		}
		up.round, up.need = t.round, need
		pr = up.proc
	}
}

// forget takes im out of the table. Children that still point to it see that it is gone.
func (t *Table) forget(im *image) {
	if im.ended {
		t.dead.remove(im)
	} else {
		t.live.remove(im)
	}
	im.gone = true
	t.forgotten = append(t.forgotten, im.id)
	pr := im.proc
	if pr.images[0] == im { // nearly always; a program that execs in a loop has thousands
		pr.images[0] = nil
		pr.images = pr.images[1:]
	} else if i := slices.Index(pr.images, im); i > 0 {
		pr.images = slices.Delete(pr.images, i, i+1)
	}
	if len(pr.images) > 0 {
		return
	}
	pr.parent = nil // a forgotten process must not hold a chain of them
	if t.procs[pr.key] == pr {
		if pr.next == nil {
			delete(t.procs, pr.key)
		} else {
			t.procs[pr.key] = pr.next
		}
		return
	}
	for p := t.procs[pr.key]; p != nil; p = p.next {
		if p.next == pr {
			p.next = pr.next
			return
		}
	}
}

// evict makes room for keep, which was just added: by one image at least, and by a batch, so that a fork bomb does not
// pay for a mark each time. First go ended images that no running one needs, then running fork copies (/proc can
// still tell what they are), then ended ancestors (a storm of children must not wipe out who started them), then
// any; in each class the oldest first.
func (t *Table) evict(keep *image) {
	t.mark()
	want := max(1, t.limit/64)
	take := func(l *list, counter *uint64, which func(*image) bool) {
		for im := l.front; im != nil && want > 0; {
			next := im.next
			if im != keep && which(im) {
				t.forget(im)
				*counter++
				want--
			}
			im = next
		}
	}
	take(&t.dead, &t.stats.EvictedDead, func(im *image) bool { return im.round != t.round })
	if t.Len() > t.limit {
		take(&t.live, &t.stats.EvictedLive, func(im *image) bool { return im.forked })
	}
	if t.Len() > t.limit {
		take(&t.dead, &t.stats.EvictedDead, func(*image) bool { return true })
	}
	if t.Len() > t.limit {
		take(&t.live, &t.stats.EvictedLive, func(*image) bool { return true })
	}
}
