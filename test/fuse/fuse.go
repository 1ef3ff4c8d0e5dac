// Package fuse mounts, for tests, a file system that only its user may read, as an AppImage or sshfs does. The test itself serves
// it, so it must not execute what is on it: exec stops the threads of the one that calls it.
package fuse

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// file is a FUSE mount with one file, "prog", as fuse(4) wants it.
type file struct {
	dev     int
	content []byte
	silent  uint32 // what is never answered, or 0
}

// What a file system may be asked, of enum fuse_opcode in linux/fuse.h.
const (
	Read  = 15
	Flush = 25 // each close(2)
)

// Mount mounts a folder with one executable file, "prog", for owner, whom alone the kernel then lets in. With hang, nothing that
// is read is ever answered. It needs root.
func Mount(t testing.TB, owner int, content []byte, hang bool) string {
	t.Helper()
	return MountFor(t, owner, owner, content, hang)
}

// MountFor is Mount for an owner of another group.
func MountFor(t testing.TB, owner, group int, content []byte, hang bool) string {
	t.Helper()
	silent := uint32(0)
	if hang {
		silent = Read
	}
	return mount(t, owner, group, content, silent)
}

// MountSilent is Mount for root. What is silent is never answered.
func MountSilent(t testing.TB, content []byte, silent uint32) string {
	t.Helper()
	return mount(t, 0, 0, content, silent)
}

func mount(t testing.TB, owner, group int, content []byte, silent uint32) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	dir, err := os.MkdirTemp("", "fuse") // not t.TempDir: its parents are closed for others
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", dev, owner, group)
	if err := unix.Mount("picosnitch-test", dir, "fuse", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		t.Fatal(err)
	}
	f := &file{dev: dev, content: content, silent: silent}
	var wg sync.WaitGroup
	wg.Go(f.serve)
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_FORCE)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		wg.Wait()
		unix.Close(dev)
		os.Remove(dir)
	})
	return dir
}

func (f *file) attr(node uint64) []byte {
	mode, size := uint32(unix.S_IFDIR|0o755), uint64(0)
	if node != 1 {
		mode, size = unix.S_IFREG|0o755, uint64(len(f.content))
	}
	b := new(bytes.Buffer)
	le := func(v any) { _ = binary.Write(b, binary.LittleEndian, v) }
	le([]uint64{node, size, size / 512, 1000, 1000, 1000}) // ino, size, blocks, atime, mtime, ctime
	le([]uint32{0, 0, 0, mode, 1, 0, 0, 0, 4096, 0})       // …nsec, mode, nlink, uid, gid, rdev, blksize, flags
	return b.Bytes()
}

func (f *file) serve() {
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(f.dev, buf)
		if err == unix.EINTR || err == unix.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return // unmounted
		}
		op, unique, node := binary.LittleEndian.Uint32(buf[4:]), buf[8:16], binary.LittleEndian.Uint64(buf[16:])
		if op == f.silent {
			continue
		}
		out, failed := new(bytes.Buffer), int32(0)
		le := func(v any) { _ = binary.Write(out, binary.LittleEndian, v) }
		switch op {
		case 26: // INIT
			le([]uint32{7, 31, 1 << 17, 0, 0, 1 << 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		case 1: // LOOKUP
			if string(buf[40:n-1]) != "prog" {
				failed = -int32(unix.ENOENT)
				break
			}
			le([]uint64{2, 0, 3600, 3600, 0})
			out.Write(f.attr(2))
		case 3: // GETATTR
			le([]uint64{3600, 0})
			out.Write(f.attr(node))
		case 17: // STATFS
			le([]uint64{1, 0, 0, 2, 0})
			le([]uint32{4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0})
		case 14: // OPEN
			le([]uint64{1, 0})
		case Read:
			from := min(binary.LittleEndian.Uint64(buf[48:]), uint64(len(f.content)))
			to := min(from+uint64(binary.LittleEndian.Uint32(buf[56:])), uint64(len(f.content)))
			out.Write(f.content[from:to])
		case 2, 36, 42: // FORGET, INTERRUPT, BATCH_FORGET have no answer
			continue
		case 18, Flush: // and RELEASE
		default:
			failed = -int32(unix.ENOSYS)
		}
		head := new(bytes.Buffer)
		_ = binary.Write(head, binary.LittleEndian, uint32(16+out.Len()))
		_ = binary.Write(head, binary.LittleEndian, failed)
		head.Write(unique)
		head.Write(out.Bytes())
		_, _ = unix.Write(f.dev, head.Bytes())
	}
}
