package sensor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/identity"
	"github.com/picosnitch/picosnitch/internal/sensor/kernel"
	"github.com/picosnitch/picosnitch/internal/sensor/outlet"
)

func TestMain(m *testing.M) {
	if to := os.Getenv("SENSOR_TEST_SEND"); to != "" {
		send(to)
		return
	}
	if dir := os.Getenv("SENSOR_TEST_DRIVE"); dir != "" {
		if err := drive(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// send is the program that the tests watch: it moves 1000 bytes out and 500 in, and says so by its exit code.
func send(to string) {
	c, err := net.Dial("tcp", to)
	if err == nil {
		_, err = c.Write(make([]byte, 1000))
	}
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 500))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// recorder is a fake one: it keeps the lines of batches and acknowledges some.
type recorder struct {
	mu      sync.Mutex
	events  []event.Event
	batches map[uint64][]event.Event
	open    []event.Event
	ack     bool
	up      *io.PipeWriter
	down    *io.PipeReader
	gone    bool
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return 0, io.ErrClosedPipe
	}
	d := event.NewDecoder(bytes.NewReader(b))
	var e event.Event
	for d.Decode(&e) == nil {
		r.events = append(r.events, e)
		r.open = append(r.open, e)
		if e.Ledger != nil {
			r.batches[e.Ledger.Batch] = r.open
			r.open = nil
			if r.ack {
				go fmt.Fprintf(r.up, "{\"ack\":%d}\n", e.Ledger.Batch)
			}
		}
	}
	return len(b), nil
}

func (r *recorder) Read(b []byte) (int, error) { return r.down.Read(b) }

func (r *recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	return r.up.Close()
}

func TestRunSurvivesItsRecorder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var recorders []*recorder
	ready := make(chan event.Hello, 1)
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Program: "test", Bandwidth: true, Interval: 50 * time.Millisecond, OnReady: func(h event.Hello) { ready <- h },
			Connect: func(context.Context) (io.ReadWriteCloser, error) {
				mu.Lock()
				defer mu.Unlock()
				down, up := io.Pipe()
				// The first one never acknowledges: all that it got must come again.
				r := &recorder{batches: map[uint64][]event.Event{}, ack: len(recorders) > 0, up: up, down: down}
				recorders = append(recorders, r)
				return r, nil
			},
		})
	}()
	select {
	case h := <-ready:
		if h.SelfTest != "ok" || h.HookSet == "" {
			t.Fatalf("%+v", h)
		}
	case err := <-done:
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.ReadFull(c, make([]byte, 1000))
			c.Write(make([]byte, 500))
			c.Close()
		}
	}()
	const programs = 20
	pids := map[uint32]bool{}
	for i := range programs {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{"SENSOR_TEST_SEND=" + l.Addr().String(), "GORACE=atexit_sleep_ms=0"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		pids[uint32(cmd.Process.Pid)] = true
		if i == programs/2 {
			mu.Lock()
			recorders[0].Close()
			mu.Unlock()
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	last := recorders[len(recorders)-1]
	if len(recorders) < 2 {
		t.Fatal("no recorder was started again")
	}
	sums := map[event.ProcessID]event.Flow{}
	known := map[event.ProcessID]event.Process{}
	digests := map[event.FileID]string{}
	var ledger event.Ledger
	for _, e := range last.events {
		switch {
		case e.Process != nil:
			known[e.Process.ID] = *e.Process
		case e.Executable != nil:
			digests[e.Executable.File] = e.Executable.SHA256
		case e.Ledger != nil:
			ledger = *e.Ledger
		case e.Flow != nil && pids[e.Flow.Process.PID]:
			if _, ok := known[e.Flow.Process]; !ok {
				t.Errorf("flow of %v before its process", e.Flow.Process)
			}
			s := sums[e.Flow.Process]
			s.Sent += e.Flow.Sent
			s.Received += e.Flow.Received
			s.Conns += e.Flow.Conns
			sums[e.Flow.Process] = s
		}
	}
	if len(sums) != programs {
		t.Errorf("%d programs seen, %d ran", len(sums), programs)
	}
	for id, s := range sums {
		if s.Sent != 1000 || s.Received != 500 || s.Conns != 1 {
			t.Errorf("%v: %+v", id, s)
		}
		p := known[id]
		if p.Path != exePath(t) || p.Parent.PID != uint32(os.Getpid()) || digests[p.File] == "" {
			t.Errorf("%+v, digest %q", p, digests[p.File])
		}
	}
	if !ledger.Final || ledger.Lost[event.LostRecorder] == 0 || ledger.Unattributed != (event.Bytes{}) {
		t.Errorf("%+v", ledger)
	}
	if ledger.Seen.Sent < programs*1000 || ledger.Attributed.Sent < ledger.Seen.Sent {
		t.Errorf("%+v", ledger)
	}
}

func exePath(t *testing.T) string {
	t.Helper()
	p, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return event.Text([]byte(p))
}

func TestDoctor(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	for _, bandwidth := range []bool{true, false} {
		r, err := Doctor(t.Context(), Options{Bandwidth: bandwidth})
		if err != nil {
			t.Fatal(err)
		}
		if !r.OK() || len(r.SelfTest) != 4 || r.HookSet == "" || strings.HasPrefix(r.Why, "not ") { // which set is best here kernel.TestOrder says
			j, _ := json.MarshalIndent(r, "", " ")
			t.Errorf("bandwidth %v: %s", bandwidth, j)
		}
	}
	if r, err := Doctor(t.Context(), Options{HookSet: "none"}); err == nil || r.OK() || r.Kernel == "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestSelfTestNotices takes a hook away behind the self-test's back.
func TestSelfTestNotices(t *testing.T) {
	s := newSelfTest(1, true)
	s.add(&event.Flow{Protocol: "tcp", Family: "inet", Sent: 10, Conns: 1})
	if got := s.counted["tcp over inet"]; got.bytes.Sent != 10 || got.conns != 1 {
		t.Errorf("%+v", got)
	}
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	l, err := newLoop(Options{Bandwidth: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.hooks.Close()
	l.self = newSelfTest(uint32(os.Getpid()), true) // nothing is attached
	if sum := summary(l.selfTest(t.Context())); !strings.Contains(sum, "udp over inet6: sent 0 of") {
		t.Errorf("self-test without hooks says %q", sum)
	}
}

// Who stops picosnitch while it starts finds no warning in error.log.
func TestSelfTestInterrupted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	l, err := newLoop(Options{Bandwidth: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.hooks.Close()
	defer l.executed.close()
	defer l.who.stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	hello, err := l.start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if hello.SelfTest != interrupted {
		t.Errorf("self-test: %q, want %q", hello.SelfTest, interrupted)
	}
	for text := range l.told {
		if strings.Contains(text, "self-test") {
			t.Errorf("told: %s", text)
		}
	}
}

func TestLedger(t *testing.T) {
	var l ledger
	flow := &event.Flow{Sent: 100, Received: 50}
	tally := func(sent, received uint64) kernel.Tally {
		return kernel.Tally{Seen: event.Bytes{Sent: sent, Received: received}}
	}
	drained := func(t kernel.Tally) { l.drained(t, t, identity.Stats{}) }
	get := func() event.Bytes { return l.event(1, outlet.Stats{}, 0).Unattributed }
	l.attribute(flow)
	drained(tally(100, 50))
	// A socket that one drain misses comes with the next: not missing yet.
	drained(tally(300, 50))
	if got := get(); got != (event.Bytes{}) {
		t.Errorf("missing at once: %+v", got)
	}
	drained(tally(300, 50))
	drained(tally(300, 50))
	if got := get(); got != (event.Bytes{Sent: 200}) {
		t.Errorf("settled: %+v", got)
	}
	l.attribute(&event.Flow{Sent: 200})
	l.unknown(flow)
	drained(tally(400, 100))
	if got := get(); got != (event.Bytes{Sent: 100, Received: 50}) {
		t.Errorf("unknown program: %+v", got)
	}
	e := l.event(1, outlet.Stats{Dropped: 7, DroppedSent: 5, Restarts: 1}, 0)
	if e.Unattributed.Sent != 105 || e.Lost[event.LostQueue] != 7 || e.Lost[event.LostRecorder] != 1 || e.Lost[event.LostProcess] != 1 {
		t.Errorf("%+v", e)
	}
	// More came out than was seen: settled after three drains, or at once at the end.
	l.attribute(&event.Flow{Received: 30})
	drained(tally(400, 100))
	if e := l.event(1, outlet.Stats{}, 0); e.Lost[event.LostTwice] != 0 {
		t.Errorf("counted twice at once: %+v", e)
	}
	l.settle()
	if e := l.event(1, outlet.Stats{}, 0); e.Lost[event.LostTwice] != 30 {
		t.Errorf("counted twice: %+v", e)
	}
	for key := range e.Lost {
		if !explained(key) {
			t.Errorf("loss %q has no entry in event.Losses", key)
		}
	}
}

func explained(key string) bool {
	for _, l := range event.Losses() {
		if l.Key == key {
			return l.Text != "" && l.Hint != ""
		}
	}
	return false
}

func TestPreambleHoldsWhatUnackedBatchesNeed(t *testing.T) {
	s := newStream()
	s.setHello(event.Hello{Version: event.Version, Stream: "x"})
	parent := event.Process{ID: event.ProcessID{PID: 1, Start: 1, Exec: 1}, Path: "/sbin/init", Source: event.SourceExec}
	child := event.Process{ID: event.ProcessID{PID: 2, Start: 2, Exec: 1}, Parent: parent.ID, Path: "/bin/x", File: event.FileID{Inode: 9}, Source: event.SourceExec}
	if !s.process(parent) || !s.process(child) || s.process(child) {
		t.Error("a process is new once")
	}
	s.executable(event.Executable{File: child.File, SHA256: "ab"})
	s.exit(child.ID, 5)
	s.exit(child.ID, 6) // told twice
	s.forget(4)
	lines := func() (names []string) {
		sc := bufio.NewScanner(bytes.NewReader(s.preamble(7)))
		for sc.Scan() {
			var e event.Event
			if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			switch {
			case e.Hello != nil:
				names = append(names, fmt.Sprint("hello ", e.Hello.Stream, e.Hello.Batch))
			case e.Process != nil:
				names = append(names, e.Process.Path)
			case e.Executable != nil:
				names = append(names, e.Executable.SHA256)
			}
		}
		return names
	}
	if got := strings.Join(lines(), " "); got != "hello x7 /sbin/init /bin/x ab" {
		t.Errorf("before its exit is durable: %s", got)
	}
	s.forget(5)
	if got := strings.Join(lines(), " "); got != "hello x7 /sbin/init" {
		t.Errorf("after: %s", got)
	}
}
