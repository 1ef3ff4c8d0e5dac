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
	err = l.lookTogether(ctx, func(s *snapshot) error {
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
	r := result{ranks: true}
	if err := s.scan(p, cuts{q.Range.Since, q.Range.End()}, &r); err != nil {
		return nil, nil, err
	}
	return p, &r, nil
}

// ranked returns the groups that moved something, the greatest first; equal ones by their value, so that an answer is always the same.
func ranked(p *plan, r *result, o Order) []int {
	var order []int
	for g := range p.groups.values {
		if r.of(g) != (Sum{}) {
			order = append(order, g)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(o.Of(r.of(b)), o.Of(r.of(a))), cmp.Compare(p.groups.values[a], p.groups.values[b]))
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
		s := r.of(g)
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
	err = l.lookTogether(ctx, func(s *snapshot) error {
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
		l, err := s.lines(&q, within)
		if err != nil {
			return err
		}
		n := len(c) - 1
		t = Timeline{Starts: c[:n], End: c[n], Rounded: l.rounded, Others: l.totals}
		for i, value := range l.values {
			t.Series = append(t.Series, Series{value, l.sums[i]})
			for k, sum := range l.sums[i] {
				less(&t.Others[k], sum)
			}
		}
		return nil
	})
	return t, err
}

// lines are those of a time line: of the groups that move most, in their order, and of all together.
type lines struct {
	values  []string
	sums    [][]Sum // by group and interval
	totals  []Sum   // by interval
	rounded bool
}

// lines takes the cells of a result in which the groups of an order have places.
func (r *result) lines(p *plan, order []int, totals []Sum) lines {
	l := lines{totals: totals, rounded: r.rounded}
	if totals == nil {
		l.totals = make([]Sum, r.intervals)
		for k := range l.totals {
			for _, sum := range r.interval(k)[1:] {
				l.totals[k].Add(sum)
			}
		}
	}
	for _, g := range order {
		line := make([]Sum, r.intervals)
		for k := range line {
			line[k] = r.interval(k)[r.place(int32(g+1))]
		}
		l.values, l.sums = append(l.values, p.groups.values[g]), append(l.sums, line)
	}
	return l
}

const (
	// maxCells is how many sums are kept at once to read what a time line needs only once: 24 bytes each.
	maxCells = 1 << 20
	// maxCandidates is how many groups of very many are followed through the intervals.
	maxCandidates = 256
	// A sample is one of so many segments, and of the others those in which most was moved; where there are few, it is all.
	sampled    = 32
	minSampled = 256
)

// lines adds up the intervals of a time line.
func (s *snapshot) lines(q *Question, c cuts) (l lines, err error) {
	p, err := s.plan(q.By, q.Where)
	if err != nil {
		return l, err
	}
	limit := q.Limit
	if limit <= 0 || limit > maxSeries {
		limit = maxSeries
	}
	first := func(r *result, n int) []int {
		order := ranked(p, r, q.Order)
		return order[:min(len(order), n)]
	}
	intervals, groups := len(c)-1, len(p.groups.values)
	if p.by != Port && intervals*groups <= s.bounds.cells {
		all := result{intervals: intervals, width: groups + 1}
		if err := s.scan(p, c, &all); err != nil {
			return l, err
		}
		each := result{sums: make([]Sum, groups+1)}
		for k := range intervals {
			for slot, sum := range all.interval(k)[1:] {
				each.sums[1+slot].Add(sum)
			}
		}
		return all.lines(p, first(&each, limit), nil), nil
	}
	// There are too many groups to keep the intervals of each. Those that move most are looked for beforehand, in a part of what has to be read; the
	// intervals of these candidates are added up together with the sums of all groups, which say at the end whether the greatest were among them.
	whole := cuts{c[0], c[intervals]}
	w, err := s.work(p, whole)
	if err != nil {
		return l, err
	}
	if p.needPeers() {
		w.segments = s.sample(w.segments, q.Order)
	}
	guess := result{ranks: true}
	if err := s.sum(p, whole, w, &guess); err != nil {
		return l, err
	}
	candidates := first(&guess, max(limit, min(maxCandidates, s.bounds.cells/intervals)))
	all := result{ranks: true, intervals: intervals}
	all.chosen(len(p.groups.values), candidates, true)
	if err := s.scan(p, c, &all); err != nil {
		return l, err
	}
	order := first(&all, limit)
	l = all.lines(p, order, nil)
	if slices.ContainsFunc(order, func(g int) bool { return !slices.Contains(candidates, g) }) {
		again := all.only(len(p.groups.values), order)
		if again == nil {
			again = &result{intervals: intervals}
			again.chosen(len(p.groups.values), order, false)
			if err := s.scan(p, c, again); err != nil {
				return l, err
			}
		}
		l = again.lines(p, order, l.totals)
	}
	return l, nil
}

// sample takes every so many-th segment, and those in which most was moved.
func (s *snapshot) sample(all []segment, o Order) []segment {
	if len(all) < s.bounds.sampled {
		return all
	}
	byWeight := slices.Clone(all)
	slices.SortFunc(byWeight, func(a, b segment) int { return cmp.Compare(o.Of(b.sum), o.Of(a.sum)) })
	taken := byWeight[:len(all)/sampled]
	for i := len(taken); i < len(byWeight); i += sampled {
		taken = append(taken, byWeight[i])
	}
	slices.SortFunc(taken, func(a, b segment) int { return cmp.Compare(a.id, b.id) })
	return taken
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
