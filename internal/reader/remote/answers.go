package remote

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/reader/query"
)

// maxGroups bounds what is added up here rather than by the server: questions about countries.
const maxGroups = 1 << 20

// ask gives a question its time.
func (r *Remote) ask(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.s.Timeout)
	defer cancel()
	return r.explain(understood(func() error { return f(ctx) }))
}

// understood makes an error of a panic: the library for MariaDB and MySQL looks for the parts of a packet without asking whether they are there.
func understood(f func() error) (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("its answer is none to what was asked: %v", x)
		}
	}()
	return f()
}

// each asks, and looks at the shape of the answer before anybody takes it apart: rows of width columns, and most of them; 0: as many as there are.
func (r *Remote) each(ctx context.Context, text string, args []string, width, most int, row func([][]byte) error) error {
	n := 0
	return r.conn.each(ctx, text, args, func(v [][]byte) error {
		if len(v) != width {
			return fmt.Errorf("its answer is none to what was asked: %d columns instead of %d", len(v), width)
		}
		if n++; most > 0 && n > most {
			return fmt.Errorf("its answer is none to what was asked: more than %d rows", most)
		}
		return row(v)
	})
}

// Totals implements query.Source. The server adds up, counts and sorts in one statement, so that all of an answer is of one moment.
func (r *Remote) Totals(ctx context.Context, q query.Question) (a query.Answer, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		a, err = r.totals(ctx, q, clean)
		return err
	})
	return a, err
}

func bound(n, most int) int {
	if n <= 0 || n > most {
		return most
	}
	return n
}

func (r *Remote) totals(ctx context.Context, q query.Question, as func([]byte) string) (a query.Answer, err error) {
	if q.Range.Since >= q.Range.End() {
		return a, fmt.Errorf("%w: the range ends before it begins", query.ErrQuestion)
	}
	limit := bound(q.Limit, query.MaxRows)
	if asks(q.By, q.Where, query.Country) {
		return r.countries(ctx, q, limit)
	}
	s := &statement{r: r}
	value, err := r.value(q.By)
	if err != nil {
		return a, err
	}
	where, err := s.where(q.Where, q.Range)
	if err != nil {
		return a, err
	}
	order := map[query.Order]string{query.ByBytes: "sent + received", query.BySent: "sent", query.ByReceived: "received", query.ByConns: "conns"}[q.Order]
	text := "WITH g AS (SELECT v, " + r.sums() + " FROM (SELECT " + short(value) + " AS v, " + r.moved() + " FROM " + r.table + " WHERE " + where + ") AS x GROUP BY v), " +
		"h AS (SELECT v, conns, sent, received FROM g WHERE conns <> 0 OR sent <> 0 OR received <> 0) " +
		"SELECT '' AS v, sum(conns) AS conns, sum(sent) AS sent, sum(received) AS received, count(*) AS n FROM h UNION ALL " +
		"SELECT v, conns, sent, received, -1 FROM (SELECT v, conns, sent, received FROM h ORDER BY " + order + " DESC, v LIMIT " + strconv.Itoa(limit) + ") AS y"
	size := 0
	err = r.each(ctx, text, s.args, 5, limit+1, func(v [][]byte) error {
		if n := whole(v[4]); n >= 0 {
			a.Values, a.Total = int(n), sum(v[1:])
			return nil
		}
		if size += len(v[0]); size > maxAnswer {
			return fmt.Errorf("%w: the values are longer than %d MB together: use --limit", query.ErrQuestion, maxAnswer>>20)
		}
		a.Rows = append(a.Rows, query.Row{Value: as(v[0]), Sum: sum(v[1:])})
		return nil
	})
	finish(&a, q.Order)
	return a, err
}

// finish sorts the rows, and gives the others what they do not have.
func finish(a *query.Answer, o query.Order) {
	slices.SortFunc(a.Rows, func(x, y query.Row) int {
		return cmp.Or(cmp.Compare(o.Of(y.Sum), o.Of(x.Sum)), cmp.Compare(x.Value, y.Value))
	})
	a.Others = a.Total
	for _, row := range a.Rows {
		a.Others.Conns -= min(a.Others.Conns, row.Sum.Conns)
		a.Others.Sent -= min(a.Others.Sent, row.Sum.Sent)
		a.Others.Received -= min(a.Others.Received, row.Sum.Received)
	}
}

// moved are what a row moved, by the names that the statements have for them. A number below zero is none of ours.
func (r *Remote) moved() string {
	n := func(name string) string { return "greatest(" + r.number(name) + ", 0) AS " }
	return n("conns") + "conns, " + n("send") + "sent, " + n("recv") + "received"
}

func (r *Remote) sums() string {
	return "sum(conns) AS conns, sum(sent) AS sent, sum(received) AS received"
}

// countries answers what a server cannot: it sums up by address, and the rest is done here.
func (r *Remote) countries(ctx context.Context, q query.Question, limit int) (a query.Answer, err error) {
	groups := make(map[string]query.Sum)
	size := 0
	err = r.byAddress(ctx, q.By, q.Where, q.Range, "0", func(_ []byte, value string, s query.Sum) error {
		if s == (query.Sum{}) {
			return nil
		}
		g, ok := groups[value]
		if !ok && len(groups) >= maxGroups {
			return fmt.Errorf("%w: there are more than %d values: use a shorter range, or --where", query.ErrQuestion, maxGroups)
		}
		if !ok {
			if size += len(value); size > maxAnswer {
				return fmt.Errorf("%w: the values are longer than %d MB together: use a shorter range, or --where", query.ErrQuestion, maxAnswer>>20)
			}
		}
		g.Add(s)
		groups[value] = g
		a.Total.Add(s)
		return nil
	})
	for value, s := range groups {
		a.Rows = append(a.Rows, query.Row{Value: value, Sum: s})
	}
	finish(&a, q.Order)
	a.Values, a.Rows = len(a.Rows), a.Rows[:min(limit, len(a.Rows))]
	finish(&a, q.Order)
	return a, err
}

// byAddress gives the sums by time (an expression), dimension and address, of those in the countries that are asked for.
func (r *Remote) byAddress(ctx context.Context, by query.Dimension, where []query.Filter, rng query.Range, bucket string, each func(bucket []byte, value string, s query.Sum) error) error {
	if r.options.Country == nil {
		return fmt.Errorf("%w: the countries of addresses are not known here", query.ErrQuestion)
	}
	s := &statement{r: r}
	value, err := r.value(by)
	if err != nil {
		return err
	}
	address, err := r.value(query.Address)
	if err != nil {
		return err
	}
	condition, err := s.where(where, rng)
	if err != nil {
		return err
	}
	text := "SELECT b, v, ip, " + r.sums() + " FROM (SELECT " + bucket + " AS b, " + short(value) + " AS v, " + address + " AS ip, " + r.moved() + " FROM " + r.table + " WHERE " + condition + ") AS x GROUP BY b, v, ip"
	return r.each(ctx, text, s.args, 6, 0, func(v [][]byte) error {
		country := r.country(string(v[2]))
		for i := range where {
			if where[i].By == query.Country && !where[i].Matches(country) {
				return nil
			}
		}
		value := country
		if by != query.Country {
			value = clean(v[1])
		}
		return each(v[0], value, sum(v[3:]))
	})
}

// maxSeries bounds the series of a time line.
const maxSeries = 100

// Timeline implements query.Source.
func (r *Remote) Timeline(ctx context.Context, q query.Question, step query.Step, zone *time.Location) (t query.Timeline, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		t, err = r.timeline(ctx, q, step, zone)
		return err
	})
	return t, err
}

func (r *Remote) timeline(ctx context.Context, q query.Question, step query.Step, zone *time.Location) (t query.Timeline, err error) {
	if q.Range.Since >= q.Range.End() {
		return t, fmt.Errorf("%w: the range ends before it begins", query.ErrQuestion)
	}
	first, last, err := r.ends(ctx, nil, q.Range)
	if err != nil || last == 0 {
		return t, err
	}
	ends, err := query.Intervals(query.Range{Since: max(q.Range.Since, first-1), Until: min(q.Range.End(), last)}, step, zone)
	if err != nil {
		return t, err
	}
	q.Limit = bound(q.Limit, maxSeries)
	raw := func(b []byte) string { return string(b) }
	top, err := r.totals(ctx, q, raw)
	if err != nil {
		return t, err
	}
	n := len(ends) - 1
	t = query.Timeline{Starts: ends[:n], End: ends[n], Others: make([]query.Sum, n)}
	lines := make(map[string][]query.Sum)
	for _, row := range top.Rows {
		lines[row.Value] = make([]query.Sum, n)
	}
	// The greatest step of which all ends are multiples: what the server groups by.
	grain := int64(0)
	for _, e := range ends {
		grain = divisor(grain, e)
	}
	each := func(bucket []byte, value string, known bool, s query.Sum) error {
		at, ok := r.begin(bucket, grain)
		i, exact := slices.BinarySearch(ends, at)
		if !exact {
			i--
		}
		if !ok || i < 0 || i >= n {
			t.Undated.Add(s)
			return nil
		}
		if line := lines[value]; known && line != nil {
			line[i].Add(s)
		} else {
			t.Others[i].Add(s)
		}
		return nil
	}
	if asks(q.By, q.Where, query.Country) {
		err = r.byAddress(ctx, q.By, q.Where, q.Range, r.bucket(grain), func(bucket []byte, value string, s query.Sum) error {
			return each(bucket, value, true, s)
		})
	} else {
		err = r.series(ctx, q, grain, top.Rows, each)
	}
	for _, row := range top.Rows {
		t.Series = append(t.Series, query.Series{Value: clean([]byte(row.Value)), Sums: lines[row.Value]})
	}
	return t, err
}

// series gives the sums by time and by the values of the rows; known is false for those of all other values.
func (r *Remote) series(ctx context.Context, q query.Question, grain int64, rows []query.Row, each func(bucket []byte, value string, known bool, s query.Sum) error) error {
	s := &statement{r: r}
	value, err := r.value(q.By)
	if err != nil {
		return err
	}
	place := "-1"
	if len(rows) > 0 {
		var b strings.Builder
		for i, row := range rows {
			fmt.Fprintf(&b, " WHEN v = %s THEN %d", s.arg(row.Value), i)
		}
		place = "CASE" + b.String() + " ELSE -1 END"
	}
	where, err := s.where(q.Where, q.Range)
	if err != nil {
		return err
	}
	text := "SELECT b, k, " + r.sums() + " FROM (SELECT b, " + place + " AS k, conns, sent, received FROM (SELECT " + r.bucket(grain) + " AS b, " + short(value) + " AS v, " + r.moved() +
		" FROM " + r.table + " WHERE " + where + ") AS x) AS y GROUP BY b, k"
	return r.each(ctx, text, s.args, 5, 0, func(v [][]byte) error {
		if k := whole(v[1]); k >= 0 && int(k) < len(rows) {
			return each(v[0], rows[k].Value, true, sum(v[2:]))
		}
		return each(v[0], "", false, sum(v[2:]))
	})
}

func divisor(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// ends are the ends of the first and the last window; 0, 0: there is none.
func (r *Remote) ends(ctx context.Context, filters []query.Filter, rng query.Range) (first, last int64, err error) {
	s := &statement{r: r}
	where, err := s.where(filters, rng)
	if err != nil {
		return 0, 0, err
	}
	at := r.quoted("contime")
	if r.has["contime"].kind == kindText { // others may have written what is no time at all
		where += " AND " + at + " LIKE '____-__-__ __:__:__'"
	}
	c := r.has["contime"]
	name := c.name
	text := "SELECT " + strings.ReplaceAll(r.seconds("contime"), at, "min("+at+")") + ", " + strings.ReplaceAll(r.seconds("contime"), at, "max("+at+")") + " FROM " + r.table + " WHERE " + where
	err = r.each(ctx, text, s.args, 2, 1, func(v [][]byte) error {
		if v[0] == nil {
			return nil
		}
		var ok1, ok2 bool
		first, ok1 = r.instant("contime", v[0])
		last, ok2 = r.instant("contime", v[1])
		if !ok1 || !ok2 {
			return fmt.Errorf("%w: there are times in the column %s that are none (%s, %s): use --since and --until", query.ErrQuestion, name, clean(v[0]), clean(v[1]))
		}
		return nil
	})
	return first, last, err
}

// Seen implements query.Source.
func (r *Remote) Seen(ctx context.Context, where []query.Filter) (seen query.Seen, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		if asks(query.None, where, query.Country) {
			return fmt.Errorf("%w: a server does not know the countries of addresses", query.ErrQuestion)
		}
		first, last, err := r.ends(ctx, where, query.Range{})
		if last > 0 {
			seen = query.Seen{First: first - 1, Last: last - 1}
		}
		return err
	})
	return seen, err
}

// Lost implements query.Source: of all hosts that send to the table.
func (r *Remote) Lost(ctx context.Context, rng query.Range) (lost query.Lost, err error) {
	lost.Reasons = make(map[string]uint64)
	if r.batches == "" {
		return lost, nil
	}
	at := func(n int64) string { return time.Unix(n, 0).UTC().Format("'2006-01-02 15:04:05'") }
	if r.s.Postgres {
		at = func(n int64) string { return time.Unix(n, 0).UTC().Format("'2006-01-02 15:04:05+00'") }
	}
	where := "1 = 1"
	if rng.Since > 0 {
		where += " AND ends > " + at(rng.Since)
	}
	if rng.Until > 0 {
		where += " AND ends <= " + at(rng.Until)
	}
	err = r.ask(ctx, func(ctx context.Context) error {
		text := "SELECT losses, count(*), sum(unattributed_sent), sum(unattributed_received), sum(dropped) FROM " + r.batches + " WHERE " + where + " GROUP BY losses"
		return r.each(ctx, text, nil, 5, 0, func(v [][]byte) error {
			lost.Sent, lost.Received = lost.Sent+amount(v[2]), lost.Received+amount(v[3])
			if n := amount(v[4]); n > 0 {
				lost.Reasons[droppedReason] += n
			}
			times := amount(v[1])
			for part := range bytes.FieldsSeq(v[0]) {
				if key, n, ok := bytes.Cut(part, []byte("=")); ok && len(lost.Reasons) < maxReasons {
					lost.Reasons[clean(key)] += times * amount(n)
				}
			}
			return nil
		})
	})
	return lost, err
}

const (
	droppedReason = "spool" // records that did not reach the server
	maxReasons    = 100
)

// Search implements query.Source.
func (r *Remote) Search(ctx context.Context, text string, limit int) (found []query.Found, err error) {
	limit = bound(limit, query.MaxRows)
	size := 0
	err = r.ask(ctx, func(ctx context.Context) error {
		for _, d := range []query.Dimension{query.Exe, query.Name, query.Cmdline, query.Script, query.Parent, query.SHA256, query.Place, query.Domain, query.Address, query.Host} {
			value, err := r.value(d)
			if errors.Is(err, query.ErrQuestion) {
				continue // the table does not have it
			}
			if err != nil {
				return err
			}
			values := []string{text}
			if d == query.Domain {
				values = append(values, query.Reverse(text))
			}
			s := &statement{r: r}
			where, err := s.where([]query.Filter{{By: d, Match: query.Contains, Values: values}}, query.Range{})
			if err != nil {
				return err
			}
			err = r.each(ctx, "SELECT DISTINCT "+short(value)+" AS v FROM "+r.table+" WHERE "+where+" ORDER BY v LIMIT "+strconv.Itoa(limit), s.args, 1, limit, func(v [][]byte) error {
				if size += len(v[0]); size > maxAnswer {
					return fmt.Errorf("%w: the values are longer than %d MB together: search for more of the text", query.ErrQuestion, maxAnswer>>20)
				}
				found = append(found, query.Found{By: d, Value: clean(v[0])})
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// Records implements query.Source: in one statement, the oldest first, as the server sends them.
func (r *Remote) Records(ctx context.Context, where []query.Filter, rng query.Range, each func(*query.Record, float64) error) error {
	if asks(query.None, where, query.Country) && r.options.Country == nil {
		return fmt.Errorf("%w: the countries of addresses are not known here", query.ErrQuestion)
	}
	if rng.Since >= rng.End() {
		return fmt.Errorf("%w: the range ends before it begins", query.ErrQuestion)
	}
	var first, last int64
	err := r.ask(ctx, func(ctx context.Context) (err error) {
		if first, last, err = r.ends(ctx, nil, rng); err != nil {
			return err
		}
		return r.conn.limit(ctx, 0) // it takes as long as somebody reads
	})
	if err != nil {
		return err
	}
	s := &statement{r: r}
	condition, err := s.where(where, rng)
	if err != nil {
		return err
	}
	texts := []string{"host", "exe", "name", "cmdline", "sha256", "script", "pexe", "pname", "pcmdline", "psha256", "family", "protocol", "direction", "local_ip", "domain", "ip"}
	columns := []string{r.seconds("start"), r.seconds("contime"), r.number("conns"), r.number("send"), r.number("recv"), r.number("uid"), r.number("local_port"), r.number("port"), short(r.place())}
	for _, name := range texts {
		columns = append(columns, short(r.text(name)))
	}
	text := "SELECT " + strings.Join(columns, ", ") + " FROM " + r.table + " WHERE " + condition + " ORDER BY " + r.quoted("contime")
	var x query.Record
	to := []*string{&x.Host, &x.Exe, &x.Name, &x.Cmdline, &x.SHA256, &x.Script, &x.ParentExe, &x.ParentName, &x.ParentCmd, &x.ParentSHA256, &x.Family, &x.Protocol, &x.Direction, &x.LocalIP, &x.Domain, &x.RemoteIP}
	err = r.each(ctx, text, s.args, len(columns), 0, func(v [][]byte) error {
		x.Start, _ = r.instant("start", v[0])
		x.End, _ = r.instant("contime", v[1])
		moved := sum(v[2:])
		x.Conns, x.Sent, x.Received = moved.Conns, moved.Sent, moved.Received
		x.UID, x.LocalPort, x.RemotePort = whole(v[5]), whole(v[6]), whole(v[7])
		if x.UID < 0 {
			x.UID += 1 << 32
		}
		x.Place = clean(v[8])
		for i, p := range to {
			*p = clean(v[9+i])
		}
		for i := range where {
			if where[i].By == query.Country && !where[i].Matches(r.country(x.RemoteIP)) {
				return nil
			}
		}
		return each(&x, float64(x.End-first)/float64(max(last-first, 1)))
	})
	return r.explain(err)
}
