package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

func TestDrainUnderFire(t *testing.T) {
	eachSet(t, drainUnderFire)
}

func drainUnderFire(t *testing.T, set string) {
	// One socket that is counted at all times: an update between a drain's read and its reset would be lost.
	t.Run("hot socket", func(t *testing.T) { underFire(t, set, 1, hotSocket(t)) })
	// Sockets, peers and table entries that come and go between the drain's steps.
	t.Run("coming and going", func(t *testing.T) {
		underFire(t, set, 4, func(worker int) (sent, received uint64) { return exchange(t, worker, 200) })
	})
}

// hotSocket returns traffic of single bytes to a socket that nobody reads: what does not fit is dropped, after it was sent.
func hotSocket(t *testing.T) func(int) (sent, received uint64) {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	c, err := net.DialUDP("udp4", nil, sink.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func(int) (sent, received uint64) {
		for range 1000 {
			n, err := c.Write([]byte{1})
			if err != nil {
				t.Error(err)
			}
			sent += uint64(n)
		}
		return sent, 0
	}
}

// underFire drains without pause while the workers are at it, and compares.
//
// On kernels whose hooks can be preempted the kernel skips runs of them (docs/design/0001): there a difference must be told.
func underFire(t *testing.T, set string, workers int, traffic func(worker int) (sent, received uint64)) {
	fire(t, set, workers, 3*time.Second, 0, traffic)
}

// TestPace drains once a second, as the sensor does, while more threads than CPUs are busy: what a kernel skips then is
// what its users lose. It prints the ratios by which sets are chosen.
func TestPace(t *testing.T) {
	eachSet(t, func(t *testing.T, set string) {
		fire(t, set, 2*runtime.NumCPU(), 4*time.Second, time.Second, func(worker int) (sent, received uint64) { return exchange(t, worker, 200) })
	})
}

func fire(t *testing.T, set string, workers int, length, pause time.Duration, traffic func(worker int) (sent, received uint64)) {
	h := load(t, Options{HookSet: set, Bandwidth: true})
	var sent, received atomic.Uint64
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for i := range workers {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, r := traffic(i)
				sent.Add(s)
				received.Add(r)
			}
		})
	}
	var got totals
	c := newCollector()
	for end := time.Now().Add(length); time.Now().Before(end); {
		time.Sleep(pause)
		if err := h.Drain(c, got.add); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	busy.Wait()
	for range 2 {
		if err := h.Drain(c, got.add); err != nil {
			t.Fatal(err)
		}
	}
	tally, err := h.Tally()
	if err != nil {
		t.Fatal(err)
	}
	want := event.Bytes{Sent: sent.Load(), Received: received.Load()}
	skipped := tally.Losses[event.LostSkipped]
	if pause > 0 {
		t.Logf("%s: %d bytes, sent lacks %.6f, received lacks %.6f, %d runs skipped", set, want.Sent+want.Received,
			1-float64(got.bytes.Sent)/float64(want.Sent), 1-float64(got.bytes.Received)/float64(want.Received), skipped)
	}
	short := got.bytes.Sent <= want.Sent && got.bytes.Received <= want.Received
	if got.bytes != want && (skipped == 0 || !short) {
		t.Errorf("drained %+v, moved %+v, ledger %+v", got.bytes, want, tally)
	}
	if got.bytes != want && pause == 0 {
		t.Logf("told: drained %+v, moved %+v, %d runs skipped", got.bytes, want, skipped)
	}
	// A drain that swaps tables waits for all running programs (synchronize_rcu): some 20 ms each time, and 100 under emulation.
	if got.flows < 10 && pause == 0 {
		t.Errorf("only %d flows: the test did not drain while traffic ran", got.flows)
	}
	if tally.Seen.Sent < got.bytes.Sent || tally.Seen.Received < got.bytes.Received || tally.Lost != (event.Bytes{}) {
		t.Errorf("ledger %+v, flows %+v", tally, got.bytes)
	}
}

// exchange sends and receives n datagrams over loopback in three ways and returns the bytes.
func exchange(t *testing.T, worker, n int) (sent, received uint64) {
	listen := func() *net.UDPConn {
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Error(err)
			return nil
		}
		return u
	}
	a, b := listen(), listen()
	if a == nil || b == nil {
		return 0, 0
	}
	defer a.Close()
	defer b.Close()
	c, err := net.DialUDP("udp4", nil, a.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer c.Close()
	buf := make([]byte, 1500)
	count := func(total *uint64, n int, err error) {
		if err != nil {
			t.Error(err)
		}
		*total += uint64(n)
	}
	for i := range n {
		size := 1 + (i*7+worker)%1200
		m, err := c.Write(buf[:size])
		count(&sent, m, err)
		m, _, err = a.ReadFrom(buf)
		count(&received, m, err)
		to := []*net.UDPConn{a, b}[i%2]
		m, err = b.WriteTo(buf[:size], to.LocalAddr())
		count(&sent, m, err)
		m, _, err = to.ReadFrom(buf)
		count(&received, m, err)
	}
	return sent, received
}

func TestFullTableKeepsBytes(t *testing.T) {
	eachSet(t, fullTableKeepsBytes)
}

func fullTableKeepsBytes(t *testing.T, set string) {
	h := load(t, Options{HookSet: set, Bandwidth: true})
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	const peers = 40000 // the table has room for 16384
	var sent uint64
	for i := range peers {
		// Nobody listens; a datagram that is refused was sent all the same.
		n, err := u.WriteTo(make([]byte, 10), &net.UDPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i)), Port: 9})
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		sent += uint64(n)
	}
	var got totals
	if err := h.Drain(newCollector(), got.add); err != nil {
		t.Fatal(err)
	}
	if got.bytes.Sent != sent {
		t.Errorf("drained %d bytes of %d", got.bytes.Sent, sent)
	}
	tally, err := h.Tally()
	if err != nil {
		t.Fatal(err)
	}
	if tally.Losses[event.LostFlowDetail] == 0 || got.bare == 0 {
		t.Errorf("no detail was lost (losses %v, %d flows without address): the test does not fill the table", tally.Losses, got.bare)
	}
	if tally.Losses[event.LostFlow] != 0 {
		t.Errorf("losses %v", tally.Losses)
	}
}

func TestConnectionsOnly(t *testing.T) {
	eachSet(t, connectionsOnly)
}

func connectionsOnly(t *testing.T, set string) {
	h := load(t, Options{HookSet: set, Bandwidth: false})
	for _, s := range h.State() {
		switch s.Name {
		case "sock_send_length", "sock_recv_length", "tcp_rcv_space_adjust", "cgroup_skb/egress", "cgroup_skb/ingress", "fexit/inet_sendmsg", "kprobe/inet_sendmsg":
			t.Errorf("%s is only for bytes and is in the set", s.Name)
		}
		if !s.Attached && !s.Spare {
			t.Errorf("%+v", s)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	a.Close()
	if _, err := net.Dial("tcp", "127.0.0.1:1"); err == nil {
		t.Fatal("somebody listens on port 1")
	}
	exchange(t, 0, 10)
	seen := map[string]uint32{}
	err = h.Drain(newCollector(), func(f *event.Flow) {
		if int(f.Process.PID) == os.Getpid() {
			seen[f.Protocol+" "+f.Direction] += f.Conns
			if f.Sent != 0 || f.Received != 0 {
				t.Errorf("bytes counted: %+v", f)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// exchange: c to a; b to a, b to b; received by a from c and b, by b from b.
	if seen["tcp out"] != 2 || seen["tcp in"] != 1 || seen["udp out"] != 3 {
		t.Errorf("connections %v", seen)
	}
}

func TestExecIdentity(t *testing.T) {
	eachSet(t, execIdentity)
}

func execIdentity(t *testing.T, set string) {
	h := load(t, Options{HookSet: set, Bandwidth: true})
	c := newCollector()
	deep := filepath.Join(t.TempDir(), strings.Repeat("a-rather-long-folder-name/", 20))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(deep, "bad\nname\x1b[31m\xff")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 10000)
	cmd := exec.Command(path, "-x", "two words", "", "\xfe<b>'; DROP TABLE", long)
	cmd.Env = ends()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	sh := exec.Command(script, "arg")
	if err := sh.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Processes(c); err != nil {
		t.Fatal(err)
	}
	find := func(pid int) event.Process {
		for _, p := range c.execs {
			if int(p.ID.PID) == pid {
				return p
			}
		}
		t.Fatalf("no exec of %d", pid)
		return event.Process{}
	}
	p := find(cmd.Process.Pid)
	if p.Path != event.Text([]byte(path)) {
		t.Errorf("path %q, want %q", p.Path, event.Text([]byte(path)))
	}
	if p.Name != event.Text([]byte("bad\nname\x1b[31m\xff")) {
		t.Errorf("name %q", p.Name)
	}
	file := event.FileID{Device: want.Dev, Inode: want.Ino, Generation: p.File.Generation, Ctime: want.Ctim.Nano(), Size: want.Size}
	if p.File != file {
		t.Errorf("file %+v, want %+v", p.File, file)
	}
	if len(p.Argv) < 5 || p.Argv[2] != "two words" || p.Argv[3] != "" || p.Argv[4] != `\xfe<b>'; DROP TABLE` || !p.ArgvCut {
		t.Errorf("argv %q, cut %v", p.Argv, p.ArgvCut)
	}
	if got := c.parent[event.ProcessID{PID: p.ID.PID, Start: p.ID.Start, Exec: p.Parent.Exec}]; int(got.PID) != os.Getpid() {
		t.Errorf("forked by %v, and the parent at exec was %v", got, p.Parent)
	}
	if !c.exits[p.ID] {
		t.Errorf("no exit of %v", p.ID)
	}
	if s := find(sh.Process.Pid); s.Script != script || s.Path == script || !strings.Contains(strings.Join(s.Argv, " "), script) {
		t.Errorf("script %q, path %q, argv %q", s.Script, s.Path, s.Argv)
	}
}

func TestFound(t *testing.T) {
	eachSet(t, found)
}

func found(t *testing.T, set string) {
	h := load(t, Options{HookSet: set, Bandwidth: true})
	var self, kernel event.Process
	n := 0
	err := h.Found(func(p event.Process) {
		n++
		if int(p.ID.PID) == os.Getpid() {
			self = p
		}
		if p.ID.PID == 2 {
			kernel = p
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if self.Path != exe || self.Parent.IsZero() || self.Kernel {
		t.Errorf("%+v, want %s", self, exe)
	}
	if !kernel.Kernel || kernel.Name != "kthreadd" || kernel.Path != "" {
		t.Errorf("kthreadd: %+v", kernel)
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || n < len(entries)-20 {
		t.Errorf("%d processes found, /proc has %d (%v)", n, len(entries), err)
	}
}

func TestAttachTwice(t *testing.T) {
	eachSet(t, attachTwice)
}

func attachTwice(t *testing.T, set string) {
	h := load(t, Options{HookSet: set, Bandwidth: true})
	// Programs of trampolines cannot be attached again before 5.13: everything anew.
	for range 2 {
		if err := h.Detach(); err != nil {
			t.Fatal(err)
		}
		h = load(t, Options{HookSet: set, Bandwidth: true})
	}
	for _, s := range h.State() {
		if !s.Attached && !s.Waits && !s.Spare {
			t.Errorf("%+v", s)
		}
	}
	if err := h.Packets(true); err != nil {
		t.Fatal(err)
	}
	if err := h.Packets(false); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownSet(t *testing.T) {
	if _, err := Load(Options{HookSet: "magic"}); err == nil || !strings.Contains(err.Error(), "magic") {
		t.Errorf("%v", err)
	}
}

func ExampleSets() {
	fmt.Println(Sets())
	// Output: [tracepoint fexit kprobe]
}
