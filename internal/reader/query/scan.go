package query

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"sort"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// result is where sums are added up: by interval and group, or by each of them alone.
type result struct {
	width   int     // sums of one interval; 0: one interval, any number of groups
	series  []int32 // the place of a group within an interval, -1: its sums are not wanted; nil: its own number
	rest    int32   // the place of a group that is not in series
	sums    []Sum
	apart   bool  // sums are those of groups, of all intervals together
	totals  []Sum // apart: of intervals, with all groups
	rounded bool
}

func (r *result) add(interval, group int, sum Sum) {
	if group = r.place(group); group < 0 {
		return
	}
	sums, total := r.interval(interval, group+1)
	sums[group].Add(sum)
	if total != nil {
		total.Add(sum)
	}
}

// place is where a group is within an interval. One that is not in series was not met when they were chosen: a rounded hour may be in the one
// range and not in the other.
func (r *result) place(group int) int {
	switch {
	case r.series == nil:
		return group
	case group >= len(r.series):
		return int(r.rest)
	}
	return int(r.series[group])
}

// interval returns the sums of an interval, of so many groups at least, and what else its rows are to be added to.
func (r *result) interval(interval, groups int) (sums []Sum, total *Sum) {
	if r.apart {
		r.totals = grown(r.totals, interval+1)
		total, interval = &r.totals[interval], 0
	}
	if r.width > 0 {
		groups = r.width
	}
	from := interval * r.width
	r.sums = grown(r.sums, from+groups)
	return r.sums[from:], total
}

// grown returns sums that are so many at least.
func grown(sums []Sum, n int) []Sum { return append(sums, make([]Sum, max(0, n-len(sums)))...) }

// merge adds what another one of the same shape holds.
func (r *result) merge(o *result) {
	for _, x := range []struct {
		into *[]Sum
		from []Sum
	}{{&r.sums, o.sums}, {&r.totals, o.totals}} {
		*x.into = grown(*x.into, len(x.from))
		for i, sum := range x.from {
			(*x.into)[i].Add(sum)
		}
	}
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

// segment is what a row of segments says.
type segment struct {
	id, bucket int64
	interval   int
	sum        Sum
}

const dayHours = schema.DaySeconds / schema.HourSeconds

// scan adds up what passes the plan's filters in the intervals.
func (s *snapshot) scan(p *plan, c cuts, r *result) error {
	var wanted []segment
	partial := make(map[int64]bool) // hours that are cut
	hour := func(g segment) {
		from := g.bucket * schema.HourSeconds
		interval, some := c.whole(from, from+schema.HourSeconds)
		switch {
		case interval >= 0:
		case !some:
			return
		case g.bucket >= s.raw:
			partial[g.bucket] = true
			return
		default:
			r.rounded = true
			if interval = c.of(from + schema.HourSeconds/2); interval < 0 {
				return
			}
		}
		g.interval = interval
		wanted = append(wanted, g)
	}
	first, last := c[0], c[len(c)-1]-1
	// Hours that no day holds yet.
	h0, h1 := schema.Bucket(first, schema.HourSeconds), schema.Bucket(last, schema.HourSeconds)
	if err := s.segments(schema.HourSeconds, 0, h0, h1, hour); err != nil {
		return err
	}
	// Days where they are enough, and their hours where not.
	d0, d1, err := s.days(schema.Bucket(first, schema.DaySeconds), schema.Bucket(last, schema.DaySeconds))
	if err != nil {
		return err
	}
	for d := d0; d <= d1; {
		from := d
		i, _ := c.whole(d*schema.DaySeconds, (d+1)*schema.DaySeconds)
		enough := i >= 0 && !p.needPeers()
		for d++; d <= d1; d++ { // a run of days of one kind is one query
			j, _ := c.whole(d*schema.DaySeconds, (d+1)*schema.DaySeconds)
			if (j >= 0 && !p.needPeers()) != enough {
				break
			}
		}
		if enough {
			err = s.segments(schema.DaySeconds, 0, from, d-1, func(g segment) {
				g.interval = c.of(g.bucket * schema.DaySeconds)
				wanted = append(wanted, g)
			})
		} else {
			err = s.segments(schema.HourSeconds, 1, max(from*dayHours, h0), min(d*dayHours-1, h1), hour)
		}
		if err != nil {
			return err
		}
	}
	if p.by == None && !p.needActors() && !p.needPeers() {
		for _, g := range wanted {
			r.add(g.interval, 0, g.sum)
		}
	} else if err := s.read(p, wanted, r); err != nil {
		return err
	}
	return s.rows(p, c, partial, r)
}

// days narrows a range of days to those that have segments.
func (s *snapshot) days(from, to int64) (int64, int64, error) {
	var first, last sql.NullInt64
	err := s.conn.QueryRowContext(s.ctx, "SELECT (SELECT min(bucket) FROM segments WHERE seconds = ?1 AND merged = 0), (SELECT max(bucket) FROM segments WHERE seconds = ?1 AND merged = 0)", schema.DaySeconds).Scan(&first, &last)
	if err != nil || !first.Valid {
		return 0, -1, err
	}
	return max(from, first.Int64), min(to, last.Int64), nil
}

func (s *snapshot) segments(seconds, merged, from, to int64, each func(segment)) error {
	if from > to {
		return nil
	}
	return s.stream("SELECT id, bucket, conns, sent, received FROM segments WHERE seconds = ? AND merged = ? AND bucket BETWEEN ? AND ?", func(v []driver.Value) error {
		var n [5]int64
		if !numbers(v, n[:]) {
			return errDamaged
		}
		each(segment{id: n[0], bucket: n[1], sum: Sum{Conns: uint64(n[2]), Sent: uint64(n[3]), Received: uint64(n[4])}})
		return nil
	}, seconds, merged, from, to)
}

// numbers takes the numbers out of a row. It reports whether they are some: in a damaged database anything may stand.
func numbers(row []driver.Value, into []int64) (ok bool) {
	for i := range into {
		if into[i], ok = row[i].(int64); !ok {
			return false
		}
	}
	return true
}

// again keeps what a scan reads for one that follows, with the same plan and the same cuts.
type again struct {
	parts []part
	bytes int
	whole bool // parts are all that was read
}

// maxKept bounds what is kept, in bytes: a year of ten million rows is less.
const maxKept = 96 << 20

// keep returns a function that keeps what it adds. It is whole until there is too much.
func (a *again) keep(add func(part) error) func(part) error {
	if a == nil {
		return add
	}
	a.whole = true
	return func(x part) error {
		if a.bytes += len(x.actors) + len(x.peers); a.bytes > maxKept {
			a.parts, a.whole = nil, false
		} else {
			a.parts = append(a.parts, x)
		}
		return add(x)
	}
}

// gap is how many segments that are not wanted are read rather than beginning anew.
const gap = 4

// read adds up segments.
func (s *snapshot) read(p *plan, wanted []segment, r *result) error {
	slices.SortFunc(wanted, func(a, b segment) int { return cmp.Compare(a.id, b.id) })
	var q string
	switch {
	case !p.needPeers():
		q = "SELECT segment, data, NULL FROM segment_actors WHERE segment BETWEEN ? AND ?"
	case !p.needActors():
		q = "SELECT segment, NULL, data FROM segment_peers WHERE segment BETWEEN ? AND ?"
	default:
		q = "SELECT segment, a.data, p.data FROM segment_actors a JOIN segment_peers p USING (segment) WHERE segment BETWEEN ? AND ?"
	}
	if s.again != nil && s.again.whole {
		return p.addAll(s.ctx, r, len(wanted), func(_ context.Context, add func(part) error) error {
			for _, x := range s.again.parts {
				if err := add(x); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return p.addAll(s.ctx, r, len(wanted), func(ctx context.Context, add func(part) error) error {
		add = s.again.keep(add)
		s := *s
		s.ctx = ctx
		for len(wanted) > 0 {
			n := 1
			for n < len(wanted) && wanted[n].id-wanted[n-1].id <= gap {
				n++
			}
			run := wanted[:n] // what is wanted of those that are being read
			wanted = wanted[n:]
			err := s.stream(q+" ORDER BY segment", func(v []driver.Value) error {
				id, _ := v[0].(int64)
				for len(run) > 0 && run[0].id < id {
					run = run[1:]
				}
				if len(run) == 0 || run[0].id != id {
					return nil
				}
				x := part{interval: run[0].interval}
				x.actors, _ = v[1].([]byte)
				x.peers, _ = v[2].([]byte)
				return add(x)
			}, run[0].id, run[n-1].id)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// rows adds up raw rows: of hours that are cut, and of windows that no segment holds yet. No column is read that is not needed: there may be
// very many rows, where days begin at half past.
func (s *snapshot) rows(p *plan, c cuts, hours map[int64]bool, r *result) error {
	columns := `w."end", r.conns, r.sent, r.received`
	n := 4
	column := func(wanted bool, text string) int {
		if !wanted {
			return -1
		}
		columns += ", " + text
		n++
		return n - 1
	}
	actor := column(p.needActors(), "r.actor")
	local, port := column(p.needPorts(), "r.local_port"), column(p.needPorts(), "r.remote_port")
	remote, domain := column(p.remote != nil, "coalesce(r.remote, 0)"), column(p.domain != nil, "coalesce(r.domain, 0)")
	v := make([]int64, n)
	at := func(column int) int64 {
		if column < 0 {
			return 0
		}
		return v[column]
	}
	row := func(values []driver.Value) error {
		if !numbers(values, v) {
			return errDamaged
		}
		interval := c.of(v[0] - 1)
		if interval < 0 {
			return nil
		}
		service := int64(0)
		if port >= 0 {
			service = rollup.ServicePort(p.directions[v[actor]], v[local], v[port])
		}
		if g := p.group(at(actor), service, at(remote), at(domain)); g >= 0 {
			r.add(interval, g, Sum{Conns: uint64(v[1]), Sent: uint64(v[2]), Received: uint64(v[3])})
		}
		return nil
	}
	q := "SELECT " + columns + ` FROM windows w JOIN raw r ON r.id >= w.id * 1024 AND r.id < w.id * 1024 + 1024 WHERE w.id BETWEEN ? AND ? AND w."end" > ? AND w."end" <= ?`
	for h := range hours {
		var first, last int64
		err := s.conn.QueryRowContext(s.ctx, "SELECT first, last FROM hours WHERE hour = ?", h).Scan(&first, &last)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.stream(q, row, first, min(last, s.rolled), max(h*schema.HourSeconds, c[0]), min((h+1)*schema.HourSeconds, c[len(c)-1])); err != nil {
			return err
		}
	}
	return s.stream(q, row, s.rolled+1, 1<<52, c[0], c[len(c)-1])
}
