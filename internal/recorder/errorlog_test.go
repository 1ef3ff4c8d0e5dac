package recorder

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/logfile"
)

// TestErrorLogIsBounded: whatever the stream says, error.log grows slowly and not for ever.
func TestErrorLogIsBounded(t *testing.T) {
	s := newScript(t)
	for i := range 1000 {
		s.add(event.Event{Notice: &event.Notice{Text: fmt.Sprintf("cannot hash /x%d", i)}})
		s.batch += 7
		s.add(event.Event{Ledger: &event.Ledger{Batch: s.batch}})
	}
	o := options(t)
	record(t, s.end(), o)
	text := errorText(t, o.Dir)
	if n := strings.Count(text, "\n"); n > maxNotices+10 {
		t.Errorf("%d lines for a second of 1000 notices and 1000 gaps", n)
	}
	for _, want := range []string{"cannot hash /x0\n", "left out because there were too many: 935", "batches that came out of order: 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("error.log lacks %q:\n%s", want, text)
		}
	}
}

func TestErrorLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "error.log")
	l := errorLog{File: logfile.File{Path: path, Limit: maxErrorLog}, zone: time.UTC}
	defer l.Close()
	for i := range 20 {
		if err := l.write(0, fmt.Sprint(i)+strings.Repeat("x", 1<<20), ""); err != nil {
			t.Fatal(err)
		}
	}
	sum := int64(0)
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxErrorLog+2<<20 || info.Size() == 0 {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
		sum += info.Size()
	}
	if sum < maxErrorLog {
		t.Errorf("only %d bytes are kept", sum)
	}
}

// TestErrorLogWaits: what cannot be written to error.log, because the disk is full or something is in its place, is there when it can.
func TestErrorLogWaits(t *testing.T) {
	o := options(t)
	path := filepath.Join(o.Dir, "error.log")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	r := runOn(t, o.Dir, &fakeWay{}, nil)
	s := newScript(t)
	s.add(event.Event{Notice: &event.Notice{Text: "early word"}})
	s.ledger()
	r.send(s)
	s.ledger()
	r.send(s) // the one before was taken in
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.ledger()
	s.close(true)
	r.send(s)
	r.end()
	if text := errorText(t, o.Dir); strings.Count(text, "early word\n") != 1 {
		t.Errorf("error.log:\n%s", text)
	}
}

// TestLossReasons: each reason reads well, what healthy machines have is no error, and too many reasons become one.
func TestLossReasons(t *testing.T) {
	s := newScript(t)
	s.lost = map[string]uint64{event.LostPeer: 1, event.LostExec: 1, "line": 5}
	for i := range 100 {
		s.lost[fmt.Sprintf("zz%02d", i)] = 2
	}
	s.ledger()
	o := options(t)
	record(t, s.end(), o)
	text := errorText(t, o.Dir)
	if want := "lost: program starts that the kernel did not report because the ring buffer was full: 1 (raise \"Perf ring buffer (pages)\")\n"; !strings.Contains(text, want) {
		t.Errorf("error.log lacks %q:\n%s", want, text)
	}
	if strings.Contains(text, "datagram") || strings.Contains(text, "could not be understood") {
		t.Errorf("error.log:\n%s", text)
	}
	// 3 + 61 reasons have their name, 39 have not.
	db := openDB(t, o.Dir)
	if got := rows(t, db, "SELECT count(*), sum(count), (SELECT count FROM losses WHERE reason = 'other'), (SELECT count FROM losses WHERE reason = 'peer') FROM losses"); got != "65|207|78|1\n" {
		t.Errorf("reasons, losses, other, peer: %s", got)
	}
}
