package query

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// TestMissingSums: a segment without its sums is damage that is told, not a smaller answer.
func TestMissingSums(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	s, err := store.OpenSQLite(t.Context(), path, time.Second, func(text, hint string) { t.Error(text, hint) })
	if err != nil {
		t.Fatal(err)
	}
	p := &flow.Program{Executable: &flow.Executable{Path: "/bin/curl", Digest: &flow.Digest{}}, Name: "curl"}
	const hours = 7
	for i := range int64(hours) {
		w := &flow.Window{Hello: event.Hello{Stream: "s", Boot: "b"}, Start: i * 3600, End: i*3600 + 10, Position: flow.Position{Stream: "s", Batch: uint64(i + 1)}}
		w.Records = append(w.Records, flow.Record{Key: flow.Key{Program: p, Kind: &flow.Kind{Family: "inet"}, Domain: &flow.Domain{Name: "com.example"}}, Sent: 1})
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Care(t.Context(), w.End, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ask := func() (uint64, error) {
		l, err := OpenLocal(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a, err := l.Totals(t.Context(), Question{By: Domain})
		return a.Total.Sent, err
	}
	if n, err := ask(); err != nil || n != hours {
		t.Fatal(n, err)
	}
	for _, which := range []string{"max", "2 +  min"} { // at the end, and between others
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec("DELETE FROM segment_peers WHERE segment = (SELECT " + which + "(segment) FROM segment_peers)"); err != nil {
			t.Fatal(err)
		}
		db.Close()
		if n, err := ask(); !errors.Is(err, errDamaged) {
			t.Errorf("without the sums of %s: %d, %v", which, n, err)
		}
	}
}
