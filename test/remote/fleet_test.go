package remote_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/test/windows"
)

// TestFleet: docs/fleet.md shows the statements that make the tables as they are, and each of its queries runs on the servers that it is
// for, as the account that may only INSERT and SELECT, and finds what it should.
func TestFleet(t *testing.T) {
	b, err := os.ReadFile("../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	flat := strings.Join(strings.Fields(doc), " ")
	for _, q := range append(schema.PostgresRemote("connections"), schema.MySQLRemote("connections")...) {
		if !strings.Contains(flat, strings.Join(strings.Fields(q), " ")+";") {
			t.Errorf("docs/fleet.md does not show: %s;", q)
		}
	}
	_, queries, _ := strings.Cut(doc, "## Queries")
	queries, _, _ = strings.Cut(queries, "\n## ")
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(queries, -1)
	if len(blocks) < 9 {
		t.Fatalf("%d queries", len(blocks))
	}
	targets(t, func(t *testing.T, g *target) {
		r := start(t, g.settings(), spoolDir(t))
		m := windows.New(windows.Shape{})
		for n := 1; n <= 3; n++ {
			if err := r.Write(t.Context(), m.Window(n, 300)); err != nil {
				t.Fatal(err)
			}
		}
		delivered(t, r)
		r.Close()
		for _, block := range blocks {
			q := block[1]
			if g.dialect == remote.Postgres && strings.Contains(q, "-- MariaDB") || g.dialect == remote.MySQL && strings.Contains(q, "-- PostgreSQL") {
				continue
			}
			out, err := g.As(g.user, secret).SQL(g.database, q)
			if err != nil {
				t.Errorf("%v", err)
			}
			// A healthy copy has no rows of these.
			empty := strings.Contains(q, "were removed") || strings.Contains(q, "several hashes")
			if (strings.TrimSpace(out) == "") != empty {
				t.Errorf("%s\nanswered %q", q, out)
			}
		}
		// And they have when something was removed.
		g.ask(t, "DELETE FROM connections WHERE net_ns = 2")
		g.ask(t, "UPDATE connections SET sha256 = 'other' WHERE exe = '/usr/bin/program-7' AND net_ns = 1")
		for _, block := range blocks {
			if q := block[1]; strings.Contains(q, "Rows that were removed") || strings.Contains(q, "several hashes") {
				if out := g.ask(t, q); !strings.Contains(out, "host-a") && !strings.Contains(out, "program-7") {
					t.Errorf("%s\nanswered %q", q, out)
				}
			}
		}
	})
}
