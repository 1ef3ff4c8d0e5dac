package remote

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/picosnitch/picosnitch/internal/sqlserver"
)

// conn is a connection that can only read.
type conn interface {
	// each runs a statement, with texts for its parameters, and calls row for each row: its values are good until row returns, and nil is NULL.
	each(ctx context.Context, text string, args []string, row func([][]byte) error) error
	// columns are those of a table, in its order.
	columns(ctx context.Context, table string) ([]column, error)
	// missing reports whether an error says that a table is not there, or may not be read.
	missing(err error) bool
	// limit bounds how long the server works on one statement from now on; 0: not at all.
	limit(ctx context.Context, d time.Duration) error
	close()
}

// column is one of the server's table.
type column struct {
	name string
	kind kind
}

// kind is what a column holds, as far as questions depend on it.
type kind int

const (
	kindText kind = iota
	kindNumber
	kindInstant // PostgreSQL's timestamp with time zone
	kindClock   // a date and time of UTC
)

// postgres is a connection to PostgreSQL, or to what speaks its protocol.
type postgres struct{ c *pgconn.PgConn }

func dialPostgres(ctx context.Context, s Settings) (conn, error) {
	c, err := sqlserver.Postgres(s.Params, &s.PassFile)
	if err != nil {
		return nil, err
	}
	if c.Password == "" {
		c.Password = s.Password
	}
	p, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	x := &postgres{p}
	// The server itself refuses to write on this connection.
	for _, q := range []string{"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET TIME ZONE 'UTC'"} {
		if err := x.each(ctx, q, nil, nil); err != nil {
			x.close()
			return nil, err
		}
	}
	return x, nil
}

func (p *postgres) each(ctx context.Context, text string, args []string, row func([][]byte) error) error {
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	r := p.c.ExecParams(ctx, text, params, nil, nil, nil)
	for r.NextRow() {
		if err := row(r.Values()); err != nil {
			p.close() // what is still to come is not waited for
			r.Close()
			return err
		}
	}
	_, err := r.Close()
	return err
}

// columns asks for no row: that needs no right but SELECT on the table.
func (p *postgres) columns(ctx context.Context, table string) (all []column, err error) {
	r := p.c.ExecParams(ctx, "SELECT * FROM "+table+" LIMIT 0", nil, nil, nil, nil)
	for _, f := range r.FieldDescriptions() {
		c := column{name: f.Name}
		switch f.DataTypeOID { // src/include/catalog/pg_type.dat
		case 20, 21, 23, 700, 701, 1700:
			c.kind = kindNumber
		case 1184:
			c.kind = kindInstant
		case 1114:
			c.kind = kindClock
		}
		all = append(all, c)
	}
	_, err = r.Close()
	return all, err
}

func (p *postgres) missing(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "42P01" || e.Code == "42501" || e.Code == "3F000")
}

func (p *postgres) limit(ctx context.Context, d time.Duration) error {
	return p.each(ctx, fmt.Sprintf("SET statement_timeout = %d", d.Milliseconds()), nil, nil)
}

func (p *postgres) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = p.c.Close(ctx) // it is given up in any case
}

// mariadb is a connection to MariaDB, MySQL, or to what speaks their protocol.
type mariadb struct {
	db *sql.DB
	c  *sql.Conn
}

func dialMySQL(ctx context.Context, s Settings) (conn, error) {
	c, err := sqlserver.MySQL(s.Params, s.Native)
	if err != nil {
		return nil, err
	}
	if c.Passwd == "" {
		c.Passwd = s.Password
	}
	c.ReadTimeout = 0 // the server is told how long it may work, and the context is the end of it
	c.RejectReadOnly = false
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, sqlserver.ConfigError(err)
	}
	m := &mariadb{db: sql.OpenDB(connector)}
	m.db.SetMaxOpenConns(1)
	if m.c, err = m.db.Conn(ctx); err != nil {
		m.db.Close()
		return nil, err
	}
	if _, err := m.c.ExecContext(ctx, "SET SESSION TRANSACTION READ ONLY"); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *mariadb) each(ctx context.Context, text string, args []string, row func([][]byte) error) error {
	params := make([]any, len(args))
	for i, a := range args {
		params[i] = a
	}
	rows, err := m.c.QueryContext(ctx, text, params...)
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	values, raw, pointers := make([][]byte, len(names)), make([]sql.RawBytes, len(names)), make([]any, len(names))
	for i := range raw {
		pointers[i] = &raw[i]
	}
	for rows.Next() {
		if err := rows.Scan(pointers...); err != nil {
			return err
		}
		for i := range raw {
			values[i] = raw[i]
		}
		if err := row(values); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (m *mariadb) columns(ctx context.Context, table string) (all []column, err error) {
	rows, err := m.c.QueryContext(ctx, "SELECT * FROM "+table+" LIMIT 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	for _, t := range types {
		c := column{name: t.Name()}
		switch kind := strings.TrimPrefix(t.DatabaseTypeName(), "UNSIGNED "); kind {
		case "TINYINT", "SMALLINT", "MEDIUMINT", "INT", "BIGINT", "DECIMAL", "FLOAT", "DOUBLE":
			c.kind = kindNumber
		case "DATETIME", "TIMESTAMP":
			c.kind = kindClock
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

func (m *mariadb) missing(err error) bool {
	var e *mysql.MySQLError
	return errors.As(err, &e) && (e.Number == 1146 || e.Number == 1142 || e.Number == 1044)
}

// limit: MariaDB counts in seconds, MySQL and TiDB in milliseconds, and each knows one name only.
func (m *mariadb) limit(ctx context.Context, d time.Duration) error {
	if _, err := m.c.ExecContext(ctx, fmt.Sprintf("SET SESSION max_execution_time = %d", d.Milliseconds())); err == nil {
		return nil
	}
	_, err := m.c.ExecContext(ctx, fmt.Sprintf("SET SESSION max_statement_time = %g", d.Seconds()))
	return err
}

func (m *mariadb) close() {
	m.c.Close()
	m.db.Close()
}
