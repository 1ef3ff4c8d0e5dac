package recorder

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// measured is a recorder in a process of its own.
type measured struct {
	t    *testing.T
	c    *exec.Cmd
	in   io.WriteCloser
	acks *bufio.Scanner
}

func measure(t *testing.T) *measured {
	t.Helper()
	if raceDetector {
		t.Skip("the race detector's own memory is many times the recorder's")
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), killedEnv+"="+t.TempDir())
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return &measured{t, c, in, bufio.NewScanner(out)}
}

// write writes what the script holds, and waits for an acknowledgement if there is to be one.
func (m *measured) write(s *script, ack bool) {
	m.t.Helper()
	if _, err := m.in.Write(s.b.Bytes()); err != nil {
		m.t.Fatal(err)
	}
	s.b.Reset()
	if ack && !m.acks.Scan() {
		m.t.Fatal("no acknowledgement")
	}
}

// private is its private memory in KiB.
func (m *measured) private() int {
	m.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", m.c.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	sum := 0
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "Private_Clean:" || f[0] == "Private_Dirty:" {
			n, _ := strconv.Atoi(f[1])
			sum += n
		}
	}
	return sum
}

func (m *measured) end() {
	m.t.Helper()
	m.in.Close()
	if err := m.c.Wait(); err != nil {
		m.t.Fatal(err)
	}
}

// TestHostileMemory: 30,000 processes with arguments of 4 KiB, each of which sends a datagram, do not fill the memory, whether
// they stay or go.
func TestHostileMemory(t *testing.T) {
	const limit = 64 << 10 // KiB of private memory
	for _, exits := range []bool{false, true} {
		t.Run(fmt.Sprint("exits ", exits), func(t *testing.T) {
			m := measure(t)
			s := newScript(t)
			most := 0
			for n := 1; n <= 30_000; n++ {
				s.process(n, 0, "/bin/nc", "nc", fmt.Sprintf("%d%s", n, strings.Repeat("x", 4090)))
				s.flow(event.Flow{Process: id(n), Protocol: "udp", Remote: peer(n), Conns: 1, Sent: 1})
				if exits {
					s.add(event.Event{Exit: &event.Exit{ID: id(n)}})
				}
				if n%1000 == 0 {
					m.write(s, false)
					most = max(most, m.private())
				}
			}
			s.ledger()
			m.write(s, true)
			most = max(most, m.private())
			m.end()
			t.Logf("private memory: %d KiB", most)
			if most > limit {
				t.Errorf("%d KiB of private memory, at most %d KiB", most, limit)
			}
		})
	}
}

// TestMemory: a recorder that takes in 300 processes and three seconds of 20,000 new connections each stays small.
func TestMemory(t *testing.T) {
	const limit = 32 << 10 // KiB of private memory
	m := measure(t)
	s := newScript(t)
	for n := 1; n <= 300; n++ {
		s.process(n, n/2, fmt.Sprintf("/usr/bin/program-number-%d", n), "program", "--argument", strings.Repeat("x", 200))
	}
	idle, most := 0, 0
	for round := range 6 {
		n := 20_000
		if round < 3 {
			n = 10
		}
		for i := range n {
			s.flow(event.Flow{Process: id(1 + i%300), Direction: event.Outbound, Local: near(i), Remote: peer(i + round*n), Conns: 1, Sent: 1})
		}
		s.ledger()
		m.write(s, true)
		if round < 3 {
			idle = m.private()
		}
		most = max(most, m.private())
	}
	m.end()
	t.Logf("private memory: %d KiB quiet, %d KiB after bursts", idle, most)
	if most > limit {
		t.Errorf("%d KiB of private memory, at most %d KiB", most, limit)
	}
}
