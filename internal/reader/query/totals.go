package query

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Totals implements Source.
func (l *Local) Totals(ctx context.Context, q Question) (a Answer, err error) {
	err = l.look(ctx, func(s *snapshot) error {
		p, r, err := s.totals(&q)
		if err != nil {
			return err
		}
		a = answer(p, r, &q)
		return nil
	})
	return a, err
}

func (s *snapshot) totals(q *Question) (*plan, *result, error) {
	p, err := s.plan(q.By, q.Where)
	if err != nil {
		return nil, nil, err
	}
	if q.Range.Since >= q.Range.End() {
		return nil, nil, fmt.Errorf("%w: the range ends before it begins", ErrQuestion)
	}
	var r result
	if err := s.scan(p, cuts{q.Range.Since, q.Range.End()}, &r); err != nil {
		return nil, nil, err
	}
	return p, &r, nil
}

// ranked returns the groups that moved something, the greatest first; equal ones by their value, so that an answer is always the same.
func ranked(p *plan, r *result, o Order) []int {
	var order []int
	for g, s := range r.sums {
		if s != (Sum{}) {
			order = append(order, g)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(o.Of(r.sums[b]), o.Of(r.sums[a])), cmp.Compare(p.groups.values[a], p.groups.values[b]))
	})
	return order
}

func answer(p *plan, r *result, q *Question) Answer {
	limit := q.Limit
	if limit <= 0 || limit > MaxRows {
		limit = MaxRows
	}
	order := ranked(p, r, q.Order)
	a := Answer{Values: len(order), Rounded: r.rounded}
	for i, g := range order {
		s := r.sums[g]
		a.Total.Add(s)
		if i < limit {
			a.Rows = append(a.Rows, Row{p.groups.values[g], s})
		} else {
			a.Others.Add(s)
		}
	}
	return a
}

// maxSeries bounds the series of a time line.
const maxSeries = 100

// Timeline implements Source.
func (l *Local) Timeline(ctx context.Context, q Question, step Step, zone *time.Location) (t Timeline, err error) {
	err = l.look(ctx, func(s *snapshot) error {
		if err := s.bound(&q.Range); err != nil {
			return err
		}
		if q.Range.Since >= q.Range.Until { // nothing is recorded
			return nil
		}
		c, err := Intervals(q.Range, step, zone)
		if err != nil {
			return err
		}
		within := slices.Clone(c) // the first and the last interval may not be whole
		within[0], within[len(within)-1] = max(c[0], q.Range.Since), min(c[len(c)-1], q.Range.Until)
		p, r, order, err := s.series(&q, within)
		if err != nil {
			return err
		}
		r.sums = append(r.sums, make([]Sum, max(0, r.width*(len(c)-1)-len(r.sums)))...)
		t = Timeline{Starts: c[:len(c)-1], End: c[len(c)-1], Rounded: r.rounded, Others: make([]Sum, len(c)-1)}
		for i, g := range order {
			line := Series{Value: p.groups.values[g], Sums: make([]Sum, len(c)-1)}
			for k := range line.Sums {
				line.Sums[k] = r.sums[k*r.width+i]
			}
			t.Series = append(t.Series, line)
		}
		for k := range t.Others {
			t.Others[k] = r.sums[k*r.width+len(order)]
		}
		return nil
	})
	return t, err
}

// maxCells is how many sums are kept at once to read what a time line needs only once: 24 bytes each.
const maxCells = 1 << 20

// series adds up the intervals of a time line, for the groups that move most, in their order, and for the others.
func (s *snapshot) series(q *Question, c cuts) (p *plan, r result, order []int, err error) {
	if p, err = s.plan(q.By, q.Where); err != nil {
		return p, r, nil, err
	}
	limit := q.Limit
	if limit <= 0 || limit > maxSeries {
		limit = maxSeries
	}
	intervals, groups := len(c)-1, len(p.groups.values)
	choose := func(total *result) []int {
		order := ranked(p, total, q.Order)
		return order[:min(len(order), limit)]
	}
	place := func() []int32 { // of every group among the series, or after them
		series := make([]int32, len(p.groups.values))
		for g := range series {
			series[g] = int32(len(order))
		}
		for i, g := range order {
			series[g] = int32(i)
		}
		return series
	}
	if p.by == Port || intervals*groups > maxCells {
		// First which groups move most, then their intervals.
		var total result
		if err := s.scan(p, cuts{c[0], c[intervals]}, &total); err != nil {
			return p, r, nil, err
		}
		order = choose(&total)
		r = result{width: len(order) + 1, series: place(), rounded: total.rounded}
		err = s.scan(p, c, &r)
		return p, r, order, err
	}
	all := result{width: groups}
	if err := s.scan(p, c, &all); err != nil {
		return p, r, nil, err
	}
	total := result{sums: make([]Sum, groups)}
	for i, sum := range all.sums {
		total.sums[i%groups].Add(sum)
	}
	order = choose(&total)
	r = result{width: len(order) + 1, series: place(), rounded: all.rounded}
	for i, sum := range all.sums {
		if sum != (Sum{}) {
			r.add(i/groups, i%groups, sum)
		}
	}
	return p, r, order, nil
}

// bound narrows a range to what is recorded.
func (s *snapshot) bound(r *Range) error {
	var first, last int64
	err := s.conn.QueryRowContext(s.ctx, `SELECT
		coalesce(min((SELECT min(bucket) FROM segments WHERE seconds = 3600 AND merged = 0) * 3600, (SELECT min(bucket) FROM segments WHERE seconds = 3600 AND merged = 1) * 3600),
			(SELECT min(bucket) FROM segments WHERE seconds = 3600 AND merged = 0) * 3600, (SELECT min(bucket) FROM segments WHERE seconds = 3600 AND merged = 1) * 3600, 9223372036854775807),
		coalesce((SELECT (max(bucket) + 1) * 3600 FROM segments WHERE seconds = 3600 AND merged IN (0, 1)), 0)`).Scan(&first, &last)
	if err != nil {
		return err
	}
	var tailFirst, tailLast *int64
	if err := s.conn.QueryRowContext(s.ctx, `SELECT min("end") - 1, max("end") FROM windows WHERE id > ?`, s.rolled).Scan(&tailFirst, &tailLast); err != nil {
		return err
	}
	if tailFirst != nil {
		first, last = min(first, *tailFirst), max(last, *tailLast)
	}
	r.Since, r.Until = max(r.Since, first), min(r.End(), last)
	return nil
}

// Intervals are the ends of the steps that a range touches: from the first one's begin to the last one's end, unix seconds.
func Intervals(r Range, step Step, zone *time.Location) ([]int64, error) {
	if zone == nil {
		zone = time.Local
	}
	t := time.Unix(r.Since, 0).In(zone)
	day := func(t time.Time, add int) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day()+add, 0, 0, 0, 0, zone)
	}
	var next func(time.Time) time.Time
	switch step {
	case Minute:
		t = time.Unix(r.Since/60*60, 0).In(zone)
		next = func(t time.Time) time.Time { return t.Add(time.Minute) }
	case Hour:
		t = time.Unix(r.Since/3600*3600, 0).In(zone)
		next = func(t time.Time) time.Time { return t.Add(time.Hour) }
	case Day:
		t = day(t, 0)
		next = func(t time.Time) time.Time { return day(t, 1) }
	case Week:
		t = day(t, -(int(t.Weekday())+6)%7)
		next = func(t time.Time) time.Time { return day(t, 7) }
	case Month:
		t = day(t, 1-t.Day())
		next = func(t time.Time) time.Time { return time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, zone) }
	default:
		return nil, fmt.Errorf("%w: there is no step %d", ErrQuestion, step)
	}
	var c []int64
	for ; t.Unix() < r.Until; t = next(t) {
		if len(c) >= MaxIntervals {
			return nil, fmt.Errorf("%w: the range has more than %d intervals: use a longer step or a shorter range", ErrQuestion, MaxIntervals)
		}
		c = append(c, t.Unix())
	}
	return append(c, t.Unix()), nil
}
