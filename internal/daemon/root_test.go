package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestMain makes the test binary its own recorder, and its own program of the user's: Run executes /proc/self/exe.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "recorder":
			if err := childFromArgs(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "session":
			if err := sessionFromArgs(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "hold":
			holdLock(os.Args[2])
		case "attack":
			attack(os.Args[2:])
		}
	}
	os.Exit(m.Run())
}

func childFromArgs(args []string) error {
	var o ChildOptions
	for i := 0; i < len(args); i++ {
		value := func() string { i++; return args[i] }
		switch args[i] {
		case "--prepare":
			o.Prepare = true
		case "--live":
			o.Live = true
		case "--try":
			o.Try = true
		case "--dir":
			o.Dir = value()
		case "--feed":
			o.Feed = value()
		case "--uid":
			n, _ := strconv.ParseUint(value(), 10, 32)
			o.UID = uint32(n)
		case "--gid":
			n, _ := strconv.ParseUint(value(), 10, 32)
			o.GID = uint32(n)
		}
	}
	return Child(o)
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

const (
	userID  = 61000 // a desktop user of the tests: no account, in no group
	groupID = 61001
)

// asRoot skips with the reason where the test cannot mean anything.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: `make test` runs it with sudo")
	}
}

// world is a place of its own: a home of mode 0700 of a user that has no account.
func world(t *testing.T) Place {
	t.Helper()
	asRoot(t)
	base, err := os.MkdirTemp("", "picosnitch-daemon-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	home := filepath.Join(base, "home")
	for _, err := range []error{os.Chmod(base, 0o755), os.Mkdir(home, 0o700), os.Chown(home, userID, groupID), os.Mkdir(filepath.Join(base, "run"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return Place{
		Owner:    Account{Name: "user", UID: userID, GID: groupID, Home: home},
		Recorder: Account{Name: recorderName, UID: recorderNumber, GID: recorderNumber},
		Dir:      filepath.Join(home, ".config/picosnitch"),
		RunDir:   filepath.Join(base, "run"),
	}
}

// syncBuffer is a bytes.Buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// started starts a recorder of the real kind and opens a stream to it.
func started(t *testing.T, p Place) (*link, *syncBuffer) {
	t.Helper()
	f, c := open(t, p)
	words := &syncBuffer{}
	o := Options{Getenv: func(string) string { return "" }, Stderr: words, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	s, err := newSpawner(p, f, c, &bulletin{}, o)
	if err != nil {
		t.Fatal(err)
	}
	rw, err := s.connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	l := rw.(*link)
	t.Cleanup(func() { l.Close() })
	send(t, l, &event.Event{At: 1e18, Hello: &event.Hello{Version: event.Version, Stream: "test", HookSet: "none", SelfTest: "ok", Started: 1e18, PID: os.Getpid()}})
	feed := filepath.Join(feedDir(p.RunDir), "events.sock")
	until(t, "live feed; the recorder says: "+words.String(), func() bool { _, err := os.Lstat(feed); return err == nil })
	return l, words
}

func send(t *testing.T, l *link, e *event.Event) {
	t.Helper()
	line, err := event.Append(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write(line); err != nil {
		t.Fatal(err)
	}
}

func TestRecorderHasNoRights(t *testing.T) {
	p := world(t)
	l, words := started(t, p)
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.SplitSeq(string(data), "\n") {
		k, v, _ := strings.Cut(line, ":")
		got[k] = strings.Join(strings.Fields(v), " ")
	}
	id, none := strings.TrimSpace(strings.Repeat(itoa(recorderNumber)+" ", 4)), strings.Repeat("0", 16)
	for k, want := range map[string]string{
		"Uid": id, "Gid": id, "Groups": "", "NoNewPrivs": "1", "Umask": "0027",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", l.cmd.Process.Pid)); err != nil || len(env) != 0 {
		t.Errorf("environment: %q, %v", env, err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", l.cmd.Process.Pid, fd.Name()))
		if to == p.Dir || strings.HasPrefix(to, p.Owner.Home) {
			t.Errorf("descriptor %s leads to %s", fd.Name(), to)
		}
	}
	mine, _ := os.Readlink("/proc/self/ns/mnt")
	its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", l.cmd.Process.Pid))
	if its == "" || mine == its {
		t.Errorf("mount namespace %s, ours %s", its, mine)
	}
	// It ends with the stream, and with nothing else.
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		l.cmd.Process.Signal(s)
	}
	send(t, l, &event.Event{At: 2e18, Ledger: &event.Ledger{Batch: 1, Final: true}})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if !l.cmd.ProcessState.Success() {
		t.Errorf("recorder: %v: %s", l.cmd.ProcessState, words)
	}
}

// attack does what a program of the desktop user's could try: for each argument one line, "ok" or the error.
func attack(args []string) {
	say := func(what string, err error) { fmt.Printf("%s: %v\n", what, err) }
	dir, feed := args[0], args[1]
	pid, _ := strconv.Atoi(args[2])
	say("term", syscall.Kill(pid, syscall.SIGTERM))
	say("kill", syscall.Kill(pid, syscall.SIGKILL))
	say("stop", syscall.Kill(pid, syscall.SIGSTOP))
	say("ptrace", syscall.PtraceAttach(pid))
	_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	say("descriptors", err)
	_, err = os.Create(filepath.Join(dir, "new"))
	say("create", err)
	say("folder mode", os.Chmod(dir, 0o777))
	for _, n := range []string{"snitch.db", configName} {
		_, err := os.OpenFile(filepath.Join(dir, n), os.O_WRONLY, 0)
		say("write "+n, err)
		say("truncate "+n, os.Truncate(filepath.Join(dir, n), 0))
		say("rename "+n, os.Rename(filepath.Join(dir, n), filepath.Join(dir, "x")))
		say("unlink "+n, os.Remove(filepath.Join(dir, n)))
		say("mode "+n, os.Chmod(filepath.Join(dir, n), 0o666))
		_, err = os.ReadFile(filepath.Join(dir, n))
		say("READ "+n, err)
	}
	_, err = os.OpenFile(pidFile(filepath.Dir(feed)), os.O_RDONLY, 0)
	say("lock file", err)
	say("unlink feed", os.Remove(filepath.Join(feed, "events.sock")))
	_, err = Status(context.Background(), filepath.Dir(feed))
	say("READ feed", err)
	os.Exit(0)
}

func TestUserCannotTouchRecorder(t *testing.T) {
	p := world(t)
	lock, err := TakeLock(p.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	l, _ := started(t, p)
	until(t, "snitch.db", func() bool { _, err := os.Lstat(filepath.Join(p.Dir, "snitch.db")); return err == nil })
	// The test binary lies in a directory that only root may enter.
	bin := filepath.Join(filepath.Dir(p.Owner.Home), "program")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	user := exec.Command(bin, "attack", p.Dir, feedDir(p.RunDir), strconv.Itoa(l.cmd.Process.Pid))
	user.Dir = "/"
	user.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: groupID}}
	out, err := user.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 20 {
		t.Fatalf("the program did not try everything:\n%s", out)
	}
	for _, line := range lines {
		what, result, _ := strings.Cut(line, ": ")
		if wantOK := strings.HasPrefix(what, "READ "); wantOK != (result == "<nil>") {
			t.Errorf("%s: %s", what, result)
		}
	}
	if err := l.cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the recorder is gone: %v", err)
	}
	check(t, p.Dir, recorderNumber, groupID, dirMode)
}
