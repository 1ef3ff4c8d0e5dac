package remote_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
	"github.com/picosnitch/picosnitch/test/windows"
)

// TestSpool: an outage longer than the spool: the oldest rows go, all of them are counted, and the server is told.
func TestSpool(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		if g.dialect != remote.Postgres {
			return // the spool is the same
		}
		s := g.settings()
		port := s.Params["port"]
		s.Params["port"] = "1" // nobody is there
		dir := spoolDir(t)
		r := start(t, s, dir)
		m := windows.New(windows.Shape{})
		const n, records = 80, 4000
		for i := 1; i <= n; i++ {
			if err := r.Write(t.Context(), m.Window(i, records)); err != nil {
				t.Fatal(err)
			}
		}
		st := r.Status()
		if st.Dropped.Records == 0 || st.Bytes > spool.MinLimit || st.Dropped.Records+st.Waiting.Records != n*records || st.Connected {
			t.Errorf("%+v", st)
		}
		r.Close()
		s.Params["port"] = port
		r = start(t, s, dir)
		delivered(t, r)
		r.Close()
		got := g.ask(t, "SELECT count(*), (SELECT sum(dropped) FROM connections_batches), max(net_ns) FROM connections")
		if want := fmt.Sprintf("%d\t%d\t%d", st.Waiting.Records, st.Dropped.Records, n); got != want {
			t.Errorf("rows, dropped, last window: got %q, want %q", got, want)
		}
	})
}

// TestDamagedSpool: records that cannot be read back from the spool, or not be understood, are neither delivered nor dropped because it was
// full: they are counted as what they are, here and on the server, and the others arrive.
func TestDamagedSpool(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		if g.dialect != remote.Postgres {
			return // the spool is the same
		}
		dir := spoolDir(t)
		s := g.settings()
		port := s.Params["port"]
		s.Params["port"] = "1" // nobody is there
		r := start(t, s, dir)
		m := windows.New(windows.Shape{})
		const n, records = 5, 100
		for i := 1; i <= n; i++ {
			if err := r.Write(t.Context(), m.Window(i, records)); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
		// The second window: a bit of its payload. Its host's name is in every payload.
		names, _ := filepath.Glob(filepath.Join(dir, "*.spool"))
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if parts := bytes.SplitAfter(b, []byte("host-a")); len(parts) > n {
				at := len(parts[0]) + len(parts[1]) - 1
				b[at] ^= 1
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		// One of a version that is not known.
		sp, err := spool.Open(dir, spool.MinLimit)
		if err != nil {
			t.Fatal(err)
		}
		if err := sp.Append(spool.Frame{Count: spool.Count{Records: 7}, Payload: []byte{99, 1, 2, 3}}); err != nil {
			t.Fatal(err)
		}
		sp.Close()
		s.Params["port"] = port
		r = start(t, s, dir)
		if err := r.Write(t.Context(), m.Window(n+1, records)); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		st, told := r.Status(), fmt.Sprint(r.Notices())
		r.Close()
		if st.Unreadable.Records != records+7 || st.Delivered.Records != n*records || st.Dropped.Records != 0 || st.Damaged == 0 {
			t.Errorf("%+v", st)
		}
		if !strings.Contains(told, "its version is 99") || strings.Count(told, "cannot be understood") != 1 {
			t.Errorf("told: %s", told)
		}
		got := g.ask(t, "SELECT count(*), count(DISTINCT net_ns), (SELECT sum(records) FROM connections_batches), (SELECT sum(dropped) FROM connections_batches) FROM connections")
		if want := fmt.Sprintf("%d\t%d\t%d\t%d", n*records, n, n*records, records+7); got != want {
			t.Errorf("rows, windows, records, lost: got %q, want %q", got, want)
		}
	})
}

// TestLate: a row waits for the hash of its program, and for no longer than it may.
func TestLate(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		var shift time.Duration
		clock := func() time.Time { return time.Now().Add(shift) }
		r, err := remote.Open(g.settings(), remote.Options{Dir: spoolDir(t), Zone: time.UTC, Linger: time.Second, Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		m := windows.New(windows.Shape{Programs: 1, Names: 1, Addresses: 1})
		w := m.Window(1, 1)
		x := w.Records[0].Program.Executable
		sum := x.Digest.SHA256
		x.Digest = &flow.Digest{}
		if err := r.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if st := r.Status(); st.Delivered.Records != 0 {
			t.Errorf("sent without its hash: %+v", st)
		}
		if err := r.Write(t.Context(), &flow.Window{Hello: w.Hello, Position: w.Position, Digests: []flow.Digested{{File: x.File, Path: x.Path, SHA256: sum}}}); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		r.Close()
		// Another one, whose hash never comes.
		r, err = remote.Open(g.settings(), remote.Options{Dir: spoolDir(t), Zone: time.UTC, Linger: time.Second, Clock: func() time.Time { return time.Now().Add(30 * time.Second) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Write(t.Context(), m.Window(2, 1)); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		if st := r.Status(); st.NoHash != 1 {
			t.Errorf("%+v", st)
		}
		r.Close()
		if got := g.ask(t, "SELECT net_ns, sha256 FROM connections ORDER BY net_ns"); got != "1\t"+sum+"\n2" {
			t.Errorf("%q", got)
		}
	})
}
