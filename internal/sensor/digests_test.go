package sensor

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/outlet"
)

// lines are what a stream holds that was not sent.
func lines(t *testing.T, s *stream) (all []event.Event) {
	t.Helper()
	d := event.NewDecoder(bytes.NewReader(s.cut(1).Data))
	for {
		var e event.Event
		err := d.Decode(&e)
		if err == io.EOF {
			return all
		}
		must(t, err)
		all = append(all, e)
	}
}

// TestUnreadIsTold: what was not read when picosnitch ends is told with its reason, and counted.
func TestUnreadIsTold(t *testing.T) {
	l := &loop{log: slog.New(slog.DiscardHandler), stream: newStream(), told: map[string]time.Time{}}
	l.digester = digest.New(digest.Options{}) // nobody reads
	program := func(n uint64) event.Process {
		return event.Process{ID: event.ProcessID{PID: uint32(n), Start: n}, Path: "/prog", File: event.FileID{Device: 1, Inode: n, Size: 1}}
	}
	for n := range uint64(3) {
		l.want(program(n + 1))
	}
	l.executed.backlog = append(l.executed.backlog, program(4))
	l.stream.executable(event.Executable{File: program(2).File, Path: "/prog", SHA256: strings.Repeat("a", 64)}) // by another process
	lines(t, l.stream)
	l.unread()
	told, notices := map[uint64]string{}, 0
	for _, e := range lines(t, l.stream) {
		if e.Executable != nil {
			told[e.Executable.File.Inode] = e.Executable.Reason
		}
		if e.Notice != nil {
			notices++
			if !strings.Contains(e.Notice.Text, "3 executables were not hashed") {
				t.Errorf("notice %q", e.Notice.Text)
			}
		}
	}
	if len(told) != 3 || told[1] != digest.ReasonUnread || told[3] != digest.ReasonUnread || told[4] != digest.ReasonUnread || notices != 1 {
		t.Errorf("told %v, %d notices; want 1, 3 and 4 as unread, and one notice", told, notices)
	}
	if e := l.tally.event(1, outlet.Stats{}, 0); e.Lost[event.LostDigest] != 3 {
		t.Errorf("lost %v, want 3 digests", e.Lost)
	}
}

// TestHaltIsTold: executables wait and none is read.
func TestHaltIsTold(t *testing.T) {
	l := &loop{log: slog.New(slog.DiscardHandler), stream: newStream(), told: map[string]time.Time{}}
	open := make(chan struct{})
	l.digester = digest.New(digest.Options{Late: 20 * time.Millisecond, Settle: func() { <-open }})
	go func() { _ = l.digester.Run(t.Context()) }()
	defer close(open)
	for _, path := range []string{"a", "b", "c"} {
		path = t.TempDir() + "/" + path
		must(t, os.WriteFile(path, []byte(path), 0o755))
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		st := stat(t, path)
		p := event.Process{ID: event.ProcessID{PID: 1, Start: 1}, Path: path, File: event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}}
		l.digester.WantFile(p, digest.Descriptor{FD: fd, Vouched: true, Since: time.Now()})
	}
	for end := time.Now().Add(20 * time.Second); l.halted() < time.Second; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not counted")
		}
	}
	notices := 0
	for _, e := range lines(t, l.stream) {
		if e.Notice != nil && e.Notice.Level == "error" && strings.Contains(e.Notice.Text, "none is read") {
			notices++
		}
	}
	if e := l.tally.event(1, outlet.Stats{}, l.halted()); e.Lost[event.LostHashing] == 0 || notices != 1 {
		t.Errorf("lost %v, %d notices", e.Lost, notices)
	}
}

// TestWatchThatFailsEndsAll: without fanotify no digest that is kept can be trusted, and nobody would hash or deliver. The end is an orderly one.
func TestWatchThatFailsEndsAll(t *testing.T) {
	r := runSensor(t, Options{})
	none, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(none)
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	broken := 0
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == "anon_inode:[fanotify]" {
			fd := 0
			for _, c := range e.Name() {
				fd = fd*10 + int(c-'0')
			}
			must(t, unix.Dup3(none, fd, unix.O_CLOEXEC)) // to read from it is an error
			broken++
		}
	}
	if broken == 0 {
		t.Fatal("no fanotify descriptor found")
	}
	path := t.TempDir() + "/prog"
	distinct(t, path, sender(t, sink(t)))
	execute(t, path) // wakes the reader
	r.ends(t, "read fanotify")
	final := false
	for _, e := range r.events() {
		final = final || e.Ledger != nil && e.Ledger.Final
	}
	if !final {
		t.Error("the last ledger was not delivered")
	}
}
