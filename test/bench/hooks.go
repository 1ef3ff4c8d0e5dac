package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/kernel"
)

// deaf takes the reports that a drain hands out.
type deaf struct{}

func (deaf) Exec(event.Process)                           {}
func (deaf) Fork(child, parent event.ProcessID, at int64) {}
func (deaf) Exit(event.ProcessID)                         {}
func (deaf) WantPacket()                                  {}

// hooks measures every workload with the hooks on and off.
func hooks(p plan) (err error) {
	h, err := kernel.Load(kernel.Options{HookSet: p.set, Bandwidth: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := pin(); err != nil {
		return err
	}
	for _, w := range workloads() {
		if !strings.Contains(w.name, p.only) {
			continue
		}
		op, end, err := w.open()
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		r, err := pairs(h, op, p)
		end()
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		fmt.Printf("| %s | %.0f | %.0f | %.3f | %.3f–%.3f | %s |\n", w.name, r.off, r.on, r.median, r.low, r.high, w.target)
	}
	return nil
}

// result of a workload: ns an operation, and the ratios on/off of the pairs.
type result struct{ off, on, low, median, high float64 }

func pairs(h *kernel.Hooks, op func(n int) error, p plan) (result, error) {
	var on, off, ratios []float64
	// The first round warms caches and is not counted.
	for i := range p.pairs + 1 {
		var t [2]float64
		for half := range 2 {
			with := (half + i) % 2
			var err error
			if t[with], err = measure(h, with == 1, op, p.slice); err != nil {
				return result{}, err
			}
		}
		if i > 0 {
			off, on, ratios = append(off, t[0]), append(on, t[1]), append(ratios, t[1]/t[0])
		}
	}
	low, median, high := quartiles(ratios)
	_, a, _ := quartiles(off)
	_, b, _ := quartiles(on)
	return result{off: a, on: b, low: low, median: median, high: high}, nil
}

// measure returns the processor time of one operation in ns, after an eighth of the slice to warm up.
func measure(h *kernel.Hooks, with bool, op func(n int) error, slice time.Duration) (ns float64, err error) {
	if with {
		if err := h.Attach(); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, h.Detach(), h.Drain(deaf{}, func(*event.Flow) {})) }()
	}
	const chunk = 32
	warm := slice / 8
	n := 0
	var begin time.Duration
	for start := time.Now(); time.Since(start) < slice; n += chunk {
		if begin == 0 && time.Since(start) > warm {
			n, begin = 0, threadTime()
		}
		if err := op(chunk); err != nil {
			return 0, err
		}
	}
	return float64((threadTime() - begin).Nanoseconds()) / float64(n), nil
}

// threadTime is the processor time of this thread. It never waits, so on a quiet machine this is the wall clock; on another
// one it leaves out the time in which others had the processor.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0 // cannot fail: the clock is always there (clock_gettime(2))
	}
	return time.Duration(ts.Nano())
}

func quartiles(v []float64) (low, median, high float64) {
	v = slices.SortedFunc(slices.Values(v), cmp.Compare[float64])
	at := func(q float64) float64 {
		i := q * float64(len(v)-1)
		below := int(i)
		above := min(below+1, len(v)-1)
		return v[below] + (v[above]-v[below])*(i-float64(below))
	}
	return at(0.25), at(0.5), at(0.75)
}

// pin keeps this thread on one CPU, the last one that it may use: interrupts often go to the first.
func pin() error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("get CPUs: %w", err)
	}
	for i := range 1024 {
		if allowed.IsSet(i) {
			one.Zero()
			one.Set(i)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("pin to one CPU: %w", err)
	}
	return nil
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(u.Release[:])
}
