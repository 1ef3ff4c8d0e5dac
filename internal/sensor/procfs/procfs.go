// Package procfs tells from /proc what the kernel side could not: the processes that ran before the sensor when the
// task iterator is not to be had, and those whose exec report was lost. It belongs to the root wing. It reads
// bounded beginnings of small files, parses as little as it can, and makes every text safe with event.Text. It does not
// hash, and it cannot tell the exec count, the cgroup id and the generation of a file.
//
// The start time in /proc/PID/stat is cut to 10 ms, so ids from here are event.ProcessID{PID, Start: the beginning of
// the tick, Exec: 0}. SameProcess tells whether such an id can be the process of an exact one.
package procfs

import (
	"errors"
	"iter"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Root is where proc is mounted.
const Root = "/proc"

// Tick is the unit of the start time in /proc/PID/stat: USER_HZ is 100 on every architecture we build for.
const Tick = uint64(10 * time.Millisecond)

// MaxCmdline is how many bytes of the arguments are read.
const MaxCmdline = 4096

// MaxEnviron is how many bytes of the environment are read.
const MaxEnviron = 128 << 10

// ErrGone is returned for a process that ended, or that executed other programs faster than it could be read.
var ErrGone = errors.New("process is gone")

// ErrFormat is returned for a file that does not look as proc(5) says.
var ErrFormat = errors.New("unexpected format")

// FS is a mounted proc. Its zero value is not usable.
type FS struct {
	root   string
	offset int64 // wall clock minus ktime
}

// Open returns the proc that is mounted at root. The clock is read once: the start times of processes that ran
// before do not move when the clock is set later.
func Open(root string) (FS, error) {
	offset, err := WallOffset()
	if err != nil {
		return FS{}, err
	}
	return FS{root: root, offset: offset}, nil
}

// SameProcess reports whether coarse, an id from here, can be the process of exact, an id from the kernel: the
// pid is the same, and the start lies within the tick.
func SameProcess(coarse, exact event.ProcessID) bool {
	return coarse.PID == exact.PID && coarse.Start/Tick == exact.Start/Tick
}

// Process tells what runs in pid now. Parent is the parent now (or the adopter), as an id from here. ErrGone: there
// is none, or it did not hold still.
func (f FS) Process(pid uint32) (event.Process, error) { return f.process(pid) }

// Processes yields every process, kernel threads and zombies included, in the order of their numbers. Those that end meanwhile
// are left out; an error that is not ErrGone is yielded with the Process's ID.PID set.
func (f FS) Processes() iter.Seq2[event.Process, error] { return f.processes() }

// ID is only the identity of pid: enough to tell whether the process still runs. ErrGone: it does not.
func (f FS) ID(pid uint32) (event.ProcessID, error) { return f.id(pid) }

// Cmdline is the arguments of pid, each safe text. cut: there are more than MaxCmdline bytes. cut without any: it was
// about to get them, by an exec that was not done, or to end. Kernel threads and zombies have none. The program itself can rewrite them.
func (f FS) Cmdline(pid uint32) (argv []string, cut bool, err error) { return f.cmdline(pid) }

// Preload is LD_PRELOAD and LD_AUDIT of pid's environment, as event.Process.Preload tells them. cut: the environment could not be read to its
// end. It is what the program was given; it may have written over it since.
func (f FS) Preload(pid uint32) (text string, cut bool) { return f.preload(pid) }

// BootID is the random id of this boot, as 36 characters.
func (f FS) BootID() (string, error) { return f.bootID() }

// Hostname is the machine's name as safe text.
func (f FS) Hostname() (string, error) { return f.hostname() }
