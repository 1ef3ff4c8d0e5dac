package sensor

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// running is a sensor with a fake recorder.
type running struct {
	t    testing.TB
	mu   sync.Mutex
	rec  *recorder
	stop func()
	// ends waits for an end that nobody asked for, with an error that says why.
	ends func(t testing.TB, why string)
}

// runSensor starts the sensor; the recorder behind it acknowledges everything.
func runSensor(t testing.TB, o Options) *running {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	r := &running{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan event.Hello, 1)
	done := make(chan error, 1)
	o.Program, o.Bandwidth = "test", true
	o.OnReady = func(h event.Hello) { ready <- h }
	o.Connect = func(context.Context) (io.ReadWriteCloser, error) {
		down, up := io.Pipe()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.rec = &recorder{batches: map[uint64][]event.Event{}, ack: true, up: up, down: down}
		return r.rec, nil
	}
	go func() { done <- Run(ctx, o) }()
	var once sync.Once
	r.ends = func(t testing.TB, why string) {
		t.Helper()
		once.Do(func() {
			defer cancel()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("the sensor ended with %v, want %q", err, why)
				}
			case <-time.After(30 * time.Second):
				t.Error("the sensor does not end")
			}
		})
	}
	r.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the sensor does not end")
			}
		})
	}
	t.Cleanup(r.stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return r
}

// events are those so far.
func (r *running) events() []event.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rec == nil {
		return nil
	}
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	return append([]event.Event(nil), r.rec.events...)
}

// told is what a stream said about executables: the path and the digest of each process.
type told struct {
	processes map[event.ProcessID]event.Process
	digests   map[event.FileID]event.Executable
	lost      map[string]uint64 // of the last ledger
}

func (r *running) told() told {
	x := told{map[event.ProcessID]event.Process{}, map[event.FileID]event.Executable{}, nil}
	for _, e := range r.events() {
		if e.Process != nil {
			x.processes[e.Process.ID] = *e.Process
		}
		if e.Executable != nil {
			x.digests[e.Executable.File] = *e.Executable
		}
		if e.Ledger != nil {
			x.lost = e.Ledger.Lost
		}
	}
	return x
}

// sender is a static program without a libc that sends a datagram of one byte to a port of 127.0.0.1 and ends: it lives for about a
// tenth of a millisecond, if it does not sleep before.
func sender(t testing.TB, port uint16, sleep ...time.Duration) []byte {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "sender.c")
	const text = `
static long call(long n, long a, long b, long c, long d, long e, long f)
{
#ifdef __x86_64__
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long ret;
	asm volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
#define SOCKET 41
#define SENDTO 44
#define EXIT 60
#define NANOSLEEP 35
#else
	register long x8 asm("x8") = n, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c, x3 asm("x3") = d, x4 asm("x4") = e, x5 asm("x5") = f;
	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#define SOCKET 198
#define SENDTO 206
#define EXIT 93
#define NANOSLEEP 101
#endif
}
void _start(void)
{
	unsigned char to[16] = {2, 0, PORT >> 8, PORT & 255, 127, 0, 0, 1};
	long wait[2] = {0, SLEEP};
	if (SLEEP)
		call(NANOSLEEP, (long)wait, 0, 0, 0, 0, 0);
	long s = call(SOCKET, 2, 2, 0, 0, 0, 0);
	call(EXIT, call(SENDTO, s, (long)to, 1, 0, (long)to, 16) != 1, 0, 0, 0, 0, 0);
}
`
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "sender")
	var ns time.Duration
	for _, s := range sleep {
		ns = s
	}
	command(t, "gcc", "-O1", "-static", "-nostdlib", "-fno-stack-protector", "-Wl,--build-id=none", fmt.Sprintf("-DPORT=%d", port), fmt.Sprintf("-DSLEEP=%d", ns), "-o", out, source)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sink is a UDP port of loopback that nobody reads.
func sink(t testing.TB) uint16 {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// distinct writes a program with an end of its own and returns its digest.
func distinct(t testing.TB, path string, program []byte) string {
	t.Helper()
	var own [16]byte
	_, _ = rand.Read(own[:])
	b := append(append([]byte(nil), program...), own[:]...)
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// execute runs a program and waits for it: without the costs of os/exec, which would be most of a short life.
func execute(t testing.TB, path string, argv ...string) int {
	t.Helper()
	for range 1000 {
		pid, err := syscall.ForkExec(path, append([]string{path}, argv...), &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if errors.Is(err, unix.ETXTBSY) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status != 0 {
			t.Fatalf("%s: status %d, %v", path, status, err)
		}
		return pid
	}
	t.Fatal("text file busy")
	return 0
}

// Every program that lives for a moment is hashed, although half of their files are unlinked as soon as they run.
func TestShortLivedProgramsAreHashed(t *testing.T) {
	const programs = 2000
	r := runSensor(t, Options{})
	program := sender(t, sink(t))
	dir := t.TempDir()
	want := map[string]string{}
	for i := range programs {
		path := filepath.Join(dir, fmt.Sprint(i))
		want[path] = distinct(t, path, program)
	}
	time.Sleep(2 * young)
	began := time.Now()
	for path := range want {
		execute(t, path)
		if (path[len(path)-1]-'0')%2 == 0 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d programs in %v", programs, time.Since(began))
	time.Sleep(2500 * time.Millisecond)
	r.stop()
	x := r.told()
	got := 0
	reasons := map[string]int{}
	for _, p := range x.processes {
		sum, ours := want[p.Path]
		if !ours {
			continue
		}
		switch e := x.digests[p.File]; {
		case e.SHA256 == sum:
			got++
		case e.SHA256 != "":
			t.Errorf("%s: a wrong digest", p.Path)
		default:
			reasons[e.Reason]++
		}
	}
	if got != programs {
		t.Errorf("%d of %d were hashed; the others: %v", got, programs, reasons)
	}
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// With "Every exe (not just conns)" each program that is executed is told once and hashed, whatever it does.
func TestEveryExecutedProgramIsTold(t *testing.T) {
	const programs, times = 300, 3
	r := runSensor(t, Options{EveryExe: true})
	program := sender(t, sink(t))
	dir := t.TempDir()
	want := map[string]string{}
	for i := range programs {
		path := filepath.Join(dir, fmt.Sprint(i))
		want[path] = distinct(t, path, program)
	}
	// What is dynamic loads its loader, too, which is no program that was executed.
	system, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	if system, err = filepath.EvalSymlinks(system); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(system)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	want[system] = hex.EncodeToString(sum[:])
	time.Sleep(2 * young)
	ran := map[uint32]string{}
	for range times {
		for path := range want {
			ran[uint32(execute(t, path))] = path
		}
	}
	time.Sleep(1500 * time.Millisecond)
	r.stop()
	x := r.told()
	told := map[event.ProcessID]uint32{}
	for _, e := range r.events() {
		if e.Flow != nil && e.Flow.Family == event.FamilyExec {
			told[e.Flow.Process] += e.Flow.Conns
		}
	}
	seen := 0
	for id, n := range told {
		p := x.processes[id]
		path, ours := ran[id.PID]
		if !ours || p.Path != path { // our own, before its exec
			continue
		}
		seen++
		if n != 1 {
			t.Errorf("%s was told %d times", path, n)
		}
		if got := x.digests[p.File]; got.SHA256 != want[path] {
			t.Errorf("%s: got %+v", path, got)
		}
	}
	if seen != len(ran) {
		t.Errorf("%d of %d were told", seen, len(ran))
	}
	self := false
	for id := range told {
		self = self || id.PID == uint32(os.Getpid())
	}
	if !self {
		t.Error("what ran before the sensor was not told")
	}
}
