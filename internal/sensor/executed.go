package sensor

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/fanotify"
)

// executed keeps the descriptors of executables until it is known whether their digests are wanted: a program may use the
// network when its file is long unlinked, and may have ended when that is known. Only the loop uses it.
type executed struct {
	watch  *fanotify.Watch // nil: there is none
	reason error           // why
	limit  int             // of files
	files  map[event.FileID]*held
	order  []event.FileID  // of files, oldest first; some are gone
	fresh  []event.Process // execs whose descriptors were not looked for yet
	late   []lateExec
	// With Options.EveryExe: what is to be recorded.
	records   []event.Process
	backlog   []event.Process // whose digests are wanted when the queue has room
	lost      uint64          // descriptors closed because there were too many
	written   map[digest.Inode]writes
	forgot    time.Time // writes before it may be missing from written
	overflows uint64
	nonce     uint32 // see name
	closer    closer
}

// held is a descriptor that nobody wanted yet.
type held struct {
	digest.Descriptor
	inode fanotify.Inode
	idle  time.Time // since then no process runs it; zero: one does
}

// writes are when a file was seen to be written to, oldest first.
type writes struct {
	at  []time.Time
	cut bool // there were earlier ones
}

// writesMax bounds the writes that are remembered of a file: each but the first had an exec before it.
const writesMax = 64

func (w *writes) add(at time.Time) {
	if len(w.at) == writesMax {
		w.at = append(w.at[:0], w.at[1:]...)
		w.cut = true
	}
	w.at = append(w.at, at)
}

func (w *writes) last() time.Time {
	if len(w.at) == 0 {
		return time.Time{}
	}
	return w.at[len(w.at)-1]
}

// between reports whether there may have been a write from since to until.
func (w *writes) between(since, until time.Time) bool {
	if w.cut && since.Before(w.at[0]) {
		return true
	}
	return slices.ContainsFunc(w.at, func(at time.Time) bool { return !at.Before(since) && !at.After(until) })
}

// lateExec is an exec whose descriptor has not come yet.
type lateExec struct {
	process event.Process
	until   time.Time
}

const (
	// descriptorsMax bounds each of the two stores of descriptors: those that wait for their exec, those that wait to be wanted.
	descriptorsMax = 4096
	// lateMax and lateWait bound the execs that wait for their descriptor: those of layered file systems may come late.
	lateMax = 4096
	// recordsMax is how many executed programs wait for a recorder that is behind.
	recordsMax = 16384
	lateWait   = 50 * time.Millisecond
	// heldIdle is how long a descriptor is kept when no process runs its file any more: flows come within two drains.
	heldIdle = 5 * time.Second
	// writtenKept is how long a write is remembered: longer than any digest takes whose result depends on it.
	writtenKept = 10 * time.Minute
	writtenMax  = 16384
)

// openExecuted starts watching. Without fanotify the rest works, and says what it costs.
func (l *loop) openExecuted() {
	x := &l.executed
	x.files = map[event.FileID]*held{}
	x.written = map[digest.Inode]writes{}
	x.limit = descriptorLimit()
	o := fanotify.Options{Limit: x.limit, Close: x.closer.close, Room: x.closer.room, Known: func(id fanotify.Identity) bool {
		return l.digester.Known(digest.Inode(id.Inode), id.Ctime, id.Size)
	}}
	if l.o.EveryExe {
		// Its digest will be wanted: the sooner it is read, the less can have happened to it.
		o.Arrived = func() { _ = l.hooks.Wake() } // else it is read at the next drain
	}
	x.watch, x.reason = fanotify.New(o)
	if x.reason != nil {
		x.watch = nil
	}
}

// descriptorLimit is a quarter of RLIMIT_NOFILE ("Set RLIMIT_NOFILE") for each store: the rest is for everything else.
func descriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 64
	}
	return int(min(max(limit.Cur/4, 16), descriptorsMax))
}

func (x *executed) state() []event.Hook {
	if x.watch == nil {
		return fanotify.Off(x.reason)
	}
	return x.watch.State()
}

// settle takes in what was told until now. Any goroutine may call it.
func (x *executed) settle() {
	if x.watch != nil {
		_ = x.watch.Drain() // the loop's own call tells the error
	}
}

func (x *executed) close() error {
	for _, h := range x.files {
		x.shut(h.Descriptor)
	}
	clear(x.files)
	if x.watch == nil {
		return nil
	}
	return x.watch.Close()
}

// claim finds the descriptors of the execs that were reported since the last call.
func (l *loop) claim() {
	x := &l.executed
	l.wantBacklog()
	if x.watch == nil && l.o.EveryExe {
		x.records = append(x.records, x.fresh...)
	}
	if x.watch == nil {
		x.fresh = x.fresh[:0]
	}
	if len(x.fresh) == 0 && len(x.late) == 0 {
		return
	}
	l.drainWatch()
	n := len(x.fresh)
	// What these processes executed after it is known before it is judged: see unwritten.
	l.take(l.hooks.Processes(l))
	now := time.Now()
	layers := x.watch.Layered()
	done := func(p *event.Process) {
		if l.o.EveryExe {
			x.records = append(x.records, *p)
		}
	}
	late := x.late[:0]
	for _, e := range x.late {
		if !l.claimOne(&e.process) && now.Before(e.until) {
			late = append(late, e)
		} else {
			done(&e.process)
		}
	}
	for i := range n {
		p := &x.fresh[i]
		switch {
		case !l.claimOne(p) && layers && len(late) < lateMax:
			late = append(late, lateExec{*p, now.Add(lateWait)})
		default:
			done(p)
		}
	}
	x.late = late
	x.fresh = append(x.fresh[:0], x.fresh[n:]...) // their descriptors are looked for in the next call
}

// claimOne reports whether nothing more is to come for the exec.
func (l *loop) claimOne(p *event.Process) bool {
	x := &l.executed
	o, ok := x.watch.Claim(p.ID.PID, p.File)
	if !ok {
		if m, ok := l.digester.OpenMemory(*p); ok && x.files[p.File] == nil {
			x.hold(p.File, &held{Descriptor: m, inode: fanotify.Inode{Device: p.File.Device, Number: p.File.Inode}})
			return true
		}
		// Its content is known, so the descriptor was closed at once.
		return l.digester.Known(digest.Inode{Device: p.File.Device, Number: p.File.Inode}, p.File.Ctime, p.File.Size)
	}
	w := x.written[digest.Inode(o.Identity.Inode)]
	vouched := l.unwritten(&o, p) && !w.last().After(o.At)
	if !l.stream.knows(p.ID) {
		l.name(p, o.Version, vouched)
	}
	switch old := x.files[p.File]; {
	case o.FD < 0:
	case old != nil:
		x.shut(digest.Descriptor{FD: o.FD, Waits: o.Layered})
		old.idle = time.Time{}
		if vouched {
			old.Vouched, old.Since = true, o.At
		}
	default:
		x.hold(p.File, &held{Descriptor: digest.Descriptor{FD: o.FD, Vouched: vouched, Since: o.At, Waits: o.Layered}, inode: o.Identity.Inode})
	}
	return true
}

// name gives the file of p an identity that no other content has. The times that the kernel tells are those of a clock with ticks, so
// two contents may share them. The generation (which is any number) tells them apart: by the version that fanotify counts; and
// where nothing proves that the content is that of the version, by a number of its own, so that it gets nobody else's digest.
func (l *loop) name(p *event.Process, version uint32, vouched bool) {
	x := &l.executed
	file := p.File
	const spread = 0x9e3779b1 // odd: every version another
	file.Generation ^= version * spread
	if age := p.Started - p.Mtime; !vouched && age < int64(young) {
		x.nonce++
		file.Generation ^= x.nonce * 0x85ebca6b
	}
	if file != p.File {
		l.table.Amend(p.ID, func(known *event.Process) { known.File = file })
		p.File = file
	}
}

// unwritten reports whether nobody wrote to the file between its exec and the moment when its descriptor came and its writes were watched.
// Either it was watched before the exec; or the process still ran it then, and what runs cannot be written to (ETXTBSY); or the
// time of the last write is that of the exec, and so old that a write after it would have another: the clock of file systems has
// ticks. An unlink or a rename moves the change time only. (Who overwrites a file at once when its program has ended, and
// sets the time of the last write back, all before the watch, is not found out: docs/attribution.md.)
func (l *loop) unwritten(o *fanotify.Opened, p *event.Process) bool {
	if o.Identity.Size != p.File.Size {
		return false
	}
	if p.Started > o.Watched.Add(clockError).UnixNano() || o.Mtime == p.Mtime && p.Started-p.Mtime > int64(young) {
		return true
	}
	next := p.ID
	next.Exec++ // task_struct.self_exec_id
	after, ok := l.table.Resolve(next)
	return o.Ran && !(ok && after.Started < o.At.Add(clockError).UnixNano())
}

const (
	// young is more than the longest tick of a file system's clock (10 ms).
	young = 20 * time.Millisecond
	// clockError is how far the kernel's time of an exec, as wall clock, may be off.
	clockError = time.Millisecond
)

// hold keeps a descriptor. When there are too many the oldest goes.
func (x *executed) hold(file event.FileID, h *held) {
	for len(x.files) >= x.limit && len(x.order) > 0 {
		oldest := x.order[0]
		x.order = x.order[1:]
		if old := x.files[oldest]; old != nil {
			x.lost++
			x.shut(old.Descriptor)
			delete(x.files, oldest)
		}
	}
	x.files[file] = h
	x.order = append(x.order, file)
}

// shut closes a descriptor, and does not wait for its file system.
func (x *executed) shut(d digest.Descriptor) {
	if d.Waits {
		x.closer.close(d.FD)
		return
	}
	unix.Close(d.FD)
}

// descriptor gives away the one of a file.
func (x *executed) descriptor(file event.FileID) digest.Descriptor {
	h := x.files[file]
	if h == nil {
		return digest.None()
	}
	delete(x.files, file)
	return h.Descriptor
}

// record tells of the programs that were executed, when all of them are to be told; at the end also of those that are too many.
func (l *loop) record(end bool) {
	x := &l.executed
	for n := 0; n < len(x.records); n++ {
		// While the recorder or the digester is behind they wait here, as counts wait in the kernel.
		if waiting := len(x.records) - n; !end && waiting < recordsMax && (l.out.Full() || l.digester.Room() == 0) {
			x.records = append(x.records[:0], x.records[n:]...)
			return
		}
		p := x.records[n]
		l.announce(p)
		l.stream.flow(&event.Flow{Process: p.ID, UID: p.UID, Family: event.FamilyExec, Conns: 1})
		if l.stream.large() {
			l.closeBatch(false)
		}
	}
	clear(x.records)
	x.records = x.records[:0]
}

// flush gives up waiting for descriptors: it is the end.
func (x *executed) flush(every bool) {
	for _, e := range x.late {
		if every {
			x.records = append(x.records, e.process)
		}
	}
	if every {
		x.records = append(x.records, x.fresh...)
	}
	x.late, x.fresh = nil, nil
}

// want asks for the digest of what p executes.
func (l *loop) want(p event.Process) {
	x := &l.executed
	if l.digester.Room() == 0 && len(x.backlog) < x.limit {
		x.backlog = append(x.backlog, p) // its descriptor stays
		return
	}
	if e, known := l.digester.WantFile(p, x.descriptor(p.File)); known {
		l.executable(e)
	}
}

func (l *loop) wantBacklog() {
	x := &l.executed
	n := min(len(x.backlog), l.digester.Room())
	for _, p := range x.backlog[:n] {
		l.want(p)
	}
	x.backlog = append(x.backlog[:0], x.backlog[n:]...)
}

// drainWatch takes in what fanotify has to say.
func (l *loop) drainWatch() {
	x := &l.executed
	if x.watch == nil {
		return
	}
	if err := x.watch.Drain(); err != nil {
		l.notice("error", err.Error(), "digests of programs that end at once may be missing; please report this")
	}
	for _, c := range x.watch.Changes() {
		l.written(&c)
	}
	if s := x.watch.Stats(); s.Overflows != x.overflows {
		x.overflows = s.Overflows
		l.digester.ForgetAll()
		x.forgetWrites()
		l.notice("error", "the kernel dropped notices of executed and changed files: no digest that was made before is trusted any more", "the machine is short of memory")
	}
}

// forgetWrites leaves nothing that rests on what files were not written to until now.
func (x *executed) forgetWrites() {
	clear(x.written)
	x.forgot = time.Now()
	for _, h := range x.files {
		h.Vouched = false
	}
}

// written tells of a known executable that somebody wrote to.
func (l *loop) written(c *fanotify.Change) {
	x := &l.executed
	inode := digest.Inode(c.Inode)
	l.digester.Forget(inode)
	if len(x.written) >= writtenMax {
		x.forgetWrites()
	}
	w := x.written[inode]
	w.add(c.At)
	x.written[inode] = w
	for _, h := range x.files {
		if h.inode == c.Inode {
			h.Vouched = false
		}
	}
	e := event.Modified{Path: event.Text([]byte(c.Path)), File: event.FileID{Device: c.Device, Inode: c.Number}}
	if path, file, ok := l.stream.fileAt(c.Device, c.Number); ok {
		e.Path, e.File = path, file
	}
	if p, ok := l.table.Newest(c.PID); ok {
		l.announce(p)
		e.By = p.ID
	}
	l.tally.modified++
	l.stream.write(&event.Event{Modified: &e})
}

// vouches reports whether the content that a digest was made of is that of the exec, whatever became of the change time: it was at
// some moment, and nobody wrote since; or the process still runs it. What was written before the end of the reading must have been taken in.
func (l *loop) vouches(r *digest.Result) bool {
	if w := l.executed.written[r.Source]; w.between(r.Since, r.Ended) {
		return false
	}
	if r.Vouched && r.Since.After(l.executed.forgot) && r.Ended.Sub(r.Since) < writtenKept {
		return true
	}
	if r.Unconfirmed == "" {
		return false
	}
	l.take(l.hooks.Processes(l)) // the ends of processes until now
	return l.runs(r.Process)
}

// sweepExecuted closes descriptors that nobody will want.
func (l *loop) sweepExecuted(now time.Time) {
	x := &l.executed
	if x.watch != nil {
		x.watch.Expire(now)
		if why := x.watch.Hung(); why != "" {
			l.notice("warning", "fanotify: "+why, "programs that end at once may have no hash there; find who mounted it")
		}
	}
	if x.closer.hangs() {
		l.notice("warning", "the file system of an executed file does not answer when the file is closed", "programs in containers that end at once may have no hash; find who mounted it")
	}
	runs := make(map[event.FileID]bool, len(x.files))
	if len(x.files) > 0 {
		for id := range l.table.Live() {
			if p, ok := l.table.Resolve(id); ok {
				runs[p.File], runs[p.ScriptFile] = true, true
			}
		}
	}
	order := x.order[:0]
	for _, file := range x.order {
		h := x.files[file]
		switch {
		case h == nil:
			continue
		case runs[file]:
			h.idle = time.Time{}
		case h.idle.IsZero():
			h.idle = now
		case now.Sub(h.idle) > heldIdle:
			x.shut(h.Descriptor)
			delete(x.files, file)
			continue
		}
		order = append(order, file)
	}
	x.order = order
	for inode, w := range x.written {
		if now.Sub(w.last()) > writtenKept {
			delete(x.written, inode)
		}
	}
}

// lostDescriptors counts the files that were executed and could not be had.
func (x *executed) lostDescriptors() uint64 {
	if x.watch == nil {
		return x.lost
	}
	s := x.watch.Stats()
	return s.Failed + s.Dropped + s.Missed + x.lost
}

// elsewhere asks for the file systems of the mount namespace that p is in. It does not wait.
func (l *loop) elsewhere(p *event.Process) {
	if x := &l.executed; x.watch != nil && p.MountNS != 0 {
		x.watch.Elsewhere(p.ID.PID, p.MountNS)
	}
}

func (l *loop) tellExecuted() {
	for _, h := range l.executed.state() {
		if !h.Attached {
			l.notice("warning", fmt.Sprintf("%s: %s; not to be had: %s", h.Name, h.Error, h.Cost), "run `picosnitch doctor`")
		}
	}
}
