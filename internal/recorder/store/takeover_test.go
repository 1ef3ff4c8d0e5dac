package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// older is a database of picosnitch 0.11 with n rows; every tenth second has some.
func older(t *testing.T, path string, n int) {
	t.Helper()
	makeDB(t, path, fmt.Sprintf(`PRAGMA user_version = 2;
CREATE TABLE connections (exe text, name text, cmdline text, sha256 text, contime text, domain text, ip text, port integer, uid integer,
  pexe text, pname text, pcmdline text, psha256 text, conns integer, send integer, recv integer);
INSERT INTO connections WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
  SELECT '/usr/bin/p' || (i %% 7), 'p' || (i %% 7), 'p -x ' || (i %% 3), iif(i %% 2, substr('%s', 1, 63) || (i %% 7), '!!! hash failed'), datetime(1600000000 + i / 5 * 10, 'unixepoch'),
    iif(i %% 3, 'com.example.h' || (i %% 11), ''), iif(i %% 4, '192.0.2.' || (i %% 200), iif(i %% 8, '2001:db8::' || (1 + i %% 9), '')), iif(i %% 13, 443, -1), 1000 + i %% 2,
    iif(i %% 5, '/bin/sh', ''), iif(i %% 5, 'sh', ''), iif(i %% 5, 'sh -c x', ''), '', i %% 3, i, 2 * i FROM n;`, n-1, strings.Repeat("a", 64)))
}

const olderRows = `SELECT exe, name, cmdline, iif(length(sha256) = 64, sha256, ''), contime, domain, ip, port, uid, pexe, pname, pcmdline, conns, send, recv FROM connections`

// dumpRows reads the rows of a flat table or view, ordered.
func dumpRows(t *testing.T, path, q string) string {
	t.Helper()
	s := &SQLite{path: path}
	var b strings.Builder
	db := openPlain(t, path)
	defer db.Close()
	rows, err := db.Query(q + " ORDER BY 5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")
	if err != nil {
		t.Fatal(err, s.path)
	}
	defer rows.Close()
	for rows.Next() {
		var v [15]any
		var p [15]any
		for i := range v {
			p[i] = &v[i]
		}
		if err := rows.Scan(p[:]...); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, v[:]...)
	}
	return b.String()
}

// TestTakeover: every row of a database of 0.11 comes over once, also when the work is interrupted again and again, beside what is recorded;
// the file stays as it was.
func TestTakeover(t *testing.T) {
	t.Setenv("TZ", "UTC")
	dir := t.TempDir()
	path, aside := filepath.Join(dir, "snitch.db"), filepath.Join(dir, "snitch.picosnitch-0.11.db")
	n := 20_000
	if raceDetector { // which makes it 20 times slower
		n = 10_000
	}
	older(t, path, n)
	want := dumpRows(t, path, olderRows)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for round := 0; ; round++ {
		if round > 100 {
			t.Fatal("no end")
		}
		s, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { told = append(told, text) })
		if err != nil {
			t.Fatal(err)
		}
		s.care.zone = time.UTC
		for range 2 { // two steps, and then it dies
			w := window(170_000_000+round, 3)
			if err := s.Write(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Care(t.Context(), w.End, 0); err != nil {
				t.Fatal(err)
			}
		}
		file, done := s.Takeover()
		if round == 3 && (file != filepath.Base(aside) || done <= 0 || done >= 1) {
			t.Errorf("%s: %v done", file, done)
		}
		if round%2 == 0 {
			s.Close()
		} else {
			s.disconnect()
		}
		if file == "" {
			break
		}
	}
	if got := dumpRows(t, path, olderRows+" WHERE contime < '2021'"); got != want {
		g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
		for i := range min(len(g), len(w)) {
			if g[i] != w[i] {
				t.Fatalf("row %d of %d (want %d):\n%s\n%s", i, len(g), len(w), g[i], w[i])
			}
		}
		t.Fatalf("%d rows, want %d", len(g), len(w))
	}
	after, err := os.ReadFile(aside)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the older database is not what it was (%v)", err)
	}
	if !strings.Contains(told[0], "set aside") || !strings.Contains(told[len(told)-1], "is taken over") {
		t.Errorf("told %q", told)
	}
	s := openTest(t, path)
	defer s.Close()
	if file, _ := s.Takeover(); file != "" {
		t.Error("it is taken over again")
	}
}

// TestTakeoverHostile: what is in the older database is not trusted, and tells what it is.
func TestTakeoverHostile(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		rows int
		told string
	}{
		"no times":     {"CREATE TABLE connections (exe text)", 0, "cannot be taken over"},
		"few columns":  {"CREATE TABLE connections (exe text, contime text, conns integer); INSERT INTO connections VALUES ('/bin/x', '2020-01-02 03:04:05', 3)", 1, "is taken over"},
		"wrong values": {"CREATE TABLE connections (exe, name, contime, ip, port, uid, conns, send, recv); INSERT INTO connections VALUES (x'ff00', char(27) || '[31m', 'yesterday', 'nowhere', 99999, -5, 'x', -1, 9e99), (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)", 2, "is taken over"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "snitch.db")
			makeDB(t, path, "PRAGMA user_version = 2;"+c.text)
			var told []string
			s, err := OpenSQLite(t.Context(), path, time.Second, func(text, hint string) { told = append(told, text+" "+hint) })
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Care(t.Context(), 1_700_000_000, time.Minute); err != nil {
				t.Fatal(err)
			}
			n, err := countRecords(path)
			if err != nil || n != c.rows || !strings.Contains(told[len(told)-1], c.told) {
				t.Errorf("%d rows, want %d (%v), told %q", n, c.rows, err, told)
			}
			if got := dumpRows(t, path, olderRows); strings.ContainsAny(got, "\x1b\x00") || !utf8.ValidString(got) {
				t.Errorf("%q", got)
			}
		})
	}
}
