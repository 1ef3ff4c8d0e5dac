package fanotify

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// silent mounts a FUSE file system that nobody serves: whoever looks a name up there waits until it is unmounted.
func silent(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	dir := t.TempDir()
	if err := unix.Mount("picosnitch-test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_FORCE)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		unix.Close(dev)
	})
	return dir
}

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("hangs: " + what)
	}
}

func TestMountPointThatDoesNotAnswer(t *testing.T) {
	w := start(t, Options{})
	point := filepath.Join(silent(t), "over")
	walked := make(chan struct{})
	go func() {
		defer close(walked)
		w.mounts.add([]byte("1 1 0:987654 / "+point+" rw - tmpfs tmpfs rw\n"), "", true)
	}()
	time.Sleep(100 * time.Millisecond)
	select {
	case <-walked:
		t.Fatal("the walk ended: this tests nothing")
	default:
	}
	within(t, "Layered", func() { w.Layered() })
	within(t, "State", func() { w.State() })
	within(t, "a reading of the mounts", func() {
		if err := w.mounts.read(DefaultMountinfo); err != nil {
			t.Error(err)
		}
	})
}

func TestNamespacesThatHangAreToldAndDoNotHoldUpOthers(t *testing.T) {
	w := start(t, Options{})
	forever, walked := make(chan struct{}), make(chan walk, 16)
	defer close(forever)
	w.walks = newWalks(func(to walk) error {
		if to.ns <= 2*walkers {
			<-forever
		}
		walked <- to
		return nil
	})
	within(t, "Elsewhere", func() {
		for ns := range uint32(2 * walkers) {
			w.Elsewhere(1, ns+1)
		}
		w.Elsewhere(1, 100)
		for range 2 * walksMax {
			w.walks.mu.Lock()
			clear(w.walks.met)
			w.walks.mu.Unlock()
			w.Elsewhere(1, 200)
		}
	})
	if s := w.Stats(); s.Missed == 0 {
		t.Error("what the queue had no room for was not counted")
	}
	for end := time.After(4 * walkSlow); ; {
		why := w.Hung()
		select {
		case to := <-walked:
			if to.ns < 100 {
				t.Errorf("walked %+v", to)
			}
			if !strings.Contains(why, "does not answer") {
				t.Errorf("Hung() = %q", why)
			}
			return
		case <-end:
			t.Fatal("nobody walked on")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// A user whose namespaces hang does not keep walkers from those of others: they are given up, and counted.
func TestUserWhoseNamespacesHangHoldsUpHimselfOnly(t *testing.T) {
	w := start(t, Options{})
	forever, walked := make(chan struct{}), make(chan walk, 64)
	defer close(forever)
	w.walks = newWalks(func(to walk) error {
		if to.owner == 1000 {
			<-forever
		}
		walked <- to
		return nil
	})
	w.walks.owner = func(pid uint32) owner { return owner(pid) }
	const namespaces = 2 * (walkersHung + walkers)
	for ns := range uint32(namespaces) {
		w.Elsewhere(1000, ns+1)
	}
	w.Elsewhere(1001, 1001)
	w.Elsewhere(0, 1002)
	others := 0
	for end := time.After(time.Duration(userHung) * walkSlow); others < 2; {
		w.Hung()
		select {
		case to := <-walked:
			if to.owner == 1000 {
				t.Errorf("walked %+v", to)
			}
			others++
		case <-end:
			t.Fatalf("%d of the 2 others were walked", others)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if s := w.Stats(); s.Missed < namespaces-userHung-2*walkers {
		t.Errorf("%d counted as missed, of %d", s.Missed, namespaces)
	}
}

// The user is the one who made the outermost namespace, and not whom he made himself within.
func TestOwnerOfNamespaces(t *testing.T) {
	needRoot(t)
	inner := exec.Command("sh", "-c", "exec setpriv --reuid 4321 --clear-groups unshare -U -r unshare -U -r -m sh -c 'echo; read end'")
	in, err := inner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := inner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = inner.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	if of := ownerOf(uint32(inner.Process.Pid)); of != 4321 {
		t.Errorf("of a user's: %d", of)
	}
	if of := ownerOf(uint32(os.Getpid())); of != 0 {
		t.Errorf("of our own: %d", of)
	}
	before := descriptors(t)
	ownerOf(uint32(inner.Process.Pid))
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors, before %d", now, before)
	}
}

// TestNumbersOfOtherNamespacesAreUsedAgain: the device number of a private tmpfs is that of the next one.
func TestNumbersOfOtherNamespacesAreUsedAgain(t *testing.T) {
	w := start(t, Options{})
	dir := t.TempDir()
	out := make(chan string)
	done := make(chan struct{})
	defer close(done)
	var private func()
	private = func() {
		runtime.LockOSThread() // for good: the thread ends with its namespace
		if unix.Gettid() == os.Getpid() {
			// /proc/self is of the first thread: it must keep its namespace.
			go private()
			<-done
			runtime.UnlockOSThread()
			return
		}
		defer close(out)
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			out <- err.Error()
			return
		}
		_ = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		tid := uint32(unix.Gettid())
		var ns unix.Stat_t
		_ = unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", tid), &ns)
		for i := range 2 {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
				out <- err.Error()
				return
			}
			if i > 0 {
				time.Sleep(metAgain)
			}
			w.Elsewhere(tid, uint32(ns.Ino))
			path, seen := filepath.Join(dir, "prog"), false
			id := program(t, path)
			for end := time.Now().Add(3 * time.Second); !seen && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				cmd := exec.Command(path)
				if err := cmd.Run(); err != nil {
					continue
				}
				_ = w.Drain()
				o, ok := w.Claim(uint32(cmd.Process.Pid), id)
				if seen = ok; ok {
					unix.Close(o.FD)
				}
			}
			if !seen {
				out <- fmt.Sprintf("tmpfs %d (device %#x) is not watched", i+1, id.Device)
			}
			if err := unix.Unmount(dir, 0); err != nil {
				out <- err.Error()
			}
			t.Logf("device %#x", id.Device)
		}
	}
	go private()
	for problem := range out {
		t.Error(problem)
	}
	_ = os.Remove(dir)
}

func TestKindsThatAreNotWhatMountinfoTold(t *testing.T) {
	for _, c := range []struct {
		kind  kind
		magic int64
		fits  bool
	}{
		{local, unix.TMPFS_MAGIC, true},
		{local, unix.BTRFS_SUPER_MAGIC, true},
		{local, unix.FUSE_SUPER_MAGIC, false},
		{local, unix.OVERLAYFS_SUPER_MAGIC, false},
		{local, unix.NFS_SUPER_MAGIC, false},
		{layered, unix.OVERLAYFS_SUPER_MAGIC, true},
		{layered, unix.FUSE_SUPER_MAGIC, false},
		{layered, unix.TMPFS_MAGIC, false},
	} {
		if got := c.kind.fitsType(c.magic) == nil; got != c.fits {
			t.Errorf("%v, type %#x: %v, want %v", c.kind, c.magic, got, c.fits)
		}
	}
}

// TestCloseDoesNotWaitForAReadThatHangs: the lock and the time are those of a read of an overlay whose layer does not answer.
func TestCloseDoesNotWaitForAReadThatHangs(t *testing.T) {
	needRoot(t)
	w, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := w.groups[layered]
	g.mu.Lock()
	g.reading.Store(time.Now().Add(-2 * readSlow).UnixNano())
	if why := w.Hung(); !strings.Contains(why, "overlay") {
		t.Errorf("Hung() = %q", why)
	}
	within(t, "Close", func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	unix.Close(g.fd)
}
