package query

import (
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

	"github.com/picosnitch/picosnitch/internal/schema"
	_ "modernc.org/sqlite" // the driver
)

// Local is a snitch.db. It is read without any right to write, also while a recorder writes. It is not safe for concurrent use.
type Local struct {
	db      *sql.DB
	options Options
	cells   int // maxCells; tests have less
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
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	l := &Local{db: db, options: o, cells: maxCells}
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

	rolled  int64 // windows up to this one are in segments
	raw     int64 // hours from this one on have all their raw rows
	options Options
	cells   int
	again   *again // nil: nothing is read twice
}

// look answers a question within one snapshot. It is short: a reader that stays keeps the writer's log from being cut.
func (l *Local) look(ctx context.Context, f func(*snapshot) error) error {
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil {
		return err
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
	s := &snapshot{ctx: ctx, conn: conn, options: l.options, cells: l.cells}
	err = s.each("SELECT name, value FROM progress", func(scan func(...any) error) error {
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
		return err
	}
	return f(s)
}

// stream calls a function for every row, whose values are only good until it returns; the BLOBs among them may be kept. It is each without
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

// each calls a function for every row.
func (s *snapshot) each(q string, row func(scan func(...any) error) error, args ...any) error {
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
