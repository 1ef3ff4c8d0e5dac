package sensor

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/fanotify"
	"github.com/picosnitch/picosnitch/test/fuse"
)

// TestOverlayThatCannotBeClosed: whoever may make user namespaces may mount an overlay on a file system that he serves himself. It opens and
// reads for root, and does not answer when root closes what it read: nothing of the sensor may wait for that.
func TestOverlayThatCannotBeClosed(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	served := fuse.MountSilent(t, program, fuse.Flush)
	other, merged := t.TempDir(), t.TempDir()
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+served+":"+other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(served, unix.MNT_FORCE) // wakes whoever hangs
		_ = unix.Unmount(merged, unix.MNT_DETACH)
	})
	l := &loop{}
	x := &l.executed
	x.files = map[event.FileID]*held{}
	x.limit = 1
	x.watch, err = fanotify.New(fanotify.Options{Close: x.closer.close, Room: x.closer.room})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error)
	go func() { ran <- x.watch.Run(t.Context()) }()
	path := filepath.Join(merged, "prog")
	// The shell executes it: exec stops the threads of the one that calls it, and this one must serve the file.
	cmd := exec.Command("/bin/sh", "-c", `exec "$0"`, path)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	file := event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}
	var o fanotify.Opened
	ok := false
	for end := time.Now().Add(10 * time.Second); !ok; time.Sleep(10 * time.Millisecond) {
		if o, ok = x.watch.Claim(uint32(cmd.Process.Pid), file); time.Now().After(end) {
			t.Fatal("no descriptor")
		}
	}
	if !o.Layered {
		t.Fatal("not of a layered file system: this tests nothing")
	}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"descriptors that nobody claimed", func() { x.watch.Expire(time.Now().Add(time.Hour)) }},
		{"descriptors that nobody wanted", func() {
			x.hold(file, &held{Descriptor: digest.Descriptor{FD: o.FD, Waits: o.Layered}})
			x.hold(event.FileID{Inode: 1}, &held{Descriptor: digest.None()})
		}},
	} {
		done := make(chan struct{})
		go func() { defer close(done); step.do() }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = unix.Unmount(served, unix.MNT_FORCE)
			t.Fatalf("hangs: %s", step.what)
		}
	}
	for end := time.Now().Add(2 * closeSlow); !x.closer.hangs(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the close did not hang: this tests nothing")
		}
	}
}

// TestRoomForWhatIsClosed: what cannot be closed is bounded.
func TestRoomForWhatIsClosed(t *testing.T) {
	t.Parallel()
	var c closer
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.running = true // as if one hung
	c.mu.Unlock()
	for range closingMax {
		if !c.room() {
			t.Fatal("no room before the bound")
		}
		c.close(-1)
	}
	if c.room() {
		t.Error("room beyond the bound")
	}
	c.run()
	c.close(p[0])
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETFD, 0); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("never closed")
		}
	}
	unix.Close(p[1])
	if !c.room() || c.hangs() {
		t.Error("what was closed still counts")
	}
}
