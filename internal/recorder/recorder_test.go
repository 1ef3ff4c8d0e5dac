package recorder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/feed"
	"github.com/picosnitch/picosnitch/internal/schema"
)

func errorText(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "error.log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func TestAcks(t *testing.T) {
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	for range 25 {
		s.tcp(1, "192.0.2.1:1", 0, 1, 1)
		s.ledger()
	}
	o := options(t)
	var acks []uint64
	o.Ack = func(n uint64) error { acks = append(acks, n); return nil }
	record(t, s.b.Bytes(), o)
	if d := cmp.Diff([]uint64{10, 20, 25}, acks); d != "" {
		t.Error(d)
	}
	// The ledger that ends a stream is missing: that is told.
	if text := errorText(t, o.Dir); !strings.Contains(text, "without its last ledger") {
		t.Errorf("error.log: %q", text)
	}
	// The same stream again: nothing is recorded twice, and the sensor is told at once.
	acks = nil
	before := rows(t, openDB(t, o.Dir), mission)
	record(t, s.end(), o)
	if d := cmp.Diff(before, rows(t, openDB(t, o.Dir), mission)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]uint64{25, 26}, acks); d != "" {
		t.Error(d)
	}
}

// TestEarlyWrite: more records than one window may hold are written in parts that have the same end, and a stream that is cut
// in the middle of a batch and sent again gives each of them once.
func TestEarlyWrite(t *testing.T) {
	const n = 2*maxRecords + 100
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	head := s.b.Len()
	for i := range n {
		s.flow(event.Flow{Process: id(1), Remote: peer(i), Sent: 1})
	}
	cut := head + (s.b.Len()-head)*3/4
	cut += bytes.IndexByte(s.b.Bytes()[cut:], '\n') + 1
	stream := s.end()
	o := options(t)
	o.Settings.TextLog = false
	record(t, stream[:cut], o)
	record(t, stream, o)
	got := rows(t, openDB(t, o.Dir), `SELECT count(*), sum(sent), count(DISTINCT remote), count(DISTINCT "end") FROM records JOIN windows w ON w.id = window`)
	if want := fmt.Sprintf("%d|%d|%d|1\n", n, n, n); got != want {
		t.Errorf("rows, bytes, peers, windows: got %swant %s", got, want)
	}
}

func TestBadLines(t *testing.T) {
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	s.tcp(1, "192.0.2.1:1", 1, 1, 1)
	for _, bad := range []string{"", "{", "{}", "null", "[]", `{"at":"x"}`, `{"at":1,"flow":{},"exit":{}}`, "\x1b[2J\xff", `{"flow":{"process":"1:2"}}`} {
		s.b.WriteString(bad + "\n")
	}
	s.b.WriteString(strings.Repeat("x", event.MaxLine+1) + "\n")
	s.tcp(1, "192.0.2.1:1", 1, 1, 1)
	o := options(t)
	record(t, s.end(), o)
	if got := rows(t, openDB(t, o.Dir), "SELECT sum(sent) FROM records"); got != "2\n" {
		t.Errorf("%s bytes, want 2", got)
	}
	text := errorText(t, o.Dir)
	if !strings.Contains(text, "1 lines of the stream could not be understood") || !strings.Contains(text, "9 lines of the stream could not be understood") || strings.Contains(text, "\x1b") {
		t.Errorf("error.log: %q", text)
	}
}

func TestVersions(t *testing.T) {
	o := options(t)
	err := Run(t.Context(), strings.NewReader(`{"at":1,"hello":{"version":2}}`+"\n"), o)
	if !errors.Is(err, event.ErrVersion) {
		t.Errorf("a newer stream: %v", err)
	}
	// Another program wrote the database.
	db := openRW(t, o.Dir)
	if _, err := db.Exec("PRAGMA user_version = 1000"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	err = Run(t.Context(), strings.NewReader(""), o)
	if !errors.Is(err, schema.ErrNewer) || !strings.Contains(errorText(t, o.Dir), "newer") {
		t.Errorf("a newer database: %v; error.log %q", err, errorText(t, o.Dir))
	}
}

// TestCancelled: what was taken in is written.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, b := net.Pipe()
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	s.tcp(1, "192.0.2.1:1", 1, 1, 1)
	o := options(t)
	done := make(chan error)
	go func() { done <- Run(ctx, b, o) }()
	if _, err := a.Write(s.b.Bytes()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := rows(t, openDB(t, o.Dir), "SELECT sum(sent) FROM records"); got != "1\n" {
		t.Errorf("%s bytes, want 1", got)
	}
}

// TestFeed runs a recorder as the daemon does and listens.
func TestFeed(t *testing.T) {
	o := options(t)
	dir, err := os.MkdirTemp("", "feed") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	o.FeedDir = dir
	in, out := io.Pipe()
	done := make(chan error)
	acks := make(chan uint64, 10)
	o.Ack = func(n uint64) error { acks <- n; return nil }
	go func() { done <- Run(t.Context(), in, o) }()
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	for range 10 {
		s.tcp(1, "192.0.2.1:1", 1, 1, 1)
		s.lost = map[string]uint64{event.LostExec: s.batch}
		s.unatt.Sent = s.batch
		s.ledger()
	}
	// send returns when everything before its last line was taken in, see TestUnwritable.
	send := func() {
		t.Helper()
		for range 2 {
			if _, err := out.Write(s.b.Bytes()); err != nil {
				t.Fatal(err)
			}
			s.b.Reset()
			s.process(2, 1, "/bin/nc", "nc")
		}
		s.b.Reset()
	}
	send()
	if n := <-acks; n != 10 {
		t.Errorf("ack %d, want 10", n)
	}
	s.ledger()
	send()
	path := filepath.Join(dir, feed.Name)
	got, err := ReadStatus(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Uptime <= 0 || got.RecorderPID != os.Getpid() || got.DatabaseBytes <= 0 || got.LastWrite != (epoch+10)*1e9 {
		t.Errorf("status %+v", got)
	}
	got.Uptime, got.RecorderPID, got.DatabaseBytes, got.LastWrite = 0, 0, 0, 0
	got.Notices = NoticeStatus{} // they have a clock of their own
	want := Status{
		PID: 42, Program: "1.0", Stream: "s1", Started: epoch * 1e9, HookSet: "tracepoint", Bandwidth: true, SelfTest: "ok",
		Batch: 11, Durable: 10, Events: 110, EventsPerSecond: 10, Seen: event.Bytes{Sent: 10, Received: 10}, Attributed: event.Bytes{Sent: 10, Received: 10},
		Unattributed: event.Bytes{Sent: 9}, Lost: map[string]uint64{"exec": 9}, WindowSeconds: 10, Processes: 2,
		Sinks: []SinkStatus{{Name: "snitch.db"}, {Name: "conn.log"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := bufio.NewScanner(c)
	for _, want := range []string{`{"status":{"pid":42,`, `{"at":1767323040000000000,"hello":{"version":1,"stream":"s1"`} {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			t.Errorf("got %q, want %q", lines.Text(), want)
		}
	}
	s.tcp(1, "192.0.2.1:1", 1, 77, 1)
	flow := s.b.String()
	send()
	// Who was greeted hears everything from then on; the first thing may be the end of what was sent before.
	if !lines.Scan() || strings.HasPrefix(lines.Text(), `{"at":1767323051000000000,"process"`) && !lines.Scan() || lines.Text()+"\n" != flow {
		t.Errorf("got %q, want %q", lines.Text(), flow)
	}
	out.Write(s.end())
	out.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := ReadStatus(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("status of nobody: %v", err)
	}
}

// TestUnwritable: windows wait while the file cannot be written, and are not acknowledged; they are on disk when it can.
func TestUnwritable(t *testing.T) {
	o := options(t)
	o.Settings.SQLLog = false
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	a, b := io.Pipe()
	done := make(chan error)
	var acks []uint64
	o.Ack = func(n uint64) error { acks = append(acks, n); return nil }
	go func() { done <- Run(t.Context(), a, o) }()
	// send returns when everything before its last line was taken in: a pipe has no buffer, and the
	// recorder reads on only when it is done.
	send := func() {
		t.Helper()
		s.process(2, 0, "/bin/nc", "nc")
		for range 2 {
			if _, err := b.Write(s.b.Bytes()); err != nil {
				t.Fatal(err)
			}
			s.b.Reset()
			s.process(2, 0, "/bin/nc", "nc")
		}
	}
	window := func() {
		s.tcp(1, "192.0.2.1:1", 1, 1, 1)
		for range 10 {
			s.ledger()
		}
	}
	window()
	send()
	path := filepath.Join(o.Dir, "conn.log")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	window()
	send()
	os.Remove(path)
	b.Write(s.end())
	b.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("conn.log %q %v", text, err)
	}
	if d := cmp.Diff([]uint64{10, 21}, acks); d != "" {
		t.Error(d)
	}
	if text := errorText(t, o.Dir); !strings.Contains(text, "write conn.log: ") {
		t.Errorf("error.log %q", text)
	}
}

func TestAmount(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 99_949: "99.9 kB", 99_951: "100 kB", 999_499: "999 kB", 999_500: "1.00 MB",
		1<<63 - 1: "9.22 EB", 1<<64 - 1: "18.4 EB",
	} {
		if got := amount(n); got != want {
			t.Errorf("amount(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSettings(t *testing.T) {
	want := Settings{SQLLog: true, TextLog: true, WriteLimit: 7, LogAddresses: true, IgnoreDomains: []string{"com.\nexample"}, IgnorePorts: []int{1}}
	var b bytes.Buffer
	if err := WriteSettings(&b, want); err != nil {
		t.Fatal(err)
	}
	b.WriteString("rest\nof it")
	got, rest, err := ReadSettings(&b)
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if text, _ := io.ReadAll(rest); string(text) != "rest\nof it" {
		t.Errorf("rest %q", text)
	}
	for _, bad := range []string{"", "{}\n", "x\n", `{"settings":{}}`, strings.Repeat("x", maxSettings+100_000)} {
		if _, _, err := ReadSettings(strings.NewReader(bad)); err == nil {
			t.Errorf("%.20q is taken for settings", bad)
		}
	}
	for _, bad := range []func(*Settings){
		func(s *Settings) { s.WriteLimit = 0 },
		func(s *Settings) { s.IgnoreDomains = []string{""} },
		func(s *Settings) { s.IgnoreHashes = []string{"com.example"} },
		func(s *Settings) { s.IgnorePorts = []int{70000} },
	} {
		o := options(t)
		bad(&o.Settings)
		if err := Run(t.Context(), strings.NewReader(""), o); err == nil {
			t.Errorf("%+v is accepted", o.Settings)
		}
	}
}

func TestRestrainer(t *testing.T) {
	r := newRestrainer(10 * time.Second)
	var got []uint64
	for second := range int64(25) {
		r.add("k", 1)
		got = append(got, r.due("k", second*1e9, second == 24))
	}
	want := []uint64{0: 1, 10: 10, 20: 10, 24: 4}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	r.add("k", 1)
	if n := r.due("k", 0, false); n != 1 {
		t.Error("a clock that went back silences it")
	}
}

func TestLive(t *testing.T) {
	s := newScript(t)
	s.process(1, 0, "/usr/lib/firefox/firefox", "firefox")
	s.add(event.Event{Executable: &event.Executable{File: file(inode("/usr/lib/firefox/firefox")), SHA256: strings.Repeat("0123456789abcdef", 4)}})
	s.process(2, 0, "/usr/bin/a-program-with-quite-a-long-name-indeed", "x")
	s.add(event.Event{Name: &event.Name{Address: ap("192.0.2.1:1").Addr(), Name: "a-very-long-name.and-another-one.cdn.example.com", Source: "dns"}})
	s.add(event.Event{Name: &event.Name{Address: ap("192.0.2.2:1").Addr(), Name: "www.example.com", Source: "dns"}})
	s.tcp(1, "192.0.2.1:443", 1, 999, 1)
	s.tcp(1, "192.0.2.1:443", 1, 1, 999_499)
	s.tcp(1, "192.0.2.2:443", 0, 999_999, 1_234_567_890)
	s.tcp(2, "192.0.2.3:8080", 12, 0, 0)
	s.flow(event.Flow{Process: id(1), Family: "inet6", Direction: event.Inbound, Remote: ap("[2001:db8:1234:5678:9abc:def0:1234:5678]:65535"), Sent: 12, Received: 34})
	s.flow(event.Flow{Process: id(9), Family: "packet", Sent: 12, Received: 34})
	s.ledger()
	for i := range maxLive + 5 {
		s.flow(event.Flow{Process: id(1), Remote: peer(i), Sent: 1})
	}
	o := options(t)
	var b bytes.Buffer
	o.Live = &b
	record(t, s.end(), o)
	lines := strings.Split(b.String(), "\n")
	got := strings.Join(append(lines[:7:7], lines[len(lines)-3:]...), "\n")
	if *update {
		write(t, "testdata/live.golden", []byte(got))
	}
	want, err := os.ReadFile("testdata/live.golden")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}
