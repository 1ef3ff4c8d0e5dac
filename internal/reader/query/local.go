package query

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"

	"github.com/picosnitch/picosnitch/internal/schema"
	"modernc.org/sqlite"
)

// Local is a snitch.db. It is read without any right to write, also while a recorder writes. It answers one question after the other.
type Local struct {
	db      *sql.DB
	options Options
	bounds  bounds
	each    *callbacks
	turn    chan struct{} // holds one value while a question is answered
	disturb func()        // what a test does after the first connection's snapshot; nil: nothing
}

// bounds decide how a question is answered; tests have others.
type bounds struct{ cells, sampled, readers int }

// maxReaders bounds the connections that answer a question together, one for a processor.
const maxReaders = 4

// connector opens connections of a driver of our own: the function of this Local is in no other one's SQL.
type connector struct {
	driver *sqlite.Driver
	dsn    string
}

func (c connector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c connector) Driver() driver.Driver                        { return c.driver }

// eachName is the SQL function that gives its arguments to a callback, after the first one, which is the number of the callback. So nothing is copied
// and nothing is reserved for a row: over a year that is a hundred megabytes of BLOBs, or a million numbers. The driver never frees what is
// registered: it is small, and holds nothing between two questions.
const eachName = "picosnitch_each"

// callbacks are one for a connection.
type callbacks [maxReaders]func([]driver.Value) error

func (c *callbacks) call(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	i, ok := args[0].(int64)
	if !ok || i < 0 || i >= maxReaders || c[i] == nil {
		return nil, errDamaged
	}
	return nil, c[i](args[1:])
}

// ErrVersion is returned for a database that this version cannot read; the text says why.
var ErrVersion = errors.New("the database is of another version")

// OpenLocal opens a snitch.db.
func OpenLocal(ctx context.Context, path string, o Options) (*Local, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: has picosnitch run, and as which user? PICOSNITCH_DIR names another folder: %w", path, fs.ErrNotExist)
	} else if err != nil {
		return nil, err
	}
	v := url.Values{}
	v.Add("mode", "ro")
	v.Add("_pragma", "busy_timeout(5000)")
	v.Add("_pragma", "query_only(1)")
	v.Add("_pragma", "cache_size(-8192)")
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: v.Encode()}
	each := new(callbacks)
	d := new(sqlite.Driver)
	if err := d.RegisterFunction(eachName, &sqlite.FunctionImpl{NArgs: -1, VolatileArgs: true, Scalar: each.call}); err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector{d, u.String()})
	l := &Local{db: db, options: o, each: each, turn: make(chan struct{}, 1), bounds: bounds{maxCells, minSampled, min(maxReaders, runtime.GOMAXPROCS(0))}}
	db.SetMaxOpenConns(maxReaders)
	db.SetMaxIdleConns(maxReaders)
	if err := l.version(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return l, nil
}

func (l *Local) version(ctx context.Context) error {
	var app, version int64
	var tables int
	err := l.db.QueryRowContext(ctx, "SELECT count(*), (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version) FROM sqlite_schema").Scan(&tables, &app, &version)
	if err != nil {
		return err
	}
	kind, err := schema.Classify(app, version, tables)
	switch {
	case err != nil:
		return err
	case kind == schema.Ours:
		return nil
	case kind == schema.Outdated:
		return fmt.Errorf("%w: start picosnitch once, it brings it up to date", ErrVersion)
	case kind == schema.Older:
		return fmt.Errorf("%w: it was written by picosnitch 0.11 or before; start picosnitch once, it takes over what is in it", ErrVersion)
	}
	return fmt.Errorf("%w: it is not a database of picosnitch", ErrVersion)
}

// Close implements Source.
func (l *Local) Close() error { return l.db.Close() }

// snapshot is one state of the database, in which a question is answered.
type snapshot struct {
	ctx  context.Context
	conn *sql.Conn

	more []*sql.Conn // see the same state, for what several can read at once
	each *callbacks
	me   int // the number of conn, 0 for the first one

	rolled  int64 // windows up to this one are in segments
	raw     int64 // hours from this one on have all their raw rows
	options Options
	bounds  bounds
}

// look answers a question within one snapshot. It is short: a reader that stays keeps the writer's log from being cut.
func (l *Local) look(ctx context.Context, f func(*snapshot) error) error {
	return l.lookBy(ctx, 1, f)
}

// lookTogether is look with several connections.
func (l *Local) lookTogether(ctx context.Context, f func(*snapshot) error) error {
	return l.lookBy(ctx, l.bounds.readers, f)
}

func (l *Local) lookBy(ctx context.Context, readers int, f func(*snapshot) error) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var conns []*sql.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range readers {
		c, err := l.db.Conn(ctx)
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	end := func(c *sql.Conn) { c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK") }
	s := &snapshot{ctx: ctx, conn: conns[0], each: l.each, options: l.options, bounds: l.bounds}
	if same, err := s.begin(conns[1:], l.disturb); err != nil {
		return err
	} else if same {
		s.more = conns[1:]
	}
	defer func() {
		end(s.conn)
		for _, c := range s.more {
			end(c)
		}
	}()
	return f(s)
}

// begin takes the snapshot on the first connection, and says whether the others see the same: nothing was written from before the first one's
// snapshot until after theirs, which is what PRAGMA data_version of each of them tells. Where something was, one reader answers alone.
func (s *snapshot) begin(others []*sql.Conn, disturb func()) (same bool, err error) {
	versions := make([]int64, len(others))
	version := func(i int) (v int64, err error) {
		err = others[i].QueryRowContext(s.ctx, "PRAGMA data_version").Scan(&v)
		return v, err
	}
	for i := range others {
		if versions[i], err = version(i); err != nil {
			return false, err
		}
	}
	if _, err := s.conn.ExecContext(s.ctx, "BEGIN"); err != nil {
		return false, err
	}
	fail := func(err error, begun int) (bool, error) {
		for _, c := range others[:begun] {
			c.ExecContext(context.WithoutCancel(s.ctx), "ROLLBACK")
		}
		if err != nil {
			s.conn.ExecContext(context.WithoutCancel(s.ctx), "ROLLBACK")
		}
		return false, err
	}
	err = s.every("SELECT name, value FROM progress", func(scan func(...any) error) error {
		var name string
		var n int64
		if err := scan(&name, &n); err != nil {
			return err
		}
		switch name {
		case schema.ProgressRolled:
			s.rolled = n
		case schema.ProgressRaw:
			s.raw = n
		}
		return nil
	})
	if err != nil {
		return fail(err, 0)
	}
	if disturb != nil {
		disturb()
	}
	for i, c := range others {
		if _, err := c.ExecContext(s.ctx, "BEGIN"); err != nil {
			return fail(err, i)
		}
		if now, err := version(i); err != nil || now != versions[i] {
			return fail(err, i+1)
		}
	}
	return true, nil
}

// stream calls a function for every row, whose values are only good until it returns; the BLOBs among them may be kept. It is every without
// what database/sql does for a row, which is more than half of the time of a question that reads very many.
func (s *snapshot) stream(q string, row func([]driver.Value) error, args ...int64) error {
	return s.conn.Raw(func(c any) (err error) {
		named := make([]driver.NamedValue, len(args))
		for i, a := range args {
			named[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
		}
		rows, err := c.(driver.QueryerContext).QueryContext(s.ctx, q, named)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		values := make([]driver.Value, len(rows.Columns()))
		for {
			switch err := rows.Next(values); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := row(values); err != nil {
				return err
			}
		}
	})
}

// pass calls a function with columns of every row; rest is the query from FROM on. The values are only good until it returns, BLOBs, too. It is
// stream without what a row costs there.
func (s *snapshot) pass(columns, rest string, row func([]driver.Value) error, args ...int64) (err error) {
	s.each[s.me] = func(values []driver.Value) error {
		err = row(values)
		return err
	}
	defer func() { s.each[s.me] = nil }()
	failed := s.stream(fmt.Sprintf("SELECT %s(%d, %s) %s", eachName, s.me, columns, rest), func([]driver.Value) error { return nil }, args...)
	return cmp.Or(err, failed)
}

// every calls a function for every row.
func (s *snapshot) every(q string, row func(scan func(...any) error) error, args ...any) error {
	rows, err := s.conn.QueryContext(s.ctx, q, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
