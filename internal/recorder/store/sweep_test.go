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

// TestSweepDamaged: what a roll-up that cannot be read names is not known, so nothing is deleted; it is said each time; pages are given back nevertheless.
func TestSweepDamaged(t *testing.T) {
	const day = 86400
	s := openTest(t, filepath.Join(t.TempDir(), "snitch.db"))
	for d := range 6 {
		if err := s.Write(t.Context(), visit("a", d+1, int64(d+1)*day+100, "x", byte(d+1))); err != nil {
			t.Fatal(err)
		}
	}
	now := int64(7*day + 100)
	s.SetKeep(Keep{Days: 100, RawDays: 1}) // raw rows go, their sums stay
	careAll(t, s, now, func(int) {})
	if _, err := s.conn.ExecContext(t.Context(), "UPDATE segment_actors SET data = x'00' WHERE segment = (SELECT id FROM segments WHERE seconds = 3600 AND bucket = 5*24)"); err != nil {
		t.Fatal(err)
	}
	before := texts(t, s)
	s.SetKeep(Keep{Days: 4, RawDays: 1})
	for range 3 {
		for failed := false; !failed; {
			s.care.idle, s.care.settled, s.care.seen = 0, 1, now
			more, err := s.Care(t.Context(), now, 0)
			if failed = err != nil; !failed && !more {
				t.Fatal("the damage is not told")
			}
		}
	}
	if more, err := s.Care(t.Context(), now+1, 0); more || err != nil {
		t.Error("the damaged roll-up is read again in the next second:", more, err)
	}
	if s.care.vacuum {
		t.Error("the pages of deleted days are not given back")
	}
	if d := cmp.Diff(before, texts(t, s)); d != "" {
		t.Error("deleted, though what the damaged roll-up names is not known:", d)
	}
}

// TestSweepOfMany: a step looks at a bounded number of rows, so that it holds up no writer, and in the end what is named is there.
func TestSweepOfMany(t *testing.T) {
	const day, many = 86400, 20_000
	s := openTest(t, filepath.Join(t.TempDir(), "snitch.db"))
	if err := s.Write(t.Context(), visit("a", 1, day, "old", 1)); err != nil {
		t.Fatal(err)
	}
	// Chains of four programs; nobody names every second one. The next window's are younger.
	for _, q := range []string{
		fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < %d) INSERT INTO programs (id, key, executable, name, cmdline, script_kind, parent) SELECT i, i, 1, 'sh', '', '', CASE WHEN i %% 4 THEN i - 1 END FROM n", 999+many),
		"INSERT INTO actors (program, uid, kind, net_ns) SELECT id, 0, 1, 0 FROM programs WHERE id % 8 = 3 AND id >= 1000",
		"INSERT INTO actors (program, uid, kind, net_ns) SELECT id, 0, 1, 1 FROM programs WHERE id % 8 = 7 AND id >= 1000",
	} {
		if _, err := s.conn.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Write(t.Context(), visit("a", 2, 5*day, "new", 2)); err != nil {
		t.Fatal(err)
	}
	// A raw row names each of the first half.
	if _, err := s.conn.ExecContext(t.Context(), "INSERT INTO raw (id, actor, local_port, remote_port, conns, sent, received) SELECT (SELECT max(id) FROM raw) + 1 + row_number() OVER (), id, 1, 1, 0, 1, 1 FROM actors WHERE net_ns = 0 AND program >= 1000"); err != nil {
		t.Fatal(err)
	}
	w := &sweep{}
	steps, greatest := 0, int64(0)
	between := func(table string, from, to int64) {
		n, err := s.numbers(t.Context(), "SELECT count(*) FROM "+table+" WHERE id > ? AND id <= ?", from, to)
		if err != nil {
			t.Fatal(err)
		}
		greatest = max(greatest, n[0])
	}
	for again := true; again; steps++ {
		actor, later := w.actor, w.later
		var err error
		if again, err = s.sweepStep(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		between("actors", actor, w.actor)
		between("programs", max(later, w.program), w.later)
	}
	var kept, dangling int
	if err := s.conn.QueryRowContext(t.Context(), "SELECT count(*) FROM programs WHERE id BETWEEN 1000 AND 999 + ?", many).Scan(&kept); err != nil || kept != many/2 {
		t.Errorf("%d of %d programs are kept, want half of them (%v)", kept, many, err)
	}
	if err := s.conn.QueryRowContext(t.Context(), "SELECT count(*) FROM pragma_foreign_key_check").Scan(&dangling); err != nil || dangling != 0 {
		t.Errorf("%d rows name what is deleted, %v", dangling, err)
	}
	if greatest == 0 || greatest > sweepNames {
		t.Errorf("%d steps, %d rows in one", steps, greatest)
	}
}
