package sensor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// tallier is a recorder that looks for a few words only, so that the sensor's own work is what is measured.
type tallier struct {
	mu      sync.Mutex
	digests int
	failed  int
	up      *io.PipeWriter
	down    *io.PipeReader
	rest    []byte
}

func (c *tallier) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(b)
	if len(c.rest) > 0 {
		b = append(c.rest, b...)
	}
	for {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			c.rest = bytes.Clone(b)
			return n, nil
		}
		line := b[:end]
		b = b[end+1:]
		what := line[max(bytes.IndexByte(line, ','), 0):] // after the time
		switch {
		case bytes.HasPrefix(what, []byte(`,"executable":{`)):
			if bytes.Contains(what, []byte(`"sha256":`)) {
				c.digests++
			} else {
				c.failed++
			}
		case bytes.HasPrefix(what, []byte(`,"ledger":{"batch":`)):
			_, number, _ := bytes.Cut(what, []byte(`"batch":`))
			number, _, _ = bytes.Cut(number, []byte{','})
			ack := fmt.Sprintf("{\"ack\":%s}\n", number)
			go func() { _, _ = io.WriteString(c.up, ack) }()
		}
	}
}

func (c *tallier) Read(b []byte) (int, error) { return c.down.Read(b) }
func (c *tallier) Close() error               { return c.up.Close() }

func (c *tallier) count() (digests, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.digests, c.failed
}

// measured runs the sensor with a counting recorder.
func measured(b *testing.B, o Options) (*tallier, func()) {
	b.Helper()
	if os.Getuid() != 0 {
		b.Skip("not root: loading BPF programs needs it")
	}
	down, up := io.Pipe()
	c := &tallier{up: up, down: down}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		r := o
		r.Program, r.Bandwidth = "bench", true
		r.OnReady = func(event.Hello) { close(ready) }
		r.Connect = func(context.Context) (io.ReadWriteCloser, error) { return c, nil }
		done <- Run(ctx, r)
	}()
	select {
	case <-ready:
	case err := <-done:
		b.Fatal(err)
	}
	return c, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}

func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// driver writes and executes n distinct programs in a process of its own, half of them unlinked while they run or right after.
func driver(b *testing.B, dir, program string, n int) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SENSOR_TEST_DRIVE="+dir, "SENSOR_TEST_PROGRAM="+program, "SENSOR_TEST_COUNT="+strconv.Itoa(n))
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

// BenchmarkIdentityOfShortLived is what a distinct program that lives for a tenth of a millisecond costs the sensor. Run it with -benchtime 1x.
func BenchmarkIdentityOfShortLived(b *testing.B) {
	programs := 2000
	if s := os.Getenv("SENSOR_BENCH_SHORT"); s != "" {
		programs, _ = strconv.Atoi(s)
	}
	program := filepath.Join(b.TempDir(), "program")
	if err := os.WriteFile(program, sender(b, sink(b)), 0o755); err != nil {
		b.Fatal(err)
	}
	for range b.N {
		c, stop := measured(b, Options{})
		time.Sleep(time.Second)
		before, began := cpu(), time.Now()
		time.Sleep(3 * time.Second)
		idle := float64(cpu()-before) / float64(time.Since(began))
		digests, failed := c.count()
		before, began = cpu(), time.Now()
		driver(b, b.TempDir(), program, programs)
		time.Sleep(2500 * time.Millisecond)
		used := float64(cpu()-before) - idle*float64(time.Since(began))
		stop()
		hashed, missed := c.count()
		b.ReportMetric(float64(hashed-digests), "hashed")
		b.ReportMetric(float64(missed-failed), "missed")
		b.ReportMetric(used/float64(programs)/1e3, "µs-cpu/exec")
	}
}

// BenchmarkIdentityOfMany executes 100,000 distinct programs: descriptors and memory stay bounded. Run it with -benchtime 1x.
func BenchmarkIdentityOfMany(b *testing.B) {
	programs := 100_000
	if s := os.Getenv("SENSOR_BENCH_MANY"); s != "" {
		programs, _ = strconv.Atoi(s)
	}
	program := filepath.Join(b.TempDir(), "program")
	if err := os.WriteFile(program, sender(b, sink(b)), 0o755); err != nil {
		b.Fatal(err)
	}
	for range b.N {
		c, stop := measured(b, Options{EveryExe: true})
		most, quit := 0, make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				case <-time.After(20 * time.Millisecond):
					if d, err := os.ReadDir("/proc/self/fd"); err == nil {
						most = max(most, len(d))
					}
				}
			}
		})
		dir := b.TempDir()
		began := time.Now()
		driver(b, dir, program, programs)
		took := time.Since(began)
		time.Sleep(2 * time.Second)
		first, _ := c.count()
		execute(b, filepath.Join(dir, "0")) // long evicted
		time.Sleep(2500 * time.Millisecond)
		again, _ := c.count()
		close(quit)
		wg.Wait()
		stop()
		hashed, missed := c.count()
		if again <= first {
			b.Error("what was evicted was not hashed when it was met again", first, again, hashed, missed)
		}
		b.ReportMetric(float64(hashed), "hashed")
		b.ReportMetric(float64(missed), "missed")
		b.ReportMetric(float64(most), "descriptors")
		b.ReportMetric(float64(resident())/(1<<20), "MB")
		b.ReportMetric(float64(programs)/took.Seconds(), "exec/s")
	}
}

// resident is the peak of the memory of this process, in bytes.
func resident() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Maxrss << 10
}

// drive is the driver's side.
func drive(dir string) error {
	program, err := os.ReadFile(os.Getenv("SENSOR_TEST_PROGRAM"))
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(os.Getenv("SENSOR_TEST_COUNT"))
	if err != nil {
		return err
	}
	const portion = 500 // written before they run, as programs are
	for from := 0; from < n; from += portion {
		for i := from; i < min(from+portion, n); i++ {
			own := fmt.Appendf(append([]byte(nil), program...), "%016d", i)
			if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), own, 0o755); err != nil {
				return err
			}
		}
		time.Sleep(25 * time.Millisecond)
		for i := from; i < min(from+portion, n); i++ {
			path := filepath.Join(dir, strconv.Itoa(i))
			if err := exec.Command(path).Run(); err != nil {
				return err
			}
			if i%2 == 1 {
				if err := os.Remove(path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
