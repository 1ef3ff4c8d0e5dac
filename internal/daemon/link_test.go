package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

func TestBulletinKeepsWhatCouldNotBeWritten(t *testing.T) {
	b := &bulletin{}
	b.post(event.Notice{Level: "error", Text: "bad \x1b[31m"}, event.Notice{Text: "two"})
	if err := b.flush(failing{}); err == nil {
		t.Fatal("no error")
	}
	var out bytes.Buffer
	if err := b.flush(&out); err != nil {
		t.Fatal(err)
	}
	d := event.NewDecoder(&out)
	var texts []string
	for {
		var e event.Event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, e.Notice.Text)
	}
	if got := strings.Join(texts, "|"); got != `bad \u{1b}[31m|two` {
		t.Errorf("got %q", got)
	}
	for range 2 * maxBulletin {
		b.post(event.Notice{Text: "x"})
	}
	if n := len(b.peek()); n != maxBulletin {
		t.Errorf("%d notices are kept", n)
	}
	out.Reset()
	if err := b.flush(&out); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != maxBulletin+1 || !strings.Contains(lines[maxBulletin], fmt.Sprintf("left out while no recorder took them: %d", maxBulletin)) {
		t.Errorf("what was left out is not told: %d lines, the last %s", len(lines), lines[len(lines)-1])
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("gone") }

// blocked is a terminal after Ctrl-S.
type blocked struct {
	open chan struct{}
	b    syncBuffer
}

func (b *blocked) Write(p []byte) (int, error) { <-b.open; return b.b.Write(p) }

func TestLiveNeverBlocks(t *testing.T) {
	terminal := &blocked{open: make(chan struct{})}
	l := newLive(terminal)
	const lines = 10 * liveQueue
	for range lines {
		if n, err := l.Write([]byte("line\n")); n != 5 || err != nil {
			t.Fatal(n, err)
		}
	}
	close(terminal.open)
	until(t, "the queue is empty", func() bool { return strings.Count(terminal.b.String(), "line\n") >= liveQueue })
	until(t, "room for the next line", func() bool { return len(l.queue) == 0 })
	l.Write([]byte("last\n"))
	until(t, "the last line", func() bool { return strings.HasSuffix(terminal.b.String(), "last\n") })
	if !strings.Contains(terminal.b.String(), "lines not shown") {
		t.Errorf("the loss was not told: %q", terminal.b.String())
	}
}

func TestTapeAcksEveryLedgerInAnyPieces(t *testing.T) {
	var stream []byte
	for i := range 3 {
		stream, _ = event.Append(stream, &event.Event{At: 1, Notice: &event.Notice{Text: `a "ledger" in a text`}})
		stream, _ = event.Append(stream, &event.Event{At: 1, Ledger: &event.Ledger{Batch: uint64(i + 1)}})
	}
	for _, piece := range []int{1, 7, 100, len(stream)} {
		path := filepath.Join(t.TempDir(), "stream")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		tp := &tape{f: f}
		tp.ready = sync.NewCond(&tp.mu)
		for rest := stream; len(rest) > 0; {
			n := min(piece, len(rest))
			if _, err := tp.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := tp.Close(); err != nil {
			t.Fatal(err)
		}
		acks, err := io.ReadAll(tp)
		if err != nil || string(acks) != "{\"ack\":1}\n{\"ack\":2}\n{\"ack\":3}\n" {
			t.Errorf("pieces of %d: %q, %v", piece, acks, err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, stream) {
			t.Errorf("pieces of %d: the file differs from the stream", piece)
		}
	}
}
