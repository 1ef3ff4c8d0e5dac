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
		n := len(c) - 1
		r.sums, r.totals = grown(r.sums, n*r.width), grown(r.totals, n)
		t = Timeline{Starts: c[:n], End: c[n], Rounded: r.rounded, Others: r.totals[:n]}
		for i, g := range order {
			line := Series{Value: p.groups.values[g], Sums: make([]Sum, n)}
			for k := range line.Sums {
				sum := r.sums[k*r.width+i]
				line.Sums[k] = sum
				o := &t.Others[k]
				o.Conns, o.Sent, o.Received = o.Conns-min(o.Conns, sum.Conns), o.Sent-min(o.Sent, sum.Sent), o.Received-min(o.Received, sum.Received)
			}
			t.Series = append(t.Series, line)
		}
		return nil
	})
	return t, err
}

// maxCells is how many sums are kept at once to read what a time line needs only once: 24 bytes each.
const maxCells = 1 << 20

// series adds up the intervals of a time line: what they hold for the groups that move most, in their order, and in all.
func (s *snapshot) series(q *Question, c cuts) (p *plan, r result, order []int, err error) {
	if p, err = s.plan(q.By, q.Where); err != nil {
		return p, r, nil, err
	}
	limit := q.Limit
	if limit <= 0 || limit > maxSeries {
		limit = maxSeries
	}
	intervals, groups := len(c)-1, len(p.groups.values)
	if p.by != Port && intervals*groups <= s.cells {
		all := result{width: groups}
		if err := s.scan(p, c, &all); err != nil {
			return p, r, nil, err
		}
		each := result{sums: make([]Sum, groups), totals: make([]Sum, intervals)}
		for i, sum := range all.sums {
			each.sums[i%groups].Add(sum)
			each.totals[i/groups].Add(sum)
		}
		order = ranked(p, &each, q.Order)
		order = order[:min(len(order), limit)]
		r = result{width: len(order), totals: each.totals, rounded: all.rounded}
		all.sums = grown(all.sums, intervals*groups)
		for k := range intervals {
			for _, g := range order {
				r.sums = append(r.sums, all.sums[k*groups+g])
			}
		}
		return p, r, order, nil
	}
	// First which groups move most, then the intervals of those groups. Where hours have to be read for it, the first pass adds up the intervals
	// with all groups, so that the second one may leave out most rows; else it is over whole days, and much cheaper than the second.
	each, within := result{apart: true}, c
	if p.needPeers() {
		s.again = new(again)
	} else {
		each.apart, within = false, cuts{c[0], c[intervals]}
	}
	if err := s.scan(p, within, &each); err != nil {
		return p, r, nil, err
	}
	order = ranked(p, &each, q.Order)
	order = order[:min(len(order), limit)]
	r = result{width: len(order), rest: -1}
	if !each.apart {
		r.width, r.rest = len(order)+1, int32(len(order))
	}
	r.series = make([]int32, len(p.groups.values))
	for g := range r.series {
		r.series[g] = r.rest
	}
	for i, g := range order {
		r.series[g] = int32(i)
	}
	err = s.scan(p, c, &r)
	r.totals, r.rounded = each.totals, r.rounded || each.rounded
	if !each.apart {
		r.totals = make([]Sum, intervals)
		for i, sum := range r.sums {
			r.totals[i/r.width].Add(sum)
		}
	}
	return p, r, order, err
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
