package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

func program(name string) *flow.Program {
	return &flow.Program{
		Executable: &flow.Executable{Path: "/bin/" + name, File: event.FileID{Inode: uint64(len(name)), Ctime: 7}, Digest: &flow.Digest{SHA256: strings.Repeat("a", 64)}},
		Name:       name,
		Cmdline:    name + " -x",
		Parent:     &flow.Program{Executable: &flow.Executable{Path: "/sbin/init", Digest: &flow.Digest{Reason: "why"}}, Name: "init"},
	}
}

// window is the n-th window, of batch n, with some records.
func window(n, records int) *flow.Window {
	w := &flow.Window{
		Hello: event.Hello{Stream: "s"}, Start: int64(n) * 10, End: int64(n)*10 + 10,
		Position: flow.Position{Stream: "s", Batch: uint64(n)},
		Losses:   map[string]uint64{"exec": 1}, Unattributed: event.Bytes{Sent: 1, Received: 2},
	}
	p := program("nc")
	for i := range records {
		w.Records = append(w.Records, flow.Record{Key: flow.Key{
			Program: p, Kind: &flow.Kind{Family: "inet", Protocol: "tcp", Direction: "out", Layer: "payload", Peer: "socket"},
			Local: netip.MustParseAddrPort("10.0.0.1:1000"), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), uint16(n)),
			Domain: &flow.Domain{Name: "com.example", Source: "dns"}, UID: 1000, NetNS: 1,
		}, Conns: 1, Sent: 10, Received: 20})
	}
	return w
}

// TestSinks is what every sink promises.
func TestSinks(t *testing.T) {
	type kind struct {
		name   string
		open   func(t *testing.T, dir string) Sink
		lines  func(t *testing.T, dir string) int
		damage func(t *testing.T, s Sink) (repair func()) // makes writes fail
	}
	for _, k := range []kind{
		{
			"sqlite", func(t *testing.T, dir string) Sink { return openTest(t, filepath.Join(dir, "snitch.db")) },
			func(t *testing.T, dir string) int {
				n, err := countRecords(filepath.Join(dir, "snitch.db"))
				if err != nil {
					t.Fatal(err)
				}
				return n
			},
			func(t *testing.T, s Sink) func() {
				q := s.(*SQLite)
				if err := q.exec(t.Context(), "PRAGMA max_page_count = 1"); err != nil {
					t.Fatal(err)
				}
				return func() { q.exec(t.Context(), "PRAGMA max_page_count = 1000000") }
			},
		},
		{
			"text", func(t *testing.T, dir string) Sink {
				s, err := OpenText(filepath.Join(dir, "conn.log"), TextOptions{Zone: time.UTC})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			func(t *testing.T, dir string) int {
				b, err := os.ReadFile(filepath.Join(dir, "conn.log"))
				if err != nil {
					t.Fatal(err)
				}
				return strings.Count(string(b), "\n")
			},
			func(t *testing.T, s Sink) func() {
				// A file may grow by little more than what is buffered: part of the window is written.
				x := s.(*Text)
				info, err := x.f.Stat()
				if err != nil {
					t.Fatal(err)
				}
				signal.Ignore(syscall.SIGXFSZ)
				var was syscall.Rlimit
				if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
					t.Fatal(err)
				}
				now := was
				now.Cur = uint64(info.Size()) + 70_000
				if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &now); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
						t.Fatal(err)
					}
				}
			},
		},
	} {
		t.Run(k.name, func(t *testing.T) {
			dir := t.TempDir()
			s := k.open(t, dir)
			for _, w := range []*flow.Window{window(1, 3), window(2, 0), window(3, 100)} {
				if err := s.Write(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
			if n := k.lines(t, dir); n != 103 {
				t.Errorf("%d records while open, want 103", n)
			}
			repair := k.damage(t, s)
			if err := s.Write(t.Context(), window(4, 5000)); err == nil {
				t.Error("a write that must fail did not")
			}
			if n := k.lines(t, dir); n != 103 {
				t.Errorf("%d records after a failed write, want 103", n)
			}
			repair()
			if err := s.Write(t.Context(), window(4, 5000)); err != nil {
				t.Errorf("write after the failure: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if n := k.lines(t, dir); n != 5103 {
				t.Errorf("%d records after Close, want 5103", n)
			}
			s = k.open(t, dir)
			if err := s.Write(t.Context(), window(5, 1)); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if n := k.lines(t, dir); n != 5104 {
				t.Errorf("%d records after opening again, want 5104", n)
			}
			entries, _ := filepath.Glob(filepath.Join(dir, "[^.]*"))
			if len(entries) != 1 {
				t.Errorf("files after Close: %v", entries)
			}
			info, _ := os.Stat(filepath.Join(dir, s.Name()))
			if info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, want 0640", info.Mode())
			}
		})
	}
}

func openTest(t testing.TB, path string) *SQLite {
	t.Helper()
	s, err := OpenSQLite(t.Context(), path, 100*time.Millisecond, func(text, hint string) { t.Error(text, hint) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fakeSink fails as long as err is set.
type fakeSink struct {
	err     error
	written []*flow.Window
}

func (f *fakeSink) Name() string { return "fake" }
func (f *fakeSink) Close() error { return nil }
func (f *fakeSink) Write(_ context.Context, w *flow.Window) error {
	if f.err == nil {
		f.written = append(f.written, w)
	}
	return f.err
}

func TestQueueRetries(t *testing.T) {
	f := &fakeSink{err: errors.New("disk full")}
	q := NewQueue(f, 25)
	for n := 1; n <= 5; n++ {
		q.Offer(window(n, 10))
	}
	// Two of ten fit into 25: three windows were dropped, their losses were not.
	if d := (Dropped{Windows: 3, Records: 30, Sent: 300, Received: 600}); q.Dropped() != d || q.Waiting() != 2 {
		t.Errorf("dropped %+v, want %+v; waiting %d, want 2", q.Dropped(), d, q.Waiting())
	}
	tries := 0
	for now := int64(1000); now < 1100; now++ {
		if q.Flush(t.Context(), now, false) != nil {
			tries++
		}
	}
	// 1000, +1, +2, +4, +8, +16, +32, +32
	if tries != 8 {
		t.Errorf("%d tries in 100 s, want 8", tries)
	}
	if _, err := q.Failures(); err == nil {
		t.Error("no error is told")
	}
	f.err = nil
	if err := q.Flush(t.Context(), 1100, true); err != nil {
		t.Fatal(err)
	}
	if q.Waiting() != 0 || q.Durable().Batch != 5 || len(f.written) != 2 {
		t.Errorf("waiting %d, durable %v, written %d", q.Waiting(), q.Durable(), len(f.written))
	}
	if d := cmp.Diff(map[string]uint64{"exec": 4, LossSink: 30}, f.written[0].Losses); d != "" {
		t.Error(d)
	}
	if u := f.written[0].Unattributed; u != (event.Bytes{Sent: 4, Received: 8}) {
		t.Errorf("unattributed %+v", u)
	}
}

// TestRollback: the numbers that a failed write gave to addresses are not used by the next one.
func TestRollback(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	s := openTest(t, path)
	defer s.Close()
	bad := window(1, 100)
	bad.Losses = nil
	bad.Records[99].Kind = &flow.Kind{Family: "bad"}
	if err := s.exec(t.Context(), "CREATE TEMP TRIGGER no BEFORE INSERT ON kinds WHEN new.family = 'bad' BEGIN SELECT raise(FAIL, 'no'); END"); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), bad); err == nil {
		t.Fatal("a write that must fail did not")
	}
	good := window(2, 100)
	slices.Reverse(good.Records)
	if err := s.Write(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	rows, err := s.conn.QueryContext(t.Context(), "SELECT ip FROM records JOIN addresses ON id = remote ORDER BY n")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var ip string
		if err := rows.Scan(&ip); err != nil {
			t.Fatal(err)
		}
		if want := good.Records[n].Remote.Addr().String(); ip != want {
			t.Fatalf("record %d has %s, want %s", n, ip, want)
		}
	}
	if n != 100 {
		t.Errorf("%d records, want 100", n)
	}
}

func TestResume(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	s := openTest(t, path)
	w := window(7, 2)
	w.Position.Flows = 5
	for _, w := range []*flow.Window{window(1, 1), w} {
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = openTest(t, path)
	defer s.Close()
	got, err := s.Resume(t.Context(), "s")
	want := Resume{flow.Position{Stream: "s", Batch: 7, Flows: 5}, map[string]uint64{"exec": 2}, event.Bytes{Sent: 2, Received: 4}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if got, err := s.Resume(t.Context(), "other"); err != nil || got.Position.Batch != 0 {
		t.Error(got, err)
	}
}

// TestLocked: a writer of another process holds the file; the window waits and is written later.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	s := openTest(t, path)
	defer s.Close()
	other := openTest(t, path)
	if err := other.exec(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), window(1, 1)); err == nil {
		t.Fatal("wrote into a locked database")
	}
	other.exec(t.Context(), "ROLLBACK")
	other.disconnect()
	if err := s.Write(t.Context(), window(1, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestLateHash: what was recorded without a hash gets it, also by the window that brings both, and also when a complete row
// of the same file exists already; no row takes another's place.
func TestLateHash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snitch.db")
	s := openTest(t, path)
	for run := range 3 {
		w := window(run, 1)
		d := w.Records[0].Program.Executable.Digest
		sum := d.SHA256
		d.SHA256 = ""
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		d.SHA256 = sum
		late := &flow.Window{Hello: w.Hello, Position: w.Position, Digests: []flow.Digested{{File: w.Records[0].Program.Executable.File, Path: "/bin/nc", SHA256: sum}}}
		if err := s.Write(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		s.forget()
	}
	// The record's own digest is one that the recorder has given up since; only the news has the hash.
	w := window(9, 1)
	w.Records[0].Program.Executable = &flow.Executable{Path: "/bin/other", File: event.FileID{Inode: 99}, Digest: &flow.Digest{}}
	w.Digests = []flow.Digested{{File: event.FileID{Inode: 99}, Path: "/bin/other", SHA256: strings.Repeat("b", 64)}}
	if err := s.Write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	var rows, complete, files int
	if err := s.conn.QueryRowContext(t.Context(), "SELECT count(*), sum(sha256 <> ''), (SELECT count(DISTINCT sha256) FROM executables WHERE path = '/bin/nc') FROM connections").Scan(&rows, &complete, &files); err != nil {
		t.Fatal(err)
	}
	if rows != 4 || complete != 4 || files != 1 {
		t.Errorf("%d rows, %d with a hash, %d files; want 4, 4, 1", rows, complete, files)
	}
	s.Close()
}

// TestVacuum: the pages of deleted rows can be given back without writing the whole file again.
func TestVacuum(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snitch.db"))
	defer s.Close()
	var mode int
	if err := s.conn.QueryRowContext(t.Context(), "PRAGMA auto_vacuum").Scan(&mode); err != nil || mode != 2 {
		t.Errorf("auto_vacuum is %d, want 2 (%v)", mode, err)
	}
}

// TestPlaces: a program that starts in another container brings a place, and no rows for its ancestors.
func TestPlaces(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snitch.db"))
	defer s.Close()
	for n := range 5 {
		w := window(n, 1)
		w.Records[0].Program.Cgroup = uint64(100 + n)
		w.Records[0].Program.Parent.Cgroup = uint64(100 + n)
		if err := s.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	var places, programs int
	if err := s.conn.QueryRowContext(t.Context(), "SELECT count(DISTINCT cgroup), (SELECT count(*) FROM programs) FROM records JOIN places p ON p.id = place").Scan(&places, &programs); err != nil || places != 5 || programs != 2 {
		t.Errorf("%d places, %d programs; want 5, 2 (%v)", places, programs, err)
	}
}

// TestTextPosition: the log knows how far it has a stream, and half a line that a kill left does not spoil the next one.
func TestTextPosition(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conn.log")
	open := func() *Text {
		s, err := OpenText(path, TextOptions{Zone: time.UTC})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	if err := s.Write(t.Context(), window(12345, 2)); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), window(7, 2)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("/bin/nc,nc")
	f.Close()
	s = open()
	defer s.Close()
	if got := s.Resume("s"); got != (flow.Position{Stream: "s", Batch: 7}) {
		t.Errorf("position %+v, want batch 7", got)
	}
	if got := s.Resume("other"); got != (flow.Position{Stream: "other"}) {
		t.Errorf("position of another stream %+v", got)
	}
	if err := s.Write(t.Context(), window(8, 1)); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	if lines := strings.Split(string(b), "\n"); len(lines) != 7 || lines[4] != "/bin/nc,nc" || strings.Count(lines[5], ",") != 15 {
		t.Errorf("conn.log %q", b)
	}
}

// TestQueueBounds: what waits is bounded in bytes, what is left out is counted, and what the sink has already is not written.
func TestQueueBounds(t *testing.T) {
	f := &fakeSink{err: errors.New("disk full")}
	q := NewQueue(f, 1<<20)
	for n := range 100 {
		w := window(n+1, 1)
		w.Records[0].Program.Cmdline = strings.Repeat("x", 1<<20)
		w.Digests = []flow.Digested{{Path: strings.Repeat("p", 100_000)}}
		q.Offer(w)
	}
	if q.bytes > maxBytes || q.Waiting() < 10 || q.Dropped().Digests == 0 {
		t.Errorf("%d bytes, %d windows wait, dropped %+v", q.bytes, q.Waiting(), q.Dropped())
	}
	f.err = nil
	if err := q.Flush(t.Context(), 0, true); err != nil || q.bytes != 0 || len(q.sizes) != 0 || q.held != 0 {
		t.Errorf("%d bytes of %d programs are counted when nothing waits (%v)", q.bytes, len(q.sizes), err)
	}
	f.written = nil
	q.Resume(flow.Position{Stream: "s", Batch: 200})
	old := window(200, 5)
	old.Digests = []flow.Digested{{Path: "/x"}}
	q.Offer(old)
	q.Offer(window(201, 5))
	q.Flush(t.Context(), 0, true)
	if len(f.written) != 2 || len(f.written[0].Records) != 0 || len(f.written[0].Digests) != 1 || len(f.written[1].Records) != 5 {
		t.Errorf("written %+v", f.written)
	}
}

func TestMovedAway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "snitch.db")
	var told []string
	s, err := OpenSQLite(t.Context(), path, time.Second, func(text, _ string) { told = append(told, text) })
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), window(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		os.Rename(path+suffix, path+".moved"+suffix)
	}
	if err := s.Write(t.Context(), window(2, 2)); err != nil {
		t.Fatal(err)
	}
	// Another file in its place is noticed, too.
	if err := os.Rename(path, path+".replaced"); err != nil {
		t.Fatal(err)
	}
	os.Remove(path + "-wal")
	os.Remove(path + "-shm")
	openTest(t, path).Close()
	if err := s.Write(t.Context(), window(3, 2)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	a, err := countRecords(path + ".moved")
	b, err2 := countRecords(path)
	if a != 1 || b != 2 || err != nil || err2 != nil || len(told) != 2 {
		t.Errorf("%d records in the moved file (want 1), %d in the new one (want 2), %v %v, told %q", a, b, err, err2, told)
	}
}

func TestTextField(t *testing.T) {
	got := string(appendField(nil, "a,b\nc\rd\x00e"))
	if got != "abcde," {
		t.Errorf("%q", got)
	}
	r := window(1, 1).Records[0]
	r.Program.Parent = nil
	line := string(appendText(nil, &r, "T"))
	want := fmt.Sprintf("/bin/nc,nc,nc -x,%s,T,com.example,192.0.0.0,1,1000,,,,,1,10,20\n", strings.Repeat("a", 64))
	if line != want {
		t.Errorf("got  %q\nwant %q", line, want)
	}
}
