package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder"
	"github.com/picosnitch/picosnitch/test/desktop"
	"github.com/picosnitch/picosnitch/test/fuse"
)

func sessionFromArgs(args []string) error {
	var o SessionOptions
	for i := 0; i < len(args); i++ {
		value := func() string { i++; return args[i] }
		switch args[i] {
		case "--prepare":
			o.Prepare = true
		case "--bus":
			o.Bus = value()
		case "--uid":
			n, _ := strconv.ParseUint(value(), 10, 32)
			o.UID = uint32(n)
		case "--gid":
			n, _ := strconv.ParseUint(value(), 10, 32)
			o.GID = uint32(n)
		}
	}
	return Session(o)
}

// login makes the runtime directory of a user, as systemd-logind does, and starts the user's bus.
func login(t *testing.T, p Place, uid, gid uint32) *desktop.Bus {
	t.Helper()
	dir := filepath.Join(p.RunDir, "user", itoa(uid))
	for _, err := range []error{os.MkdirAll(dir, 0o755), os.Chown(dir, int(uid), int(gid)), os.Chmod(dir, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return desktop.StartBus(t, dir, &syscall.Credential{Uid: uid, Gid: gid})
}

// house is a daemon without a sensor: recorder and sessions.
type house struct {
	place Place
	spawn *spawner
	link  *link
	words *syncBuffer
	batch uint64
}

func settle(t *testing.T, p Place, config ...string) *house {
	t.Helper()
	if len(config) > 0 {
		f, _ := open(t, p)
		if err := f.create(configName, 0, func(to *os.File) error { _, err := to.WriteString(config[0]); return err }); err != nil {
			t.Fatal(err)
		}
	}
	f, c := open(t, p)
	h := &house{place: p, words: &syncBuffer{}}
	o := Options{Getenv: func(string) string { return "" }, Stderr: h.words, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	var err error
	if h.spawn, err = newSpawner(p, f, c, &bulletin{}, o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.spawn.sessions.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	h.connect(t)
	return h
}

// connect starts a recorder.
func (h *house) connect(t *testing.T) {
	t.Helper()
	rw, err := h.spawn.connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	h.link, h.batch = rw.(*link), 0
	l := h.link
	t.Cleanup(func() { l.Close() })
	send(t, l, &event.Event{At: time.Now().UnixNano(), Hello: &event.Hello{Version: event.Version, Stream: "test", HookSet: "none", SelfTest: "ok", Started: 1e18, PID: os.Getpid()}})
	feed := filepath.Join(feedDir(h.place.RunDir), "events.sock")
	until(t, "live feed; the recorder says: "+h.words.String(), func() bool { _, err := os.Lstat(feed); return err == nil })
}

func (h *house) tick(t *testing.T) {
	t.Helper()
	h.batch++
	send(t, h.link, &event.Event{At: time.Now().UnixNano(), Ledger: &event.Ledger{Batch: h.batch}})
}

// session waits for the session process of a user, other than the one before.
func (h *house) session(t *testing.T, uid uint32, before int) int {
	t.Helper()
	pid := 0
	until(t, fmt.Sprintf("a session process of uid %d", uid), func() bool {
		h.spawn.sessions.mu.Lock()
		defer h.spawn.sessions.mu.Unlock()
		if d := h.spawn.sessions.live[uid]; d != nil && d.end != nil {
			pid = d.cmd.Process.Pid
		}
		if pid == 0 || pid == before {
			return false
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return len(cmdline) > 0 && !strings.Contains(string(cmdline), "--prepare")
	})
	return pid
}

func (h *house) here(uid uint32) func() bool {
	return func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := Status(ctx, h.place.RunDir)
		for _, d := range s.Desktops {
			if err == nil && d.UID == uid && d.Here {
				return true
			}
		}
		return false
	}
}

func TestSessionProcessHasNoRights(t *testing.T) {
	p := world(t)
	bus := login(t, p, userID, groupID)
	h := settle(t, p)
	pid := h.session(t, userID, 0)
	until(t, "the recorder's word of it", h.here(userID))
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.SplitSeq(string(data), "\n") {
		k, v, _ := strings.Cut(line, ":")
		got[k] = strings.Join(strings.Fields(v), " ")
	}
	uid, gid, none := strings.TrimSpace(strings.Repeat(itoa(userID)+" ", 4)), strings.TrimSpace(strings.Repeat(itoa(groupID)+" ", 4)), strings.Repeat("0", 16)
	for k, want := range map[string]string{
		"Uid": uid, "Gid": gid, "Groups": "", "NoNewPrivs": "1", "Umask": "0077",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if n, _ := strconv.Atoi(fd.Name()); n > streamFD && !strings.HasPrefix(to, "/sys/fs/cgroup") && !strings.Contains(to, "anon_inode") && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "pipe:") {
			t.Errorf("descriptor %s leads to %s", fd.Name(), to)
		}
	}
	// A program of the same user can end it, and cannot look into it.
	for _, look := range []string{"fd/3", "mem", "environ"} {
		out, err := asUser(userID, groupID, "cat", fmt.Sprintf("/proc/%d/%s", pid, look))
		if err == nil || !strings.Contains(out, "denied") {
			t.Errorf("read %s: %v: %.100q", look, err, out)
		}
	}
	if out, err := asUser(userID, groupID, "kill", "-KILL", strconv.Itoa(pid)); err != nil {
		t.Errorf("kill: %v: %s", err, out)
	}
	again := h.session(t, userID, pid)

	// Another recorder gets the same session process.
	h.link.cmd.Process.Kill()
	<-h.link.ended
	h.connect(t)
	until(t, "the second recorder's word of it", h.here(userID))
	if now := h.session(t, userID, 0); now != again {
		t.Errorf("the session process is %d, was %d", now, again)
	}

	// Logged out.
	bus.Kill()
	if err := os.RemoveAll(filepath.Join(p.RunDir, "user", itoa(userID))); err != nil {
		t.Fatal(err)
	}
	until(t, "its end", func() bool { return syscall.Kill(again, 0) == syscall.ESRCH })
}

func asUser(uid, gid uint32, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestWhoGetsASessionProcess: those who may read the log, and nobody because of what a stranger put somewhere.
func TestWhoGetsASessionProcess(t *testing.T) {
	p := world(t)
	const stranger = 61777
	login(t, p, userID, groupID)
	login(t, p, userID+5, groupID) // of the owner's group
	login(t, p, stranger, stranger)
	login(t, p, recorderNumber, recorderNumber)
	login(t, p, 0, 0)
	forged := filepath.Join(p.RunDir, "user", "61888") // somebody else's
	os.Mkdir(forged, 0o755)
	os.Symlink(filepath.Join(p.RunDir, "user", itoa(userID)), filepath.Join(p.RunDir, "user", "61889"))
	h := settle(t, p)
	h.session(t, userID, 0)
	h.session(t, userID+5, 0)
	h.spawn.sessions.mu.Lock()
	if n := len(h.spawn.sessions.live); n != 2 {
		t.Errorf("%d session processes, want 2", n)
	}
	h.spawn.sessions.mu.Unlock()

	if err := os.Chmod(filepath.Join(p.RunDir, "user"), 0o777); err != nil {
		t.Fatal(err)
	}
	if here := loggedIn(filepath.Join(p.RunDir, "user")); len(here) != 0 {
		t.Errorf("believes a directory that anybody can write to: %v", here)
	}
}

func TestMember(t *testing.T) {
	const groups = "root:x:0:\nusers:x:100:alice,bob\nbob:x:1001:\n#:x:1001:alice\nodd\n"
	for _, c := range []struct {
		gid  uint32
		name string
		want bool
	}{{100, "bob", true}, {100, "bo", false}, {1001, "bob", false}, {1001, "alice", true}, {0, "alice", false}} {
		if got := member(strings.NewReader(groups), c.gid, c.name); got != c.want {
			t.Errorf("%s in %d: %v", c.name, c.gid, got)
		}
	}
}

// TestFUSE: what root may not read is hashed by its user's session process, and marked as that user's word.
func TestFUSE(t *testing.T) {
	p := world(t)
	login(t, p, userID, groupID)
	source, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	dir := fuse.MountFor(t, userID, groupID, content, false)
	prog := filepath.Join(dir, "prog")
	cmd := exec.Command("/bin/sh", "-c", `exec "$0" 1000`, prog)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: groupID}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	pid := cmd.Process.Pid
	until(t, "the program", func() bool { exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); return exe == prog })
	if f, err := os.Open(prog); err == nil {
		f.Close()
		t.Fatal("root can read it: the test shows nothing")
	}
	h := settle(t, p)
	until(t, "the session", h.here(userID))
	file := event.FileID{Device: 7, Inode: 2, Ctime: 1000e9, Size: int64(len(content))}
	id := event.ProcessID{PID: uint32(pid), Start: startTicks(t, pid) * 10_000_000, Exec: 1}
	send(t, h.link, &event.Event{At: time.Now().UnixNano(), Process: &event.Process{ID: id, Path: prog, Name: "prog", UID: userID, File: file, Source: event.SourceExec}})
	send(t, h.link, &event.Event{At: time.Now().UnixNano(), Executable: &event.Executable{File: file, Path: prog, Reason: event.ReasonFUSE}})
	send(t, h.link, &event.Event{At: time.Now().UnixNano(), Flow: &event.Flow{Process: id, UID: userID, Family: "inet", Protocol: "tcp", Layer: event.LayerPayload, Sent: 1}})
	sum, err := asUser(userID, groupID, "sha256sum", prog)
	if err != nil {
		t.Fatal(sum)
	}
	want := sum[:64] + "|by the word of uid " + itoa(userID) + ", who alone can read the file"
	var got string
	until(t, "the hash", func() bool {
		h.tick(t)
		time.Sleep(100 * time.Millisecond)
		out, _ := exec.Command("sqlite3", "-readonly", filepath.Join(p.Dir, "snitch.db"), "SELECT sha256, reason FROM executables WHERE sha256 != ''").Output()
		got = strings.TrimSpace(string(out))
		return got != ""
	})
	if got != want {
		t.Errorf("row %q, want %q", got, want)
	}
}

// TestFUSEWithoutSession: a program whose user has no session process gets no hash; that is told, counted, and in its row.
func TestFUSEWithoutSession(t *testing.T) {
	p := world(t)
	h := settle(t, p)
	file := event.FileID{Device: 7, Inode: 2, Ctime: 1000e9, Size: 5}
	id := event.ProcessID{PID: 1, Start: 1, Exec: 1}
	now := time.Now().UnixNano()
	send(t, h.link, &event.Event{At: now, Process: &event.Process{ID: id, Path: "/mnt/app", Name: "app", UID: 4, File: file, Source: event.SourceExec}})
	send(t, h.link, &event.Event{At: now, Executable: &event.Executable{File: file, Path: "/mnt/app", Reason: event.ReasonFUSE}})
	send(t, h.link, &event.Event{At: now, Flow: &event.Flow{Process: id, UID: 4, Family: "inet", Protocol: "tcp", Layer: event.LayerPayload, Sent: 1}})
	h.tick(t)
	until(t, "the batch", func() bool { return h.status(t).Batch == h.batch })
	if n := h.status(t).Unread; n != 0 {
		t.Errorf("given up at once: %d", n)
	}
	for _, at := range []int64{now + 11e9, now + 30e9} {
		h.batch++
		send(t, h.link, &event.Event{At: at, Ledger: &event.Ledger{Batch: h.batch}})
	}
	until(t, "word of it", func() bool {
		log, _ := os.ReadFile(filepath.Join(p.Dir, "error.log"))
		return strings.Contains(string(log), "/mnt/app was not hashed: "+event.ReasonFUSE)
	})
	// The status follows the line in the log.
	until(t, "the status", func() bool { return h.status(t).Batch == h.batch })
	if n := h.status(t).Unread; n != 1 {
		t.Errorf("%d counted, want 1", n)
	}
	h.link.Close()
	out, err := exec.Command("sqlite3", "-readonly", filepath.Join(p.Dir, "snitch.db"), "SELECT sha256, reason FROM executables WHERE path = '/mnt/app'").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "|"+event.ReasonFUSE {
		t.Errorf("row %q, %v", out, err)
	}
}

func startTicks(t *testing.T, pid int) uint64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (h *house) status(t *testing.T) recorder.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := Status(ctx, h.place.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stop stops a process of ours, or lets it go on.
func stop(t *testing.T, pid int, still bool) {
	t.Helper()
	s := syscall.SIGCONT
	if still {
		s = syscall.SIGSTOP
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}
