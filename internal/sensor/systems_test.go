package sensor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
)

// truth is what the test knows of one exec.
type truth struct {
	what   string
	pid    uint32
	path   string // "": not compared
	sha256 string // "": there must be the reason
	reason string
	gone   bool // Process.Deleted
}

// systems executes programs on file systems, and remembers the truth.
type systems struct {
	t       *testing.T
	program []byte
	slow    []byte
	all     []truth
}

func (s *systems) add(tr truth) { s.all = append(s.all, tr) }

// put writes a distinct program.
func (s *systems) put(path string) string {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	sum := distinct(s.t, path, s.program)
	time.Sleep(2 * young) // of what is younger it cannot always be proven that it was not replaced: see TestRaces
	return sum
}

// run executes cmd to its end.
func (s *systems) run(cmd *exec.Cmd) uint32 {
	s.t.Helper()
	for range 200 {
		c := *cmd
		out, err := c.CombinedOutput()
		if err == nil {
			return uint32(c.Process.Pid)
		}
		if !errors.Is(err, unix.ETXTBSY) {
			s.t.Fatalf("%v: %v: %s", cmd.Args, err, out)
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatal("text file busy")
	return 0
}

func (s *systems) plain(what, path string) {
	s.t.Helper()
	sum := s.put(path)
	s.add(truth{what: what, pid: s.run(exec.Command(path)), path: path, sha256: sum})
}

func mount(t *testing.T, source, target, fstype string, flags uintptr, options string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		t.Fatalf("mount %s on %s: %v", fstype, target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// image mounts a file by a loop device.
func image(t *testing.T, file, target, fstype string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-o", "loop", "-t", fstype, file, target)
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func need(t *testing.T, fstype string, tools ...string) {
	t.Helper()
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	_ = exec.Command("modprobe", fstype).Run() // where it is a module
	if b2, err := os.ReadFile("/proc/filesystems"); err == nil {
		b = b2
	}
	if !bytes.Contains(b, []byte("\t"+fstype+"\n")) {
		t.Skipf("needs a kernel with %s", fstype)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("the tests need %s: %v", tool, err)
		}
	}
}

// Each file system has its own idea of what a file's numbers are. The path is the process's own, the digest that of the bytes that
// ran, and afterwards nothing keeps the file system busy.
func TestFileSystems(t *testing.T) {
	r := runSensor(t, Options{EveryExe: true, Interval: 200 * time.Millisecond})
	s := &systems{t: t, program: sender(t, sink(t)), slow: sender(t, sink(t), 900*time.Millisecond)}
	root := t.TempDir()

	on := func(name string, f func(t *testing.T, dir string)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			dir := filepath.Join(root, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			f(t, dir)
		})
	}
	on("disk", func(t *testing.T, dir string) { s.plain("disk", filepath.Join(dir, "prog")) })
	on("tmpfs", func(t *testing.T, dir string) {
		mount(t, "tmpfs", dir, "tmpfs", 0, "")
		settle()
		s.plain("tmpfs", filepath.Join(dir, "prog"))
		waitFor(t, r, s)
		idle(t, dir)
	})
	on("links", func(t *testing.T, dir string) {
		sum := s.put(filepath.Join(dir, "multi"))
		must(t, os.Link(filepath.Join(dir, "multi"), filepath.Join(dir, "ls")))
		must(t, os.Symlink("multi", filepath.Join(dir, "link")))
		for _, name := range []string{"multi", "ls"} { // two names of one file
			path := filepath.Join(dir, name)
			s.add(truth{what: "hard link", pid: s.run(exec.Command(path)), path: path, sha256: sum})
		}
		s.add(truth{what: "symbolic link", pid: s.run(exec.Command(filepath.Join(dir, "link"))), path: filepath.Join(dir, "multi"), sha256: sum})
	})
	on("bind", func(t *testing.T, dir string) {
		sum := s.put(filepath.Join(dir, "a", "prog"))
		mount(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"), "", unix.MS_BIND, "")
		path := filepath.Join(dir, "b", "prog")
		s.add(truth{what: "bind mount", pid: s.run(exec.Command(path)), path: path, sha256: sum})
		// A file of its own over another: what the path says is not what it was before.
		other := s.put(filepath.Join(dir, "c"))
		must(t, unix.Mount(filepath.Join(dir, "c"), path, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
		s.add(truth{what: "bind mount of a file", pid: s.run(exec.Command(path)), path: path, sha256: other})
	})
	on("deleted", func(t *testing.T, dir string) {
		path := filepath.Join(dir, "prog")
		sum := s.put(path)
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		must(t, os.Remove(path))
		cmd := exec.Command("/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{f}
		s.add(truth{what: "deleted", pid: s.run(cmd), path: path, sha256: sum, gone: true})
	})
	on("memfd", func(t *testing.T, dir string) {
		sum := distinct(t, filepath.Join(dir, "prog"), s.slow)
		s.add(truth{what: "memfd", pid: s.run(memory(t, filepath.Join(dir, "prog"))), path: "/memfd:sneaky", sha256: sum, gone: true})
	})
	on("overlay", func(t *testing.T, dir string) {
		need(t, "overlay")
		lower := filepath.Join(dir, "lower")
		image := s.put(filepath.Join(lower, "bin", "prog"))
		in := func(container string) *exec.Cmd {
			cmd := exec.Command("/bin/prog")
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: container, Cloneflags: unix.CLONE_NEWNS}
			return cmd
		}
		var container [2]string
		for i := range container {
			base := filepath.Join(dir, fmt.Sprint(i))
			mount(t, "tmpfs", base, "tmpfs", 0, "") // upper and lower on different file systems
			for _, sub := range []string{"upper", "work"} {
				must(t, os.Mkdir(filepath.Join(base, sub), 0o755))
			}
			container[i] = filepath.Join(base, "merged")
			mount(t, "overlay", container[i], "overlay", 0, "lowerdir="+lower+",upperdir="+base+"/upper,workdir="+base+"/work")
		}
		settle()
		s.add(truth{what: "lower file in a container", pid: s.run(in(container[0])), path: "/bin/prog", sha256: image})
		s.add(truth{what: "the same in another", pid: s.run(in(container[1])), path: "/bin/prog", sha256: image})
		own := s.put(filepath.Join(container[1], "bin", "prog")) // written in place: copied up
		s.add(truth{what: "copied up and changed", pid: s.run(in(container[1])), path: "/bin/prog", sha256: own})
		s.add(truth{what: "still the image's", pid: s.run(in(container[0])), path: "/bin/prog", sha256: image})
		must(t, os.Remove(filepath.Join(container[0], "bin", "prog")))
		replaced := s.put(filepath.Join(container[0], "bin", "prog")) // only in the upper layer
		s.add(truth{what: "upper file", pid: s.run(in(container[0])), path: "/bin/prog", sha256: replaced})
		waitFor(t, r, s)
		idle(t, container[0])
		idle(t, container[1])
	})
	on("btrfs", func(t *testing.T, dir string) {
		need(t, "btrfs", "mkfs.btrfs", "btrfs")
		file, at := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Truncate(file, 256<<20))
		command(t, "mkfs.btrfs", "-q", file)
		image(t, file, at, "btrfs")
		settle()
		inode := map[uint64]bool{}
		for _, sub := range []string{"one", "two"} {
			command(t, "btrfs", "subvolume", "create", filepath.Join(at, sub))
			path := filepath.Join(at, sub, "prog")
			s.plain("subvolume "+sub, path)
			inode[stat(t, path).Ino] = true
		}
		if len(inode) != 1 {
			t.Error("the subvolumes have different inode numbers: this tests nothing")
		}
		sum := s.all[len(s.all)-2].sha256
		command(t, "btrfs", "subvolume", "snapshot", filepath.Join(at, "one"), filepath.Join(at, "snap"))
		path := filepath.Join(at, "snap", "prog")
		s.add(truth{what: "snapshot", pid: s.run(exec.Command(path)), path: path, sha256: sum})
		waitFor(t, r, s)
		s.plain("changed in the snapshot", path)
		path = filepath.Join(at, "one", "prog")
		s.add(truth{what: "the original of the snapshot", pid: s.run(exec.Command(path)), path: path, sha256: sum})
		waitFor(t, r, s)
		idle(t, at)
	})
	for fstype, mkfs := range map[string]string{"squashfs": "mksquashfs", "erofs": "mkfs.erofs"} {
		on(fstype, func(t *testing.T, dir string) {
			need(t, fstype, mkfs)
			file, at := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
			sum := s.put(filepath.Join(dir, "tree", "prog"))
			if fstype == "squashfs" {
				command(t, mkfs, filepath.Join(dir, "tree"), file, "-quiet", "-no-progress")
			} else {
				command(t, mkfs, file, filepath.Join(dir, "tree"))
			}
			image(t, file, at, fstype)
			settle()
			path := filepath.Join(at, "prog")
			s.add(truth{what: fstype, pid: s.run(exec.Command(path)), path: path, sha256: sum})
			waitFor(t, r, s)
			idle(t, at)
		})
	}
	on("fuse", func(t *testing.T, dir string) {
		need(t, "fuse", "squashfuse", "mksquashfs", "fusermount")
		file := filepath.Join(dir, "image")
		sum := distinct(t, filepath.Join(mkdir(t, dir, "tree"), "prog"), s.slow)
		command(t, "mksquashfs", filepath.Join(dir, "tree"), file, "-quiet", "-no-progress")
		must(t, os.Chmod(file, 0o644))
		open(t, dir)                   // an ordinary user must get there
		device := stat(t, "/dev/fuse") // distributions let every user open it
		must(t, os.Chmod("/dev/fuse", 0o666))
		t.Cleanup(func() { _ = os.Chmod("/dev/fuse", os.FileMode(device.Mode&0o777)) })
		nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
		for what, options := range map[string]string{"private": "", "shared": "allow_other"} {
			at := mkdir(t, dir, what)
			must(t, os.Chown(at, 65534, 65534))
			args := []string{"-f", file, at}
			if options != "" {
				args = append([]string{"-o", options}, args...)
			}
			server := exec.Command("squashfuse", args...)
			if options == "" {
				server.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
			}
			must(t, server.Start())
			t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH); _ = server.Process.Kill(); _ = server.Wait() })
			path := filepath.Join(at, "prog")
			cmd := func() *exec.Cmd {
				c := exec.Command(path)
				c.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
				return c
			}
			for range 3000 { // it is mounted in a moment, emulated in some
				if b, _ := os.ReadFile("/proc/self/mounts"); bytes.Contains(b, []byte(" "+at+" fuse")) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			tr := truth{what: "FUSE, " + what, pid: s.run(cmd()), path: path, sha256: sum}
			if what == "private" { // root is refused; the user's own session can be asked
				tr.sha256, tr.reason = "", digest.ReasonFUSE
			}
			s.add(tr)
		}
	})

	waitFor(t, r, s)
	r.stop()
	x := r.told()
	for _, tr := range s.all {
		p, e := find(x, tr.pid)
		if p.ID.IsZero() {
			t.Errorf("%s: the process was not told", tr.what)
			continue
		}
		if p.Path != tr.path || p.Deleted != tr.gone {
			t.Errorf("%s: path %q (deleted %v), want %q (%v)", tr.what, p.Path, p.Deleted, tr.path, tr.gone)
		}
		if e.SHA256 != tr.sha256 || tr.sha256 == "" && e.Reason != tr.reason {
			t.Errorf("%s: digest %q, reason %q; want %q, %q", tr.what, e.SHA256, e.Reason, tr.sha256, tr.reason)
		}
	}
	files := map[event.FileID]string{}
	for _, tr := range s.all {
		p, _ := find(x, tr.pid)
		if old, ok := files[p.File]; ok && old != tr.sha256 {
			t.Errorf("%s: one identity and two contents", tr.what)
		}
		files[p.File] = tr.sha256
	}
}

// memory executes a file from memory.
func memory(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	fd, err := unix.MemfdCreate("sneaky", 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, b)
	must(t, err)
	read, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	must(t, err)
	t.Cleanup(func() { read.Close() })
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{read}
	return cmd
}

// find is the last image of a process: the first is the test itself, before its exec.
func find(x told, pid uint32) (event.Process, event.Executable) {
	var last event.Process
	for id, p := range x.processes {
		if id.PID == pid && p.Source == event.SourceExec && (last.ID.IsZero() || id.Exec > last.ID.Exec) {
			last = p
		}
	}
	if last.File.IsZero() {
		return last, event.Executable{}
	}
	return last, x.digests[last.File]
}

// settle waits until a new mount is asked for: the kernel wakes the reader of the mounts at once.
func settle() { time.Sleep(100 * time.Millisecond) }

// waitFor waits until the last exec is told with its digest or reason.
func waitFor(t *testing.T, r *running, s *systems) {
	t.Helper()
	last := s.all[len(s.all)-1]
	for range 400 {
		if _, e := find(r.told(), last.pid); e.SHA256 != "" || e.Reason != "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s: never told", last.what)
}

// idle unmounts: nothing may keep the file system busy when its programs have ended and are hashed.
func idle(t *testing.T, dir string) {
	t.Helper()
	var err error
	for range 40 {
		if err = unix.Unmount(dir, 0); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("unmount %s: %v", dir, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st
}

func mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	must(t, os.MkdirAll(dir, 0o755))
	return dir
}

// open lets everybody come to dir.
func open(t *testing.T, dir string) {
	t.Helper()
	for d := dir; strings.Count(d, "/") > 1; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
}
