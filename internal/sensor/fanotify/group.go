package fanotify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kind of a file system: one group each, because the kernel opens the files while a group is read.
type kind int

const (
	local   kind = iota // opening a file that was open a moment ago waits for nobody
	layered             // overlayfs: its layers may be anything, also a file system whose server does not answer
	foreign             // FUSE, network: not asked for; whoever serves it could hold us up
	pseudo              // nothing is executed from it
	kinds   = 2         // with groups
)

// reportFDError is FAN_REPORT_FD_ERROR (Linux 6.13): an event whose file cannot be opened is told, with the error.
const reportFDError = 0x2000

// pidfdInfo is the size of struct fanotify_event_info_pidfd.
const pidfdInfo = 8

// group is a fanotify descriptor.
type group struct {
	kind      kind
	evictable uint // FAN_MARK_EVICTABLE, or 0 before Linux 5.19
	batch     int  // events a read: one, where an event without a descriptor would end a read without a word

	fd     int
	mu     sync.Mutex // of buf and closed; held while the kernel opens files
	buf    []byte
	closed bool
	done   atomic.Bool // fd is not to be used any more
	// reading is since when read(2) is under way, in ns since 1970, or 0: it may hang in a file system.
	reading atomic.Int64
}

func newGroup(k kind, bounded bool) (*group, error) {
	flags := uint(unix.FAN_CLASS_NOTIF | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS | unix.FAN_REPORT_PIDFD)
	if bounded {
		flags &^= unix.FAN_UNLIMITED_QUEUE
	}
	const open = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOATIME
	g := &group{kind: k, evictable: unix.FAN_MARK_EVICTABLE, batch: 64}
	var err error
	g.fd, err = unix.FanotifyInit(flags|reportFDError, open)
	if errors.Is(err, unix.EINVAL) {
		g.batch = 1
		g.fd, err = unix.FanotifyInit(flags, open)
	}
	if errors.Is(err, unix.EINVAL) { // before Linux 5.15
		g.fd, err = unix.FanotifyInit(flags&^unix.FAN_REPORT_PIDFD, open)
	}
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	g.buf = make([]byte, g.batch*(int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))+pidfdInfo))
	return g, nil
}

// close gives the descriptor back, but for that of a group whose read hangs.
func (g *group) close() error {
	g.done.Store(true)
	if g.kind == local {
		g.mu.Lock()
	} else if !g.mu.TryLock() {
		return nil // it hangs in a file system; the end of the process closes it
	}
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	return unix.Close(g.fd)
}

// crowded is the pause when there are too many descriptors that cannot be closed.
const crowded = 50 * time.Millisecond

// readSlow is after how long a read is said to hang.
const readSlow = 5 * time.Second

// hangs reports whether a read does not come back.
func (g *group) hangs() bool {
	since := g.reading.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > readSlow
}

// watchSystem asks for the executed files of the file system that path is on.
func (g *group) watchSystem(dir int, path string) error {
	if g.done.Load() {
		return unix.EBADF
	}
	return unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN_EXEC, dir, path)
}

const written = unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE

// watchFile asks for the writes to one file. The mark goes with the inode when the kernel needs its memory; the
// change time tells of a write then.
func (g *group) watchFile(fd int) error {
	err := unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|g.evictable, written, fd, "")
	if errors.Is(err, unix.EINVAL) && g.evictable != 0 {
		g.evictable = 0
		err = unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD, written, fd, "")
	}
	return err
}

// unwatchFile reports whether the file was watched.
func (g *group) unwatchFile(fd int) bool {
	return unix.FanotifyMark(g.fd, unix.FAN_MARK_REMOVE, written, fd, "") == nil
}

// watches reports whether a file is watched: of a mark that is not there the kernel cannot take away what none has (fanotify_remove_mark: ENOENT).
func (g *group) watches(fd int) bool {
	return unix.FanotifyMark(g.fd, unix.FAN_MARK_REMOVE, unix.FAN_ACCESS, fd, "") == nil
}

// drain reads until there is nothing.
func (g *group) drain(w *Watch) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	const (
		header   = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))
		eventMax = header + pidfdInfo
	)
	for !g.done.Load() {
		if g.kind == layered && w.o.Room != nil && !w.o.Room() {
			time.Sleep(crowded)
			continue
		}
		g.reading.Store(time.Now().UnixNano())
		n, err := unix.Read(g.fd, g.buf)
		g.reading.Store(0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EFAULT), errors.Is(err, unix.EINVAL):
			return fmt.Errorf("read fanotify: %w", err)
		case err != nil: // of the one event that it would have been
			var no unix.Errno
			if !errors.As(err, &no) {
				return err
			}
			w.take(g, unix.FAN_OPEN_EXEC, -int(no), 0, -1)
			continue
		}
		for b := g.buf[:n]; len(b) >= header; {
			m := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&b[0]))
			if m.Vers != unix.FANOTIFY_METADATA_VERSION || int(m.Event_len) < header || int(m.Event_len) > len(b) {
				return fmt.Errorf("read fanotify: version %d, %d bytes of %d: not understood", m.Vers, m.Event_len, len(b))
			}
			pidfd := -1
			if info := b[header:m.Event_len]; len(info) >= pidfdInfo && info[0] == unix.FAN_EVENT_INFO_TYPE_PIDFD {
				pidfd = int(int32(binary.NativeEndian.Uint32(info[4:])))
			}
			w.take(g, m.Mask, int(m.Fd), m.Pid, pidfd)
			b = b[m.Event_len:]
		}
		if g.batch > 1 && n < len(g.buf)-eventMax {
			return nil // one more had fitted
		}
	}
	return nil
}

// Run takes in notices as they come, and follows the mounts, until ctx is done. A group that hangs in a file system is not
// waited for.
func (w *Watch) Run(ctx context.Context) error {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	var all sync.WaitGroup // of those that cannot hang
	failed := make(chan error, kinds+1)
	for _, g := range w.groups {
		fd := g.fd // now: one that is not waited for may begin when Close has been here
		run := func() {
			if err := g.run(ctx, w, fd, stop); err != nil {
				failed <- err
			}
		}
		if g.kind == local {
			all.Go(run)
		} else {
			go run()
		}
	}
	all.Go(func() {
		if err := w.mounts.follow(ctx, w.o.Mountinfo, stop); err != nil {
			failed <- err
		}
	})
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, g := range w.groups {
		g.done.Store(true)
	}
	_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // stays readable for all of them; a hung one keeps it open
	all.Wait()
	return err
}

func (g *group) run(ctx context.Context, w *Watch, fd, stop int) error {
	// The sooner a file is watched after its exec, the less can have happened to it. The thread ends with this goroutine. Without
	// the right to a better priority it works, too.
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	storm, before := 0, time.Time{}
	for ctx.Err() == nil && !g.done.Load() {
		now := time.Now()
		if now.Sub(before) < lull {
			storm++
		} else {
			storm = 0
		}
		before = now
		if storm < stormMin || !pollShortly(poll) {
			if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for fanotify: %w", err)
			}
		}
		if poll[1].Revents != 0 {
			return nil
		}
		if err := g.drain(w); err != nil {
			return err
		}
	}
	return nil
}

const (
	// lull is how long nothing comes after a storm, stormMin how many notices make one.
	lull     = 5 * time.Millisecond
	stormMin = 8
)

// pollShortly waits for a lull at most, and reports whether something came. Go's runtime is not told that the thread waits: else it takes the
// right to run Go code away from it at once, looks every 20 µs for others that wait, and is woken up by the next notice, which costs
// as much as the notice itself. To wait so while nothing comes would keep the runtime busy; and who wants to stop the world interrupts the
// wait by a signal.
func pollShortly(poll []unix.PollFd) bool {
	for i := range poll {
		poll[i].Revents = 0
	}
	wait := unix.NsecToTimespec(int64(lull))
	n, _, err := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll[0])), uintptr(len(poll)), uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
	return err == 0 && n > 0
}

// runs reports whether the process of a pidfd has not ended.
func runs(pidfd int) bool {
	if pidfd < 0 {
		return false
	}
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 0
}

// niceness of the readers: they are short of work.
const niceness = -10

// linkOf is the path of a descriptor as this process sees it, raw; "" if there is none.
func linkOf(fd int) string {
	buf := make([]byte, 4096)
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}
