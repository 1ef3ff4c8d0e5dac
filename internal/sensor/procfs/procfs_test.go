package procfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// fixtures is testdata/proc with a clock that stands still.
func fixtures() FS { return FS{root: "testdata/proc", offset: 1e18} }

const start = 12345 * Tick

func fixture(pid uint32, change func(*event.Process)) event.Process {
	p := event.Process{
		ID: event.ProcessID{PID: pid, Start: start}, Parent: event.ProcessID{PID: 1, Start: 3 * Tick},
		UID: 1000, MountNS: 4026531841, Source: event.SourceProcfs, Started: 1e18 + int64(start),
	}
	change(&p)
	return p
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	want := []event.Process{
		fixture(1, func(p *event.Process) {
			p.ID.Start, p.Started, p.Parent, p.UID = 3*Tick, 1e18+3*int64(Tick), event.ProcessID{}, 0
			p.Name, p.Path, p.Argv = "systemd", "/nonexistent/lib/systemd/systemd", []string{"/sbin/init", "splash"}
		}),
		fixture(2, func(p *event.Process) {
			p.ID.Start, p.Started, p.Parent, p.UID = 3*Tick, 1e18+3*int64(Tick), event.ProcessID{}, 0
			p.Name, p.Kernel = "kthreadd", true
		}),
		fixture(3, func(p *event.Process) {
			p.ID.Start, p.Started, p.Parent, p.UID = 4*Tick, 1e18+4*int64(Tick), event.ProcessID{PID: 2, Start: 3 * Tick}, 0
			p.Name, p.Kernel = "kworker/u8:0-events_unbound) (evil", true
		}),
		fixture(100, func(p *event.Process) {
			p.Name, p.Path = `) S 1 (a\u{a} b\u{1b}[31m\xff`, "/nonexistent/opt/a b"
			p.Argv = []string{"/opt/a b", `\u{1b}]0;owned\u{7}`, `\xff\xfe`, `\u{202e}`, "<script>", ""}
		}),
		fixture(101, func(p *event.Process) { p.Name, p.Path = "empty", "/nonexistent/empty" }),
		fixture(102, func(p *event.Process) {
			p.Name, p.Path = "huge", "/nonexistent/huge"
			p.Argv, p.ArgvCut = []string{strings.Repeat("a", 3000), strings.Repeat("b", MaxCmdline-3001)}, true
		}),
		fixture(103, func(p *event.Process) { p.Name, p.MountNS = "zombie", 0 }),
		fixture(104, func(p *event.Process) {
			p.Name, p.Path, p.Argv = "title", "/nonexistent/title", []string{"title: rewritten by itself"}
		}),
		fixture(105, func(p *event.Process) {
			p.Name, p.Path, p.Deleted, p.Argv = "gone", "/nonexistent/usr/bin/gone", true, []string{"x"}
		}),
		fixture(106, func(p *event.Process) {
			p.Name, p.Path, p.Parent, p.Argv = "ctr", "/bin/x", event.ProcessID{}, []string{"x"}
		}),
		fixture(110, func(p *event.Process) { p.Name, p.Path, p.ArgvCut = "execs", "/nonexistent/execs", true }), // has no arguments yet
	}
	var got []event.Process
	var failed []uint32
	for p, err := range fixtures().Processes() {
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("process %d: %v", p.ID.PID, err)
			}
			failed = append(failed, p.ID.PID)
			continue
		}
		got = append(got, p)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	if !slices.Equal(failed, []uint32{108, 109}) {
		t.Errorf("errors for %v, want 108 and 109", failed)
	}
}

func TestGone(t *testing.T) {
	t.Parallel()
	for _, pid := range []uint32{107, 555} {
		if _, err := fixtures().Process(pid); !errors.Is(err, ErrGone) {
			t.Errorf("Process(%d): %v, want %v", pid, err, ErrGone)
		}
		if _, err := fixtures().ID(pid); !errors.Is(err, ErrGone) {
			t.Errorf("ID(%d): %v, want %v", pid, err, ErrGone)
		}
	}
	if _, _, err := fixtures().Cmdline(555); !errors.Is(err, ErrGone) {
		t.Errorf("Cmdline: %v, want %v", err, ErrGone)
	}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	f := fixtures()
	if id, err := f.BootID(); err != nil || id != "0f0e0d0c-0b0a-4908-8706-050403020100" {
		t.Errorf("BootID: %q, %v", id, err)
	}
	if name, err := f.Hostname(); err != nil || name != `host\u{1b}[2J` {
		t.Errorf("Hostname: %q, %v", name, err)
	}
	none := FS{root: t.TempDir()}
	if id, err := none.BootID(); err == nil {
		t.Errorf("BootID without one: %q", id)
	}
	for _, err := range (FS{root: "testdata/none"}).Processes() {
		if err == nil {
			t.Error("no error without a proc")
		}
	}
}

func TestSameProcess(t *testing.T) {
	t.Parallel()
	coarse := event.ProcessID{PID: 5, Start: 7 * Tick}
	for _, c := range []struct {
		exact event.ProcessID
		same  bool
	}{
		{event.ProcessID{PID: 5, Start: 7 * Tick, Exec: 3}, true},
		{event.ProcessID{PID: 5, Start: 8*Tick - 1, Exec: 3}, true},
		{event.ProcessID{PID: 5, Start: 8 * Tick}, false},
		{event.ProcessID{PID: 5, Start: 7*Tick - 1}, false},
		{event.ProcessID{PID: 6, Start: 7 * Tick}, false},
	} {
		if got := SameProcess(coarse, c.exact); got != c.same {
			t.Errorf("SameProcess(%v, %v) = %v", coarse, c.exact, got)
		}
	}
}

// TestOwnMachine reads the real /proc: names that strangers choose, and files that move.
func TestOwnMachine(t *testing.T) {
	t.Parallel()
	source, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatalf("the tests need sleep(1): %v", err)
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(Root)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name    string // of the file
		change  func(path string) error
		deleted bool
	}{
		{"plain", nil, false},
		{"odd ) (\n\\\x1b\xff", nil, false},
		{"really so (deleted)", nil, false},
		{"gone", os.Remove, true},
		{"really so, and gone (deleted)", os.Remove, true},
		{"has another name", func(path string) error {
			return errors.Join(os.Link(path, path+" (kept)"), os.Remove(path))
		}, true},
		{"replaced", func(path string) error {
			return errors.Join(os.WriteFile(path+".new", nil, 0o600), os.Rename(path+".new", path))
		}, true},
	} {
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := &exec.Cmd{Path: path, Args: []string{"\x1bsleep", "1000"}}
		before := time.Now()
		for range 100 {
			// A fork of another test may hold the file open for writing for a moment.
			if err = cmd.Start(); !errors.Is(err, unix.ETXTBSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
			cmd = &exec.Cmd{Path: cmd.Path, Args: cmd.Args}
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		if c.change != nil {
			if err := c.change(path); err != nil {
				t.Fatal(err)
			}
		}
		pid := uint32(cmd.Process.Pid)
		got, err := f.Process(pid)
		for range 1000 {
			// Start returns while the exec still goes on.
			if err != nil || got.Argv != nil || !got.ArgvCut {
				break
			}
			time.Sleep(10 * time.Millisecond)
			got, err = f.Process(pid)
		}
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+strconv.Itoa(int(pid))+"/exe", &st); err != nil {
			t.Fatal(err)
		}
		self, err := f.ID(uint32(os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		want := event.Process{
			ID: got.ID, Parent: self, Path: event.Text([]byte(path)), Deleted: c.deleted,
			Name: event.Text([]byte(c.name[:min(15, len(c.name))])), Argv: []string{`\u{1b}sleep`, "1000"},
			UID: uint32(os.Getuid()), MountNS: ownMountNS(t), Source: event.SourceProcfs, Started: got.Started,
			File: event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: int64(len(content))},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.name, diff)
		}
		if id, err := f.ID(pid); err != nil || id != got.ID || id.PID != pid || id.Exec != 0 || id.Start%Tick != 0 {
			t.Errorf("ID: %v, %v; Process has %v", id, err, got.ID)
		}
		// The start is cut down to a tick.
		if off := time.Unix(0, got.Started).Sub(before); off < -2*time.Duration(Tick) || off > 5*time.Second {
			t.Errorf("started %v after it was", off)
		}
	}
}

func ownMountNS(t *testing.T) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/mnt", &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

// TestEveryProcess: whatever runs here can be read, and kernel threads are known as such.
func TestEveryProcess(t *testing.T) {
	t.Parallel()
	f, err := Open(Root)
	if err != nil {
		t.Fatal(err)
	}
	n, self := 0, false
	for p, err := range f.Processes() {
		if err != nil {
			if os.Getuid() != 0 && errors.Is(err, os.ErrPermission) {
				continue
			}
			t.Errorf("process %d: %v", p.ID.PID, err)
			continue
		}
		n++
		self = self || p.ID.PID == uint32(os.Getpid())
		if p.Kernel && (p.Path != "" || p.Argv != nil) {
			t.Errorf("kernel thread with a program: %+v", p)
		}
	}
	if n < 2 || !self {
		t.Errorf("%d processes, this one among them: %v", n, self)
	}
}

func TestWallOffset(t *testing.T) {
	t.Parallel()
	offset, err := WallOffset()
	if err != nil {
		t.Fatal(err)
	}
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(time.Unix(0, boot.Nano()+offset)); d < -100*time.Millisecond || d > time.Second {
		t.Errorf("off by %v", d)
	}
}
