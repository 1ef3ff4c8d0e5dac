package digest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// superblock is the device of an overlay's inodes as the kernel has it, and as stat tells it for its folders.
func superblock(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BASIC_STATS, &st); err != nil {
		t.Fatal(err)
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor)
}

func TestOverlay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := tmpfs(t)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Upper and lower are on different file systems: then stat tells a device of each layer.
	lower := t.TempDir()
	merged := filepath.Join(dir, "merged")
	file(t, filepath.Join(lower, "low"), []byte("low"))
	options := "lowerdir=" + lower + ",upperdir=" + filepath.Join(dir, "upper") + ",workdir=" + filepath.Join(dir, "work")
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Skipf("needs overlayfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	file(t, filepath.Join(merged, "up"), []byte("up"))
	d := start(t, Options{})
	device := superblock(t, merged)
	for _, name := range []string{"low", "up"} {
		p := onDisk(t, filepath.Join(merged, name))
		if p.File.Device == device {
			t.Errorf("%s: stat tells the device of the overlay: this tests nothing", name)
		}
		p.File.Device = device
		if r := want(t, d, p); r.Executable.SHA256 != sumOf(t, filepath.Join(merged, name)) || r.Executable.File != p.File {
			t.Errorf("%s: got %+v", name, r)
		}
		p.File.Ctime--
		reason(t, want(t, d, p), ReasonReplaced)
	}
}

func TestBtrfs(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.btrfs")
	if err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and mkfs.btrfs: %v", err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.btrfs: %v: %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs btrfs and loop devices: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	if out, err := exec.Command("btrfs", "subvolume", "create", dir+"/sub").CombinedOutput(); err != nil {
		t.Fatalf("btrfs: %v: %s", err, out)
	}
	p := file(t, filepath.Join(dir, "sub", "prog"), []byte("x"))
	p.File.Device++ // the kernel's inode has the device of the whole, stat that of the subvolume
	if r := want(t, start(t, Options{}), p); r.Executable.SHA256 != sumOf(t, p.Path) || r.Executable.File != p.File {
		t.Errorf("got %+v", r)
	}
}
