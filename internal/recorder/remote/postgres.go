package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/sqlserver"
)

// postgres is a connection to PostgreSQL, or to what speaks its protocol.
type postgres struct {
	conn   *pgconn.PgConn
	table  string // quoted, with its schema
	second string // the table of batches, likewise
	plan   *plan
	insert bool // COPY is refused here
}

const postgresTime = "2006-01-02 15:04:05+00"

// dialPostgres connects and makes sure of the tables.
func dialPostgres(ctx context.Context, o Settings, zone *time.Location) (server, error) {
	p, err := connectPostgres(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := p.prepare(ctx, o.table(), zone); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func connectPostgres(ctx context.Context, o Settings) (*postgres, error) {
	c, err := sqlserver.Postgres(o.Params, nil)
	if err != nil {
		return nil, err
	}
	c.DialFunc = sqlserver.Bounded(sqlserver.MaxUnasked)
	conn, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	return &postgres{conn: conn}, nil
}

// exec runs a statement of which no rows are expected.
func (p *postgres) exec(ctx context.Context, q string, args ...string) error {
	_, err := p.rows(ctx, q, 0, args...)
	return err
}

// rows runs a statement whose answer has width columns. Whoever answers need not be the server that was meant: another answer is an error,
// and so is one that is too large; the connection is closed then.
func (p *postgres) rows(ctx context.Context, q string, width int, args ...string) (rows [][][]byte, err error) {
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	r := p.conn.ExecParams(ctx, q, params, nil, nil, nil)
	size := 0
	for r.NextRow() {
		var row [][]byte
		for _, v := range r.Values() {
			row = append(row, bytes.Clone(v))
			size += len(v)
		}
		rows = append(rows, row)
		switch {
		case len(row) != width:
			err = &answerError{fmt.Sprintf("%d columns instead of %d", len(row), width)}
		case size > maxAnswerBytes || len(rows) > maxAnswerRows:
			err = &answerError{"much more than was asked for"}
		}
		if err != nil {
			p.close() // what is still to come is not waited for
			r.Close()
			return nil, err
		}
	}
	_, err = r.Close()
	return rows, err
}

// prepare finds the tables, or makes them, and plans the rows.
func (p *postgres) prepare(ctx context.Context, name string, zone *time.Location) error {
	rows, err := p.rows(ctx, "SELECT current_setting('server_encoding'), s FROM unnest(current_schemas(false)) s", 2)
	if err != nil {
		return err
	}
	set := charsetAll
	var path []string
	for _, r := range rows {
		path = append(path, string(r[1]))
		if e := string(r[0]); e != "UTF8" && e != "SQL_ASCII" {
			set = charsetASCII
		}
	}
	for round := range 2 {
		there, where, err := p.columns(ctx, name, path, set)
		if err != nil {
			return err
		}
		batches, second, err := p.columns(ctx, schema.BatchesTable(name), path, set)
		if err != nil {
			return err
		}
		if len(there) > 0 && len(batches) > 0 {
			p.table, p.second = where, second
			if p.plan, err = newPlan(name, there, zone); err != nil {
				return err
			}
			return checkBatches(name, batches)
		}
		if round > 0 {
			return &schemaError{fmt.Sprintf("the tables %s and %s are not to be seen", name, schema.BatchesTable(name))}
		}
		statements := schema.PostgresRemote(name)
		if len(there) > 0 {
			statements = statements[:1] // the owner's own table: only ours beside it
		}
		for _, q := range statements {
			if err := p.exec(ctx, q); err != nil && !alreadyThere(err) {
				return &createError{q, err}
			}
		}
	}
	return nil
}

// alreadyThere: two recorders made it at the same moment.
func alreadyThere(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && slices.Contains([]string{"42P07", "23505", "42710"}, e.Code)
}

// columns are those of a table: of its schema, or of the first schema of the path that has it.
func (p *postgres) columns(ctx context.Context, name string, path []string, set charset) ([]found, string, error) {
	name = strings.ToLower(name)
	if s, rest, ok := strings.Cut(name, "."); ok {
		path, name = []string{s}, rest
	}
	for _, s := range path {
		rows, err := p.rows(ctx, "SELECT column_name, data_type, coalesce(character_maximum_length, 0) FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position", 3, s, name)
		if err != nil {
			return nil, "", err
		}
		var all []found
		for _, r := range rows {
			c := found{name: string(r[0]), charset: set}
			c.chars, _ = strconv.Atoi(string(r[2]))
			switch string(r[1]) {
			case "text", "character varying", "character", "name":
				c.kind = columnText
			case "smallint":
				c.kind, c.max = columnNumber, math.MaxInt16
			case "integer":
				c.kind, c.max = columnNumber, math.MaxInt32
			case "bigint":
				c.kind, c.max = columnNumber, math.MaxInt64
			case "numeric", "double precision", "real":
				c.kind = columnNumber
			case "timestamp with time zone":
				c.kind = columnInstant
			case "timestamp without time zone":
				c.kind = columnClock
			default:
				c.kind = columnOther
			}
			all = append(all, c)
		}
		if len(all) > 0 {
			return all, quoteAsIs(s) + "." + quoteAsIs(name), nil
		}
	}
	return nil, "", nil
}

func quoteAsIs(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func checkBatches(name string, there []found) error {
	for _, want := range schema.RemoteBatches() {
		if !slices.ContainsFunc(there, func(c found) bool { return strings.EqualFold(c.name, want.Name) }) {
			return &schemaError{fmt.Sprintf("the table %s has no column %s", schema.BatchesTable(name), want.Name)}
		}
	}
	return nil
}

func (p *postgres) last(ctx context.Context, chain string) (uint64, error) {
	rows, err := p.rows(ctx, "SELECT coalesce(max(last_frame), 0) FROM "+p.second+" WHERE chain = $1", 1, chain)
	if err != nil {
		return 0, err
	}
	if len(rows) != 1 {
		return 0, &answerError{fmt.Sprintf("%d rows instead of 1", len(rows))}
	}
	return strconv.ParseUint(string(rows[0][0]), 10, 64)
}

// send delivers in one transaction. The row of the batch goes first: another transaction with the same one makes this one wait,
// and fail when it commits.
func (p *postgres) send(ctx context.Context, d *delivery) error {
	err := p.try(ctx, d)
	var e *pgconn.PgError
	if errors.As(err, &e) && !p.insert && (e.Code == "0A000" || e.Code == "42501" || e.Code == "42601") {
		// COPY needs more rights than INSERT on some servers, and does not know row level security.
		p.insert = true
		again := p.try(ctx, d)
		if again != nil {
			p.insert = false
			return err
		}
		return nil
	}
	return err
}

func (p *postgres) try(ctx context.Context, d *delivery) (err error) {
	if err := p.exec(ctx, "BEGIN"); err != nil {
		return err
	}
	defer func() {
		if err != nil && !p.conn.IsClosed() {
			back := p.exec(ctx, "ROLLBACK")
			if back != nil {
				p.close()
			}
		}
	}()
	s := summarize(d)
	values := s.values(d, postgresTime)
	if err := p.exec(ctx, "INSERT INTO "+p.second+" ("+batchColumns(quoteAsIs)+") VALUES ("+placeholders(0, len(values))+")", values...); err != nil {
		var e *pgconn.PgError
		if errors.As(err, &e) && e.Code == "23505" {
			return errThere
		}
		return err
	}
	if s.records > 0 {
		if p.insert {
			err = p.insertRows(ctx, d)
		} else {
			_, err = p.conn.CopyFrom(ctx, &copyReader{plan: p.plan, d: d}, "COPY "+p.table+" ("+p.columnList()+") FROM STDIN")
		}
		if err != nil {
			return err
		}
	}
	return p.exec(ctx, "COMMIT")
}

func (p *postgres) columnList() string {
	names := p.plan.names()
	for i, n := range names {
		names[i] = quoteAsIs(n)
	}
	return strings.Join(names, ", ")
}

func placeholders(from, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(from + i + 1))
	}
	return b.String()
}

// insertRows is COPY's slower way: rows of several at once.
func (p *postgres) insertRows(ctx context.Context, d *delivery) error {
	const most = 200
	width := len(p.plan.columns)
	var params [][]byte
	flush := func() error {
		if len(params) == 0 {
			return nil
		}
		var q strings.Builder
		q.WriteString("INSERT INTO " + p.table + " (" + p.columnList() + ") VALUES ")
		for i := 0; i < len(params); i += width {
			if i > 0 {
				q.WriteByte(',')
			}
			q.WriteString("(" + placeholders(i, width) + ")")
		}
		_, err := p.conn.ExecParams(ctx, q.String(), params, nil, nil, nil).Close() // rows, if there were any, are passed over
		params = params[:0]
		return err
	}
	for _, w := range d.windows {
		for i := range w.Records {
			r := &w.Records[i]
			for part := range p.plan.rows(w, r) {
				for c := range p.plan.columns {
					v, null := p.plan.value([]byte{}, c, w, r, part)
					if null {
						v = nil
					}
					params = append(params, v)
				}
				if len(params) >= most*width {
					if err := flush(); err != nil {
						return err
					}
				}
			}
		}
	}
	return flush()
}

func (p *postgres) cut() map[string]uint64 { return p.plan.cut }

func (p *postgres) warning() (text, hint string) { return "", "" }

func (p *postgres) alive() bool { return !p.conn.IsClosed() }

func (p *postgres) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = p.conn.Close(ctx) // it is given up in any case
}

// copyReader gives a delivery in COPY's text format, row by row.
type copyReader struct {
	plan    *plan
	d       *delivery
	window  int
	record  int
	part    uint64
	buffer  []byte
	given   int
	scratch []byte
}

// Read implements io.Reader.
func (c *copyReader) Read(b []byte) (int, error) {
	if c.given == len(c.buffer) {
		c.buffer, c.given = c.buffer[:0], 0
		for len(c.buffer) < 60<<10 && c.row() {
		}
		if len(c.buffer) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(b, c.buffer[c.given:])
	c.given += n
	return n, nil
}

// row appends the next row to the buffer.
func (c *copyReader) row() bool {
	for c.window < len(c.d.windows) && c.record >= len(c.d.windows[c.window].Records) {
		c.window, c.record = c.window+1, 0
	}
	if c.window >= len(c.d.windows) {
		return false
	}
	w := c.d.windows[c.window]
	r := &w.Records[c.record]
	for i := range c.plan.columns {
		if i > 0 {
			c.buffer = append(c.buffer, '\t')
		}
		var null bool
		c.scratch, null = c.plan.value(c.scratch[:0], i, w, r, c.part)
		if null {
			c.buffer = append(c.buffer, `\N`...)
			continue
		}
		c.buffer = appendCopied(c.buffer, c.scratch)
	}
	c.buffer = append(c.buffer, '\n')
	if c.part++; c.part >= c.plan.rows(w, r) {
		c.part, c.record = 0, c.record+1
	}
	return true
}

// appendCopied appends a value as COPY's text format has it. Most have nothing to escape.
func appendCopied(b, value []byte) []byte {
	clean := 0
	for i, v := range value {
		if v > '\r' && v != '\\' {
			continue
		}
		switch v {
		case '\\', '\n', '\r', '\t':
			b = append(b, value[clean:i]...)
			b = append(b, '\\', escaped(v))
			clean = i + 1
		case 0: // a text of PostgreSQL cannot hold it; ours are escaped where they enter
			b = append(b, value[clean:i]...)
			b = append(b, `\\x00`...)
			clean = i + 1
		}
	}
	return append(b, value[clean:]...)
}

func escaped(c byte) byte {
	switch c {
	case '\n':
		return 'n'
	case '\r':
		return 'r'
	case '\t':
		return 't'
	}
	return c
}

// postgresClass sorts an error of the server's.
func postgresClass(err error) (class string, ok bool) {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return "", false
	}
	switch {
	case strings.HasPrefix(e.Code, "28"):
		return classLogin, true
	case e.Code == "42501":
		return classRights, true
	case e.Code == "3D000", strings.HasPrefix(e.Code, "42"), e.Code == "3F000", e.Code == "23502":
		return classSchema, true
	}
	return e.Code, true
}
