package remote

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/reader/query"
)

// answering gives the same rows to every question.
type answering struct {
	row   func(i int) [][]byte
	count int
}

func (a answering) each(_ context.Context, _ string, _ []string, row func([][]byte) error) error {
	for i := range a.count {
		if err := row(a.row(i)); err != nil {
			return err
		}
	}
	return nil
}
func (answering) columns(context.Context, string) ([]column, error) { return nil, nil }
func (answering) missing(error) bool                                { return false }
func (answering) limit(context.Context, time.Duration) error        { return nil }
func (answering) close()                                            {}

func asking(a answering) *Remote {
	has := make(map[string]column)
	for _, name := range []string{"exe", "contime", "send", "recv", "ip"} {
		has[name] = column{name: name}
	}
	return &Remote{
		s: Settings{Postgres: true, Timeout: time.Minute}, conn: a, has: has, table: "connections", batches: "batches", zone: time.UTC,
		options: query.Options{Country: func(netip.Addr) string { return "" }},
	}
}

// TestShape: an answer of another shape than that of the question is an error, whatever the question.
func TestShape(t *testing.T) {
	for width := range 5 {
		if width == 2 {
			continue // a whole answer to when the first and the last was
		}
		r := asking(answering{func(int) [][]byte { return make([][]byte, width) }, 1})
		for name, ask := range map[string]func() error{
			"Totals":    func() error { _, err := r.Totals(t.Context(), query.Question{By: query.Exe}); return err },
			"countries": func() error { _, err := r.Totals(t.Context(), query.Question{By: query.Country}); return err },
			"Timeline":  func() error { _, err := r.Timeline(t.Context(), query.Question{}, query.Day, time.UTC); return err },
			"Seen":      func() error { _, err := r.Seen(t.Context(), nil); return err },
			"Lost":      func() error { _, err := r.Lost(t.Context(), query.Range{}); return err },
			"Records": func() error {
				return r.Records(t.Context(), nil, query.Range{}, func(*query.Record, float64) error { return nil })
			},
			"Search": func() error {
				if width == 1 {
					return fmt.Errorf("%d columns instead of", width) // that is its shape
				}
				_, err := r.Search(t.Context(), "x", 0)
				return err
			},
		} {
			if err := ask(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d columns instead of", width)) {
				t.Errorf("%s, %d columns: %v", name, width, err)
			}
		}
	}
}

// TestTooMuch: an answer that is larger than the question allows ends with an error.
func TestTooMuch(t *testing.T) {
	long := bytes.Repeat([]byte("x"), maxText)
	for name, c := range map[string]struct {
		row  func(i int) [][]byte
		ask  func(r *Remote) error
		want string
	}{
		"empty values": {func(int) [][]byte { return [][]byte{nil, nil, nil, nil, []byte("-1")} }, func(r *Remote) error {
			_, err := r.Totals(t.Context(), query.Question{By: query.Exe, Limit: 100})
			return err
		}, "more than 101 rows"},
		"long values": {func(int) [][]byte { return [][]byte{long, nil, nil, nil, []byte("-1")} }, func(r *Remote) error {
			_, err := r.Totals(t.Context(), query.Question{By: query.Exe})
			return err
		}, "longer than 64 MB"},
		"long values of countries": {func(i int) [][]byte {
			return [][]byte{nil, fmt.Appendf(nil, "%d%s", i, long), nil, []byte("1"), nil, nil}
		}, func(r *Remote) error {
			_, err := r.Totals(t.Context(), query.Question{By: query.Exe, Where: []query.Filter{{By: query.Country, Match: query.NotEqual, Values: []string{"DE"}}}})
			return err
		}, "longer than 64 MB"},
		"more than is searched for": {func(int) [][]byte { return [][]byte{nil} }, func(r *Remote) error {
			_, err := r.Search(t.Context(), "x", 10)
			return err
		}, "more than 10 rows"},
		"long values that are found": {func(int) [][]byte { return [][]byte{long} }, func(r *Remote) error {
			_, err := r.Search(t.Context(), "x", query.MaxRows)
			return err
		}, "longer than 64 MB"},
	} {
		if err := c.ask(asking(answering{c.row, 2000})); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	got := oneLine("failed to connect to `user=u`:\n\t127.0.0.1:1: connection  refused\n\t127.0.0.1:1: connection refused\n")
	if want := "failed to connect to `user=u`: 127.0.0.1:1: connection refused"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
