package store

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestClock: a clock that jumps deletes nothing until an hour has shown that it is right, whether a machine slept or its clock was wrong; then it is
// obeyed; rows that were written under a wrong time are in the sums like others.
func TestClock(t *testing.T) {
	const day, year = 86400, 366 * 86400
	path := filepath.Join(t.TempDir(), "snitch.db")
	s := openTest(t, path)
	s.SetKeep(Keep{Days: 2, RawDays: 1})
	now, batch := int64(1_800_000_000), 0
	rows := func() int64 {
		t.Helper()
		n, sent, rolled := sums(t, path)
		if sent > rolled {
			t.Errorf("%d bytes in rows, %d in sums", sent, rolled)
		}
		return n
	}
	write := func() {
		t.Helper()
		batch++
		w := window(batch, 10)
		w.Start, w.End = now-10, now
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	// pass lets time pass as the recorder does, without a jump.
	pass := func(seconds int64) {
		t.Helper()
		for end := now + seconds; now < end; {
			now = min(now+600, end)
			for more := true; more; {
				var err error
				s.care.idle = 0
				if more, err = s.Care(t.Context(), now, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, jump := range []int64{0, 3 * year, -3 * year, 10 * day} { // the last one is a machine that slept
		now += jump
		write()
		write()
		pass(settleTime - 600)
		if got := rows(); got != int64(batch)*10 {
			t.Fatalf("%d rows after a jump of %d seconds, want %d", got, jump, batch*10)
		}
		if jump != 10*day {
			now -= settleTime - 600 // nothing is trusted by then
		}
	}
	write()
	pass(settleTime + 1200)
	// Now the time is sure: what is older than two days goes, what is from years ahead stays until then, and so does today's.
	if got := rows(); got != 20+30 {
		t.Errorf("%d rows are left, want those of today and of the years that are not yet", got)
	}
	now += 4 * year
	write()
	pass(settleTime + 1200)
	if got := rows(); got != 10 {
		t.Errorf("%d rows are left, want those of the last window", got)
	}
}

// TestDamagedWhileOpen: a file that is damaged under the feet of the writer is set aside, and the window that met the damage is in the new one.
func TestDamagedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	var told []string
	s, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { told = append(told, text) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Write(t.Context(), window(1, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := s.exec(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA shrink_memory"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	i, _ := f.Stat()
	f.WriteAt(bytes.Repeat([]byte("damaged "), int(i.Size()-4096)/8), 4096)
	f.Close()
	for n := 2; n < 5; n++ {
		if err := s.Write(t.Context(), window(n, 10)); err != nil {
			t.Error(err)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "snitch.corrupt.db") {
		t.Errorf("told %q", told)
	}
	if n, err := countRecords(path); n != 30 || err != nil {
		t.Errorf("%d records, want 30 (%v)", n, err)
	}
	if _, err := os.Stat(strings.TrimSuffix(path, ".db") + ".corrupt.db"); err != nil {
		t.Error(err)
	}
}
