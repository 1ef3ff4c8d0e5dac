package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestReopen: SIGHUP passed on to the real recorder makes it let go of a moved conn.log, and ends nothing.
func TestReopen(t *testing.T) {
	p := world(t)
	userFile(t, filepath.Join(p.Dir, configName), `{"DB text log": true}`)
	f, c := open(t, p)
	s, err := newSpawner(p, f, c, &bulletin{}, Options{Getenv: func(string) string { return "" }, Stderr: io.Discard, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.reopen() // there is none yet
	rw, err := s.connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	l := rw.(*link)
	defer l.Close()
	s.reopen() // while it starts
	go io.Copy(io.Discard, l)
	send(t, l, &event.Event{At: 1e18, Hello: &event.Hello{Version: event.Version, Stream: "test", SelfTest: "ok", Started: 1e18}})
	log := filepath.Join(p.Dir, "conn.log")
	there := func() bool { _, err := os.Lstat(log); return err == nil }
	until(t, "conn.log", there)
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	batch := uint64(0)
	until(t, "a new conn.log", func() bool {
		batch++
		send(t, l, &event.Event{At: 1e18 + int64(batch)*1e9, Ledger: &event.Ledger{Batch: batch}})
		return there()
	})
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", l.cmd.Process.Pid, fd.Name())); strings.HasSuffix(to, "conn.log.1") {
			t.Error("the moved file is still open")
		}
	}
	send(t, l, &event.Event{At: 2e18, Ledger: &event.Ledger{Batch: batch + 1, Final: true}})
	if err := l.Close(); err != nil || !l.cmd.ProcessState.Success() {
		t.Errorf("%v %v", err, l.cmd.ProcessState)
	}
}
