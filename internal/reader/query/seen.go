package query

import (
	"context"
	"strings"

	"github.com/picosnitch/picosnitch/internal/schema"
)

// Seen implements Source: first by days, then by the hours of the two days, then by the seconds of the two hours.
func (l *Local) Seen(ctx context.Context, where []Filter) (seen Seen, err error) {
	err = l.lookTogether(ctx, func(s *snapshot) error {
		var r Range
		if err := s.bound(&r); err != nil || r.Since >= r.Until {
			return err
		}
		p, err := s.plan(None, where)
		if err != nil {
			return err
		}
		first, last, err := s.between(p, r.Since, r.Until, schema.DaySeconds, &seen)
		if err != nil || first < 0 {
			return err
		}
		edge := func(at int64, pick func(first, last int64) int64) (int64, error) {
			for _, step := range []int64{schema.HourSeconds, 1} {
				length := int64(schema.DaySeconds)
				if step == 1 {
					length = schema.HourSeconds
				}
				a, b, err := s.between(p, at, at+length, step, &seen)
				if err != nil || a < 0 {
					return at, err
				}
				at = pick(a, b)
			}
			return at, nil
		}
		if seen.First, err = edge(first, func(a, _ int64) int64 { return a }); err != nil {
			return err
		}
		seen.Last, err = edge(last, func(_, b int64) int64 { return b })
		return err
	})
	return seen, err
}

// between returns the first and the last interval in which something passes, of those of a length from a time to another; -1: none.
func (s *snapshot) between(p *plan, since, until, step int64, seen *Seen) (first, last int64, err error) {
	var c cuts
	for t := schema.Bucket(since, step) * step; t < until; t += step {
		c = append(c, t)
	}
	c = append(c, c[len(c)-1]+step)
	r := result{intervals: len(c) - 1, width: 2}
	if err := s.scan(p, c, &r); err != nil {
		return 0, 0, err
	}
	seen.Rounded = seen.Rounded || r.rounded
	first, last = -1, -1
	for i := range len(c) - 1 {
		if r.interval(i)[1] != (Sum{}) {
			last = c[i]
			if first < 0 {
				first = c[i]
			}
		}
	}
	return first, last, nil
}

// Search implements Source. Names of hosts are found in both notations.
func (l *Local) Search(ctx context.Context, text string, limit int) (found []Found, err error) {
	if limit <= 0 || limit > MaxRows {
		limit = MaxRows
	}
	like := func(s string) string {
		return "%" + strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(s) + "%"
	}
	err = l.look(ctx, func(s *snapshot) error {
		for _, q := range []struct {
			by   Dimension
			text string
		}{
			{Exe, "SELECT DISTINCT e.path FROM programs p JOIN executables e ON e.id = p.executable WHERE e.path LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Name, "SELECT DISTINCT name FROM programs WHERE name LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Cmdline, "SELECT DISTINCT cmdline FROM programs WHERE cmdline LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Script, "SELECT DISTINCT e.path FROM programs p JOIN executables e ON e.id = p.script WHERE e.path LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Parent, "SELECT DISTINCT e.path FROM programs p JOIN programs q ON q.id = p.parent JOIN executables e ON e.id = q.executable WHERE e.path LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{SHA256, "SELECT DISTINCT sha256 FROM executables WHERE sha256 LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Place, "SELECT DISTINCT x FROM (SELECT " + actorText(Place) + " AS x FROM places c) WHERE x LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Domain, "SELECT DISTINCT name FROM domains WHERE name LIKE ?1 ESCAPE '\\' OR name LIKE ?2 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
			{Address, "SELECT ip FROM addresses WHERE ip LIKE ?1 ESCAPE '\\' ORDER BY 1 LIMIT ?3"},
		} {
			err := s.every(q.text, func(scan func(...any) error) error {
				f := Found{By: q.by}
				err := scan(&f.Value)
				found = append(found, f)
				return err
			}, like(text), like(Reverse(text)), limit)
			if err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// Lost implements Source. Without a range it is everything that was ever lost, also what is deleted since.
func (l *Local) Lost(ctx context.Context, r Range) (lost Lost, err error) {
	lost.Reasons = make(map[string]uint64)
	err = l.look(ctx, func(s *snapshot) error {
		add := func(scan func(...any) error) error {
			var reason string
			var n uint64
			if err := scan(&reason, &n); err != nil {
				return err
			}
			switch reason {
			case schema.LostSent:
				lost.Sent += n
			case schema.LostReceived:
				lost.Received += n
			default:
				lost.Reasons[reason] += n
			}
			return nil
		}
		if r == (Range{}) {
			return s.every("SELECT reason, sum(count) FROM totals GROUP BY reason", add)
		}
		var first, last int64
		err := s.conn.QueryRowContext(s.ctx, "SELECT coalesce(min(first), 0), coalesce(max(last), -1) FROM hours WHERE hour BETWEEN ? AND ?",
			schema.Bucket(r.Since, schema.HourSeconds), schema.Bucket(r.End()-1, schema.HourSeconds)).Scan(&first, &last)
		if err != nil {
			return err
		}
		err = s.every(`SELECT reason, sum(count) FROM windows w JOIN losses l ON l.window = w.id WHERE w.id BETWEEN ? AND ? AND "end" > ? AND "end" <= ? GROUP BY reason`, add, first, last, r.Since, r.End())
		if err != nil {
			return err
		}
		return s.conn.QueryRowContext(s.ctx, `SELECT coalesce(sum(unattributed_sent), 0), coalesce(sum(unattributed_received), 0) FROM windows WHERE id BETWEEN ? AND ? AND "end" > ? AND "end" <= ?`, first, last, r.Since, r.End()).Scan(&lost.Sent, &lost.Received)
	})
	return lost, err
}
