package feed

import (
	"bufio"
	"bytes"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen serves in a directory whose name is short enough for a socket.
func listen(t *testing.T) (*Feed, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "feed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 0, 4242); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o750|fs.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	f, err := Listen(dir, func(*Feed) [][]byte { return [][]byte{[]byte("hello\n")} })
	if err != nil {
		t.Fatal(err)
	}
	return f, filepath.Join(dir, Name)
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// until polls, for ten seconds at most.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestFeed(t *testing.T) {
	f, path := listen(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v (%v), want 0660", info.Mode(), err)
	}
	f.Publish([]byte("nobody hears this"))
	a, b := dial(t, path), dial(t, path)
	until(t, "readers do not come", func() bool { return f.Readers() == 2 })
	f.Publish([]byte("one"))
	f.Publish([]byte("two\n"))
	for _, c := range []net.Conn{a, b} {
		r := bufio.NewReader(c)
		for _, want := range []string{"hello\n", "one\n", "two\n"} {
			if got, err := r.ReadString('\n'); got != want {
				t.Errorf("got %q (%v), want %q", got, err, want)
			}
		}
	}
	a.Close()
	until(t, "a reader that left stays", func() bool { return f.Readers() == 1 })
	f.Publish([]byte("last"))
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	var rest bytes.Buffer
	rest.ReadFrom(b)
	if rest.String() != "last\n" {
		t.Errorf("after Close: %q", rest.String())
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
	if f.Dropped() != 0 {
		t.Errorf("%d readers dropped", f.Dropped())
	}
}

// TestHungReader: one that takes nothing is dropped and counted; the writer and the others do not notice.
func TestHungReader(t *testing.T) {
	f, path := listen(t)
	defer f.Close()
	dial(t, path) // never reads
	good := dial(t, path)
	until(t, "readers do not come", func() bool { return f.Readers() == 2 })
	line := bytes.Repeat([]byte("x"), 1000)
	const lines = 3000
	done := make(chan int)
	go func() {
		n := 0
		for s := bufio.NewScanner(good); n < lines+1 && s.Scan(); n++ {
		}
		done <- n
	}()
	for n := range lines {
		f.Publish(line)
		if n%100 == 99 {
			// The good one must have its chance on a machine with one processor.
			until(t, "the good reader was dropped", func() bool { return f.behind(good) < maxBehind/2 })
		}
	}
	if n := <-done; n != lines+1 {
		t.Errorf("the good reader got %d lines, want %d", n, lines+1)
	}
	if f.Dropped() != 1 || f.Readers() != 1 {
		t.Errorf("dropped %d, readers %d; want 1, 1", f.Dropped(), f.Readers())
	}
}

// behind is the most that a reader is behind, the hung one left out: it is the one that is furthest.
func (f *Feed) behind(net.Conn) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	least := maxBehind
	for r := range f.readers {
		r.mu.Lock()
		least = min(least, len(r.buf))
		r.mu.Unlock()
	}
	return least
}

func TestTooMany(t *testing.T) {
	f, path := listen(t)
	defer f.Close()
	for range maxReaders + 3 {
		dial(t, path)
	}
	until(t, "nobody was refused", func() bool { return f.Refused() == 3 })
}

func TestStaleSocketAndBadDirectory(t *testing.T) {
	f, path := listen(t)
	// What a kill leaves: the file, and nobody behind it.
	f.l.SetUnlinkOnClose(false)
	f.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	f, err := Listen(filepath.Dir(path), func(*Feed) [][]byte { return nil })
	if err != nil {
		t.Fatalf("a stale socket is an obstacle: %v", err)
	}
	f.Close()
	if _, err := Listen("/dev/null/x", nil); err == nil || !strings.HasPrefix(err.Error(), "live feed: ") {
		t.Errorf("got %v", err)
	}
}

// TestHungAtTheEnd: a reader that takes nothing does not delay the end.
func TestHungAtTheEnd(t *testing.T) {
	f, path := listen(t)
	dial(t, path) // never reads
	until(t, "the reader does not come", func() bool { return f.Readers() == 1 })
	for range 900 {
		f.Publish(bytes.Repeat([]byte("x"), 1000))
	}
	began := time.Now()
	f.Close()
	if d := time.Since(began); d > 4*farewell {
		t.Errorf("the end took %v", d)
	}
}
