package store

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// visit is a window in which a program that ran in a place of its own, and its parent, talked to a host from an address of its own.
func visit(stream string, batch int, at int64, who string, n byte) *flow.Window {
	file := func(path string) *flow.Executable {
		return &flow.Executable{Path: path, File: event.FileID{Inode: uint64(n) + 1, Ctime: 1}, Digest: &flow.Digest{SHA256: path}}
	}
	p := &flow.Program{
		Executable: file("/bin/" + who), Name: who, Cmdline: who, Cgroup: uint64(n) + 1, Script: file("/script/" + who), ScriptKind: "file",
		Parent: &flow.Program{Executable: file("/parent/" + who), Name: "parent of " + who, Parent: &flow.Program{Executable: file("/bin/init"), Name: "init"}},
	}
	return &flow.Window{
		Hello: event.Hello{Stream: stream, Boot: "boot"}, Start: at - 10, End: at, Position: flow.Position{Stream: stream, Batch: uint64(batch)},
		Records: []flow.Record{{
			Key: flow.Key{
				Program: p, Kind: &flow.Kind{Family: "inet", Protocol: "tcp", Direction: "out", Layer: "payload"}, Domain: &flow.Domain{Name: "com.example." + who, Source: "dns"},
				Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), 40000), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 443),
			},
			Sent: 10, Received: 1,
		}},
	}
}

// texts are what a database has texts of.
func texts(t *testing.T, s *SQLite) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	for table, column := range map[string]string{"addresses": "ip", "domains": "name", "programs": "name", "executables": "path", "places": "cgroup", "actors": "id"} {
		rows, err := s.conn.QueryContext(t.Context(), fmt.Sprintf("SELECT %s FROM %s ORDER BY id", column, table))
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var text string
			if err := rows.Scan(&text); err != nil {
				t.Fatal(err)
			}
			all[table] = append(all[table], text)
		}
		rows.Close()
	}
	return all
}

// careAll runs the work that waits in the smallest steps, and something between two of them.
func careAll(t *testing.T, s *SQLite, now int64, between func(n int)) {
	t.Helper()
	for n := 0; ; n++ {
		s.care.idle = 0
		s.care.settled, s.care.seen = 1, now // the clock is trusted
		more, err := s.Care(t.Context(), now, 0)
		switch {
		case err != nil:
			t.Fatal(err)
		case !more:
			return
		case n > 10_000:
			t.Fatal("no end")
		}
		between(n)
	}
}

// TestSweep: texts of days that are deleted go with them, those of what is kept stay, whoever writes meanwhile; no number is given again.
func TestSweep(t *testing.T) {
	const day = 86400
	path := filepath.Join(t.TempDir(), "snitch.db")
	s, other := openTest(t, path), openTest(t, path)
	write := func(s *SQLite, w *flow.Window) {
		t.Helper()
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	write(s, visit("a", 1, 1*day+100, "old", 1))
	write(s, visit("a", 2, 1*day+200, "kept", 2))
	write(other, visit("b", 1, 1*day+300, "again", 3)) // the other one remembers its numbers
	write(s, visit("a", 3, 5*day+100, "kept", 2))
	write(s, visit("a", 4, 5*day+200, "new", 4))
	s.SetKeep(Keep{Days: 2})
	written := false
	careAll(t, s, 6*day+100, func(int) {
		if s.care.sweep == nil || written {
			return
		}
		// In the midst of it, what would go is met again.
		written = true
		write(other, visit("b", 2, 6*day, "again", 3))
		write(s, visit("a", 5, 6*day+50, "late", 5))
	})
	if !written {
		t.Fatal("nothing is swept")
	}
	want := map[string][]string{
		"addresses":   {"10.0.0.2", "192.0.2.2", "10.0.0.3", "192.0.2.3", "10.0.0.4", "192.0.2.4", "10.0.0.5", "192.0.2.5"},
		"domains":     {"com.example.kept", "com.example.again", "com.example.new", "com.example.late"},
		"programs":    {"init", "init", "parent of kept", "kept", "init", "parent of again", "again", "init", "parent of new", "new", "init", "parent of late", "late"},
		"executables": {"/bin/kept", "/script/kept", "/parent/kept", "/bin/init", "/bin/again", "/script/again", "/parent/again", "/bin/init", "/bin/new", "/script/new", "/parent/new", "/bin/init", "/bin/late", "/script/late", "/parent/late", "/bin/init"},
		"places":      {"3", "4", "5", "6"},
		"actors":      {"2", "3", "4", "5"},
	}
	want["programs"] = want["programs"][1:]
	if d := cmp.Diff(want, texts(t, s)); d != "" {
		t.Error(d)
	}
	// The other one still has in its memory what is gone now.
	write(s, visit("a", 6, 6*day+60, "fleeting", 6))
	careAll(t, s, 6*day+100, func(int) {})
	before := texts(t, s)
	write(s, visit("a", 7, 20*day, "kept", 2))
	careAll(t, s, 21*day, func(int) {})
	// The last one stays, or its number would be given again.
	if after := texts(t, s); len(after["domains"]) != 2 || len(before["domains"]) != 5 {
		t.Errorf("domains before %q, after %q", before["domains"], after["domains"])
	}
	write(other, visit("b", 3, 21*day+100, "again", 3))
	var dangling int
	if err := s.conn.QueryRowContext(t.Context(), "SELECT count(*) FROM pragma_foreign_key_check").Scan(&dangling); err != nil || dangling != 0 {
		t.Errorf("%d rows name what is deleted, %v", dangling, err)
	}
	var domain, ip, exe string
	if err := s.conn.QueryRowContext(t.Context(), "SELECT domain, ip, exe FROM connections ORDER BY contime DESC").Scan(&domain, &ip, &exe); err != nil || domain != "com.example.again" || ip != "192.0.2.3" || exe != "/bin/again" {
		t.Errorf("%q %q %q, %v", domain, ip, exe, err)
	}
	var highest int
	if err := s.conn.QueryRowContext(t.Context(), "SELECT id FROM domains WHERE name = 'com.example.again'").Scan(&highest); err != nil || highest != 7 {
		t.Errorf("the domain has number %d, %v", highest, err)
	}
	s.care.idle = 0
	if more, err := s.Care(t.Context(), 21*day+200, time.Minute); more || err != nil {
		t.Error(more, err)
	}
	if s.care.sweep != nil {
		t.Error("it is swept again though nothing was deleted")
	}
}
