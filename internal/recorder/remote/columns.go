package remote

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/schema"
)

// found is a column as the server's catalogue describes it.
type found struct {
	name     string
	kind     columnKind
	max      int64 // of columnNumber: the greatest value
	unsigned bool  // of columnNumber
	chars    int   // of columnText: how many characters fit; 0: all of ours
	charset  charset
}

type columnKind int

const (
	columnText    columnKind = iota
	columnNumber             // whole numbers
	columnInstant            // a time with its zone
	columnClock              // a date and time without a zone
	columnUTC                // likewise, which the server takes as UTC
	columnOther              // whatever else: a text, or NULL where there is none
)

// charset is what a text column can hold.
type charset int

const (
	charsetAll   charset = iota
	charsetBasic         // up to U+FFFF: MySQL's utf8mb3
	charsetASCII         // anything else: only what every set has
)

// column is a column of the server's table with the field that goes into it.
type column struct {
	found
	field store.Field
	zone  *time.Location // of a time that is written without one
	unix  bool           // a time goes into a number
	split bool           // a number that does not fit makes more than one row

	// The time that was written last: the rows of a window share it.
	at   int64
	text string
}

// plan is how a record becomes a row of the table that is there.
type plan struct {
	columns []column
	counted []int // the columns of numbers that are split when they do not fit
	wide    bool  // the table has a column for the host: it is one of ours
	cut     map[string]uint64
}

// schemaError says that a table is not as it must be.
type schemaError struct{ text string }

func (e *schemaError) Error() string { return e.text }

// newPlan matches the columns of a table with what we know. The mission's must be there; others are filled when they are.
func newPlan(table string, there []found, zone *time.Location) (*plan, error) {
	fields := make(map[string]store.Field)
	for _, f := range store.Fields() {
		fields[f.Name] = f
	}
	p := &plan{cut: make(map[string]uint64)}
	has := make(map[string]bool)
	for _, c := range there {
		has[strings.ToLower(c.name)] = true
	}
	p.wide = has["host"]
	ours := make(map[string]string) // by the names that picosnitch 1 had
	for name, other := range schema.RemoteAliases() {
		ours[other] = name
	}
	for _, c := range there {
		name := strings.ToLower(c.name)
		if other, ok := ours[name]; ok && !has[other] {
			name = other
		}
		f, ok := fields[name]
		if !ok {
			continue // the owner's own, with a default
		}
		has[name] = true
		col := column{found: c, field: f, zone: zone}
		if f.Kind == store.TimeField {
			col.unix = c.kind == columnNumber
			if c.kind == columnInstant || c.kind == columnUTC || c.kind == columnClock && p.wide {
				col.zone = time.UTC
			}
		}
		if name == "conns" || name == "send" || name == "recv" {
			p.counted, col.split = append(p.counted, len(p.columns)), true
		}
		p.columns = append(p.columns, col)
	}
	var missing []string
	for _, f := range store.Fields()[:store.MissionFields] {
		if !has[f.Name] && (f.Name != "conns" || !has["rport"]) { // picosnitch 1 had no conns
			missing = append(missing, f.Name)
		}
	}
	if len(missing) > 0 {
		return nil, &schemaError{fmt.Sprintf("the table %s has no column %s", table, strings.Join(missing, ", "))}
	}
	return p, nil
}

// names are the columns in the order of a row.
func (p *plan) names() []string {
	names := make([]string, len(p.columns))
	for i := range p.columns {
		names[i] = p.columns[i].name
	}
	return names
}

// rows is how many rows a record needs: more than one where a count does not fit into its column, so that the sum is right.
func (p *plan) rows(w *flow.Window, r *flow.Record) uint64 {
	n := uint64(1)
	for _, i := range p.counted {
		c := &p.columns[i]
		if c.kind == columnNumber && c.max > 0 {
			v := c.field.Number(w, r)
			n = max(n, uint64(v/c.max)+min(uint64(v%c.max), 1))
		}
	}
	return n
}

// value appends column i of row part of a record; null is true where it has none.
func (p *plan) value(b []byte, i int, w *flow.Window, r *flow.Record, part uint64) (_ []byte, null bool) {
	c := &p.columns[i]
	switch c.field.Kind {
	case store.TextField:
		return p.text(b, c, c.field.Text(w, r))
	case store.TimeField:
		at := c.field.Number(w, r)
		switch {
		case c.unix:
			return strconv.AppendInt(b, at, 10), false
		case c.text != "" && c.at == at:
		case c.kind == columnInstant:
			c.at, c.text = at, time.Unix(at, 0).UTC().Format(postgresTime)
		default:
			c.at, c.text = at, time.Unix(at, 0).In(c.zone).Format(time.DateTime)
		}
		return append(b, c.text...), false
	default:
		v := c.field.Number(w, r)
		if c.kind != columnNumber || c.max == 0 {
			return strconv.AppendInt(b, v, 10), false
		}
		if c.split {
			if part > uint64(v/c.max) { // another column needs more rows, and part times max need not be a number
				return append(b, '0'), false
			}
			return strconv.AppendInt(b, min(v-int64(part)*c.max, c.max), 10), false
		}
		switch {
		case v > c.max && !c.unsigned: // 4294967294 in 32 bits with a sign is -2
			v -= 2*c.max + 2
		case v < 0 && c.unsigned: // and -1 without one is the greatest number
			v += c.max + 1
		}
		return strconv.AppendInt(b, v, 10), false
	}
}

func (p *plan) text(b []byte, c *column, s string) ([]byte, bool) {
	if s == "" && c.kind == columnOther {
		return b, true
	}
	start := len(b)
	if c.charset == charsetAll {
		b = append(b, s...)
	} else {
		limit := rune(0xffff)
		if c.charset == charsetASCII {
			limit = 0x7f
		}
		for _, r := range s {
			if r > limit {
				b = fmt.Appendf(b, `\u{%x}`, r) // as event.Text does
			} else {
				b = utf8.AppendRune(b, r)
			}
		}
	}
	if c.chars > 0 && len(b)-start > c.chars && utf8.RuneCount(b[start:]) > c.chars {
		n := start
		for range c.chars {
			_, size := utf8.DecodeRune(b[n:])
			n += size
		}
		b = b[:n]
		p.cut[c.name]++
	}
	return b, false
}

// summary is what stands in the table of batches.
type summary struct {
	host                     string
	begins, ends             int64 // unix seconds
	records, sent, received  uint64
	missingSent, missingRecv uint64
	dropped                  uint64
	losses                   string
}

func summarize(d *delivery) summary {
	s := summary{begins: math.MaxInt64, dropped: d.dropped}
	losses := make(map[string]uint64)
	for _, w := range d.windows {
		s.host = w.Hello.Host
		s.begins, s.ends = min(s.begins, w.Start), max(s.ends, w.End)
		s.records += uint64(len(w.Records))
		for i := range w.Records {
			s.sent += w.Records[i].Sent
			s.received += w.Records[i].Received
		}
		s.missingSent += w.Unattributed.Sent
		s.missingRecv += w.Unattributed.Received
		for k, n := range w.Losses {
			losses[k] += n
		}
	}
	if len(d.windows) == 0 {
		s.begins = 0
	}
	const most = 1 << 10 // bytes
	for _, k := range sorted(losses) {
		if len(s.losses) < most {
			s.losses += fmt.Sprintf("%s=%d ", k, losses[k])
		}
	}
	s.losses = strings.TrimSpace(s.losses)
	return s
}

// values are those of schema.RemoteBatches, with times as layout says.
func (s *summary) values(d *delivery, layout string) []string {
	at := func(n int64) string { return time.Unix(max(n, 0), 0).UTC().Format(layout) }
	number := func(n uint64) string { return strconv.FormatUint(min(n, math.MaxInt64), 10) }
	return []string{
		d.chain, number(d.first), number(d.last), s.host, at(s.begins), at(s.ends),
		number(s.records), number(s.sent), number(s.received), number(s.missingSent), number(s.missingRecv), number(s.dropped), s.losses,
	}
}
