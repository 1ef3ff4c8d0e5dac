package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/schema"
)

// make runs SQL in a new database that is not ours.
func makeDB(t *testing.T, path, text string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(text); err != nil {
		t.Fatal(err)
	}
}

func TestSetAside(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(t *testing.T, path string)
		aside string
	}{
		{"older", func(t *testing.T, path string) {
			makeDB(t, path, "CREATE TABLE connections (exe text); INSERT INTO connections VALUES ('x'); PRAGMA user_version = 2")
		}, "snitch.picosnitch-0.11.db"},
		{"older in WAL mode", func(t *testing.T, path string) {
			makeDB(t, path, "PRAGMA journal_mode = WAL; CREATE TABLE connections (exe text); PRAGMA user_version = 2")
		}, "snitch.picosnitch-0.11.db"},
		{"foreign", func(t *testing.T, path string) { makeDB(t, path, "CREATE TABLE bookmarks (url text)") }, "snitch.not-ours.db"},
		{"text", func(t *testing.T, path string) { os.WriteFile(path, []byte("hello"), 0o600) }, "snitch.corrupt.db"},
		{"cut", func(t *testing.T, path string) {
			s := openTest(t, path)
			s.Write(t.Context(), window(1, 1000))
			s.Close()
			os.Truncate(path, 4096*2)
		}, "snitch.corrupt.db"},
		{"scribbled", func(t *testing.T, path string) {
			s := openTest(t, path)
			s.Close()
			f, _ := os.OpenFile(path, os.O_WRONLY, 0)
			f.WriteAt(bytes.Repeat([]byte("x"), 4000), 100)
			f.Close()
		}, "snitch.corrupt.db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "snitch.db")
			// Twice, so that the second one finds the name of the first one taken.
			for n := range 2 {
				c.make(t, path)
				before, _ := os.ReadFile(path)
				var told []string
				s, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { told = append(told, text) })
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Write(t.Context(), window(1, 1)); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				aside := c.aside
				if n == 1 {
					aside = strings.TrimSuffix(aside, ".db") + "-2.db"
				}
				if len(told) == 0 || !strings.Contains(told[0], aside) || (len(told) > 1 && !strings.Contains(c.aside, olderName)) {
					t.Errorf("told %q, want one text that names %s", told, aside)
				}
				after, err := os.ReadFile(filepath.Join(dir, aside))
				if err != nil || !bytes.Equal(before, after) {
					t.Errorf("%s is not what was there before (%v)", aside, err)
				}
				if records, err := countRecords(path); records != 1 || err != nil {
					t.Errorf("the new database has %d records, want 1 (%v)", records, err)
				}
				os.Remove(path)
			}
		})
	}
}

func TestNewerIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "snitch.db")
	s := openTest(t, path)
	s.exec(t.Context(), fmt.Sprintf("PRAGMA user_version = %d", schema.Version+1))
	s.Close()
	before, _ := os.ReadFile(path)
	_, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { t.Error(text) })
	if !errors.Is(err, schema.ErrNewer) {
		t.Errorf("got %v, want ErrNewer", err)
	}
	after, _ := os.ReadFile(path)
	entries, _ := os.ReadDir(dir)
	if !bytes.Equal(before, after) || len(entries) != 1 {
		t.Errorf("the newer database was touched: %v", entries)
	}
}

// TestEmptyFile: what a kill right after the file was made leaves.
func TestEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	os.WriteFile(path, nil, 0o640)
	s := openTest(t, path)
	if err := s.Write(t.Context(), window(1, 1)); err != nil {
		t.Error(err)
	}
	s.Close()
}

// TestOtherReaders: an account that may only read does so while the writer writes, after it stopped, after it was killed, and
// when a reader keeps the writer from leaving WAL mode.
func TestOtherReaders(t *testing.T) {
	credential := (*syscall.Credential)(nil)
	if os.Geteuid() == 0 {
		credential = &syscall.Credential{Uid: 65534, Gid: 65533}
	} else {
		t.Log("not root: the reader runs under the same account, only without the right to write")
	}
	// t.TempDir is closed to other accounts.
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o700); os.RemoveAll(dir) })
	binary := filepath.Join(dir, "reader")
	copyFile(t, "/proc/self/exe", binary)
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	if credential != nil {
		if err := os.Chown(files, 0, 65533); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(dir, 0o755)
	os.Chmod(files, os.ModeSetgid|0o750)
	path := filepath.Join(files, "snitch.db")
	read := func(want int, when string) {
		t.Helper()
		c := exec.Command(binary)
		c.Env = append(os.Environ(), readEnv+"="+path)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		if credential == nil {
			os.Chmod(files, 0o550)
			defer os.Chmod(files, 0o750)
		}
		out, err := c.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != strconv.Itoa(want) {
			t.Errorf("%s: reader says %q (%v), want %d", when, got, err, want)
		}
	}
	s := openTest(t, path)
	read(0, "before the first window")
	s.Write(t.Context(), window(1, 10))
	read(10, "while the writer runs")
	s.exec(t.Context(), "BEGIN IMMEDIATE")
	read(10, "while the writer writes")
	s.exec(t.Context(), "ROLLBACK")
	s.Write(t.Context(), window(2, 10))
	read(20, "after another window")
	// A killed writer: a copy of the three files has no writer.
	killed := filepath.Join(files, "killed.db")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		copyFile(t, path+suffix, killed+suffix)
		os.Chmod(killed+suffix, 0o640)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	read(20, "after the writer stopped")
	if entries, _ := filepath.Glob(path + "-*"); len(entries) > 0 {
		t.Errorf("left over: %v", entries)
	}
	path = killed
	read(20, "after the writer was killed")

	path = filepath.Join(files, "held.db")
	s = openTest(t, path)
	s.Write(t.Context(), window(1, 10))
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query("SELECT n FROM records")
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	// The reader may go between the writer's try to leave WAL mode and its end.
	s.leaveWAL(t.Context())
	rows.Close()
	db.Close()
	if err := s.disconnect(); err != nil {
		t.Error(err)
	}
	read(10, "after the writer could not leave WAL mode")
	s = openTest(t, path)
	if db, err = sql.Open("sqlite", "file:"+path+"?mode=ro"); err != nil {
		t.Fatal(err)
	}
	if rows, err = db.Query("SELECT n FROM records"); err != nil || !rows.Next() {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	read(10, "after the writer stopped while another reader read")
	rows.Close()
	db.Close()
	read(10, "after the other reader went, too")
	s = openTest(t, path)
	if err := s.Write(t.Context(), window(2, 1)); err != nil {
		t.Error(err)
	}
	s.Close()
	read(11, "after the next writer")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	os.Chmod(to, 0o755)
}
