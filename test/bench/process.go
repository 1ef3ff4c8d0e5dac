package main

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// process measures the running program: memory, idle time, and how soon it counts.
func process(p plan) (err error) {
	folder, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	if err := os.Chmod(folder, 0o755); err != nil {
		return err
	}
	program, err := monitor.Build(folder, "./cmd/picosnitch")
	if err != nil {
		return err
	}
	drip, err := startDrip()
	if err != nil {
		return err
	}
	start := time.Now()
	m, err := monitor.Start(program, folder, map[string]any{"DB write limit (seconds)": 1})
	if err != nil {
		return err
	}
	drip.stop()
	before, err := m.Costs()
	if err != nil {
		return errors.Join(err, m.Kill())
	}
	busyBefore, err := m.Status()
	if err != nil {
		return errors.Join(err, m.Kill())
	}
	time.Sleep(p.idle)
	busyAfter, err := m.Status()
	if err != nil {
		return errors.Join(err, m.Kill())
	}
	after, err := m.Costs()
	if err != nil {
		return errors.Join(err, m.Kill())
	}
	if err := m.Stop(); err != nil {
		return err
	}
	first, err := drip.first(m, start)
	if err != nil {
		return err
	}
	// A few runs of `picosnitch status` are in it. The events tell how idle the machine was.
	fmt.Printf("| idle, %v, %% of a core | %.2f | ≤ 0.3 |\n", p.idle, 100*(after.CPU-before.CPU).Seconds()/p.idle.Seconds())
	fmt.Printf("| events while idle | %d | |\n", busyAfter.Events-busyBefore.Events)
	fmt.Printf("| PSS of sensor and recorder, MB | %.1f | ≤ 40 |\n", float64(after.PSS)/1e6)
	fmt.Printf("| start to first counted byte, ms | %d | ≤ 1000 |\n", first.Milliseconds())
	fmt.Printf("| start to `status` exits with 0, ms | %d | |\n", m.Ready.Milliseconds())
	return nil
}

// drip sends one byte every millisecond from before the monitor's start. Everything from the first counted byte on is
// counted, so their number tells when that was.
type drip struct {
	times []time.Time // of each byte
	over  atomic.Bool
	done  chan struct{}
	port  int
}

func startDrip() (*drip, error) {
	sink, port, err := bound(unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	fd, _, err := bound(unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, loopback(port)); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	d := &drip{done: make(chan struct{}), port: port}
	go func() {
		defer close(d.done)
		for !d.over.Load() {
			d.times = append(d.times, time.Now())
			if _, err := unix.Write(fd, []byte{1}); err != nil {
				d.times = d.times[:len(d.times)-1]
			}
			time.Sleep(time.Millisecond)
		}
		unix.Close(fd)
		unix.Close(sink)
	}()
	return d, nil
}

func (d *drip) stop() {
	d.over.Store(true)
	<-d.done
}

func (d *drip) first(m *monitor.Monitor, start time.Time) (time.Duration, error) {
	rows, err := m.View()
	if err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	counted := 0
	for _, r := range rows {
		if r.Exe == self && r.Remote == fmt.Sprintf("127.0.0.1:%d", d.port) {
			counted += int(r.Sent)
		}
	}
	if counted == 0 || counted > len(d.times) {
		return 0, fmt.Errorf("%d of %d bytes were counted: no figure for the first one", counted, len(d.times))
	}
	return d.times[len(d.times)-counted].Sub(start), nil
}
