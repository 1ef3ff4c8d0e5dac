package recorder

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestMemory: a recorder that takes in 300 processes and three seconds of 20,000 new connections each stays small.
func TestMemory(t *testing.T) {
	const limit = 15 << 10 // KiB of private memory
	if raceDetector {
		t.Skip("the race detector's own memory is many times the recorder's")
	}
	dir := t.TempDir()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), killedEnv+"="+dir)
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
	acks := bufio.NewScanner(out)
	measure := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.Process.Pid))
		if err != nil {
			t.Fatal(err)
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
		if _, err := in.Write(s.b.Bytes()); err != nil {
			t.Fatal(err)
		}
		s.b.Reset()
		if !acks.Scan() {
			t.Fatal("no acknowledgement")
		}
		if round < 3 {
			idle = measure()
		}
		most = max(most, measure())
	}
	in.Close()
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("private memory: %d KiB quiet, %d KiB after bursts", idle, most)
	if most > limit {
		t.Errorf("%d KiB of private memory, at most %d KiB", most, limit)
	}
}
