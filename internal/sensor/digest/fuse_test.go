package digest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/test/fuse"
)

func TestFUSEOfAnotherUser(t *testing.T) {
	const user = 54321
	source, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	dir := fuse.Mount(t, user, content, false)
	d := start(t, Options{})

	// The shell executes it, not this test: exec stops the threads of the one that calls it, and this one must serve the file.
	cmd := exec.Command("/bin/sh", "-c", `exec "$0" 1000`, filepath.Join(dir, "prog"))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)); exe == filepath.Join(dir, "prog") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the program did not start")
		}
	}
	proc, err := unix.Open(fmt.Sprintf("/proc/%d", cmd.Process.Pid), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	ticks, err := startTime(proc)
	if err != nil {
		t.Fatal(err)
	}
	p := event.Process{
		ID:   event.ProcessID{PID: uint32(cmd.Process.Pid), Start: ticks * tick, Exec: 1},
		Path: event.Text([]byte(filepath.Join(dir, "prog"))),
		File: event.FileID{Inode: 2, Size: int64(len(content)), Ctime: 1000 * 1e9},
	}
	reason(t, want(t, d, p), ReasonFUSE)

	p.ID.Start += 10 * tick // ended: by its path
	p.Started = time.Now().UnixNano()
	reason(t, want(t, d, p), ReasonFUSE)
}

// TestFileSystemThatDoesNotAnswer: it takes one worker, which is replaced, and not the digests of others.
func TestFileSystemThatDoesNotAnswer(t *testing.T) {
	dir := fuse.Mount(t, 0, make([]byte, 1<<20), true)
	d := start(t, Options{Workers: 1, Stall: 200 * time.Millisecond})
	hung := onDisk(t, filepath.Join(dir, "prog"))
	reason(t, want(t, d, hung), ReasonStalled)
	if s := d.Stats(); s.Stuck != 1 {
		t.Errorf("%d workers stuck, want 1", s.Stuck)
	}
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	p.ID.PID = 2
	if r := want(t, d, p); r.Executable.SHA256 == "" {
		t.Errorf("after it: %+v", r)
	}
	// It answers at last: an abort of the mount wakes the worker.
	if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); d.Stats().Stuck != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the worker that was given up never ended")
		}
	}
}

// TestFileThatCannotBeClosed: also the close(2) of a file that was only read asks its file system, through an overlay also for root what
// a stranger serves. Whoever asks for digests of others must not wait for it.
func TestFileThatCannotBeClosed(t *testing.T) {
	dir := fuse.MountSilent(t, []byte("content"), fuse.Flush)
	closing := make(chan int, 1)
	d := start(t, Options{Close: func(fd int) { closing <- fd }})
	p := onDisk(t, filepath.Join(dir, "prog"))
	fd, err := unix.Open(filepath.Join(dir, "prog"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if x, known := d.WantFile(p, Descriptor{FD: fd, Own: true, Waits: true}); known {
		t.Fatalf("known: %+v", x)
	}
	if r := receive(t, d); r.Executable.SHA256 == "" {
		t.Errorf("%+v", r)
	}
	select {
	case fd := <-closing:
		t.Cleanup(func() {
			_ = unix.Unmount(dir, unix.MNT_FORCE) // else it hangs here
			unix.Close(fd)
		})
	case <-time.After(patience):
		t.Error("was not given to be closed")
	}
	other := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	other.ID.PID = 2
	if r := want(t, d, other); r.Executable.SHA256 == "" {
		t.Errorf("after it: %+v", r)
	}
}
