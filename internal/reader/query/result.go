package query

import "sort"

// result is where sums are added up: by group, by interval, or by both. Groups are known by their slot: their number + 1. Slot 0 and place 0 hold
// what belongs nowhere, so that rows that do not pass need no branch.
type result struct {
	ranks bool  // whether sums are wanted
	sums  []Sum // by slot, of all intervals together

	intervals int
	width     int     // places of one interval, place 0 among them; 0: cells are not wanted
	series    []int32 // by slot: its place within an interval; nil: its own number
	rest      int32   // the place of a slot that is not in series
	cells     []Sum   // by interval and place

	// What the place rest holds, one by one, until it is too much. Of a domain's ports, nobody can guess which of the rare ones was greatest.
	others  []other
	tooMany bool
	rounded bool
}

// other is a row, or the sum of some.
type other struct {
	interval, slot int32
	sum            Sum
	taken          bool // away from what was added
}

// maxOthers bounds others, 40 bytes each.
const maxOthers = 1 << 17

func (r *result) other(interval int, slot int32, sum Sum, taken bool) {
	if len(r.others) >= maxOthers {
		r.others, r.tooMany = nil, true
		return
	}
	r.others = append(r.others, other{int32(interval), slot, sum, taken})
}

// follows reports whether others are wanted.
func (r *result) follows() bool { return r.ranks && r.rest > 0 && !r.tooMany }

// like is an empty result of the same shape.
func (r *result) like() result {
	return result{ranks: r.ranks, intervals: r.intervals, width: r.width, series: r.series, rest: r.rest}
}

// chosen gives some groups places of their own, in their order, and all others the place rest: the one after them, or 0.
func (r *result) chosen(groups int, order []int, others bool) {
	r.width, r.rest = len(order)+1, 0
	if others {
		r.rest = int32(r.width)
		r.width++
	}
	r.series = make([]int32, groups+1)
	for slot := range r.series[1:] {
		r.series[1+slot] = r.rest
	}
	for i, g := range order {
		r.series[g+1] = int32(i + 1)
	}
}

// place is where a slot is within an interval. One that is not in series was not met when they were chosen.
func (r *result) place(slot int32) int32 {
	switch {
	case r.series == nil:
		return slot
	case int(slot) >= len(r.series):
		return r.rest
	}
	return r.series[slot]
}

// bySlot returns the sums, of so many groups at least.
func (r *result) bySlot(groups int) []Sum {
	r.sums = grown(r.sums, groups+1)
	return r.sums
}

// interval returns the cells of an interval.
func (r *result) interval(i int) []Sum {
	if r.cells == nil {
		r.cells = make([]Sum, r.intervals*r.width)
	}
	return r.cells[i*r.width : (i+1)*r.width]
}

// of is the sum of a group.
func (r *result) of(group int) Sum {
	if group+1 < len(r.sums) {
		return r.sums[group+1]
	}
	return Sum{}
}

func (r *result) add(interval int, slot int32, sum Sum) {
	if r.ranks {
		r.bySlot(int(slot))[slot].Add(sum)
	}
	if r.width > 0 {
		r.interval(interval)[r.place(slot)].Add(sum)
	}
	if r.follows() && r.place(slot) == r.rest {
		r.other(interval, slot, sum, false)
	}
}

// take is the opposite of add, for what was added before.
func (r *result) take(interval int, slot int32, sum Sum) {
	if r.ranks {
		less(&r.bySlot(int(slot))[slot], sum)
	}
	if r.width > 0 {
		less(&r.interval(interval)[r.place(slot)], sum)
	}
	if r.follows() && r.place(slot) == r.rest {
		r.other(interval, slot, sum, true)
	}
}

func less(s *Sum, o Sum) {
	s.Conns, s.Sent, s.Received = s.Conns-min(s.Conns, o.Conns), s.Sent-min(s.Sent, o.Sent), s.Received-min(s.Received, o.Received)
}

// grown returns sums that are so many at least.
func grown(sums []Sum, n int) []Sum { return append(sums, make([]Sum, max(0, n-len(sums)))...) }

// merge adds what another one of the same shape holds.
func (r *result) merge(o *result) {
	for _, x := range []struct {
		into *[]Sum
		from []Sum
	}{{&r.sums, o.sums}, {&r.cells, o.cells}} {
		*x.into = grown(*x.into, len(x.from))
		for i, sum := range x.from {
			(*x.into)[i].Add(sum)
		}
	}
	if r.tooMany = r.tooMany || o.tooMany || len(r.others)+len(o.others) > maxOthers; r.tooMany {
		r.others = nil
	} else {
		r.others = append(r.others, o.others...)
	}
}

// only returns the cells of some groups, in which they have places in their order; nil: it does not know all of them.
func (r *result) only(groups int, order []int) *result {
	if r.tooMany {
		return nil
	}
	o := &result{intervals: r.intervals, rounded: r.rounded}
	o.chosen(groups, order, false)
	for _, taken := range []bool{false, true} { // nothing is taken before it was added
		for _, x := range r.others {
			switch {
			case x.taken != taken:
			case taken:
				o.take(int(x.interval), x.slot, x.sum)
			default:
				o.add(int(x.interval), x.slot, x.sum)
			}
		}
	}
	for _, g := range order {
		slot := int32(g + 1)
		for k := 0; r.place(slot) != r.rest && k < r.intervals; k++ {
			o.interval(k)[o.place(slot)] = r.interval(k)[r.place(slot)]
		}
	}
	return o
}

// cuts are the ends of intervals, ascending: interval i is from cuts[i] to before cuts[i+1].
type cuts []int64

// of returns the interval of an instant; -1: none.
func (c cuts) of(t int64) int {
	if len(c) == 2 { // no search for the usual one
		if t < c[0] || t >= c[1] {
			return -1
		}
		return 0
	}
	i := sort.Search(len(c), func(i int) bool { return c[i] > t }) - 1
	if i == len(c)-1 {
		return -1
	}
	return i
}

// whole returns the interval in which all of from … to-1 is; -1: none, and some is true when a part of it is in one.
func (c cuts) whole(from, to int64) (interval int, some bool) {
	a, b := c.of(from), c.of(to-1)
	if a == b && a >= 0 {
		return a, true
	}
	return -1, a >= 0 || b >= 0 || (from < c[0] && to > c[len(c)-1])
}

// within returns the ends of intervals between two instants.
func (c cuts) within(from, to int64) cuts {
	i := sort.Search(len(c), func(i int) bool { return c[i] > from })
	return c[i : i+sort.Search(len(c)-i, func(k int) bool { return c[i+k] >= to })]
}
