package remote

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/sqlserver"
)

// mariadb is a connection to MariaDB or MySQL, or to what speaks their protocol.
type mariadb struct {
	db     *sql.DB
	conn   *sql.Conn
	table  string // quoted
	second string
	plan   *plan
	engine string // of the table of rows, when it has no transactions
	broken bool
}

// dialMySQL connects and makes sure of the tables.
func dialMySQL(ctx context.Context, o Settings, zone *time.Location) (server, error) {
	c, err := sqlserver.MySQL(o.Params, o.native())
	if err != nil {
		return nil, err
	}
	c.DialFunc = sqlserver.Bounded(sqlserver.MaxUnasked)
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, sqlserver.ConfigError(err)
	}
	m := &mariadb{db: sql.OpenDB(connector)}
	m.db.SetMaxOpenConns(1)
	if m.conn, err = m.db.Conn(ctx); err != nil {
		m.db.Close()
		return nil, err
	}
	if err := m.prepare(ctx, o.table(), zone); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *mariadb) prepare(ctx context.Context, name string, zone *time.Location) error {
	m.table, m.second = schema.QuoteMySQL(name), schema.QuoteMySQL(schema.BatchesTable(name))
	for round := range 2 {
		there, err := m.columns(ctx, name)
		if err != nil {
			return err
		}
		batches, err := m.columns(ctx, schema.BatchesTable(name))
		if err != nil {
			return err
		}
		if len(there) > 0 && len(batches) > 0 {
			if m.plan, err = newPlan(name, there, zone); err != nil {
				return err
			}
			if err := m.lookAtEngine(ctx, name); err != nil {
				return err
			}
			return checkBatches(name, batches)
		}
		if round > 0 {
			return &schemaError{fmt.Sprintf("the tables %s and %s are not to be seen", name, schema.BatchesTable(name))}
		}
		statements := schema.MySQLRemote(name)
		if len(there) > 0 {
			statements = statements[:1]
		}
		for _, q := range statements {
			if _, err := m.conn.ExecContext(ctx, q); err != nil {
				return &createError{q, err}
			}
		}
	}
	return nil
}

// lookAtEngine finds out whether the table of rows has transactions.
func (m *mariadb) lookAtEngine(ctx context.Context, name string) error {
	q, args := "table_schema = database() AND table_name = ?", []any{name}
	if s, rest, ok := strings.Cut(name, "."); ok {
		q, args = "table_schema = ? AND table_name = ?", []any{s, rest}
	}
	var engine sql.NullString // NULL for a view
	err := m.conn.QueryRowContext(ctx, "SELECT engine FROM information_schema.tables WHERE "+q, args...).Scan(&engine)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	m.engine = ""
	if slices.Contains([]string{"MyISAM", "Aria", "MEMORY", "ARCHIVE", "CSV", "MRG_MyISAM"}, engine.String) {
		m.engine = engine.String
	}
	return nil
}

func (m *mariadb) columns(ctx context.Context, name string) ([]found, error) {
	args := []any{name}
	where := "table_schema = database() AND table_name = ?"
	if s, rest, ok := strings.Cut(name, "."); ok {
		where, args = "table_schema = ? AND table_name = ?", []any{s, rest}
	}
	rows, err := m.conn.QueryContext(ctx, "SELECT column_name, data_type, column_type, coalesce(character_maximum_length, 0), coalesce(character_set_name, '') FROM information_schema.columns WHERE "+where+" ORDER BY ordinal_position", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []found
	for rows.Next() {
		var c found
		var kind, full, set string
		var chars uint64
		if err := rows.Scan(&c.name, &kind, &full, &chars, &set); err != nil {
			return nil, err
		}
		c.chars = int(min(chars, math.MaxInt32))
		unsigned := strings.Contains(full, "unsigned")
		number := func(bits int) {
			c.kind = columnNumber
			c.max, c.unsigned = 1<<(bits-1)-1, unsigned
			if unsigned && bits < 64 {
				c.max = 2*c.max + 1
			}
		}
		switch strings.ToLower(kind) {
		case "char", "varchar", "tinytext", "text", "mediumtext", "longtext":
			c.kind = columnText
			if strings.HasSuffix(strings.ToLower(kind), "text") {
				c.chars = int(min(chars, math.MaxInt32)) / 4 // it is a number of bytes there
				if chars >= 65535 {
					c.chars = 0 // 64 KB hold all of ours, the path of 32 KB too
				}
			}
			switch strings.ToLower(set) {
			case "utf8mb4", "utf16", "utf32", "utf16le":
			case "utf8", "utf8mb3", "ucs2":
				c.charset = charsetBasic
			default:
				c.charset = charsetASCII
			}
		case "tinyint":
			number(8)
		case "smallint":
			number(16)
		case "mediumint":
			number(24)
		case "int", "integer":
			number(32)
		case "bigint":
			number(64)
		case "decimal", "double", "float":
			c.kind = columnNumber
		case "timestamp", "datetime":
			c.kind = columnClock
			if strings.EqualFold(kind, "timestamp") {
				c.kind = columnUTC
			}
		default:
			c.kind = columnOther
		}
		if all = append(all, c); len(all) > maxAnswerRows {
			return nil, &answerError{"much more than was asked for"}
		}
	}
	return all, rows.Err()
}

func (m *mariadb) last(ctx context.Context, chain string) (n uint64, err error) {
	err = m.conn.QueryRowContext(ctx, "SELECT coalesce(max(last_frame), 0) FROM "+m.second+" WHERE chain = ?", chain).Scan(&n)
	return n, m.watch(err)
}

// watch remembers that a connection is of no use any more.
func (m *mariadb) watch(err error) error {
	var e *mysql.MySQLError
	if err != nil && !errors.As(err, &e) && !errors.Is(err, errThere) {
		m.broken = true
	}
	return err
}

// send delivers in one transaction, the row of the batch first (see postgres).
func (m *mariadb) send(ctx context.Context, d *delivery) (err error) {
	defer func() { err = m.watch(err) }()
	tx, err := m.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if back := tx.Rollback(); back != nil && !errors.Is(back, sql.ErrTxDone) {
				m.broken = true
			}
		}
	}()
	s := summarize(d)
	values := s.values(d, time.DateTime)
	args := make([]any, len(values))
	for i, v := range values {
		args[i] = v
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO "+m.second+" ("+batchColumns(schema.QuoteMySQL)+") VALUES ("+marks(len(args))+")", args...)
	var e *mysql.MySQLError
	if errors.As(err, &e) && e.Number == 1062 {
		return errThere
	}
	if err != nil {
		return err
	}
	if err := m.rows(ctx, tx, d); err != nil {
		return err
	}
	return tx.Commit()
}

func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

// rows inserts the rows, many per statement: each below half of the smallest max_allowed_packet that is in use.
func (m *mariadb) rows(ctx context.Context, tx *sql.Tx, d *delivery) error {
	const (
		most  = 256
		bytes = 384 << 10
	)
	names := m.plan.names()
	for i, n := range names {
		names[i] = "`" + strings.ReplaceAll(n, "`", "``") + "`"
	}
	head := "INSERT INTO " + m.table + " (" + strings.Join(names, ",") + ") VALUES "
	row := "(" + marks(len(names)) + ")"
	var args []any
	size, count := 0, 0
	var scratch []byte
	flush := func() error {
		if count == 0 {
			return nil
		}
		_, err := tx.ExecContext(ctx, head+strings.TrimSuffix(strings.Repeat(row+",", count), ","), args...)
		args, size, count = args[:0], 0, 0
		return err
	}
	for _, w := range d.windows {
		for i := range w.Records {
			r := &w.Records[i]
			for part := range m.plan.rows(w, r) {
				for c := range m.plan.columns {
					var null bool
					scratch, null = m.plan.value(scratch[:0], c, w, r, part)
					if null {
						args = append(args, nil)
						continue
					}
					size += len(scratch)
					args = append(args, string(scratch))
				}
				if count++; count >= most || size >= bytes {
					if err := flush(); err != nil {
						return err
					}
				}
			}
		}
	}
	return flush()
}

func (m *mariadb) cut() map[string]uint64 { return m.plan.cut }

func (m *mariadb) warning() (text, hint string) {
	if m.engine == "" {
		return "", ""
	}
	return fmt.Sprintf("the SQL server's table %s is of the engine %s, which has no transactions: after a failure in the middle of a batch some rows may be there twice", m.table, m.engine), "ALTER TABLE … ENGINE=InnoDB"
}

func (m *mariadb) alive() bool { return !m.broken }

func (m *mariadb) close() {
	m.conn.Close()
	m.db.Close()
}

// mysqlClass sorts an error of the server's.
func mysqlClass(err error) (class string, ok bool) {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		if errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) {
			return classReach, true
		}
		return "", false
	}
	switch {
	case slices.Contains([]uint16{1045, 1698, 1251, 3118, 1820, 1862, 4151}, e.Number):
		return classLogin, true
	case slices.Contains([]uint16{1044, 1142, 1143, 1227, 1370}, e.Number):
		return classRights, true
	case slices.Contains([]uint16{1049, 1054, 1146, 1364, 1366, 1406}, e.Number):
		return classSchema, true
	}
	return strconv.Itoa(int(e.Number)), true
}
