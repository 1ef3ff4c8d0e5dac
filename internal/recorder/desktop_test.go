package recorder

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
)

// TestSilentSession: a session process that is there but never answers does not hide that an executable was not hashed; a hash that
// it gives late still counts.
func TestSilentSession(t *testing.T) {
	ours, theirs, err := errand.Pair()
	if err != nil {
		t.Fatal(err)
	}
	outer, err := errand.NewDoor(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	inner, err := errand.NewDoor(theirs)
	if err != nil {
		t.Fatal(err)
	}
	end, sessionEnd, err := errand.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if err := outer.Pass(1000, end, time.Second); err != nil {
		t.Fatal(err)
	}
	end.Close()
	session, err := errand.NewConn(sessionEnd)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()

	dir := t.TempDir()
	r, err := open(t.Context(), Options{Dir: dir, Settings: Defaults(), Hosts: os.DevNull, Door: inner, Zone: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "the session", func() bool { return len(r.desk.Sessions()) == 1 })
	s := newScript(t)
	s.process(1, 0, "/home/u/app", "app")
	s.add(event.Event{Executable: &event.Executable{File: file(inode("/home/u/app")), Path: "/home/u/app", Reason: event.ReasonFUSE}})
	take := func(ledgers int) {
		t.Helper()
		for range ledgers {
			s.ledger()
		}
		if err := r.read(bytes.NewReader(s.b.Bytes())); err != nil {
			t.Fatal(err)
		}
		s.b.Reset()
	}
	take(2)
	var asked *errand.File
	for asked == nil {
		m, _, err := session.Receive()
		if err != nil {
			t.Fatal(err)
		}
		asked = m.Hash
	}
	if r.now.Unread != 0 {
		t.Error("given up before its time")
	}
	take(20)
	if r.now.Unread != 1 || !strings.Contains(readFile(t, dir, "error.log"), "/home/u/app was not hashed") {
		t.Errorf("%d unread after 20 s without an answer; error.log: %q", r.now.Unread, readFile(t, dir, "error.log"))
	}
	if err := session.Send(errand.Message{Done: &errand.Done{N: asked.N, SHA256: hash(7)}}, nil, time.Second); err != nil {
		t.Fatal(err)
	}
	wait(t, "the late hash", func() bool { take(1); return len(r.unread) == 0 })
	if p, _ := r.processes.Program(id(1)); p == nil || p.Executable.Digest == nil || p.Executable.Digest.SHA256 != hash(7) {
		t.Errorf("the late hash did not count: %+v", p)
	}
	if r.now.Unread != 1 {
		t.Errorf("counted %d times", r.now.Unread)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
