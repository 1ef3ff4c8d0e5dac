// Package identity is the sensor's process table: which program image is behind an id that the kernel side
// reports, and which images forked it. It belongs to the root wing, is fed with plain calls from the kernel's exec,
// fork and exit reports, and answers from memory. It reads no file, knows no clock, hashes nothing, and has no lock:
// one goroutine owns a Table.
//
// A process is (pid, start time); each exec gives it another image. The parent of an image is the image that
// forked its process, not the one that adopted it later, so a daemon still names the shell that started it.
// Images that ended are kept for a grace, because flows of theirs may still come, and as long as one of the
// nearest descendants (MaxAncestors deep) runs.
package identity

import (
	"iter"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	// DefaultLimit is the number of images that a Table holds at most. A fork child costs about 200 bytes.
	DefaultLimit = 65536
	// DefaultGrace is how long an image stays after its end.
	DefaultGrace = 10 * time.Second
	// MaxAncestors is the length of the chain that Ancestors returns and that Sweep keeps for the living.
	MaxAncestors = 8
	// tick is the unit of the start time in /proc/PID/stat (USER_HZ is 100 on every architecture we build for).
	tick = uint64(10 * time.Millisecond)
)

// Options are the bounds of a Table; zero values mean the defaults.
type Options struct {
	Limit int           // images, at least 16
	Grace time.Duration // between the first Sweep that sees an image ended and its being forgotten
}

// Stats are totals since New, but for the first three, which are now.
type Stats struct {
	Images         int    // in the table
	Live           int    // newest images of processes that run
	Limit          int    // of Images
	EvictedDead    uint64 // ended images that were forgotten before their time because the table was full
	EvictedLive    uint64 // running images that were forgotten because the table was full
	UnknownParents uint64 // forks and execs whose parent was not known
	UnknownExits   uint64 // exits of processes that were not known
}

// facts is what one exec told; the image and all fork descendants that did not exec share it. Only the image for
// which it was made fills it, so children of an image that is learned late learn it too.
type facts struct {
	owner   *image
	process *event.Process // nil: not known. ID, Parent, Source and Started are the owner's
	same    *facts         // instead of these: the owner turned out to be a fork of another image
}

// root is where the facts really are.
func (f *facts) root() *facts {
	for f.same != nil {
		f = f.same
	}
	return f
}

// image is one program image in one process.
type image struct {
	id      event.ProcessID // as it appears on lines; never changes
	exec    uint32          // as id.Exec, but learned later for a coarse image
	coarse  bool            // from /proc: exec is not known yet
	forked  bool            // shares the facts of its parent
	ended   bool            // in the list of the dead
	gone    bool            // forgotten: only pointers of children lead here, until the next mark
	need    uint8           // ancestors above it that living descendants need, plus one; valid in round
	round   uint32          // the mark that set need
	source  string
	started int64 // wall clock
	since   int64 // the first Sweep that saw it ended
	swept   bool  // since is set
	facts   *facts
	proc    *process

	prev, next *image // in the list of the living (by age) or of the dead (by death)
}

// process is one thread group.
type process struct {
	key    key
	start  uint64 // ns since boot; of coarse ones the beginning of the tick
	coarse bool   // start is only known to the tick
	forked bool   // parent is from the fork itself
	dead   bool   // final: the kernel never gives the same (pid, start) again
	parent *image
	images []*image // by exec, ascending; the last is the newest
	next   *process // same pid, same tick
}

// key finds exact and coarse processes with one lookup.
type key struct {
	pid  uint32
	tick uint64
}

// Table is the process table. Make it with New.
type Table struct {
	limit     int
	grace     int64
	procs     map[key]*process
	live      list
	dead      list
	round     uint32
	forgotten []event.ProcessID // evicted since the last Sweep
	stats     Stats
}

// New returns an empty Table.
func New(o Options) *Table {
	if o.Limit <= 0 {
		o.Limit = DefaultLimit
	}
	o.Limit = max(o.Limit, 16)
	if o.Grace <= 0 {
		o.Grace = DefaultGrace
	}
	return &Table{limit: o.Limit, grace: int64(o.Grace), procs: make(map[key]*process)}
}

// Exec records a new image: p.ID and what the kernel told at the exec. The parent is that of the fork that the
// table saw; only when it saw none, p.Parent is taken (the kernel's real parent at the exec, which may be an
// adopter), else that of the process's earlier image stays. p's strings are kept, not copied.
func (t *Table) Exec(p event.Process) {
	if p.ID.IsZero() {
		return
	}
	pr := t.process(p.ID)
	im := pr.image(p.ID.Exec)
	if im == nil {
		im = t.adopt(pr, &p)
	}
	if im == nil {
		im = t.add(pr, p.ID, p.ID.Exec)
	}
	t.setParent(pr, p.Parent, false)
	t.fill(im, &p)
}

// Fork records that parent made child at the wall clock at (ns since 1970). The child has the parent's image
// until it execs. A parent that is not known becomes an image with event.SourceUnknown: Exec or Found for it tells the
// child too.
func (t *Table) Fork(child, parent event.ProcessID, at int64) {
	if child.IsZero() {
		return
	}
	pr := t.process(child)
	t.setParent(pr, parent, true)
	im := pr.image(child.Exec)
	if im != nil && im.facts.root().process != nil {
		return
	}
	fresh := im == nil
	if fresh {
		im = t.add(pr, child, child.Exec)
	}
	im.started, im.source, im.forked = at, event.SourceFork, true
	from := pr.up()
	if from == nil || from.exec != im.exec { // an exec of either lies between
		return
	}
	if f := from.facts.root(); fresh {
		im.facts = f
	} else if own := im.facts.root(); own != f {
		own.same = f // its own forks came first, and share what it now gets
	}
}

// Exit records the end of a whole process. id.Exec is that of its last image, but all its images end. An end is
// final; of an unknown process it is remembered for the grace, in case its fork or exec comes later.
func (t *Table) Exit(id event.ProcessID) {
	if id.IsZero() {
		return
	}
	pr := t.find(id)
	if pr == nil {
		t.stats.UnknownExits++
		pr = t.process(id)
		t.add(pr, id, id.Exec)
	}
	if pr.dead {
		return
	}
	pr.dead = true
	for _, im := range pr.images {
		t.end(im)
	}
}

// Found records a process that ran before the sensor, or whose exec report was lost. It never changes what Exec
// or Fork told. An id from /proc (Exec 0, Start at the beginning of a 10 ms tick) stands for the process of the same pid
// that started within that tick: when that one is known it adds nothing, else Resolve maps the exact id to it.
func (t *Table) Found(p event.Process) {
	if p.ID.IsZero() {
		return
	}
	coarse := p.Source == event.SourceProcfs && isCoarse(p.ID)
	pr := t.find(p.ID)
	if pr == nil {
		pr = t.process(p.ID)
		pr.coarse = coarse
	}
	im := pr.match(p.ID)
	if im == nil {
		im = t.add(pr, p.ID, p.ID.Exec)
		im.coarse = coarse
	}
	t.setParent(pr, p.Parent, false)
	if im.facts.root().process == nil {
		t.fill(im, &p)
	}
}

// Resolve returns the program image behind id without allocating. The returned Process.ID is the one that lines must
// name: it differs from id for processes that are known from /proc only (see Found). False means that the
// program is not known; then ID, Parent, Started and Source (event.SourceUnknown) are still filled when the table met
// the process, else the Process is zero.
func (t *Table) Resolve(id event.ProcessID) (event.Process, bool) {
	im := t.lookup(id)
	if im == nil {
		return event.Process{}, false
	}
	return im.process(), im.facts.root().process != nil
}

// Amend changes what is known of an image that was told with Exec or Found: the image and all that were forked of it share it.
// The change must not touch ID, Parent, Started and Source. False: the image is not known (any more), or it is a fork.
func (t *Table) Amend(id event.ProcessID, change func(*event.Process)) bool {
	im := t.lookup(id)
	if im == nil {
		return false
	}
	f := im.facts.root()
	if f.process == nil || f.owner != im {
		return false
	}
	change(f.process)
	return true
}

// Newest returns the newest image that the table has of a pid: of the process that runs under it, or of the last that did. It
// looks through the whole table: it is for what is rare.
func (t *Table) Newest(pid uint32) (event.Process, bool) {
	var newest *process
	for k, pr := range t.procs {
		if k.pid != pid {
			continue
		}
		for ; pr != nil; pr = pr.next {
			if newest == nil || pr.start > newest.start {
				newest = pr
			}
		}
	}
	if newest == nil || pid == 0 {
		return event.Process{}, false
	}
	im := newest.images[len(newest.images)-1]
	return im.process(), im.facts.root().process != nil
}

// Ancestors returns the images that forked id, its parent's parent and so on, nearest first, at most MaxAncestors. Those
// of which only the number is known have event.SourceUnknown. Those that skip, if it is not nil, is
// true for are left out.
func (t *Table) Ancestors(id event.ProcessID, skip func(event.ProcessID) bool) []event.Process {
	im := t.lookup(id)
	if im == nil {
		return nil
	}
	var chain []event.Process
	up := im.proc.up()
	for n := 0; up != nil && n < MaxAncestors; n++ {
		if skip == nil || !skip(up.id) {
			chain = append(chain, up.process())
		}
		up = up.proc.up()
	}
	return chain
}

// Sweep forgets the images that ended longer than the grace ago and that no living descendant needs as an ancestor. It
// returns their ids, and the ids of those that had to be evicted since the last Sweep (which may still
// run: Found may bring them back). now is nanoseconds of any clock that does not go back; only its differences count.
func (t *Table) Sweep(now int64) []event.ProcessID {
	for im := t.dead.back; im != nil && !im.swept; im = im.prev {
		im.since, im.swept = now, true
	}
	if im := t.dead.front; im != nil && now-im.since > t.grace {
		t.mark()
		// Those within their grace may not have been told yet: then their ancestors are told with them.
		for young := t.dead.back; young != nil && now-young.since <= t.grace; young = young.prev {
			t.climb(young)
		}
		for im != nil && now-im.since > t.grace {
			next := im.next
			if im.round != t.round {
				t.forget(im)
			}
			im = next
		}
	}
	out := t.forgotten
	t.forgotten = nil
	return out
}

// Live yields the newest image of every process that runs as far as the table knows, in no order. Exit may be
// called meanwhile: this is for comparing with /proc when exit reports were lost.
func (t *Table) Live() iter.Seq[event.ProcessID] {
	return func(yield func(event.ProcessID) bool) {
		for _, pr := range t.procs {
			for ; pr != nil; pr = pr.next {
				if !pr.dead && !yield(pr.images[len(pr.images)-1].id) {
					return
				}
			}
		}
	}
}

// All yields every image that the table holds, ancestors before the images that name them: what a recorder that was
// started again may have to be told. Those of which only the number is known have event.SourceUnknown. The table
// must not be changed meanwhile.
func (t *Table) All() iter.Seq[event.Process] {
	return func(yield func(event.Process) bool) {
		told := make(map[*image]bool, t.Len())
		var chain []*image
		for _, l := range []*list{&t.dead, &t.live} {
			for im := l.front; im != nil; im = im.next {
				chain = chain[:0]
				for up := im; up != nil && !told[up]; up = up.proc.up() {
					told[up] = true
					chain = append(chain, up)
				}
				for _, im := range slices.Backward(chain) {
					if !yield(im.process()) {
						return
					}
				}
			}
		}
	}
}

// Len is the number of images.
func (t *Table) Len() int { return t.live.n + t.dead.n }

// Stats returns the state and the counts.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Images, s.Live, s.Limit = t.Len(), t.live.n, t.limit
	return s
}

// process is the image as a line tells it.
func (im *image) process() event.Process {
	f := im.facts.root()
	p := event.Process{Source: event.SourceUnknown}
	if f.process != nil {
		p = *f.process
		p.Source = im.source
	}
	p.ID, p.Parent, p.Started = im.id, event.ProcessID{}, im.started
	if up := im.proc.up(); up != nil {
		p.Parent = up.id
	}
	return p
}
