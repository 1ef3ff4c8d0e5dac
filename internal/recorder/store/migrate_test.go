package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/schema"
)

// dumps are the committed databases of each older version, and what is added to them for size.
var dumps = map[int64]string{
	// A window of 100 may have more records than a window of today.
	100: `INSERT INTO windows SELECT id + 7, stream, start + 100000, "end" + 100000, 5, 6 FROM windows ORDER BY id DESC LIMIT 1;
INSERT INTO records WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
  SELECT (SELECT max(id) FROM windows), i, program, NULL, uid, kind, local, i, remote, 443, domain, 4026531840, 1, i, 2 * i FROM n JOIN (SELECT * FROM records LIMIT 1);
INSERT INTO windows WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
  SELECT NULL, stream, start + i, "end" + i, 0, 1 FROM n JOIN (SELECT * FROM windows LIMIT 1);
INSERT INTO records SELECT w.id, n, program, place, uid, kind, local, local_port, remote, remote_port, domain, net_ns, conns, sent, received
  FROM windows w JOIN (SELECT * FROM records WHERE place IS NOT NULL ORDER BY window LIMIT 2) WHERE w.id > (SELECT max(window) FROM records) AND w.id % 3 = 0;`,
}

// meaning reads everything that a user could see, in an order that does not depend on ids.
func meaning(t *testing.T, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var b strings.Builder
	for _, q := range []string{
		`SELECT * FROM connections ORDER BY 5, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16`,
		`SELECT start, "end", e.path, boot, cgroup, r.uid, family, protocol, direction, layer, peer, l.ip, local_port, net_ns, sent, received FROM records r JOIN windows w ON w.id = window
			JOIN kinds k ON k.id = r.kind JOIN programs p ON p.id = r.program JOIN executables e ON e.id = executable LEFT JOIN places c ON c.id = r.place LEFT JOIN addresses l ON l.id = local
			ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16`,
		`SELECT start, "end", sum(unattributed_sent), sum(unattributed_received), s.stream FROM windows JOIN streams s ON s.id = windows.stream GROUP BY 1, 2, 5 ORDER BY 1, 2, 5`,
		`SELECT start, reason, count FROM losses JOIN windows ON id = window ORDER BY 1, 2, 3`,
		`SELECT sum(unattributed_sent), sum(unattributed_received), (SELECT sum(count) FROM losses) FROM windows`,
		`SELECT s.stream, sink, batch, flows FROM positions JOIN streams s ON s.id = positions.stream ORDER BY 1, 2`,
	} {
		rows, err := db.Query(q)
		if err != nil {
			t.Fatalf("%v: %s", err, q)
		}
		columns, _ := rows.Columns()
		values, pointers := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			pointers[i] = &values[i]
		}
		for rows.Next() {
			if err := rows.Scan(pointers...); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&b, values...)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// shape is what tables and views a database has, with their columns and indexes.
func shape(t *testing.T, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(`SELECT s.type, s.name, x.name, x.type, x."notnull", x.pk FROM sqlite_schema s LEFT JOIN pragma_table_xinfo(s.name) x ORDER BY 1, 2, 3`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var v [6]any
		if err := rows.Scan(&v[0], &v[1], &v[2], &v[3], &v[4], &v[5]); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, v[:]...)
	}
	var version, app int64
	if err := db.QueryRow("SELECT user_version, application_id FROM pragma_user_version, pragma_application_id").Scan(&version, &app); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&b, version, app)
	return b.String()
}

// TestMigrate brings the committed database of every version up to date, interrupted at every point: nothing changes that a user
// could see, and the tables are the ones of a new database.
func TestMigrate(t *testing.T) {
	dir := t.TempDir()
	fresh := filepath.Join(dir, "fresh.db")
	openTest(t, fresh).Close()
	want := shape(t, fresh)
	for version, more := range dumps {
		dump, err := os.ReadFile(fmt.Sprintf("../../schema/testdata/%d.sql", version))
		if err != nil {
			t.Fatal(err)
		}
		old := filepath.Join(dir, fmt.Sprintf("%d.db", version))
		makeDB(t, old, string(dump)+more)
		before := meaning(t, old)
		if n := strings.Count(before, "\n"); n < 100 {
			t.Fatalf("the database of version %d has only %d rows", version, n)
		}
		step := 1
		if raceDetector { // which makes it 20 times slower: without it, every point is tried
			step = 7
		}
		for cut, done := 0, false; !done; cut += step {
			if cut > 100 {
				t.Fatal("no end")
			}
			path := filepath.Join(dir, fmt.Sprintf("%d-%d.db", version, cut))
			copyFile(t, old, path)
			done = !interrupt(t, path, version, cut)
			var told []string
			s, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { told = append(told, text) })
			if err != nil {
				t.Fatalf("version %d, interrupted after %d transactions: %v", version, cut, err)
			}
			if len(told) != 2 && !done {
				t.Errorf("told %q, want two texts", told)
			}
			if err := s.Write(t.Context(), window(1, 0)); err != nil {
				t.Error(err)
			}
			if err := s.exec(t.Context(), "DELETE FROM windows WHERE stream = (SELECT id FROM streams WHERE stream = 's'); DELETE FROM losses WHERE window NOT IN (SELECT id FROM windows); DELETE FROM positions WHERE stream = (SELECT id FROM streams WHERE stream = 's')"); err != nil {
				t.Error(err)
			}
			s.Close()
			if d := cmp.Diff(before, meaning(t, path)); d != "" {
				t.Fatalf("version %d, interrupted after %d transactions: %s", version, cut, d)
			}
			if d := cmp.Diff(want, shape(t, path)); d != "" {
				t.Fatalf("version %d, interrupted after %d transactions: %s", version, cut, d)
			}
			if _, err := countRecords(path); err != nil {
				t.Error(err)
			}
		}
	}
	for version := int64(100); version < schema.Version; version++ {
		if _, ok := dumps[version]; !ok {
			t.Errorf("there is no dump of version %d", version)
		}
	}
}

// interrupt runs the first transactions of a migration, and reports whether there were that many.
func interrupt(t *testing.T, path string, version int64, transactions int) bool {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := &SQLite{conn: conn}
	run := func(text string) bool {
		if transactions--; transactions < 0 {
			return false
		}
		if err := s.transaction(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		return true
	}
	steps, err := schema.Steps(version)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		if !run(step.Before) {
			return true
		}
		for more := step.More != ""; more; {
			if err := conn.QueryRowContext(t.Context(), step.More).Scan(&more); err != nil {
				t.Fatal(err)
			}
			if more && !run(step.Each) {
				return true
			}
		}
		if !run(step.After) {
			return true
		}
	}
	return false
}
