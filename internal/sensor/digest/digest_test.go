package digest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/picosnitch/picosnitch/internal/event"
)

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// start runs a Digester until the test ends.
func start(t testing.TB, o Options) *Digester {
	t.Helper()
	d := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return d
}

// want asks and waits for the result.
func want(t testing.TB, d *Digester, p event.Process) Result {
	t.Helper()
	if exe, known := d.Want(p); known {
		return Result{Process: p.ID, Executable: exe}
	}
	return receive(t, d)
}

func receive(t testing.TB, d *Digester) Result {
	t.Helper()
	select {
	case r := <-d.Results():
		return r
	case <-time.After(patience):
		t.Fatal("no result")
		return Result{}
	}
}

// fileID is the identity of a file as stat tells it.
func fileID(t testing.TB, path string) event.FileID {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return identity(&st)
}

// file writes a file whose change time is long ago enough to be trusted.
func file(t testing.TB, path string, content []byte) event.Process {
	t.Helper()
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return onDisk(t, path)
}

// onDisk is a process that ended and left its file.
func onDisk(t testing.TB, path string) event.Process {
	id := fileID(t, path)
	return event.Process{ID: event.ProcessID{PID: 1, Start: 1, Exec: 1}, Path: event.Text([]byte(path)), File: id, Started: id.Ctime + int64(time.Hour)}
}

// age waits until the digest of a file may be kept, and until a change of the file is no longer one of the tick in which its program was started:
// from now, because a slow machine takes longer than that from the file to the program.
func age(t testing.TB) {
	t.Helper()
	time.Sleep(2 * fresh)
}

// sleeper copies a program to path and runs it.
func sleeper(t testing.TB, path string) event.Process {
	t.Helper()
	source, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatalf("the tests need sleep(1): %v", err)
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	file(t, path, content)
	return run(t, exec.Command(path, "1000"), path)
}

func run(t testing.TB, cmd *exec.Cmd, path string) event.Process {
	t.Helper()
	// A fork of a test beside this one may hold the file open for writing for a moment.
	var err error
	for range 100 {
		if err = cmd.Start(); !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		cmd = exec.Command(cmd.Path, cmd.Args[1:]...)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p := process(t, cmd.Process.Pid)
	p.Path = event.Text([]byte(path))
	return p
}

// process is what runs in pid.
func process(t testing.TB, pid int) event.Process {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ticks, err := startTime(fd)
	if err != nil {
		t.Fatal(err)
	}
	return event.Process{
		ID:   event.ProcessID{PID: uint32(pid), Start: ticks*tick + 1234567, Exec: 3},
		File: fileID(t, dir+"/exe"),
		// as from procfs: started before the sensor
		Started: time.Now().UnixNano(), Source: event.SourceIterator,
	}
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// tmpfs is a fresh folder on a tmpfs.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "digest")
	if err != nil {
		t.Skipf("no tmpfs on /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func reason(t *testing.T, got Result, want string) {
	t.Helper()
	if got.Executable.SHA256 != "" || got.Executable.Reason != want {
		t.Errorf("got digest %q, reason %q; want no digest, reason %q", got.Executable.SHA256, got.Executable.Reason, want)
	}
}

func TestDigestEqualsSHA256Sum(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("sha256sum")
	if err != nil {
		t.Fatalf("the tests need sha256sum(1): %v", err)
	}
	for name, dir := range map[string]string{"tmpfs": tmpfs(t), "disk": t.TempDir()} {
		d := start(t, Options{})
		for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3*chunk + 17} {
			path := filepath.Join(dir, strconv.Itoa(size))
			p := file(t, path, bytes.Repeat([]byte{'x', 0, 255}, size/3+1)[:size])
			out, err := exec.Command(tool, path).Output()
			if err != nil {
				t.Fatal(err)
			}
			got := want(t, d, p)
			expect := event.Executable{File: p.File, Path: p.Path, SHA256: string(out[:64])}
			if diff := cmp.Diff(expect, got.Executable); diff != "" || got.Process != p.ID || got.Unconfirmed != "" || got.Vouched {
				t.Errorf("%s, %d bytes (-want +got):\n%s", name, size, diff)
			}
		}
	}
}

func TestRunningProcess(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"tmpfs": tmpfs(t), "disk": t.TempDir()} {
		path := filepath.Join(dir, "prog ram\n\\x41\xff")
		p := sleeper(t, path)
		sum := sumOf(t, path)
		d := start(t, Options{})
		if got := want(t, d, p); got.Executable.SHA256 != sum {
			t.Errorf("%s: got %+v, want digest %s", name, got, sum)
		}

		// By its path alone, when the process is another one.
		ended := p
		ended.ID.Start += 10 * tick
		ended.Started += int64(time.Hour)
		if got := want(t, start(t, Options{}), ended); got.Executable.SHA256 != sum {
			t.Errorf("%s: by path: got %+v, want digest %s", name, got, sum)
		}

		// The kernel does not know the file: only the process tells.
		unknown := p
		unknown.File = event.FileID{}
		if got := want(t, d, unknown); got.Executable.SHA256 != sum || got.Executable.File != p.File {
			t.Errorf("%s: unknown file: got %+v, want digest %s of %+v", name, got, sum, p.File)
		}
		unknown.ID.Start += 10 * tick
		reason(t, want(t, d, unknown), ReasonGone)
	}
}

func TestUnlinkedWhileRunning(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "prog")
	p := sleeper(t, path)
	sum := sumOf(t, path)
	age(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	d := start(t, Options{})
	got := want(t, d, p)
	reason(t, got, ReasonTouched)
	if got.Unconfirmed != sum || got.Process != p.ID {
		t.Errorf("unconfirmed digest %q of %v, want %q of %v", got.Unconfirmed, got.Process, sum, p.ID)
	}

	// Met after the unlink: the identity is that of the nameless file, and is met.
	p.File = fileID(t, "/proc/"+strconv.Itoa(int(p.ID.PID))+"/exe")
	if got := want(t, d, p); got.Executable.SHA256 != sum {
		t.Errorf("met late: got %+v, want digest %s", got, sum)
	}
}

func TestMemfd(t *testing.T) {
	t.Parallel()
	source, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("sneaky", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(fd), "memfd")
	defer mem.Close()
	if _, err := mem.Write(content); err != nil {
		t.Fatal(err)
	}
	// Opened again for reading: a file open for writing cannot be executed.
	ro, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		t.Fatal(err)
	}
	mem.Close()
	cmd := exec.Command("/proc/"+strconv.Itoa(os.Getpid())+"/fd/"+strconv.Itoa(int(ro.Fd())), "1000")
	p := run(t, cmd, "memfd:sneaky")
	ro.Close()
	sum := sha256.Sum256(content)
	d := start(t, Options{})
	if got := want(t, d, p); got.Executable.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("got %+v, want digest %x", got, sum)
	}
	p.Path, p.Deleted = "/memfd:sneaky", true
	o, ok := d.OpenMemory(p)
	if !ok {
		t.Fatal("OpenMemory: not opened")
	}
	unix.Close(o.FD)

	// What is only named so may be on a file system that does not answer: it is not touched.
	path := filepath.Join(t.TempDir(), "memfd:named")
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	named := run(t, exec.Command(path, "1000"), path)
	named.Path, named.Deleted = "/memfd:named", true
	if o, ok := d.OpenMemory(named); ok {
		unix.Close(o.FD)
		t.Error("OpenMemory: opened a file on disk")
	}
}

func TestReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "prog")
	for name, change := range map[string]func(p *event.Process){
		"other file": func(*event.Process) {
			file(t, filepath.Join(dir, "new"), []byte("evil"))
			if err := os.Rename(filepath.Join(dir, "new"), path); err != nil {
				t.Fatal(err)
			}
		},
		"same inode, other size": func(*event.Process) {
			if err := os.WriteFile(path, []byte("longer than before"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"change time":   func(p *event.Process) { p.File.Ctime++ },
		"device":        func(p *event.Process) { p.File.Device++ },
		"symbolic link": func(*event.Process) { os.Remove(path); _ = os.Symlink("/bin/sh", path) },
		"symbolic link to the very file": func(*event.Process) {
			_ = os.Rename(path, path+".real")
			_ = os.Symlink(path+".real", path)
		},
	} {
		os.Remove(path)
		p := file(t, path, []byte("good"))
		change(&p)
		t.Run(name, func(t *testing.T) { reason(t, want(t, start(t, Options{}), p), ReasonReplaced) })
	}
}

func TestYoungFileOfEndedProcessIsNotBelieved(t *testing.T) {
	t.Parallel()
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	p.Started = p.File.Ctime + int64(2*time.Millisecond)
	reason(t, want(t, start(t, Options{}), p), ReasonYoung)
}

func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge")
	file(t, huge, nil)
	if err := os.Truncate(huge, DefaultMaxSize+1); err != nil {
		t.Fatal(err)
	}
	gone := file(t, filepath.Join(dir, "gone"), []byte("x"))
	os.Remove(filepath.Join(dir, "gone"))
	for name, c := range map[string]struct {
		p      event.Process
		reason string
	}{
		"fifo":           {onDisk(t, fifo), ReasonNoFile},
		"endless device": {onDisk(t, "/dev/zero"), ReasonNoFile},
		"folder":         {onDisk(t, dir), ReasonNoFile},
		"sparse":         {onDisk(t, huge), ReasonSize},
		"gone":           {gone, ReasonGone},
		"kernel thread":  {event.Process{ID: event.ProcessID{PID: 2, Start: 1}, Kernel: true}, ReasonKernel},
		"nothing known":  {event.Process{}, ReasonUnknown},
		"relative path":  {event.Process{ID: gone.ID, Path: "etc/passwd", File: fileID(t, "/etc/passwd")}, ReasonGone},
		"huge path":      {event.Process{ID: gone.ID, Path: strings.Repeat("/a", 1<<20), File: gone.File}, ReasonGone},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, Options{})
			began := time.Now()
			reason(t, want(t, d, c.p), c.reason)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			if c.reason != ReasonKernel && d.Stats().Failed[c.reason] != 1 {
				t.Errorf("not counted: %v", d.Stats().Failed)
			}
		})
	}
}

// TestScriptLedElsewhere: a script is never opened by its path, which may lead to something else by now; of that nothing is told, not even
// that it is there. What was opened for it when it was found is read.
func TestScriptLedElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := file(t, filepath.Join(dir, "script"), []byte("x"))
	p.ScriptFile = p.File
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"none", "secret", "."} {
		os.Remove(p.Path)
		if err := os.Symlink(to, p.Path); err != nil {
			t.Fatal(err)
		}
		reason(t, want(t, start(t, Options{}), p), ReasonScript)
	}
	if err := os.Remove(p.Path); err != nil {
		t.Fatal(err)
	}
	p = file(t, p.Path, []byte("x"))
	p.ScriptFile = p.File
	d := start(t, Options{})
	reason(t, want(t, d, p), ReasonScript)
	fd, err := unix.Open(p.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.ID.PID++ // the other one's failure is remembered
	if exe, known := d.WantFile(p, Descriptor{FD: fd, Own: true}); known {
		t.Fatalf("known: %+v", exe)
	}
	if r := receive(t, d); r.Executable.SHA256 != sumOf(t, p.Path) {
		t.Errorf("with its descriptor: %+v", r.Executable)
	}
}

func TestChangedWhileRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "prog")
	p := file(t, path, make([]byte, 3*chunk))
	d := New(Options{})
	w := &worker{}
	for name, change := range map[string]func() error{
		"grown":   func() error { return os.Truncate(path, 3*chunk+1) },
		"shrunk":  func() error { return os.Truncate(path, chunk) },
		"touched": func() error { return os.Chmod(path, 0o700) },
	} {
		p.File = fileID(t, path)
		o, why := d.open(&asker{p, -1, None(), nil})
		if why != nil {
			t.Fatal(why)
		}
		time.Sleep(fresh) // another tick of the coarse clock
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if sum, why := d.read(context.Background(), w, o, make([]byte, chunk)); sum != "" || why == nil || why.reason != ReasonChanged {
			t.Errorf("%s: got %q, %v; want %q", name, sum, why, ReasonChanged)
		}
	}
	if leaked := openFiles(t, path); leaked != 0 {
		t.Errorf("%d descriptors of the file left open", leaked)
	}
}

func TestChangedInTheMiddle(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "prog")
	file(t, path, nil)
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	d := New(Options{})
	o, why := d.open(&asker{onDisk(t, path), -1, None(), nil})
	if why != nil {
		t.Fatal(why)
	}
	w := &worker{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for end := time.Now().Add(patience); w.progress.Load() == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if err := os.Chmod(path, 0o700); err != nil {
			t.Error(err)
		}
	})
	if sum, why := d.read(context.Background(), w, o, make([]byte, chunk)); why == nil || why.reason != ReasonChanged {
		t.Errorf("got %q, %v; want %q", sum, why, ReasonChanged)
	}
	wg.Wait()
}

// TestNoWrongDigestUnderSwaps lets a stranger swap the file as fast as possible: the digest is that of the named file or
// there is none.
func TestNoWrongDigestUnderSwaps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, keep := filepath.Join(dir, "prog"), filepath.Join(dir, "good")
	good, evil := []byte("good"), []byte("evil")
	file(t, keep, good)
	age(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := filepath.Join(dir, "next")
			switch i % 3 {
			case 0:
				_ = os.WriteFile(next, evil, 0o755)
			case 1:
				_ = os.Link(keep, next) // changes the change time of the good one
			case 2:
				_ = os.Symlink("/etc/passwd", next)
			}
			_ = os.Rename(next, path)
			os.Remove(next)
		}
	})
	defer wg.Wait()
	defer close(stop)
	d := start(t, Options{})
	sum := sha256.Sum256(good)
	ok := hex.EncodeToString(sum[:])
	seen := map[string]int{}
	for i := range 2000 {
		p := onDisk(t, keep)
		p.ID.Exec = uint32(i)
		p.Path = path
		r := want(t, d, p)
		seen[r.Executable.SHA256+r.Executable.Reason]++
		if r.Executable.SHA256 != "" && r.Executable.SHA256 != ok {
			t.Fatalf("digest of another file: %+v", r)
		}
	}
	if seen[ReasonReplaced] == 0 {
		t.Errorf("the race never happened: %v", seen)
	}
}

func openFiles(t *testing.T, path string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && link == path {
			n++
		}
	}
	return n
}

func TestRawPathUndoesText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		raw := "/" + string(rapid.SliceOf(rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte("\\xu{}41")))).Draw(t, "path"))
		raw = strings.ReplaceAll(raw, "\x00", "")
		if got, ok := rawPath(event.Text([]byte(raw))); !ok || got != raw {
			t.Fatalf("got %q, %v; want %q", got, ok, raw)
		}
	})
	for _, bad := range []string{"", "a", `/\`, `/\x4`, `/\u{`, `/\u{110000000}`, `/\xzz`, "/a\x00b", `/\u{0}`} {
		if got, ok := rawPath(bad); ok {
			t.Errorf("rawPath(%q) = %q", bad, got)
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	st := unix.Stat_t{Dev: 7, Ino: 8, Size: 9, Ctim: unix.Timespec{Sec: 1, Nsec: 5}}
	is := identity(&st)
	with := func(change func(*event.FileID)) event.FileID { c := is; change(&c); return c }
	dev := func(f *event.FileID) { f.Device = 99 }
	for name, c := range map[string]struct {
		want  event.FileID
		magic int64
		is    int
	}{
		"same":                       {is, unix.EXT4_SUPER_MAGIC, same},
		"not known":                  {event.FileID{}, unix.EXT4_SUPER_MAGIC, same},
		"generation is not compared": {with(func(f *event.FileID) { f.Generation = 4 }), unix.EXT4_SUPER_MAGIC, same},
		"device":                     {with(dev), unix.EXT4_SUPER_MAGIC, other},
		"device on btrfs":            {with(dev), magicBtrfs, same},
		"device on overlayfs":        {with(dev), magicOverlay, same},
		"device and ctime on btrfs":  {with(func(f *event.FileID) { f.Device, f.Ctime = 99, 1 }), magicBtrfs, other},
		"ctime":                      {with(func(f *event.FileID) { f.Ctime-- }), unix.EXT4_SUPER_MAGIC, moved},
		"inode":                      {with(func(f *event.FileID) { f.Inode-- }), magicBtrfs, other},
		"size":                       {with(func(f *event.FileID) { f.Size-- }), magicBtrfs, other},
	} {
		if got := compare(c.want, &st, c.magic); got != c.is {
			t.Errorf("%s: got %d, want %d", name, got, c.is)
		}
	}
}
