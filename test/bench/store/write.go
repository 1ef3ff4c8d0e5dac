package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/schema"
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

	for range 3700 / window { // an hour, so that the clock is trusted
		if _, err := one(0); err != nil {
			return 0, err
		}
		if _, err := s.Care(ctx, at, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
	p := pruning{path: path, s: s, one: one, now: func() int64 { return at }, keep: days}
	if err := p.measure(ctx, "", 24, &failed); err != nil {
		return 0, err
	}
	// A reader that stays in its question for as long as it takes.
	reader, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	rows, err := reader.QueryContext(ctx, "SELECT id FROM raw")
	if err != nil || !rows.Next() {
		return 0, errors.Join(err, errors.New("there is no row to read"))
	}
	defer rows.Close()
	if err := p.measure(ctx, ", beside a reader that stays", 12, &failed); err != nil {
		return 0, err
	}
	rows.Close()
	reader.Close()
	return failed, p.shrinks(ctx, path, &failed)
}

// pruning is deletion beside writing.
type pruning struct {
	path string
	s    *store.SQLite
	one  func(rows int) (time.Duration, error)
	now  func() int64
	keep int // days of raw rows that are left
}

// windows writes windows, with ten seconds of the recorder's care after each, and returns how long that took.
func (p *pruning) windows(ctx context.Context, n int) (writing, caring, longest time.Duration, err error) {
	for range n {
		d, err := p.one(100)
		if err != nil {
			return 0, 0, 0, err
		}
		writing += d
		for range window {
			began := time.Now()
			if _, err := p.s.Care(ctx, p.now(), 50*time.Millisecond); err != nil {
				return 0, 0, 0, err
			}
			d := time.Since(began)
			caring += d
			longest = max(longest, d)
		}
	}
	return writing, caring, longest, nil
}

// oldest is the first hour that has all its raw rows.
func (p *pruning) oldest(ctx context.Context) (hour int64, err error) {
	db, err := sql.Open("sqlite", "file:"+p.path+"?mode=ro")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, "SELECT value FROM progress WHERE name = ?", schema.ProgressPruned).Scan(&hour)
	if errors.Is(err, sql.ErrNoRows) {
		return (end - days*86400) / 3600, nil
	}
	return hour, err
}

// measure writes the same windows without and with the deletion of a day beside them, one after the other, in pairs, so that what else the
// machine does falls on both. A pair has so many windows that all of the day is deleted in it.
func (p *pruning) measure(ctx context.Context, beside string, pairs int, failed *int) error {
	const windows = 4
	var ratios []float64
	var with, without, busy, longest time.Duration
	before, err := p.oldest(ctx)
	if err != nil {
		return err
	}
	for range pairs {
		p.s.SetKeep(store.Keep{})
		w, idle, _, err := p.windows(ctx, windows)
		if err != nil {
			return err
		}
		p.keep--
		p.s.SetKeep(store.Keep{RawDays: p.keep})
		v, care, most, err := p.windows(ctx, windows)
		if err != nil {
			return err
		}
		with, without, longest = with+v, without+w, max(longest, most)
		ratios = append(ratios, float64(v)/float64(w))
		busy += care - idle
	}
	after, err := p.oldest(ctx)
	if err != nil {
		return err
	}
	if deleted := int((after - before) / 24); deleted < pairs-1 { // the last one may not be whole
		return fmt.Errorf("%d days were deleted beside the windows, and %d should have been", deleted, pairs)
	}
	slices.Sort(ratios)
	mark := ""
	if ratios[pairs/2] > 1.10 {
		mark = "!"
		*failed++
	}
	fmt.Printf("deleting a day of raw rows%s takes %v in all, at most %v at a time; windows written meanwhile take %.2f%s of the time without (median of %d pairs, half of them between %.2f and %.2f, all between %.2f and %.2f; their sums %.2f; limit 1.10)\n",
		beside, (busy / time.Duration(pairs)).Round(time.Millisecond), longest.Round(time.Millisecond), ratios[pairs/2], mark, pairs, ratios[pairs/4], ratios[pairs-1-pairs/4], ratios[0], ratios[pairs-1], float64(with)/float64(without))
	return nil
}

// shrinks deletes a quarter of a year, and looks whether the file gives back what it held, but for the twentieth that stays free.
func (p *pruning) shrinks(ctx context.Context, path string, failed *int) error {
	size := func() (int64, error) {
		i, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		return i.Size(), nil
	}
	before, err := size()
	if err != nil {
		return err
	}
	p.s.SetKeep(store.Keep{RawDays: p.keep - 90})
	if _, err := p.one(1); err != nil { // there is something to do again
		return err
	}
	began := time.Now()
	for n := int64(0); ; n++ {
		more, err := p.s.Care(ctx, p.now()+n, 50*time.Millisecond)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	took := time.Since(began)
	if _, err := p.one(1); err != nil { // the log goes into the file
		return err
	}
	if err := p.s.Close(); err != nil {
		return err
	}
	after, err := size()
	if err != nil {
		return err
	}
	mark := ""
	if after > before*90/100 {
		mark = "!"
		*failed++
	}
	fmt.Printf("deleting 90 days of raw rows takes %.1f s, and the file shrinks from %d to %d MB%s\n", took.Seconds(), before>>20, after>>20, mark)
	return nil
}

func exceeds(d, limit time.Duration, failed *int) string {
	if d > limit {
		*failed++
		return "!"
	}
	return ""
}
