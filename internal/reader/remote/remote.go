// Package remote answers the questions of reader/query from an SQL server: from the table that picosnitch makes there, or from one of
// picosnitch 0.11 with its 16 columns. It belongs to everybody's wing: it only reads, in sessions that the server itself holds to that, and
// needs no right but SELECT. The sums are made by the server, so that an answer is small whatever the range. What a server answers was
// written by many hosts: it is bounded, and made printable here.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/reader/query"
	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/sqlserver"
)

// Settings say where the server is. They may hold a password: they are never printed.
type Settings struct {
	Postgres bool              // PostgreSQL; else MariaDB or MySQL
	Native   bool              // localhost without a port is the unix socket of MariaDB or MySQL
	Table    string            // "": connections
	Params   map[string]string // connection parameters, by the names of config.ServerParameters
	Password string            // if Params have none
	PassFile string            // libpq's .pgpass, for PostgreSQL when there is no other; "": none
	Timeout  time.Duration     // how long the server may work on a question; 0: DefaultTimeout
}

// String hides what is in it.
func (s Settings) String() string { return "(hidden)" }

// GoString hides what is in it for %#v.
func (s Settings) GoString() string { return s.String() }

// DefaultTimeout is how long a server may work on a question.
const DefaultTimeout = time.Minute

// Remote is a query.Source on an SQL server. It is not safe for concurrent use.
type Remote struct {
	s       Settings
	options query.Options
	conn    conn
	table   string // quoted
	batches string // the second table, quoted; "": it is not there
	has     map[string]column
	zone    *time.Location // of times that are written without one
}

var _ query.Source = (*Remote)(nil)

// Open connects. zone is that of times which a table has as local ones, as those of picosnitch 0.11 do.
func Open(ctx context.Context, s Settings, zone *time.Location, o query.Options) (*Remote, error) {
	if s.Table == "" {
		s.Table = "connections"
	}
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	r := &Remote{s: s, options: o, zone: zone, has: make(map[string]column)}
	if err := understood(func() error { return r.open(ctx) }); err != nil {
		if r.conn != nil {
			r.conn.close()
		}
		return nil, r.explain(err)
	}
	return r, nil
}

func (r *Remote) open(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, r.s.Timeout)
	defer cancel()
	quote := schema.QuoteMySQL
	if r.s.Postgres {
		quote = schema.QuotePostgres
		r.conn, err = dialPostgres(ctx, r.s)
	} else {
		r.conn, err = dialMySQL(ctx, r.s)
	}
	if err != nil {
		return err
	}
	r.table, r.batches = quote(r.s.Table), quote(schema.BatchesTable(r.s.Table))
	all, err := r.conn.columns(ctx, r.table)
	if err != nil {
		return err
	}
	for _, c := range all {
		r.has[strings.ToLower(c.name)] = c
	}
	for name, other := range schema.RemoteAliases() {
		if c, ok := r.has[other]; ok && r.has[name].name == "" {
			r.has[name] = c
		}
	}
	for _, need := range []string{"exe", "contime", "send", "recv"} {
		if _, ok := r.has[need]; !ok {
			return fmt.Errorf("the table %s has no column %s: it is not one of picosnitch's", r.s.Table, need)
		}
	}
	if _, err := r.conn.columns(ctx, r.batches); r.conn.missing(err) {
		r.batches = "" // a table of picosnitch 0.11
	} else if err != nil {
		return err
	}
	return r.conn.limit(ctx, r.s.Timeout)
}

// Close implements query.Source.
func (r *Remote) Close() error {
	r.conn.close()
	return nil
}

// explain makes an error printable, keeps passwords out of it, and says what to do. It is still found by errors.Is.
func (r *Remote) explain(err error) error {
	if err == nil || errors.Is(err, query.ErrQuestion) || errors.Is(err, context.Canceled) {
		return err
	}
	params := map[string]string{"password": r.s.Password}
	text := clean([]byte(sqlserver.Hide(sqlserver.Hide(oneLine(err.Error()), r.s.Params), params)))
	hint := ""
	for _, h := range [][2]string{
		{"Error 1045", "look at the password: MYSQL_PWD"},
		{"28P01", "look at the password: PGPASSWORD, or ~/.pgpass"},
		{"28000", "look at the account, and at the server's pg_hba.conf"},
		{"57014", "it took too long: use a shorter range, or --timeout"},
		{"max_statement_time", "it took too long: use a shorter range, or --timeout"},
		{"Error 3024", "it took too long: use a shorter range, or --timeout"},
		{"deadline exceeded", "it took too long: use a shorter range, or --timeout"},
		{"42P01", "\"?table=\" names another table"},
		{"Error 1146", "\"?table=\" names another table"},
		{"42501", "grant SELECT on the table"},
		{"Error 1142", "grant SELECT on the table"},
	} {
		if strings.Contains(text, h[0]) {
			hint = ": " + h[1]
			break
		}
	}
	return &told{"the SQL server: " + text + hint, err}
}

type told struct {
	text string
	err  error
}

func (e *told) Error() string { return e.text }
func (e *told) Unwrap() error { return e.err }

// Bounds of an answer, in bytes: ours are far below. Who may write to the table may write what he likes.
const (
	maxText   = 64 << 10 // of one value: the server is asked for no more
	maxAnswer = 64 << 20 // of all values
)

// clean makes a value printable, as what our own recorder wrote is: others may write to the table, too.
func clean(b []byte) string {
	short := len(b) > maxText
	if short {
		b = b[:maxText]
	}
	b = bytes.TrimRight(b, "\x00") // of a column of fixed width
	if !short && utf8.Valid(b) && bytes.IndexFunc(b, func(c rune) bool { return !unicode.IsPrint(c) }) < 0 {
		return string(b)
	}
	var s strings.Builder
	for len(b) > 0 {
		c, n := utf8.DecodeRune(b)
		switch {
		case c == utf8.RuneError && n == 1:
			fmt.Fprintf(&s, `\x%02x`, b[0])
		case unicode.IsPrint(c):
			s.WriteRune(c)
		default:
			fmt.Fprintf(&s, `\u{%x}`, c)
		}
		b = b[n:]
	}
	if short {
		s.WriteString("…")
	}
	return s.String()
}

// amount reads a sum: 0 for what is none, and no more than what a database holds.
func amount(b []byte) uint64 {
	whole, _, _ := bytes.Cut(b, []byte("."))
	n, err := strconv.ParseUint(string(whole), 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt64
	}
	return min(n, math.MaxInt64)
}

func whole(b []byte) int64 {
	n, _, _ := bytes.Cut(b, []byte("."))
	v, _ := strconv.ParseInt(string(n), 10, 64)
	return v
}

func sum(v [][]byte) query.Sum {
	return query.Sum{Conns: amount(v[0]), Sent: amount(v[1]), Received: amount(v[2])}
}

// country is that of an address.
func (r *Remote) country(ip string) string { return r.options.CountryOf(ip) }

func asks(by query.Dimension, where []query.Filter, d query.Dimension) bool {
	return by == d || slices.ContainsFunc(where, func(f query.Filter) bool { return f.By == d })
}

// oneLine makes a line of a text of several: pgconn gives one for each way in which it tried to connect, mostly the same.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.Join(strings.Fields(line), " "); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " ")
}
