package digest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// fuseFile is a FUSE mount with one file, "prog", as fuse(4) wants it.
type fuseFile struct {
	dev     int
	content []byte
	hang    bool // never answer a read
}

// mountFUSE mounts it for owner, whom alone the kernel then lets in.
func mountFUSE(t *testing.T, owner int, content []byte, hang bool) string {
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
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", dev, owner, owner)
	if err := unix.Mount("picosnitch-test", dir, "fuse", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		t.Fatal(err)
	}
	f := &fuseFile{dev: dev, content: content, hang: hang}
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

func (f *fuseFile) attr(node uint64) []byte {
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

func (f *fuseFile) serve() {
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
		case 14: // OPEN
			le([]uint64{1, 0})
		case 15: // READ
			if f.hang {
				continue
			}
			from := min(binary.LittleEndian.Uint64(buf[48:]), uint64(len(f.content)))
			to := min(from+uint64(binary.LittleEndian.Uint32(buf[56:])), uint64(len(f.content)))
			out.Write(f.content[from:to])
		case 2, 36, 42: // FORGET, INTERRUPT, BATCH_FORGET have no answer
			continue
		case 18, 25: // RELEASE, FLUSH
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
	dir := mountFUSE(t, user, content, false)
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
	dir := mountFUSE(t, 0, make([]byte, 1<<20), true)
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
