package fanotify

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ext4 mounts a file system whose inodes leave memory, as those of a disk do.
func ext4(t testing.TB) string {
	t.Helper()
	needRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}

// forgetInodes has the kernel forget the inodes that nobody uses, and their marks.
func forgetInodes(t testing.TB, dir string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// TestChangeIsToldAfterTheKernelForgotTheFile: the kernel forgets a file that nobody used for a while, and whoever has a memory limit
// of his own can have his files forgotten at once. What is executed again is watched again, and nothing is said to have been watched meanwhile.
func TestChangeIsToldAfterTheKernelForgotTheFile(t *testing.T) {
	dir := ext4(t)
	w := start(t, Options{})
	settle(t, w, dir)
	path := filepath.Join(dir, "prog")
	execute := func() Opened {
		t.Helper()
		id := fileID(t, path)
		o := claimed(t, w, path, id)
		unix.Close(o.FD)
		return o
	}
	program(t, path)
	execute()
	for range 3 { // a file that was just used may survive the first time
		time.Sleep(20 * time.Millisecond)
		forgetInodes(t, dir)
	}
	forgotten := time.Now()
	if o := execute(); o.Watched.Before(forgotten) {
		t.Errorf("executed again: said to be watched since %v before the kernel forgot it", forgotten.Sub(o.Watched))
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Drain(); err != nil {
		t.Fatal(err)
	}
	if c := w.Changes(); len(c) != 1 {
		t.Errorf("%d changes are told, want 1", len(c))
	}
}

// TestChangeIsToldOfMoreFilesThanAreRemembered: the kernel still watches those that are not remembered any more.
func TestChangeIsToldOfMoreFilesThanAreRemembered(t *testing.T) {
	w := start(t, Options{Marked: 2})
	dir := t.TempDir()
	first := filepath.Join(dir, "0")
	for _, name := range []string{"0", "1", "2", "3"} {
		program(t, filepath.Join(dir, name))
		run(t, filepath.Join(dir, name))
	}
	if err := w.Drain(); err != nil {
		t.Fatal(err)
	}
	if n := w.Stats().Marked; n != 2 {
		t.Fatalf("%d are remembered: this tests nothing", n)
	}
	for range 2 { // told once
		if err := os.WriteFile(first, []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Drain(); err != nil {
		t.Fatal(err)
	}
	if c := w.Changes(); len(c) != 1 || c[0].Path != first {
		t.Errorf("%+v is told, want one change of %s", c, first)
	}
}
