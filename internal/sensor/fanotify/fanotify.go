// Package fanotify has the kernel hand over a descriptor of every file that is executed, and tells when one of them is
// written to. It belongs to the root wing. The descriptor is of the very file that was executed, also when the program
// has ended and its file has no name any more; fanotify(7) gives it by the number of the process, and Claim
// finds it for an exec that the hooks reported. It reads no file, follows mounts as they appear, decides nothing about what is
// hashed (package sensor does), and never holds a program up: it asks for notices, not for permissions.
//
// A descriptor keeps its file system busy: each must be claimed or is closed after a while.
package fanotify

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Defaults of Options.
const (
	DefaultMountinfo = "/proc/self/mountinfo"
	DefaultLimit     = 1024
	DefaultAge       = 10 * time.Second
	DefaultMarked    = 65536
)

// arrivalsMax is how many execs wait for their report at most, per descriptor of Options.Limit.
const arrivalsMax = 8

// Options of New; zero values mean the defaults.
type Options struct {
	Mountinfo string        // the mounts to follow
	Limit     int           // descriptors that wait to be claimed, at most; the oldest goes first
	Age       time.Duration // how long a descriptor waits to be claimed
	Marked    int           // executables whose change is watched at most
	// Bounded leaves the kernel's queue its usual bound (/proc/sys/fs/fanotify/max_queued_events) instead of none: for tests.
	Bounded bool
	// Known reports whether the content of a file needs no reading. It may be called by any goroutine that drains.
	Known func(Identity) bool
	// Close closes a descriptor of a layered file system without waiting: it may not answer. Room reports whether there may be more of
	// them. nil: close(2), and always.
	Close func(int)
	Room  func() bool
	// Arrived is called, if it is set, after a descriptor came that waits to be claimed. It must not call back.
	Arrived func()
}

// Identity is a file as stat(2) tells it. While its executables are watched, an equal Identity means equal bytes.
type Identity struct {
	Inode
	Ctime int64 // ns since 1970
	Size  int64 // bytes
}

// Inode is (st_dev, st_ino).
type Inode struct {
	Device uint64
	Number uint64
}

// IdentityOf returns what stat told.
func IdentityOf(st *unix.Stat_t) Identity {
	return Identity{Inode{st.Dev, st.Ino}, st.Ctim.Nano(), st.Size}
}

// Opened is a descriptor of a file that was executed. Who gets it closes it.
type Opened struct {
	FD       int       // -1: its content is known (Options.Known)
	Identity Identity  // after its change was watched
	Mtime    int64     // ns since 1970
	At       time.Time // when it came: writes that are told later came later
	// Watched is since when every write to the file is told.
	Watched time.Time
	// Version differs between contents that were told to be different; the times of a file may not.
	Version uint32
	// Ran is true when the process that opened the file had not ended At: if it had not executed another file either, nobody can have
	// written to this one before.
	Ran     bool
	Layered bool // on overlayfs: Identity is not what the kernel has of the file behind it
}

// Change is a known executable that was written to. It is told once; the file is known again when it is executed again.
type Change struct {
	Inode
	PID  uint32 // who wrote; 0 if that process is not in our pid namespace
	Path string // as this process sees it, raw
	At   time.Time
}

// Stats are totals since New, but for the last two, which are now.
type Stats struct {
	Execs     uint64 // files that were opened to be executed
	Changes   uint64
	Overflows uint64 // the kernel dropped events: no one knows which
	Failed    uint64 // events without a descriptor: the file could not be opened
	Dropped   uint64 // descriptors closed because more waited than Limit, and that nobody had claimed before
	Missed    uint64 // mount namespaces that were executed in and not looked at: too many others hold that up
	Waiting   int
	Marked    int
}

// Watch is a set of fanotify groups. Make it with New, and call Run.
type Watch struct {
	o      Options
	groups []*group
	mounts *mounts
	walks  *walks

	mu       sync.Mutex // guards all below
	arrived  map[uint32][]arrival
	files    map[Identity]*file // of arrivals
	order    []uint32           // pids of arrivals, oldest first; some are claimed already
	first    int                // of order
	marked   map[Inode]mark
	versions map[Inode]uint32
	version  uint32  // the greatest
	base     uint32  // of files that are not in versions
	rotation []Inode // of marked, oldest first
	changes  []Change
	stats    Stats
	lastErr  error // of a descriptor that could not be had
}

// mark is a file whose writes are told.
type mark struct {
	identity Identity
	since    time.Time
}

// arrival is an exec that was told and not claimed.
type arrival struct {
	file *file
	at   time.Time
	ran  bool
	// watched and version are Opened's.
	watched time.Time
	version uint32
}

// file is a descriptor that arrivals share: all dynamic programs load the same loader.
type file struct {
	Opened
	arrivals int
	claimed  bool
}

// New asks the kernel for notices of every file system that is mounted now. The error wraps ErrUnavailable when the
// kernel has no such notices, or refuses them.
func New(o Options) (*Watch, error) {
	if o.Mountinfo == "" {
		o.Mountinfo = DefaultMountinfo
	}
	if o.Limit <= 0 {
		o.Limit = DefaultLimit
	}
	if o.Age <= 0 {
		o.Age = DefaultAge
	}
	if o.Marked <= 0 {
		o.Marked = DefaultMarked
	}
	if o.Known == nil {
		o.Known = func(Identity) bool { return false }
	}
	w := &Watch{o: o, arrived: map[uint32][]arrival{}, files: map[Identity]*file{}, marked: map[Inode]mark{}, versions: map[Inode]uint32{}}
	for _, kind := range []kind{local, layered} {
		g, err := newGroup(kind, o.Bounded)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnavailable, err), w.Close())
		}
		w.groups = append(w.groups, g)
	}
	w.mounts = newMounts(w.groups)
	w.walks = newWalks(w.mounts.visit)
	if err := w.mounts.read(o.Mountinfo); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if w.mounts.marked() == 0 {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnavailable, w.mounts.err()), w.Close())
	}
	return w, nil
}

// ErrUnavailable is returned by New.
var ErrUnavailable = errors.New("fanotify is not to be had")

// Close gives all descriptors back. Run must have ended.
func (w *Watch) Close() error {
	var errs []error
	for _, g := range w.groups {
		errs = append(errs, g.close())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.files {
		w.shut(f.FD, f.Layered)
	}
	clear(w.arrived)
	clear(w.files)
	w.order, w.first = nil, 0
	return errors.Join(errs...)
}

// Layered reports whether there are file systems whose descriptors may come later than the exec is known.
func (w *Watch) Layered() bool {
	w.mounts.mu.Lock()
	defer w.mounts.mu.Unlock()
	return w.mounts.layers
}

// Drain takes in every notice that came before the call, as far as a file system cannot hold it up: those of layered file
// systems are taken in by Run alone.
func (w *Watch) Drain() error {
	return w.groups[local].drain(w)
}

// Claim returns the descriptor of the file that a process executed, if it is there. Others of that process that are older
// were opened on the way to it (a script, an earlier program) and are closed.
func (w *Watch) Claim(pid uint32, file event.FileID) (Opened, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	as := w.arrived[pid]
	for i := range as {
		if !matches(&as[i].file.Opened, file) {
			continue
		}
		o, ok := as[i].file.Opened, true
		o.At, o.Ran, o.Watched = as[i].at, as[i].ran, as[i].watched
		as[i].file.claimed = true
		o.Version = as[i].version
		switch {
		case o.FD < 0:
		case as[i].file.arrivals > 1:
			fd, err := unix.FcntlInt(uintptr(o.FD), unix.F_DUPFD_CLOEXEC, 0)
			o.FD, ok = fd, err == nil
			if err != nil {
				w.stats.Failed++
				w.lastErr = err
			}
		default:
			delete(w.files, o.Identity) // it is the caller's now
			as[i].file.FD = -1
		}
		for _, a := range as[:i+1] {
			w.release(a.file)
		}
		if rest := as[i+1:]; len(rest) > 0 {
			w.arrived[pid] = rest
		} else {
			delete(w.arrived, pid)
		}
		return o, ok
	}
	return Opened{}, false
}

// release is for an arrival that is no more. It reports whether that closed the descriptor. w.mu is held.
func (w *Watch) release(f *file) bool {
	f.arrivals--
	if f.arrivals > 0 || f.FD < 0 {
		return false
	}
	w.shut(f.FD, f.Layered)
	delete(w.files, f.Identity)
	return true
}

// shut closes a descriptor. It may be called with w.mu held.
func (w *Watch) shut(fd int, layered bool) {
	if layered && w.o.Close != nil {
		w.o.Close(fd)
		return
	}
	unix.Close(fd)
}

// matches reports whether a descriptor is of the file that the kernel executed. Since the notice keeps the file, no other
// can have its inode number; what became of the content is another question. On overlayfs stat tells a device of its own, and
// the number of the lower file also after it was copied up.
func matches(o *Opened, file event.FileID) bool {
	if o.Layered {
		return o.Identity.Ctime == file.Ctime && o.Identity.Size == file.Size
	}
	return o.Identity.Number == file.Inode && o.Identity.Device == file.Device
}

// Changes returns the changes since the last call, oldest first.
func (w *Watch) Changes() []Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.changes
	w.changes = nil
	return c
}

// Stats returns the counts.
func (w *Watch) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Waiting, s.Marked = len(w.files), len(w.marked)
	s.Missed = w.walks.missed()
	return s
}

// Failure returns why the last descriptor could not be had, or nil.
func (w *Watch) Failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastErr
}

// Expire closes the descriptors that nobody claimed in time: those of scripts and of the loaders of programs.
func (w *Watch) Expire(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire(now, w.o.Limit)
}

// expire makes room. w.mu is held.
func (w *Watch) expire(now time.Time, limit int) {
	for w.first < len(w.order) {
		pid := w.order[w.first]
		as := w.arrived[pid]
		if len(as) == 0 { // all claimed
			w.first++
			continue
		}
		// order has an entry for each arrival, and claims take the oldest: the first of this pid is at least as young as the entry.
		old := now.Sub(as[0].at) > w.o.Age
		if !old && len(w.files) <= limit && len(w.order)-w.first <= arrivalsMax*limit {
			break
		}
		if f := as[0].file; w.release(f) && !old && !f.claimed {
			w.stats.Dropped++
		}
		if len(as) == 1 {
			delete(w.arrived, pid)
		} else {
			w.arrived[pid] = as[1:]
		}
		w.first++
	}
	if w.first > len(w.order)/2 {
		w.order = append(w.order[:0], w.order[w.first:]...)
		w.first = 0
	}
}

// take keeps or closes what an event brought.
func (w *Watch) take(g *group, mask uint64, fd int, pid int32, pidfd int) {
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if mask&unix.FAN_Q_OVERFLOW != 0 {
		w.mu.Lock()
		w.stats.Overflows++
		clear(w.marked)
		w.rotation = nil
		// Writes may be among what was dropped: every content may be another one than before.
		w.version++
		w.base = w.version
		clear(w.versions)
		w.mu.Unlock()
		return
	}
	if fd < 0 {
		w.mu.Lock()
		w.stats.Failed++
		w.lastErr = unix.Errno(-fd)
		w.mu.Unlock()
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		w.mu.Lock()
		w.stats.Failed++
		w.lastErr = err
		w.mu.Unlock()
		return
	}
	if mask&(unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE) != 0 {
		w.changed(g, fd, pid, &st)
	}
	if mask&unix.FAN_OPEN_EXEC == 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return
	}
	w.executed(g, fd, pid, pidfd, &st)
}

func (w *Watch) executed(g *group, fd int, pid int32, pidfd int, st *unix.Stat_t) {
	id := IdentityOf(st)
	w.mu.Lock()
	w.stats.Execs++
	m, watched := w.marked[id.Inode]
	w.mu.Unlock()
	// The kernel may have forgotten the file meanwhile, and the mark with it.
	watched = watched && m.identity == id && g.watches(fd)
	known := watched && w.o.Known(id)
	if !watched {
		// First the watch, then the look: whatever is written later is told.
		if err := g.watchFile(fd); err == nil {
			if err := unix.Fstat(fd, st); err == nil {
				id = IdentityOf(st)
			}
			m = w.remember(id)
		} else {
			m = mark{since: time.Now().Add(time.Hour)} // never
		}
	}
	ran := runs(pidfd)
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.files[id]
	switch {
	case known:
		w.shut(fd, g.kind == layered)
		f = &file{Opened: Opened{FD: -1, Identity: id, Mtime: st.Mtim.Nano(), Layered: g.kind == layered}}
	case f == nil:
		f = &file{Opened: Opened{FD: fd, Identity: id, Mtime: st.Mtim.Nano(), Layered: g.kind == layered}}
		w.files[id] = f
	default:
		w.shut(fd, g.kind == layered)
	}
	f.arrivals++
	version, ok := w.versions[id.Inode]
	if !ok {
		version = w.base
	}
	w.arrived[uint32(pid)] = append(w.arrived[uint32(pid)], arrival{f, now, ran, m.since, version})
	w.order = append(w.order, uint32(pid))
	w.expire(now, w.o.Limit)
	if !known && w.o.Arrived != nil {
		w.o.Arrived()
	}
}

// remember that the file's change is watched.
func (w *Watch) remember(id Identity) mark {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.marked[id.Inode]; !ok {
		for len(w.rotation) >= w.o.Marked {
			delete(w.marked, w.rotation[0])
			w.rotation = w.rotation[1:]
		}
		w.rotation = append(w.rotation, id.Inode)
	}
	m := mark{id, time.Now()}
	w.marked[id.Inode] = m
	return m
}

// changed tells of the first write to a watched file, and watches it no longer: a program that writes to it
// byte by byte must not keep us busy.
func (w *Watch) changed(g *group, fd int, pid int32, st *unix.Stat_t) {
	id := IdentityOf(st)
	first := g.unwatchFile(fd) // the kernel's word: of many files not all marks are remembered
	w.mu.Lock()
	delete(w.marked, id.Inode)
	w.mu.Unlock()
	if !first {
		return // told already
	}
	path := linkOf(fd)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Changes++
	if len(w.versions) >= w.o.Marked {
		clear(w.versions)
		w.base = w.version
	}
	w.version++
	w.versions[id.Inode] = w.version
	w.changes = append(w.changes, Change{Inode: id.Inode, PID: uint32(max(pid, 0)), Path: path, At: time.Now()})
}
