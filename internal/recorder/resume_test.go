package recorder

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

// numbered is a stream of n batches; the flow of batch i, port i, sends i bytes.
func numbered(t *testing.T, n int) *script {
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	for i := 1; i <= n; i++ {
		s.tcp(1, fmt.Sprintf("192.0.2.1:%d", i), 1, uint64(i), 0)
		s.ledger()
	}
	return s
}

// logged counts the lines of conn.log by remote port.
func logged(t *testing.T, dir string) map[string]int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "conn.log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	n := make(map[string]int)
	for line := range strings.Lines(string(b)) {
		n[strings.Split(line, ",")[7]]++
	}
	return n
}

// TestOneSinkBehind: a kill between the sinks' writes leaves one further than the other; what is sent again is written only where
// it is missing.
func TestOneSinkBehind(t *testing.T) {
	const n = 35
	for _, behind := range []string{"conn.log", "snitch.db"} {
		for have := range n + 1 {
			o := options(t)
			o.Settings.WriteLimit = 3
			// One sink has the first batches …
			one := o
			one.Settings.SQLLog, one.Settings.TextLog = behind == "conn.log", behind == "snitch.db"
			record(t, numbered(t, have).b.Bytes(), one)
			// … and then both are sent everything, with a loss and a batch without flows in the middle.
			s := numbered(t, n)
			s.lost = map[string]uint64{event.LostExec: 7}
			s.ledger()
			s.tcp(1, "192.0.2.1:999", 1, 999, 0)
			record(t, s.end(), o)
			lines := logged(t, o.Dir)
			for i := 1; i <= n; i++ {
				if lines[fmt.Sprint(i)] != 1 {
					t.Fatalf("%s is behind by %d batches: conn.log has port %d %d times", behind, n-have, i, lines[fmt.Sprint(i)])
				}
			}
			want := fmt.Sprintf("%d|%d|%d\n", n+1, n*(n+1)/2+999, 7)
			if got := rows(t, openDB(t, o.Dir), "SELECT count(*), sum(sent), (SELECT sum(count) FROM losses) FROM records"); got != want {
				t.Fatalf("%s is behind by %d batches: rows, bytes, losses: got %s, want %s", behind, n-have, got, want)
			}
		}
	}
}

// TestTextOnly: conn.log alone knows where it stopped, too.
func TestTextOnly(t *testing.T) {
	o := options(t)
	o.Settings.SQLLog = false
	var acks []uint64
	o.Ack = func(n uint64) error { acks = append(acks, n); return nil }
	record(t, numbered(t, 12).b.Bytes(), o)
	acks = nil
	record(t, numbered(t, 14).end(), o)
	for port, n := range logged(t, o.Dir) {
		if n != 1 {
			t.Errorf("port %s is there %d times", port, n)
		}
	}
	if n := len(logged(t, o.Dir)); n != 14 || len(acks) == 0 || acks[0] != 12 {
		t.Errorf("%d ports, want 14; acknowledged %v, want 12 at once", n, acks)
	}
}

// TestFinal: the last ledger is acknowledged when the file can be written again, though no line follows it.
func TestFinal(t *testing.T) {
	o := options(t)
	o.Settings.SQLLog = false
	path := filepath.Join(o.Dir, "conn.log")
	acks := make(chan uint64, 100)
	o.Ack = func(n uint64) error { acks <- n; return nil }
	in, out := io.Pipe()
	done := make(chan error)
	go func() { done <- Run(t.Context(), in, o) }()
	s := numbered(t, 1)
	s.process(2, 0, "/bin/nc", "nc")
	out.Write(s.b.Bytes())
	os.Remove(path)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(1200*time.Millisecond, func() { os.Remove(path) })
	s.b.Reset()
	go out.Write(s.end())
	select {
	case n := <-acks:
		if n != 2 {
			t.Errorf("acknowledged %d, want 2", n)
		}
	case <-time.After(finalTime + 2*time.Second):
		t.Error("the last ledger was not acknowledged")
	}
	out.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(logged(t, o.Dir)); n != 1 {
		t.Errorf("%d lines, want 1", n)
	}
}

// TestFinalGivesUp: an end that cannot write takes no longer than the sensor waits, and says what is missing.
func TestFinalGivesUp(t *testing.T) {
	o := options(t)
	o.Settings.SQLLog = false
	path := filepath.Join(o.Dir, "conn.log")
	in, out := io.Pipe()
	done := make(chan error)
	go func() { done <- Run(t.Context(), in, o) }()
	s := numbered(t, 1)
	s.process(2, 0, "/bin/nc", "nc")
	out.Write(s.b.Bytes())
	os.Remove(path)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	s.b.Reset()
	began := time.Now()
	out.Write(s.end())
	out.Close()
	if err := <-done; err == nil || !strings.Contains(errorText(t, o.Dir), "could not be written to conn.log") {
		t.Errorf("%v; error.log %q", err, errorText(t, o.Dir))
	}
	if d := time.Since(began); d > finalTime+time.Second {
		t.Errorf("the end took %v", d)
	}
}

// TestTimes: no row says that its traffic was later than it was written, and what moves after a sleep is not of the time before.
func TestTimes(t *testing.T) {
	o := options(t)
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	s.tcp(1, "192.0.2.1:1", 1, 1, 0)
	s.ledger()
	s.at += 3600 * 1e9
	s.tcp(1, "192.0.2.1:1", 1, 2, 0)
	s.ledger()
	s.at -= 7200 * 1e9 // the clock is set back
	s.tcp(1, "192.0.2.1:1", 1, 4, 0)
	s.ledger()
	s.tcp(1, "192.0.2.1:1", 1, 8, 0)
	record(t, s.end(), o)
	got := rows(t, openDB(t, o.Dir), fmt.Sprintf(`SELECT start-%d, "end"-%[1]d, sum(sent) FROM records JOIN windows w ON w.id = window GROUP BY w.id`, epoch))
	// The ledger at 3602 closes nothing; that at -3597 closes what was open when the clock was set.
	want := "0|10|1\n3600|3601|6\n-3600|-3596|8\n"
	if got != want {
		t.Errorf("start, end, bytes: got\n%swant\n%s", got, want)
	}
}

// TestIgnoredByHash: their bytes are counted, too.
func TestIgnoredByHash(t *testing.T) {
	o := options(t)
	o.Settings.IgnoreHashes = []string{hash(7)}
	r, err := open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	s.hash("/bin/nc", 7)
	s.tcp(1, "192.0.2.1:1", 1, 3, 4)
	if err := r.read(strings.NewReader(string(s.end()))); err != nil {
		t.Fatal(err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	if got := r.status.Load(); got.Ignored != (event.Bytes{Sent: 3, Received: 4}) || got.IgnoredFlows != 1 {
		t.Errorf("ignored %+v in %d flows", got.Ignored, got.IgnoredFlows)
	}
}
