package query

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// TestTogether: connections answer a question together only when they see the same state. Where the writer was at work between their snapshots,
// one of them answers alone, and no transaction is left open.
func TestTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	s, err := store.OpenSQLite(t.Context(), path, time.Second, func(text, hint string) { t.Error(text, hint) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n := uint64(0)
	write := func() {
		t.Helper()
		n++
		p := &flow.Program{Executable: &flow.Executable{Path: "/bin/curl", Digest: &flow.Digest{}}, Name: "curl"}
		w := &flow.Window{Hello: event.Hello{Stream: "s", Boot: "b"}, Start: int64(n) * 10, End: int64(n+1) * 10, Position: flow.Position{Stream: "s", Batch: n}}
		w.Records = append(w.Records, flow.Record{Key: flow.Key{Program: p, Kind: &flow.Kind{Family: "inet"}, Domain: &flow.Domain{}}, Sent: 1})
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	write()
	l, err := OpenLocal(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.bounds.readers = 3
	for _, disturbed := range []bool{false, true, false} {
		if disturbed {
			l.disturb = write
		}
		want := n
		err := l.lookTogether(t.Context(), func(s *snapshot) error {
			if alone := len(s.more) == 0; alone != disturbed {
				t.Errorf("the writer was at work: %v, %d more connections see the same", disturbed, len(s.more))
			}
			write() // after the snapshots: nobody sees it
			for i, c := range append(s.more, s.conn) {
				var windows uint64
				if err := c.QueryRowContext(t.Context(), "SELECT count(*) FROM windows").Scan(&windows); err != nil || windows != want {
					t.Errorf("connection %d sees %d windows, want %d: %v", i, windows, want, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		l.disturb = nil
		// A connection that still had its snapshot would see the old state.
		for range 3 {
			if a, err := l.Totals(t.Context(), Question{}); err != nil || a.Total.Sent != n {
				t.Errorf("%d sent, want %d: %v", a.Total.Sent, n, err)
			}
		}
	}
}
