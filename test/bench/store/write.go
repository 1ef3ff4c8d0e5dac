package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// writes measures a window of 10,000 rows, and what deleting a day costs the windows that are written meanwhile.
func writes(ctx context.Context, path string) (failed int, err error) {
	s, err := open(ctx, path)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	w, at, batch := newWorld(), end, uint64(0)
	one := func(rows int) (time.Duration, error) {
		batch++
		x := &flow.Window{Hello: event.Hello{Stream: "writes", Boot: "boot"}, Start: at, End: at + window, Position: flow.Position{Stream: "writes", Batch: batch}}
		at += window
		for range rows {
			x.Records = append(x.Records, w.record())
		}
		began := time.Now()
		err := s.Write(ctx, x)
		return time.Since(began), err
	}
	var large []time.Duration
	for range 11 {
		d, err := one(10_000)
		if err != nil {
			return 0, err
		}
		large = append(large, d)
		for range window { // the recorder cares once a second
			if _, err := s.Care(ctx, at, 50*time.Millisecond); err != nil {
				return 0, err
			}
		}
	}
	slices.Sort(large)
	limit := window * time.Second / 20
	fmt.Printf("\na window of 10,000 rows is written in %v (median of 11; slowest %v)%s: 1/%.0f of the window (limit 1/20)\n",
		large[5].Round(time.Millisecond), large[10].Round(time.Millisecond), exceeds(large[5], limit, &failed), float64(window*time.Second)/float64(large[5]))

	// The same windows alternately without and with deletion beside them. Each call of Care is one second of the stream.
	measure := func(n int) (writing, caring, longest time.Duration, err error) {
		for range n {
			d, err := one(100)
			if err != nil {
				return 0, 0, 0, err
			}
			writing += d
			for range window {
				began := time.Now()
				if _, err := s.Care(ctx, at, 50*time.Millisecond); err != nil {
					return 0, 0, 0, err
				}
				d := time.Since(began)
				caring += d
				longest = max(longest, d)
			}
		}
		return writing, caring, longest, nil
	}
	const windows = 30
	for range 3700 / window { // an hour, so that the clock is trusted
		if _, err := one(0); err != nil {
			return 0, err
		}
		if _, err := s.Care(ctx, at, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
	var ratios []float64
	var busy time.Duration
	var longest time.Duration
	for day := range 5 {
		s.SetKeep(store.Keep{})
		before, idle, _, err := measure(windows)
		if err != nil {
			return 0, err
		}
		s.SetKeep(store.Keep{RawDays: days - 1 - day})
		with, care, most, err := measure(windows)
		if err != nil {
			return 0, err
		}
		ratios = append(ratios, float64(with)/float64(before))
		busy = max(busy, care-idle)
		longest = max(longest, most)
	}
	slices.Sort(ratios)
	mark := ""
	if ratios[2] > 1.10 {
		mark = "!"
		failed++
	}
	fmt.Printf("deleting a day of raw rows takes %v in all, at most %v at a time; windows written meanwhile take %.2f%s of the time without (median of 5: %.2f; limit 1.10)\n",
		busy.Round(time.Millisecond), longest.Round(time.Millisecond), ratios[2], mark, ratios)
	return failed, nil
}

func exceeds(d, limit time.Duration, failed *int) string {
	if d > limit {
		*failed++
		return "!"
	}
	return ""
}
