package fanotify

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
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
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: fanotify needs it")
	}
}

// tiny is a static program of a few hundred bytes that ends at once: an ELF header, one segment, exit(0).
func tiny(t testing.TB) []byte {
	t.Helper()
	var code []byte
	machine := byte(62)
	switch runtime.GOARCH {
	case "amd64":
		code = []byte{0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05} // xor edi,edi; mov eax,60; syscall
	case "arm64":
		machine = 183
		code = []byte{0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4} // mov x0,0; mov x8,93; svc 0
	default:
		t.Skip("no machine code for " + runtime.GOARCH)
	}
	b := make([]byte, 120, 160)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20] = 2, machine, 1
	copy(b[24:], []byte{120, 0, 0x40}) // entry 0x400078
	b[32], b[52], b[54], b[56] = 64, 64, 56, 1
	ph := b[64:]
	ph[0], ph[4] = 1, 5
	copy(ph[16:], []byte{0, 0, 0x40})
	copy(ph[24:], []byte{0, 0, 0x40})
	ph[32], ph[40] = byte(120+len(code)), byte(120+len(code))
	ph[49] = 0x10
	return append(b, code...)
}

// program writes the tiny program with something of its own at the end, and returns its identity.
func program(t testing.TB, path string) event.FileID {
	t.Helper()
	var own [16]byte
	_, _ = rand.Read(own[:])
	if err := os.WriteFile(path, append(tiny(t), own[:]...), 0o755); err != nil {
		t.Fatal(err)
	}
	return fileID(t, path)
}

func fileID(t testing.TB, path string) event.FileID {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}
}

func run(t testing.TB, path string) uint32 {
	t.Helper()
	for range 200 {
		cmd := exec.Command(path)
		err := cmd.Run()
		if err == nil {
			return uint32(cmd.Process.Pid)
		}
		if !errors.Is(err, unix.ETXTBSY) { // a fork of a test beside this one holds it open for a moment
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("text file busy")
	return 0
}

// claimed executes a file, and is what the watch has of it, whose descriptor is the caller's.
func claimed(t testing.TB, w *Watch, path string, id event.FileID) Opened {
	t.Helper()
	pid := run(t, path)
	if err := w.Drain(); err != nil {
		t.Fatal(err)
	}
	o, ok := w.Claim(pid, id)
	if !ok {
		t.Fatalf("%s: no descriptor", path)
	}
	return o
}

func start(t testing.TB, o Options) *Watch {
	t.Helper()
	needRoot(t)
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func content(t testing.TB, fd int) []byte {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func tmpfs(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// settle waits until a mount that was just made is asked for.
func settle(t testing.TB, w *Watch, point string) {
	t.Helper()
	for range 500 {
		w.mounts.mu.Lock()
		for _, s := range w.mounts.systems {
			if s.point == point && s.err == nil {
				w.mounts.mu.Unlock()
				return
			}
		}
		w.mounts.mu.Unlock()
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("%s was never asked for: %+v", point, w.State())
}

func TestDescriptorOfWhatEndedAndWasUnlinked(t *testing.T) {
	needRoot(t)
	for name, dir := range map[string]string{"disk": t.TempDir(), "tmpfs": tmpfs(t)} {
		t.Run(name, func(t *testing.T) {
			w := start(t, Options{})
			path := filepath.Join(dir, "prog")
			id := program(t, path)
			want, _ := os.ReadFile(path)
			pid := run(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := w.Drain(); err != nil {
				t.Fatal(err)
			}
			if _, ok := w.Claim(pid+1, id); ok {
				t.Error("claimed by another process")
			}
			other := id
			other.Inode++
			if _, ok := w.Claim(pid, other); ok {
				t.Error("claimed as another file")
			}
			o, ok := w.Claim(pid, id)
			if !ok {
				t.Fatal("no descriptor")
			}
			defer unix.Close(o.FD)
			if !bytes.Equal(content(t, o.FD), want) {
				t.Error("the descriptor is of another file")
			}
			if _, ok := w.Claim(pid, id); ok {
				t.Error("claimed twice")
			}
		})
	}
}

func TestNewMountsAreFollowed(t *testing.T) {
	w := start(t, Options{})
	dir := tmpfs(t)
	settle(t, w, dir)
	path := filepath.Join(dir, "with space")
	id := program(t, path)
	o := claimed(t, w, path, id)
	unix.Close(o.FD)
}

func TestChangeIsToldOnceAndBeforeTheNextUse(t *testing.T) {
	needRoot(t)
	for name, dir := range map[string]string{"disk": t.TempDir(), "tmpfs": tmpfs(t)} {
		t.Run(name, func(t *testing.T) {
			w := start(t, Options{})
			path := filepath.Join(dir, "prog")
			id := program(t, path)
			unix.Close(claimed(t, w, path, id).FD)
			if c := w.Changes(); len(c) != 0 {
				t.Fatalf("%+v", c)
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				fmt.Fprint(f, "x")
			}
			f.Close()
			pid := run(t, path)
			if err := w.Drain(); err != nil {
				t.Fatal(err)
			}
			c := w.Changes()
			if len(c) != 1 || c[0].PID != uint32(os.Getpid()) || c[0].Path != path || c[0].Inode != (Inode{id.Device, id.Inode}) {
				t.Fatalf("%+v", c)
			}
			// Known again since it was executed again.
			o, ok := w.Claim(pid, fileID(t, path))
			if !ok {
				t.Fatal("no descriptor")
			}
			unix.Close(o.FD)
			// Truncation alone is told to no group that asks for descriptors; it moves the size and both times.
			if err := os.WriteFile(path, []byte("x"), 0); err != nil {
				t.Fatal(err)
			}
			if err := w.Drain(); err != nil {
				t.Fatal(err)
			}
			if c := w.Changes(); len(c) != 1 {
				t.Fatalf("%+v", c)
			}
		})
	}
}

// A write through a mapping is no write(2), and on tmpfs it moves no change time: the end of the writer tells.
func TestChangeThroughAMapping(t *testing.T) {
	w := start(t, Options{})
	dir := tmpfs(t)
	settle(t, w, dir)
	path := filepath.Join(dir, "prog")
	program(t, path)
	run(t, path)
	_ = w.Drain()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 128, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	m[127]++
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_ = w.Drain()
	if c := w.Changes(); len(c) != 1 {
		t.Fatalf("%+v", c)
	}
}

func TestKnownFilesAreClosedAtOnce(t *testing.T) {
	var known sync.Map
	w := start(t, Options{Known: func(id Identity) bool { _, ok := known.Load(id); return ok }})
	path := filepath.Join(t.TempDir(), "prog")
	id := program(t, path)
	known.Store(Identity{Inode{id.Device, id.Inode}, id.Ctime, id.Size}, true)
	pid := run(t, path)
	_ = w.Drain()
	o, ok := w.Claim(pid, id) // not watched before: its content cannot have been known
	if !ok {
		t.Fatal("no descriptor")
	}
	unix.Close(o.FD)
	pid = run(t, path)
	_ = w.Drain()
	if o, ok := w.Claim(pid, id); !ok || o.FD >= 0 {
		t.Errorf("a known file: %v, descriptor %d", ok, o.FD)
	}
}

func TestTheOldestDescriptorsGo(t *testing.T) {
	const limit, programs = 20, 50
	w := start(t, Options{Limit: limit})
	dir := t.TempDir()
	before := descriptors(t)
	type ran struct {
		pid uint32
		id  event.FileID
	}
	var all []ran
	for i := range programs {
		path := filepath.Join(dir, fmt.Sprint(i))
		id := program(t, path)
		all = append(all, ran{run(t, path), id})
	}
	_ = w.Drain()
	if n := descriptors(t) - before; n > limit+2 {
		t.Errorf("%d descriptors are open", n)
	}
	if s := w.Stats(); s.Waiting > limit || s.Dropped < programs-limit {
		t.Errorf("%+v", s)
	}
	have := 0
	for i, r := range all {
		o, ok := w.Claim(r.pid, r.id)
		if ok {
			have++
			unix.Close(o.FD)
		}
		if !ok && i == programs-1 {
			t.Error("the newest is gone")
		}
	}
	if have == 0 || have > limit {
		t.Errorf("%d are left", have)
	}
	w.Expire(time.Now().Add(time.Hour))
	if s := w.Stats(); s.Waiting != 0 {
		t.Errorf("after all were claimed or too old: %+v", s)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestParseMount(t *testing.T) {
	for line, want := range map[string]string{
		`36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: `/mnt 2\x ext3 98:0 36`,
		`36 35 0:7 / /m rw - fuse.sshfs a - b rw`:                                                 `/m fuse.sshfs 0:7 36`,
		"36 35 0:7 /a\v\fb /m\r\u00a0\u0085x rw - fuse a b":                                       "/m\r\u00a0\u0085x fuse 0:7 36", // what strangers call a directory, and mangle_path does not escape
		`36 35 98:0`: "", ``: "", `x 35 98:0 / / rw - ext4 a b`: "",
	} {
		id, device, point, fstype, ok := parseMount(line)
		got := ""
		if ok {
			got = fmt.Sprint(point, " ", fstype, " ", device, " ", id)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
	for name, want := range map[string]kind{"fuse.sshfs": foreign, "fuseblk": foreign, "nfs4": foreign, "unheard-of": foreign, "overlay": layered, "proc": pseudo, "ext4": local} {
		if got := kindOf(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}
