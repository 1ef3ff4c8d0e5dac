package query

import (
	"cmp"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// segment is what a row of segments says.
type segment struct {
	id, bucket int64
	interval   int
	sum        Sum
}

const dayHours = schema.DaySeconds / schema.HourSeconds

// cutHour is an hour that is not within one interval, and what it moved in all.
type cutHour struct {
	hour     int64
	segments []segment
}

// work is what has to be read for some intervals.
type work struct {
	segments []segment // each is within an interval
	hours    []cutHour
	rounded  bool // an hour that is cut has no raw rows any more
}

// scan adds up what passes the plan's filters in the intervals.
func (s *snapshot) scan(p *plan, c cuts, r *result) error {
	w, err := s.work(p, c)
	if err != nil {
		return err
	}
	return s.sum(p, c, w, r)
}

func (s *snapshot) work(p *plan, c cuts) (w work, err error) {
	partial := make(map[int64][]segment) // hours that are cut
	hour := func(g segment) {
		from := g.bucket * schema.HourSeconds
		interval, some := c.whole(from, from+schema.HourSeconds)
		switch {
		case interval >= 0:
		case !some:
			return
		case g.bucket >= s.raw:
			partial[g.bucket] = append(partial[g.bucket], g)
			return
		default:
			w.rounded = true
			if interval = c.of(from + schema.HourSeconds/2); interval < 0 {
				return
			}
		}
		g.interval = interval
		w.segments = append(w.segments, g)
	}
	first, last := c[0], c[len(c)-1]-1
	// Hours that no day holds yet.
	h0, h1 := schema.Bucket(first, schema.HourSeconds), schema.Bucket(last, schema.HourSeconds)
	if err := s.segments(schema.HourSeconds, 0, h0, h1, hour); err != nil {
		return w, err
	}
	// Days where they are enough, and their hours where not.
	d0, d1, err := s.days(schema.Bucket(first, schema.DaySeconds), schema.Bucket(last, schema.DaySeconds))
	if err != nil {
		return w, err
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
				w.segments = append(w.segments, g)
			})
		} else {
			err = s.segments(schema.HourSeconds, 1, max(from*dayHours, h0), min(d*dayHours-1, h1), hour)
		}
		if err != nil {
			return w, err
		}
	}
	for h, g := range partial {
		w.hours = append(w.hours, cutHour{h, g})
	}
	slices.SortFunc(w.hours, func(a, b cutHour) int { return cmp.Compare(a.hour, b.hour) })
	slices.SortFunc(w.segments, func(a, b segment) int { return cmp.Compare(a.id, b.id) })
	return w, nil
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

// Jobs are what one connection reads at a time: so many that all of them have something to do until the end.
const (
	jobSegments = 128
	jobHours    = 4
)

// sum does the work: all connections at once, each on a part of its own.
func (s *snapshot) sum(p *plan, c cuts, w work, r *result) error {
	r.rounded = r.rounded || w.rounded
	var total Sum
	for _, h := range append([]cutHour{{segments: w.segments}}, w.hours...) {
		for _, g := range h.segments {
			total.Add(g.sum)
		}
	}
	// The sums do not reach the greatest number that can be held: what is added may be taken away again.
	exact := max(total.Conns, total.Sent, total.Received) < 1<<62
	if p.by == None && !p.needActors() && !p.needPeers() {
		for _, g := range w.segments {
			r.add(g.interval, 1, g.sum)
		}
		w.segments = nil
	}
	var jobs []func(*snapshot, *adder) error
	for part := range slices.Chunk(w.segments, jobSegments) {
		jobs = append(jobs, func(s *snapshot, d *adder) error { return s.read(part, d) })
	}
	for part := range slices.Chunk(w.hours, jobHours) {
		jobs = append(jobs, func(s *snapshot, d *adder) error {
			for i := range part {
				if err := s.hour(c, &part[i], exact, d); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := s.share(p, jobs, r); err != nil {
		return err
	}
	return s.rows(p, c, r.add, s.rolled+1, 1<<52, c[0], c[len(c)-1])
}

// share has the connections do the jobs.
func (s *snapshot) share(p *plan, jobs []func(*snapshot, *adder) error, r *result) error {
	n := min(1+len(s.more), len(jobs))
	if n < 2 {
		d := adder{p: p, r: r}
		for _, job := range jobs {
			if err := job(s, &d); err != nil {
				return err
			}
		}
		return nil
	}
	all := make([]result, n)
	var taken atomic.Int64
	work, ctx := errgroup.WithContext(s.ctx)
	for i := range all {
		all[i] = r.like()
		one := *s
		one.ctx, one.me = ctx, i
		if i > 0 {
			one.conn = s.more[i-1]
		}
		work.Go(func() error {
			d := adder{p: p, r: &all[i]}
			for {
				k := int(taken.Add(1)) - 1
				if k >= len(jobs) {
					return nil
				}
				if err := jobs[k](&one, &d); err != nil {
					return err
				}
			}
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	for i := range all {
		r.merge(&all[i])
	}
	return nil
}

// gap is how many segments that are not wanted are read rather than beginning anew.
const gap = 4

// read adds up segments, which are in the order of their numbers.
func (s *snapshot) read(wanted []segment, d *adder) error {
	columns, from := "segment, a.data, p.data", "FROM segment_actors a JOIN segment_peers p USING (segment)"
	switch {
	case !d.p.needPeers():
		columns, from = "segment, data, NULL", "FROM segment_actors"
	case !d.p.needActors():
		columns, from = "segment, NULL, data", "FROM segment_peers"
	}
	for len(wanted) > 0 {
		n := 1
		for n < len(wanted) && wanted[n].id-wanted[n-1].id <= gap {
			n++
		}
		run := wanted[:n] // what is wanted of those that are being read
		wanted = wanted[n:]
		err := s.pass(columns, from+" WHERE segment BETWEEN ? AND ? ORDER BY segment", func(v []driver.Value) error {
			id, _ := v[0].(int64)
			if len(run) == 0 || id < run[0].id {
				return nil
			}
			if id > run[0].id {
				return errDamaged // its sums are missing
			}
			interval := run[0].interval
			run = run[1:]
			actors, _ := v[1].([]byte)
			peers, _ := v[2].([]byte)
			return d.add(interval, actors, peers)
		}, run[0].id, run[n-1].id)
		if err != nil {
			return err
		}
		if len(run) > 0 {
			return errDamaged
		}
	}
	return nil
}

// hour adds up an hour that is cut. Where it is cut once, as days are that begin at half past, the longer part of it is what the hour moved
// without the shorter one: half of the raw rows at most are read.
func (s *snapshot) hour(c cuts, h *cutHour, exact bool, d *adder) error {
	var first, last int64
	err := s.conn.QueryRowContext(s.ctx, "SELECT first, last FROM hours WHERE hour = ?", h.hour).Scan(&first, &last)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	last = min(last, s.rolled)
	from, to := h.hour*schema.HourSeconds, (h.hour+1)*schema.HourSeconds
	ends := c.within(from, to)
	if len(ends) != 1 || !exact {
		return s.rows(d.p, c, d.r.add, first, last, max(from, c[0]), min(to, c[len(c)-1]))
	}
	at, short, long := ends[0], c.of(from), c.of(to-1)
	since, until := from, at
	if at-from > to-at {
		short, long = long, short
		since, until = at, to
	}
	if long >= 0 {
		for i := range h.segments {
			h.segments[i].interval = long
		}
		if d.p.by == None && !d.p.needActors() && !d.p.needPeers() {
			for _, g := range h.segments {
				d.r.add(long, 1, g.sum)
			}
		} else if err := s.read(h.segments, d); err != nil {
			return err
		}
	}
	return s.rows(d.p, nil, func(_ int, slot int32, sum Sum) {
		if long >= 0 {
			d.r.take(long, slot, sum)
		}
		if short >= 0 {
			d.r.add(short, slot, sum)
		}
	}, first, last, since, until)
}

// rows calls a function for the raw rows of windows, those of a time only. No column is read that is not needed: there may be very many rows,
// where days begin at half past. Without cuts, the interval is not asked for.
func (s *snapshot) rows(p *plan, c cuts, add func(interval int, slot int32, sum Sum), first, last, since, until int64) error {
	columns := `r.conns, r.sent, r.received`
	n := 3
	column := func(wanted bool, text string) int {
		if !wanted {
			return -1
		}
		columns += ", " + text
		n++
		return n - 1
	}
	end, actor := column(c != nil, `w."end"`), column(p.needActors(), "r.actor")
	local, port := column(p.needPorts(), "r.local_port"), column(p.needPorts(), "r.remote_port")
	remote, domain := column(p.remote != nil, "coalesce(r.remote, 0)"), column(p.domain != nil, "coalesce(r.domain, 0)")
	v := make([]int64, n)
	at := func(column int) int64 {
		if column < 0 {
			return 0
		}
		return v[column]
	}
	return s.pass(columns, `FROM windows w JOIN raw r ON r.id >= w.id * 1024 AND r.id < w.id * 1024 + 1024 WHERE w.id BETWEEN ? AND ? AND w."end" > ? AND w."end" <= ?`, func(values []driver.Value) error {
		if !numbers(values, v) {
			return errDamaged
		}
		interval := 0
		if c != nil {
			if interval = c.of(v[end] - 1); interval < 0 {
				return nil
			}
		}
		service := int64(0)
		if port >= 0 {
			service = rollup.ServicePort(p.directions[v[actor]], v[local], v[port])
		}
		if slot := p.slot(at(actor), service, at(remote), at(domain)); slot != 0 {
			add(interval, slot, Sum{Conns: uint64(v[0]), Sent: uint64(v[1]), Received: uint64(v[2])})
		}
		return nil
	}, first, last, since, until)
}
