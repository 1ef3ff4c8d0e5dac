package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// small mounts a file system of its own that holds so many bytes.
func small(t *testing.T, bytes string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size="+bytes+",mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sums are the rows and bytes of the raw rows, and of the roll-ups with what is not rolled up yet.
func sums(t *testing.T, path string) (rows, sent, rolled int64) {
	t.Helper()
	db := openPlain(t, path)
	defer db.Close()
	if err := db.QueryRow(`SELECT count(*), coalesce(sum(sent), 0),
		(SELECT coalesce(sum(sent), 0) FROM segments WHERE seconds = 3600) + (SELECT coalesce(sum(sent), 0) FROM raw WHERE id >> 10 > (SELECT coalesce(max(value), 0) FROM progress WHERE name = 'rolled')) FROM raw`).Scan(&rows, &sent, &rolled); err != nil {
		t.Fatal(err)
	}
	var ok string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Errorf("%s %v", ok, err)
	}
	return rows, sent, rolled
}

// TestDiskFull: while the disk is full, windows wait; what is more than may wait is counted; when there is room again, all that waited is
// written, once, and the work beside it goes on.
func TestDiskFull(t *testing.T) {
	dir := small(t, "3m")
	path := filepath.Join(dir, "snitch.db")
	s := openTest(t, path)
	q := NewQueue(s, 200_000)
	filler := filepath.Join(dir, "filler")
	n, failed := 0, 0
	write := func(windows int) {
		for range windows {
			n++
			q.Offer(window(360*n, 300)) // an hour each, so that there is something to roll up
			if q.Flush(t.Context(), int64(n)*100, true) != nil {
				failed++
			}
			if q.Waiting() == 0 {
				s.Care(t.Context(), int64(n)*3600, time.Second) // may fail, must not harm
			}
		}
	}
	write(3)
	// The rest of the disk belongs to somebody else.
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	f.Close()
	write(40)
	if _, err := q.Failures(); failed == 0 || err == nil || q.Waiting() == 0 {
		t.Fatalf("the disk is not full: %d failures, %v, %d waiting", failed, err, q.Waiting())
	}
	before := q.Waiting()
	os.Remove(filler)
	write(10)
	if q.Waiting() != 0 || q.Dropped().Records != 0 {
		t.Fatalf("%d windows wait, %+v dropped", q.Waiting(), q.Dropped())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	rows, sent, rolled := sums(t, path)
	if rows != int64(n)*300 || sent != rows*10 || rolled != sent {
		t.Errorf("%d rows of %d, %d bytes, %d in sums", rows, n*300, sent, rolled)
	}
	t.Logf("%d windows, %d failures, %d waited", n, failed, before)
}

// TestReadOnly: a file system that becomes read-only costs nothing but time.
func TestReadOnly(t *testing.T) {
	dir := small(t, "20m")
	path := filepath.Join(dir, "snitch.db")
	s := openTest(t, path)
	if err := s.Write(t.Context(), window(1, 10)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	remount := func(flags uintptr) {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	s = openTest(t, path) // it starts, and says at the first window what is wrong
	for range 2 {
		if err := s.Write(t.Context(), window(2, 10)); err == nil {
			t.Fatal("wrote to a file system that is read-only")
		}
	}
	remount(0)
	if err := s.Write(t.Context(), window(2, 10)); err != nil {
		t.Errorf("it cannot be written afterwards: %v", err)
	}
	s.Close()
	if rows, _, _ := sums(t, path); rows != 20 {
		t.Errorf("%d rows, want 20", rows)
	}
}

// TestLongReader: a reader in the middle of a question delays nobody; the log that grows meanwhile is told, and cut when it is gone.
func TestLongReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	var told []string
	s, err := OpenSQLite(t.Context(), path, 100*time.Millisecond, func(text, _ string) { told = append(told, text) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Write(t.Context(), window(1, 10))
	db := openPlain(t, path)
	defer db.Close()
	rows, err := db.Query("SELECT n FROM records")
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	size := func() int64 {
		i, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return i.Size()
	}
	// Many windows at once, as far as the log can tell.
	if err := s.exec(t.Context(), "CREATE TABLE large (b); INSERT INTO large VALUES (zeroblob(70000000)); DROP TABLE large"); err != nil {
		t.Fatal(err)
	}
	if size() < logLimit {
		t.Fatal("the log does not grow: nothing is tested")
	}
	if _, err := s.Care(t.Context(), 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	s.Care(t.Context(), 100, time.Minute)
	if len(told) != 1 || !strings.Contains(told[0], "reading the database for long") {
		t.Errorf("told %q, want once", told)
	}
	rows.Close()
	db.Close()
	for n := range 3 {
		if err := s.Write(t.Context(), window(n+2, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if size() > 8<<20 {
		t.Errorf("the log holds %d bytes when the reader is gone", size())
	}
}

// TestTwoWriters: two programs that write the same file (a restart that overlaps, a copy started by hand) lose and double nothing.
func TestTwoWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	a, b := openTest(t, path), openTest(t, path)
	const rounds = 60
	done := make(chan error, 2)
	for k, s := range []*SQLite{a, b} {
		go func() {
			for i := range rounds {
				w := window(400*i+k, 50)
				w.Hello.Stream = []string{"a", "b"}[k]
				w.Position.Stream = w.Hello.Stream
				var err error
				for try := 0; try < 50; try++ { // as Queue does
					if err = s.Write(t.Context(), w); err == nil {
						break
					}
				}
				if err != nil {
					done <- err
					return
				}
				s.Care(t.Context(), w.End, 100*time.Millisecond) // may find that the other one was faster
			}
			done <- nil
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	a.Care(t.Context(), 400*rounds*10+7200, time.Minute)
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	rows, sent, rolled := sums(t, path)
	if rows != 2*rounds*50 || sent != rows*10 || rolled != sent {
		t.Errorf("%d rows (want %d), %d bytes, %d in sums", rows, 2*rounds*50, sent, rolled)
	}
}

// TestSizeLimit: a database that is larger than it may be loses its oldest rows first, keeps their sums, then loses its oldest days; the file
// shrinks, the present day stays, and the user is told once.
func TestSizeLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	var told []string
	s, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { told = append(told, text) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const days = 10
	last := 0
	for day := range days {
		for hour := range 24 {
			last = (day*24 + hour) * 360
			if err := s.Write(t.Context(), window(last, 200)); err != nil {
				t.Fatal(err)
			}
		}
	}
	now := int64(last)*10 + 10
	care := func() {
		t.Helper()
		for n := 0; ; n++ {
			if n > 10_000 {
				t.Fatal("no end")
			}
			s.care.idle = 0
			more, err := s.Care(t.Context(), now, 0)
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				return
			}
		}
	}
	care()
	pages := func() (pages, free int64) {
		if err := s.conn.QueryRowContext(t.Context(), "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count").Scan(&pages, &free); err != nil {
			t.Fatal(err)
		}
		return pages, free
	}
	size, _ := pages()
	rows, sent, rolled := sums(t, path)
	if rows != days*24*200 || rolled != sent || len(told) != 0 {
		t.Fatalf("%d rows, %d and %d bytes, told %q", rows, sent, rolled, told)
	}
	limit := size * 6 / 10
	s.SetKeep(Keep{Bytes: limit * 4096})
	care()
	after, free := pages()
	if after-free > limit || after > limit*11/10+2*shrinkPages {
		t.Errorf("%d pages, %d of them free; %d are allowed", after, free, limit)
	}
	left, _, rolled := sums(t, path)
	if left >= rows || left < 24*200 || rolled != sent || len(told) != 1 || !strings.Contains(told[0], "DB size limit") {
		t.Errorf("%d rows of %d are left, sums of %d bytes (want %d), told %q", left, rows, rolled, sent, told)
	}
	// So small that the sums have to go, too: only the present day is left.
	s.SetKeep(Keep{Bytes: 4096})
	care()
	left, _, rolled = sums(t, path)
	if left != 24*200 || rolled != left*10 {
		t.Errorf("%d rows and %d bytes are left, want those of a day", left, rolled)
	}
	if smaller, _ := pages(); smaller >= after {
		t.Errorf("%d pages, %d before", smaller, after)
	}
}
