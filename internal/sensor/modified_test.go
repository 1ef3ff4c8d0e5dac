package sensor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/fanotify"
	"github.com/picosnitch/picosnitch/internal/sensor/identity"
)

// until asks again and again for what is to come.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came: " + what)
		}
	}
}

// Who writes to a known program in place is told, with the program as it was; its next run has the digest of what is there then.
func TestModifiedSaysWho(t *testing.T) {
	r := runSensor(t, Options{EveryExe: true, Interval: 200 * time.Millisecond})
	path := filepath.Join(t.TempDir(), "prog")
	sum := distinct(t, path, sender(t, sink(t)))
	time.Sleep(2 * young)
	first := uint32(execute(t, path))
	until(t, "the first digest", func() bool { _, e := find(r.told(), first); return e.SHA256 == sum })
	was, _ := find(r.told(), first)

	dd := exec.Command("dd", "if=/dev/urandom", "of="+path, "bs=16", "count=1", "conv=notrunc", "oflag=append", "status=none")
	if out, err := dd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var m *event.Modified
	until(t, "modified", func() bool {
		for _, e := range r.events() {
			if e.Modified != nil && e.Modified.Path == path {
				m = e.Modified
			}
		}
		return m != nil
	})
	if m.File != was.File {
		t.Errorf("which: %+v, want %+v", m.File, was.File)
	}
	by := r.told().processes[m.By]
	if m.By.PID != uint32(dd.Process.Pid) || !strings.HasSuffix(by.Path, "/dd") || by.Source != event.SourceExec {
		t.Errorf("by %+v, %q; want dd, %d", m.By, by.Path, dd.Process.Pid)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := sha256.Sum256(b)
	time.Sleep(2 * young)
	second := uint32(execute(t, path))
	until(t, "the second digest", func() bool { _, e := find(r.told(), second); return e.SHA256 == hex.EncodeToString(now[:]) })
	if is, _ := find(r.told(), second); is.File == was.File {
		t.Error("two contents share an identity")
	}
}

// Busybox is one file with many names: each program has the name that was executed, and all have one digest. Its shell runs scripts.
func TestBusybox(t *testing.T) {
	system, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("the tests need busybox: test/deps.sh busybox")
	}
	b, err := os.ReadFile(system)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	r := runSensor(t, Options{EveryExe: true, Interval: 200 * time.Millisecond})
	dir := t.TempDir()
	multi := filepath.Join(dir, "busybox")
	must(t, os.WriteFile(multi, b, 0o755))
	script := filepath.Join(dir, "x.sh")
	must(t, os.WriteFile(script, []byte("true\n"), 0o644))
	text := sha256.Sum256([]byte("true\n"))
	time.Sleep(2 * young)
	pids := map[uint32]string{}
	for _, applet := range []string{"busybox", "true", "cat", "sh"} {
		path := filepath.Join(dir, applet)
		if path != multi {
			must(t, os.Link(multi, path))
		}
		args := []string{"--help"}
		if applet == "sh" {
			args = []string{script}
		}
		cmd := exec.Command(path, args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", applet, err, out)
		}
		pids[uint32(cmd.Process.Pid)] = path
	}
	for pid, path := range pids {
		until(t, path, func() bool { _, e := find(r.told(), pid); return e.SHA256 != "" || e.Reason != "" })
		p, e := find(r.told(), pid)
		if p.Path != path || p.Name != filepath.Base(path) || e.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: got %q %q %+v", path, p.Path, p.Name, e)
		}
		if shell := filepath.Base(path) == "sh"; shell != (p.ScriptKind == event.ScriptArgument) || shell && p.Script != script {
			t.Errorf("%s: script %q %q", path, p.ScriptKind, p.Script)
		} else if shell {
			until(t, "the script's digest", func() bool { return r.told().digests[p.ScriptFile].SHA256 == hex.EncodeToString(text[:]) })
		}
	}
}

// When the kernel dropped notices nothing that was digested before is trusted, and that is told.
func TestDroppedNoticesAreTold(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: fanotify needs it")
	}
	const queue = "/proc/sys/fs/fanotify/max_queued_events"
	before, err := os.ReadFile(queue)
	must(t, err)
	must(t, os.WriteFile(queue, []byte("512"), 0))
	l := &loop{log: slog.New(slog.DiscardHandler), stream: newStream(), told: map[string]time.Time{}, table: identity.New(identity.Options{})}
	l.digester = digest.New(digest.Options{})
	x := &l.executed
	x.files, x.written, x.limit = map[event.FileID]*held{}, map[digest.Inode]writes{}, 100
	x.watch, err = fanotify.New(fanotify.Options{Bounded: true})
	must(t, os.WriteFile(queue, before, 0))
	must(t, err)
	defer func() { must(t, x.close()) }()
	go func() { _ = l.digester.Run(t.Context()) }()

	dir := t.TempDir()
	program := sender(t, sink(t))
	path := filepath.Join(dir, "prog")
	distinct(t, path, program)
	time.Sleep(2 * young)
	st := stat(t, path)
	p := event.Process{
		ID: event.ProcessID{PID: 1, Start: 1 << 62}, Path: path, Started: time.Now().UnixNano(),
		File: event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size},
	}
	time.Sleep(2 * young)
	if _, known := l.digester.Want(p); known {
		t.Fatal("known too early")
	}
	r := <-l.digester.Results()
	l.drainWatch()
	r.Vouched, r.Since, r.Ended = true, time.Now(), time.Now() // as if one more were on its way
	if r.Executable.SHA256 == "" || !l.vouches(&r) {
		t.Fatalf("%+v", r.Executable)
	}
	known := func() bool {
		return l.digester.Known(digest.Inode{Device: st.Dev, Number: st.Ino}, p.File.Ctime, p.File.Size)
	}
	until(t, "old enough to be kept", func() bool {
		l.drainWatch() // the machine has other programs, too
		if !known() {
			l.digester.Want(p)
			select {
			case <-l.digester.Results():
			case <-time.After(50 * time.Millisecond):
			}
		}
		return known()
	})
	for i := range 700 { // nobody reads
		other := filepath.Join(dir, fmt.Sprint(i))
		distinct(t, other, program)
		execute(t, other)
	}
	l.drainWatch()
	if known() {
		t.Error("a digest of before is still trusted")
	}
	if l.vouches(&r) {
		t.Error("a digest on its way is still trusted")
	}
	if !strings.Contains(string(l.stream.buf), "the kernel dropped notices") {
		t.Errorf("not told: %s", l.stream.buf)
	}
}
