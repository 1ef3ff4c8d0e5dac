package remote_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/test/windows"
)

// once checks that the server has every record of windows 1 to n once, and that its own account of the batches agrees.
func once(t *testing.T, g *target, n int) {
	t.Helper()
	got := g.ask(t, "SELECT count(*), count(DISTINCT net_ns), min(net_ns), max(net_ns) FROM connections")
	want := fmt.Sprintf("%d\t%d\t1\t%d", n*perWindow, n, n)
	if got != want {
		t.Errorf("rows, windows, first, last: got %q, want %q", got, want)
	}
	if twice := g.ask(t, "SELECT net_ns, local_port, count(*) FROM connections GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 3"); twice != "" {
		t.Errorf("more than once: %s", twice)
	}
	if got := g.number(t, "SELECT sum(records) FROM connections_batches"); got != n*perWindow {
		t.Errorf("the batches hold %d records, want %d", got, n*perWindow)
	}
	// The frames of a chain follow each other without a gap.
	if gap := g.ask(t, "SELECT b.chain, b.first_frame FROM connections_batches b WHERE b.first_frame > 1 AND NOT EXISTS (SELECT 1 FROM connections_batches a WHERE a.chain = b.chain AND a.last_frame = b.first_frame - 1) LIMIT 3"); gap != "" {
		t.Errorf("gap before %s", gap)
	}
}

// TestKilled kills the client at random moments, in the middle of batches, and the server too; whoever starts again goes on. Every row
// is there once.
func TestKilled(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		dir := spoolDir(t)
		told, running := 0, true
		for round := range 6 {
			c := exec.Command("/proc/self/exe")
			c.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %s", killedEnv, g.dialect, dir, g.Port, g.database))
			var out bytes.Buffer
			c.Stdout, c.Stderr = &out, os.Stderr
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(150+rand.IntN(300)) * time.Millisecond)
			if round%3 == 2 {
				g.Kill()
				running = false
				time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			}
			c.Process.Kill()
			c.Wait()
			if !running {
				if err := g.Start(); err != nil {
					t.Fatal(err)
				}
				running = true
			}
			if lines := bytes.Fields(out.Bytes()); len(lines) > 0 {
				told, _ = strconv.Atoi(string(lines[len(lines)-1]))
			}
		}
		s2 := g.settings()
		s2.Limit = 1 << 30
		r := start(t, s2, dir)
		n := int(r.Resume(windows.Stream).Batch)
		delivered(t, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if n < told || n > told+1 || told < 50 {
			t.Errorf("%d windows in the spool, %d were told", n, told)
		}
		t.Logf("%d windows of %d records", n, perWindow)
		once(t, g, n)
	})
}

// proxy stands between client and server and spoils commits.
type proxy struct {
	net.Listener
	to string

	mu     sync.Mutex
	spoil  int           // commits to spoil; guarded by mu
	hold   time.Duration // how long a spoilt commit is kept back, below 0: for ever; guarded by mu
	spoilt int           // guarded by mu
}

func newProxy(t *testing.T, port int) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, to: fmt.Sprintf("127.0.0.1:%d", port)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) serve(c net.Conn) {
	s, err := net.Dial("tcp", p.to)
	if err != nil {
		c.Close()
		return
	}
	go func() {
		io.Copy(c, s)
		c.Close()
	}()
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			s.Close()
			return
		}
		if bytes.Contains(bytes.ToUpper(b[:n]), []byte("COMMIT")) {
			p.mu.Lock()
			spoil, hold := p.spoil > 0, p.hold
			if spoil {
				p.spoil--
				p.spoilt++
			}
			p.mu.Unlock()
			if spoil {
				// The client sees a dead connection, the server commits: at once, later, or never.
				c.Close()
				if hold < 0 {
					s.Close()
					return
				}
				time.Sleep(hold)
				s.Write(b[:n])
				time.Sleep(100 * time.Millisecond)
				s.Close()
				return
			}
		}
		if _, err := s.Write(b[:n]); err != nil {
			c.Close()
			return
		}
	}
}

// TestLostCommit loses the answers to commits that succeed, at once and while the next try is already there, and commits that never reach
// the server.
func TestLostCommit(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		for i, hold := range []time.Duration{0, time.Second, -1} {
			p := newProxy(t, g.Port)
			p.hold = hold
			s := g.settings()
			s.Params["port"] = strconv.Itoa(p.Addr().(*net.TCPAddr).Port)
			if g.dialect == remote.Postgres { // the proxy has to see a commit
				s.Params["sslmode"] = "disable"
			} else {
				s.Params["ssl_disabled"] = "true"
			}
			s.Table = fmt.Sprintf("connections%d", i)
			r := start(t, s, spoolDir(t))
			m := windows.New(windows.Shape{Programs: 20, Names: 50, Addresses: 100})
			const n = 30
			for i := 1; i <= n; i++ {
				if i%10 == 5 {
					p.mu.Lock()
					p.spoil = 1
					p.mu.Unlock()
				}
				if err := r.Write(t.Context(), m.Window(i, perWindow)); err != nil {
					t.Fatal(err)
				}
				if i%10 == 6 {
					until(t, r, "a spoilt commit", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.spoil == 0 })
				}
			}
			delivered(t, r)
			if st := r.Status(); st.Failures == 0 || p.spoilt != 3 {
				t.Errorf("%d commits were spoilt, %+v", p.spoilt, st)
			}
			r.Close()
			got := g.ask(t, "SELECT count(*), count(DISTINCT net_ns) FROM "+s.Table)
			if want := fmt.Sprintf("%d\t%d", n*perWindow, n); got != want {
				t.Errorf("hold %v: rows, windows: got %q, want %q", hold, got, want)
			}
		}
	})
}
