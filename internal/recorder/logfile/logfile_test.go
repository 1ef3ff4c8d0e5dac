package logfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestWaits: lines that cannot be written come later, in order; those that found no room are counted.
func TestWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	if err := os.Mkdir(path, 0o755); err != nil { // nothing can be written to it
		t.Fatal(err)
	}
	l := File{Path: path, Limit: 1 << 30}
	defer l.Close()
	for n := range maxWaiting + 10 {
		if err := l.Write(fmt.Sprint(n)); err == nil {
			t.Fatal("wrote to a directory")
		}
	}
	if l.Waiting() != maxWaiting || l.Lost() != 10 {
		t.Errorf("%d wait, %d lost", l.Waiting(), l.Lost())
	}
	os.Remove(path)
	if err := l.Write("last"); err != nil {
		t.Fatal(err)
	}
	if text := read(t, path); !strings.HasPrefix(text, "10\n11\n") || !strings.HasSuffix(text, "\nlast\n") || strings.Count(text, "\n") != maxWaiting+1 {
		t.Errorf("%.20q… of %d lines", text, strings.Count(text, "\n"))
	}
	if !l.EndsWith([]string{"last"}) || l.EndsWith([]string{"first"}) || l.Waiting() != 0 {
		t.Error("not what it ends with")
	}
	if err := l.Write(strings.Repeat("x", 2*maxBytes)); err != nil {
		t.Fatal(err)
	}
}

// TestMovedAway: what comes after the file was moved is in a new one.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	l := File{Path: path, Limit: 1 << 30}
	defer l.Close()
	l.Write("one")
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	l.Write("two")
	if got := read(t, path+".moved") + read(t, path); got != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
}

// TestFull: at its limit it becomes NAME.1, and there are no more than two.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	l := File{Path: filepath.Join(dir, "a.log"), Limit: 1000}
	defer l.Close()
	for range 100 {
		if err := l.Write(strings.Repeat("x", 99)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a.log", "a.log.1"} {
		if n := len(read(t, filepath.Join(dir, name))); n == 0 || n > 1000 {
			t.Errorf("%s has %d bytes", name, n)
		}
	}
	if all, _ := os.ReadDir(dir); len(all) != 2 {
		t.Errorf("%v", all)
	}
}
