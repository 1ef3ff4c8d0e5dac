package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RunningError says that an instance has this run directory already.
type RunningError struct {
	PID  int // 0: it has not written its number yet
	File string
}

// Error names the process and what to do.
func (e *RunningError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("picosnitch is already starting (%s is locked)", e.File)
	}
	return fmt.Sprintf("picosnitch is already running with pid %d (it holds %s): stop it with `picosnitch stop`, or set PICOSNITCH_RUN_DIR and PICOSNITCH_DIR to run a second one", e.PID, e.File)
}

// ErrNotRunning says that no instance has this run directory.
var ErrNotRunning = errors.New("picosnitch is not running")

// Lock is the instance lock: an flock(2) on $RUN_DIR/picosnitch.pid, which the kernel gives back when its holder
// dies, so a pid file that was left behind is no obstacle.
type Lock struct{ f *os.File }

func pidFile(runDir string) string { return filepath.Join(runDir, "picosnitch.pid") }

// TakeLock takes the lock of runDir and writes our pid into its file.
func TakeLock(runDir string) (*Lock, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	path := pidFile(runDir)
	for {
		// Nobody else may open the file: whoever can open it could hold its lock, and keep picosnitch from starting.
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		if err := unix.Fchmod(fd, 0o600); err != nil {
			f.Close()
			return nil, fmt.Errorf("protect %s: %w", path, err)
		}
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, &RunningError{PID: readPID(f), File: path}
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		var mine, there unix.Stat_t
		if err := unix.Fstat(fd, &mine); err != nil {
			f.Close()
			return nil, err
		}
		if err := unix.Lstat(path, &there); err != nil || mine.Ino != there.Ino || mine.Dev != there.Dev {
			f.Close() // the holder before us removed the file between our open and our lock
			continue
		}
		if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
			f.Close()
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
		return &Lock{f}, nil
	}
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func readPID(f *os.File) int {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}

// Release removes the pid file and gives the lock back.
func (l *Lock) Release() error {
	// In this order: who opens the file now still finds it locked, and who locks it next finds it gone and tries again.
	return errors.Join(os.Remove(l.f.Name()), l.f.Close())
}

// Holder returns the pid that the holder of runDir's lock wrote, or ErrNotRunning. It needs root.
func Holder(runDir string) (int, error) {
	f, err := os.OpenFile(pidFile(runDir), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, ErrNotRunning
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, ErrNotRunning
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("look at the lock of %s: %w", f.Name(), err)
	}
	return readPID(f), nil
}

// Stop asks the instance of runDir to end and waits until it did or ctx is done. It returns its pid. Only the process
// that really holds the lock is signalled, whatever stands in the file.
func Stop(ctx context.Context, runDir string) (int, error) {
	pid, err := Holder(runDir)
	if err != nil {
		return 0, err
	}
	path := pidFile(runDir)
	if pid == 0 {
		return 0, fmt.Errorf("%s is locked but holds no pid: picosnitch is just starting or ending; try again", path)
	}
	// The descriptor first, then the checks: it keeps meaning this process when the number is reused.
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return 0, ErrNotRunning
	}
	if err != nil {
		return 0, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(handle)
	if err := verifyHolder(path, pid); err != nil {
		return 0, err
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("signal process %d: %w", pid, err)
	}
	for {
		poll := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 100)
		if n == 1 {
			return pid, nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return pid, fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if ctx.Err() != nil {
			return pid, fmt.Errorf("process %d did not end in time; it may still be writing its last window: see `picosnitch status`, and as a last resort run: kill -9 %[1]d", pid)
		}
	}
}

// verifyHolder checks with the kernel that pid is a picosnitch and holds the lock.
func verifyHolder(path string, pid int) error {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return fmt.Errorf("look at process %d: %w", pid, err)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	// After an upgrade the file that runs has no name any more: proc(5).
	exe, self = strings.TrimSuffix(exe, " (deleted)"), strings.TrimSuffix(self, " (deleted)")
	if exe != self && filepath.Base(exe) != "picosnitch" {
		return fmt.Errorf("%s names process %d, which is %q and not picosnitch: nothing was stopped", path, pid, exe)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil // not every kernel has it; the checks above stand
	}
	defer f.Close()
	// 1: FLOCK  ADVISORY  WRITE 4321 fe:00:1234 0 EOF
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	want := strconv.Itoa(pid)
	held := false
	s := bufio.NewScanner(f)
	for s.Scan() {
		w := strings.Fields(s.Text())
		if len(w) >= 6 && w[1] == "FLOCK" && strings.HasSuffix(w[5], inode) {
			if w[4] == want {
				return nil
			}
			held = true
		}
	}
	if held {
		return fmt.Errorf("%s names process %d, but another process holds its lock: nothing was stopped", path, pid)
	}
	return s.Err()
}

// WaitGone waits until nobody holds the lock of runDir, at most limit.
func WaitGone(runDir string, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := Holder(runDir); errors.Is(err, ErrNotRunning) {
			return true
		}
	}
	return false
}
