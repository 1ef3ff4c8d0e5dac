package daemon

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLoggedInAsksNobody: a user's runtime directory is a tmpfs of its own, as systemd-logind makes it, or none. One that is a file system
// of the user's, which never answers, holds nothing up.
func TestLoggedInAsksNobody(t *testing.T) {
	asRoot(t)
	base := filepath.Join(t.TempDir(), "user")
	runtime := func(uid uint32, bus bool) string {
		t.Helper()
		dir := filepath.Join(base, itoa(uid))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if uid != 5002 && uid != 5004 {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		}
		if bus {
			path := filepath.Join(dir, "bus")
			if err := unix.Mknod(path, unix.S_IFSOCK|0o600, 0); err != nil {
				t.Fatal(err)
			}
			os.Chown(path, int(uid), int(uid))
		}
		if err := os.Chown(dir, int(uid), int(uid)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	runtime(5001, true)
	runtime(5002, true)
	runtime(5003, false)
	hostile := runtime(5004, false)
	on := filepath.Join(runtime(5005, false), "bus")
	if err := os.WriteFile(on, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mountDead(t, hostile, 5004, unix.S_IFDIR)
	mountDead(t, on, 5005, unix.S_IFREG)

	done := inBackground(func() map[uint32]uint32 { return loggedIn(base) })
	select {
	case here := <-done:
		if !maps.Equal(here, map[uint32]uint32{5001: 5001, 5002: 5002}) {
			t.Errorf("%v", here)
		}
	case <-time.After(5 * time.Second):
		t.Error("it asked a file system that never answers")
	}
}

func inBackground[T any](f func() T) <-chan T {
	c := make(chan T, 1)
	go func() { c <- f() }()
	return c
}

// mountDead mounts a FUSE file system that lets everybody in and never answers, for a moment: what waits for it ends then.
func mountDead(t *testing.T, at string, owner uint32, mode int) {
	t.Helper()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other", dev, mode, owner, owner)
	if err := unix.Mount("dead", at, "fuse", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		unix.Close(dev)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(dev) // aborts what waits
		unix.Unmount(at, unix.MNT_DETACH)
	})
}
