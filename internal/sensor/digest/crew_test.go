package digest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/test/fuse"
)

// TestBusyMachine: programs that take all processors must not keep the hashes away. A thread of the lowest priority alone would take minutes here.
func TestBusyMachine(t *testing.T) {
	hogs := sync.OnceFunc(func() {
		for range 4 * runtime.NumCPU() {
			hog := exec.Command("sh", "-c", "while :; do :; done")
			hog.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			if err := hog.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = hog.Process.Kill(); _ = hog.Wait() })
			_ = unix.Setpriority(unix.PRIO_PROCESS, hog.Process.Pid, 0) // the test may have been started with another
		}
	})
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	dir := t.TempDir()
	var ps []event.Process
	for i := range 30 {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, fmt.Append(nil, i), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 4<<20); err != nil { // not short; no block of it is on the disk
			t.Fatal(err)
		}
		ps = append(ps, onDisk(t, path))
	}
	d := start(t, Options{})
	hogs()
	began := time.Now()
	for _, p := range ps {
		d.Want(p)
	}
	for range ps {
		select {
		case r := <-d.Results():
			if r.Executable.SHA256 == "" {
				t.Fatalf("%+v", r)
			}
		case <-time.After(20*time.Second - time.Since(began)):
			t.Fatalf("%d of %d files are not read after %v", d.Pending(), len(ps), time.Since(began))
		}
	}
	t.Logf("%d files of 4 MiB in %v", len(ps), time.Since(began))
}

// TestHungFileSystemDelaysNobody: long before it is given up, others are read.
func TestHungFileSystemDelaysNobody(t *testing.T) {
	hung := fuse.Mount(t, 0, make([]byte, 1<<20), true)
	d := start(t, Options{Late: 200 * time.Millisecond})
	for pid := range uint32(5) {
		p := onDisk(t, filepath.Join(hung, "prog"))
		p.ID.PID, p.File.Generation = pid+1, pid+1 // five files
		if _, known := d.Want(p); known {
			t.Fatal("known")
		}
	}
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	p.ID.PID = 77
	began := time.Now()
	r := want(t, d, p)
	if r.Process != p.ID || r.Executable.SHA256 == "" {
		t.Errorf("got %+v", r)
	}
	t.Logf("after %v", time.Since(began))
	// No more than two hang for it, however many of its files wait.
	time.Sleep(2 * time.Second)
	if n := d.Pending() - d.Stats().Waiting; n != hangsMax {
		t.Errorf("%d workers hang in one file system, want %d", n, hangsMax)
	}
}

// TestGivenUpWithAllThatWait: of a file system in which workers were given up, no more jobs wait for a minute each.
func TestGivenUpWithAllThatWait(t *testing.T) {
	hung := fuse.Mount(t, 0, make([]byte, 1<<20), true)
	d := start(t, Options{Late: 100 * time.Millisecond, Stall: time.Second})
	const files = 10
	for pid := range uint32(files) {
		p := onDisk(t, filepath.Join(hung, "prog"))
		p.ID.PID, p.File.Generation = pid+1, pid+1
		d.Want(p)
	}
	for range files {
		reason(t, receive(t, d), ReasonStalled)
	}
	if s := d.Stats(); s.Stuck != hangsMax {
		t.Errorf("%d workers hang for good, want %d", s.Stuck, hangsMax)
	}
}

// TestHalt: when no worker comes back, it is counted for how long jobs waited; when one does, all is read.
func TestHalt(t *testing.T) {
	open := make(chan struct{})
	dir := t.TempDir()
	d := start(t, Options{Late: 50 * time.Millisecond, Settle: func() { <-open }})
	for i := range uint32(4) {
		p := file(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Append(nil, i))
		p.ID.PID = i + 1
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprint(i)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		d.WantFile(p, Descriptor{FD: fd, Vouched: true, Since: time.Now()})
	}
	time.Sleep(time.Second)
	if s := d.Stats(); s.Halted < 200*time.Millisecond || s.Halted > time.Second || s.Waiting != 2 {
		t.Errorf("stats %+v; want the greater part of a second counted as a halt, and two of four jobs waiting", s)
	}
	close(open)
	for range 4 {
		if r := receive(t, d); r.Executable.SHA256 == "" {
			t.Errorf("after it: %+v", r)
		}
	}
}

// TestUnread: at the end every job has a Result or is told as unread, never both, never none.
func TestUnread(t *testing.T) {
	dir := t.TempDir()
	d := start(t, Options{})
	d.Hurry()
	const files = 300
	for i := range uint32(files) {
		p := file(t, filepath.Join(dir, fmt.Sprint(i)), make([]byte, 64<<10))
		p.ID.PID = i + 1
		if _, known := d.Want(p); known {
			t.Fatal("known")
		}
	}
	told := map[string]int{}
	for range files / 10 {
		told[receive(t, d).Executable.Path]++
	}
	rest, unread := d.Unread()
	for _, r := range rest {
		told[r.Executable.Path]++
	}
	for _, x := range unread {
		told[x.Path]++
		if x.Reason != ReasonUnread || x.SHA256 != "" || x.File.IsZero() {
			t.Errorf("unread: %+v", x)
		}
	}
	for path, n := range told {
		if n != 1 {
			t.Errorf("%s was told %d times", path, n)
		}
	}
	if len(told) != files {
		t.Errorf("%d of %d files were told of", len(told), files)
	}
	t.Logf("%d read, %d not", files-len(unread), len(unread))
	time.Sleep(100 * time.Millisecond)
	select {
	case r := <-d.Results():
		t.Errorf("a result after the end: %+v", r)
	default:
	}
}
