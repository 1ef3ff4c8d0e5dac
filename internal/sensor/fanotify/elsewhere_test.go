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
		w.mounts.add([]byte("1 1 0:987654 / "+point+" rw - tmpfs tmpfs rw\n"), "", func() bool { return false })
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

// TestMountsThatCannotBeRead: it is told for as long as it is so, and ends nothing.
func TestMountsThatCannotBeRead(t *testing.T) {
	needRoot(t)
	w, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	before := w.mounts.marked()
	if err := w.mounts.read("/proc/self/none"); err == nil {
		t.Fatal("no error")
	}
	if why := w.Hung(); !strings.Contains(why, "mounts cannot be read") {
		t.Errorf("told %q", why)
	}
	if after := w.mounts.marked(); after != before {
		t.Errorf("%d file systems are asked for, %d before", after, before)
	}
	if err := w.mounts.read(DefaultMountinfo); err != nil || w.Hung() != "" {
		t.Errorf("once it can: %v, %q", err, w.Hung())
	}
}

// hurry makes walks whose owner is the pid, and that are slow soon.
func hurry(w *Watch, f func(walk) error) {
	w.walks = newWalks(f)
	w.walks.owner = func(pid, _ uint32) owner { return owner(pid) }
	w.walks.slow, w.walks.late = 100*time.Millisecond, 800*time.Millisecond
}

// tended fails the test unless all that is expected is walked soon, while somebody asks what hangs as the sensor does.
func tended(t *testing.T, w *Watch, walked <-chan walk, expected ...uint32) {
	t.Helper()
	missing := map[uint32]bool{}
	for _, ns := range expected {
		missing[ns] = true
	}
	for end := time.After(2 * time.Second); len(missing) > 0; {
		w.Hung()
		select {
		case to := <-walked:
			delete(missing, to.ns)
		case <-end:
			t.Fatalf("%d of %d namespaces are not looked at: %v; Hung() = %q", len(missing), len(expected), missing, w.Hung())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// missed fails the test unless that many are counted soon.
func missed(t *testing.T, w *Watch, atLeast uint64) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); w.Stats().Missed < atLeast; time.Sleep(10 * time.Millisecond) {
		if w.Hung(); time.Now().After(end) {
			t.Fatalf("%d counted as missed, want %d", w.Stats().Missed, atLeast)
		}
	}
}

func TestNamespacesThatHangAreToldAndDoNotHoldUpOthers(t *testing.T) {
	w := start(t, Options{})
	forever, walked := make(chan struct{}), make(chan walk, 16)
	defer close(forever)
	hurry(w, func(to walk) error {
		if to.ns <= 2*walkers {
			<-forever
		}
		walked <- to
		return nil
	})
	within(t, "Elsewhere", func() {
		for ns := range uint32(2*walkers + walksMax + 10) {
			w.Elsewhere(0, ns+1)
		}
	})
	if s := w.Stats(); s.Missed == 0 {
		t.Error("what there was no room for was not counted")
	}
	tended(t, w, walked, 2*walkers+1, 2*walkers+walksMax/2)
	if why := w.Hung(); !strings.Contains(why, "4 mount namespaces have a file system that does not answer") {
		t.Errorf("Hung() = %q", why)
	}
}

// A user whose namespaces hang does not keep walkers from those of others: they are given up, and counted.
func TestUserWhoseNamespacesHangHoldsUpHimselfOnly(t *testing.T) {
	w := start(t, Options{})
	forever, walked := make(chan struct{}), make(chan walk, 64)
	defer close(forever)
	hurry(w, func(to walk) error {
		if to.owner == 1000 || to.owner == unknown {
			<-forever
		}
		walked <- to
		return nil
	})
	const namespaces = 600
	for ns := range uint32(namespaces) {
		w.Elsewhere(1000, ns+1)
		w.Elsewhere(uint32(unknown), 10000+ns) // whom nobody can ask is no better
	}
	w.Elsewhere(1001, 1001)
	w.Elsewhere(0, 1002)
	tended(t, w, walked, 1001, 1002)
	missed(t, w, 2*(namespaces-userHung))
}

// A user whose file systems answer just before they are slow is never told as one who hangs: others have their turn, and what of his waits
// too long is counted.
func TestUserWhoseNamespacesAreNearlySlowHoldsUpHimselfOnly(t *testing.T) {
	w := start(t, Options{})
	walked := make(chan walk, 64)
	hurry(w, func(to walk) error {
		if to.owner == 1000 {
			time.Sleep(90 * time.Millisecond)
			return nil
		}
		walked <- to
		return nil
	})
	const namespaces = 600
	for ns := range uint32(namespaces) {
		w.Elsewhere(1000, ns+1)
	}
	w.Elsewhere(1001, 1001)
	w.Elsewhere(0, 1002)
	tended(t, w, walked, 1001, 1002)
	missed(t, w, namespaces-100)
}

// However many user ids somebody has (subuid(5)), root's namespaces are looked at.
func TestUsersTogetherDoNotHoldUpRoot(t *testing.T) {
	w := start(t, Options{})
	forever, walked := make(chan struct{}), make(chan walk, 64)
	defer close(forever)
	hurry(w, func(to walk) error {
		if to.owner != 0 {
			<-forever
		}
		walked <- to
		return nil
	})
	w.walks.slow = 40 * time.Millisecond // all of their walkers hang before the rest is given up
	const ids, each = 20, 100
	for i := range uint32(ids * each) {
		w.Elsewhere(100000+i%ids, i+1)
	}
	missed(t, w, ids*each-walkers-walkersHung)
	w.walks.mu.Lock()
	if n := len(w.walks.users.begun); n != walkers+walkersHung {
		t.Errorf("%d walkers of users: this tests nothing", n)
	}
	w.walks.mu.Unlock()
	w.Elsewhere(0, 1000000)
	w.Elsewhere(0, 1000001)
	w.Elsewhere(0, 1000002)
	tended(t, w, walked, 1000000, 1000001, 1000002)
}

// What could not be asked whose it is does not stand for the same namespace that can be.
func TestUnknownOwnerDoesNotHideANamespace(t *testing.T) {
	w := start(t, Options{})
	forever, walked := make(chan struct{}), make(chan walk, 64)
	defer close(forever)
	hurry(w, func(to walk) error {
		if to.owner == unknown {
			<-forever
		}
		walked <- to
		return nil
	})
	for ns := range uint32(2 * userHung) {
		w.Elsewhere(uint32(unknown), ns+1)
	}
	w.Elsewhere(0, 2*userHung)
	w.Elsewhere(1001, 2*userHung-1)
	tended(t, w, walked, 2*userHung, 2*userHung-1)
}

// A process that has the number of another since, or went to a namespace of another owner, is not visited for that one.
func TestVisitOfAnotherOwner(t *testing.T) {
	w := start(t, Options{})
	self, ns := uint32(os.Getpid()), w.walks.own
	if err := w.mounts.visit(walk{pid: self, ns: ns, owner: 0}); err != nil {
		t.Errorf("of the same: %v", err)
	}
	for _, to := range []walk{{pid: self, ns: ns, owner: 1000}, {pid: self, ns: ns + 1, owner: 0}, {pid: self, ns: ns + 1, owner: unknown}} {
		if err := w.mounts.visit(to); err != errEnded {
			t.Errorf("%+v: %v", to, err)
		}
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
	pid, self := uint32(inner.Process.Pid), uint32(os.Getpid())
	for _, c := range []struct {
		what    string
		pid, ns uint32
		owner   owner
	}{
		{"a user's", pid, mountNS(t, pid), 4321},
		{"our own", self, mountNS(t, self), 0},
		{"another than asked for", self, mountNS(t, pid), unknown},
		{"of nobody", 1 << 30, mountNS(t, self), unknown},
	} {
		before := descriptors(t)
		if of := ownerOf(c.pid, c.ns); of != c.owner {
			t.Errorf("%s: %d, want %d", c.what, of, c.owner)
		}
		if now := descriptors(t); now != before {
			t.Errorf("%s: %d descriptors, before %d", c.what, now, before)
		}
	}
}

func mountNS(t *testing.T, pid uint32) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
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
