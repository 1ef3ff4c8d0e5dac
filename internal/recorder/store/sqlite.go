package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/schema"
)

// SQLite is snitch.db. It is the only writer of the file.
type SQLite struct {
	path string
	busy time.Duration
	tell func(text, hint string)

	db       *sql.DB
	conn     *sql.Conn
	prepared []*sql.Stmt
	st       statements
	wal      bool
	file     os.FileInfo // of the file that is open
	before   int64       // the greatest executable that an earlier writer made
	ids      ids
	args     []any
	care     care
}

type statements struct {
	findStream, addStream, setPosition             *sql.Stmt
	addWindow, addLoss                             *sql.Stmt
	findExecutable, addExecutable, setExecutable   *sql.Stmt
	pending, findProgram, addProgram               *sql.Stmt
	findPlace, addPlace                            *sql.Stmt
	findAddress, addAddress, findDomain, addDomain *sql.Stmt
	findKind, addKind, findActor, addActor         *sql.Stmt
	addRecord, addRecords, addTotal, addHour       *sql.Stmt
}

// OpenSQLite opens or creates the database. busy is how long a lock of another process is waited for; tell gets what the
// user must know (a file that was set aside). A database of a newer picosnitch is schema.ErrNewer.
func OpenSQLite(ctx context.Context, path string, busy time.Duration, tell func(text, hint string)) (*SQLite, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &SQLite{path: path, busy: busy, tell: tell}
	err = s.connect(ctx)
	if damaged(err) {
		err = s.replace(ctx, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

// replace sets a damaged database aside and begins a new one.
func (s *SQLite) replace(ctx context.Context, cause error) error {
	s.disconnect()
	aside, err := setAside(s.path, "corrupt")
	if err != nil {
		return errors.Join(cause, err)
	}
	s.tell(fmt.Sprintf("%s is damaged (%v): it was set aside as %s and a new one was begun", filepath.Base(s.path), cause, filepath.Base(aside)), "`sqlite3 "+filepath.Base(aside)+" .recover` may save what is in it")
	return s.connect(ctx)
}

// Name implements Sink.
func (s *SQLite) Name() string { return filepath.Base(s.path) }

// Size is the size of the database with its log, in bytes.
func (s *SQLite) Size() int64 {
	var n int64
	for _, suffix := range [...]string{"", "-wal"} {
		if i, err := os.Stat(s.path + suffix); err == nil {
			n += i.Size()
		}
	}
	return n
}

// Close implements Sink: afterwards the database is one file.
func (s *SQLite) Close() error {
	if s.conn == nil {
		return nil
	}
	for _, st := range s.prepared {
		st.Close()
	}
	s.prepared = nil
	if s.wal {
		s.leaveWAL(context.Background())
	}
	return s.disconnect()
}

func (s *SQLite) exec(ctx context.Context, q string) error {
	_, err := s.conn.ExecContext(ctx, q)
	return err
}

// sinkName is the database's own in positions.
const sinkName = "sqlite"

// Resume implements Sink.
func (s *SQLite) Resume(ctx context.Context, stream string) (Resume, error) {
	r := Resume{Position: flow.Position{Stream: stream}, Losses: make(map[string]uint64)}
	if s.conn == nil {
		return r, nil
	}
	var id int64
	err := s.conn.QueryRowContext(ctx, "SELECT id, coalesce(batch, 0), coalesce(flows, 0) FROM streams LEFT JOIN positions p ON p.stream = id AND sink = ? WHERE streams.stream = ?", sinkName, stream).Scan(&id, &r.Position.Batch, &r.Position.Flows)
	if errors.Is(err, sql.ErrNoRows) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	rows, err := s.conn.QueryContext(ctx, "SELECT reason, count FROM totals WHERE stream = ? AND reason <> ?", id, LossSink)
	if err != nil {
		return r, err
	}
	defer rows.Close()
	for rows.Next() {
		var reason string
		var n uint64
		if err := rows.Scan(&reason, &n); err != nil {
			return r, err
		}
		switch reason {
		case schema.LostSent:
			r.Unattributed.Sent = n
		case schema.LostReceived:
			r.Unattributed.Received = n
		default:
			r.Losses[reason] = n
		}
	}
	return r, rows.Err()
}

// Write implements Sink.
func (s *SQLite) Write(ctx context.Context, w *flow.Window) error { return s.WriteAll(ctx, w) }

// WriteAll makes windows durable at once, all of them or none.
func (s *SQLite) WriteAll(ctx context.Context, windows ...*flow.Window) error {
	if s.conn != nil {
		if now, err := os.Stat(s.path); err != nil || !os.SameFile(now, s.file) {
			s.disconnect()
			s.tell(s.Name()+" was moved or deleted while picosnitch used it: a new one was begun; rows written in the moment before may be in neither", "stop picosnitch before you move its database")
		}
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	if !s.wal {
		s.enterWAL(ctx)
	}
	err := s.write(ctx, windows)
	if damaged(err) {
		if err = s.replace(ctx, err); err == nil {
			err = s.write(ctx, windows)
		}
	}
	if readOnly(err) {
		// SQLite has opened what it may only read. The next try opens it anew: by then that may have changed.
		s.disconnect()
	}
	return err
}

func (s *SQLite) write(ctx context.Context, windows []*flow.Window) error {
	defer clear(s.ids.seen)
	s.care.idle = 0
	err := s.inTransaction(ctx, func() error {
		if err := s.stillThere(ctx); err != nil {
			return err
		}
		for _, w := range windows {
			if err := s.put(ctx, w); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.forget()
	}
	return err
}

// put adds a window to the open transaction.
func (s *SQLite) put(ctx context.Context, w *flow.Window) error {
	stream, err := s.stream(ctx, &w.Hello)
	if err != nil {
		return err
	}
	for _, p := range w.Programs {
		if _, err := s.program(ctx, p); err != nil {
			return err
		}
	}
	if len(w.Records) > 0 || len(w.Losses) > 0 || w.Unattributed != (event.Bytes{}) {
		if err := s.window(ctx, stream, w); err != nil {
			return err
		}
	}
	// After the rows of the same window: they wait for it, too.
	for i := range w.Digests {
		if err := s.complete(ctx, &w.Digests[i]); err != nil {
			return err
		}
	}
	_, err = s.st.setPosition.ExecContext(ctx, stream, sinkName, clamp(w.Position.Batch), clamp(w.Position.Flows))
	return err
}

// window writes the rows of a window, in parts.
func (s *SQLite) window(ctx context.Context, stream int64, w *flow.Window) error {
	first, err := insert(ctx, s.st.addWindow, stream, w.Start, w.End, clamp(w.Unattributed.Sent), clamp(w.Unattributed.Received))
	if err != nil {
		return err
	}
	totals := make(map[string]uint64, len(w.Losses)+2)
	for reason, n := range w.Losses {
		totals[reason] = n
		if _, err := s.st.addLoss.ExecContext(ctx, first, reason, clamp(n)); err != nil {
			return err
		}
	}
	if w.Unattributed.Sent > 0 {
		totals[schema.LostSent] = w.Unattributed.Sent
	}
	if w.Unattributed.Received > 0 {
		totals[schema.LostReceived] = w.Unattributed.Received
	}
	for reason, n := range totals {
		if _, err := s.st.addTotal.ExecContext(ctx, stream, reason, clamp(n)); err != nil {
			return err
		}
	}
	last, rest := first, w.Records
	for {
		n := min(len(rest), schema.PartRecords)
		if err := s.records(ctx, last, w.Hello.Boot, rest[:n]); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		if last, err = insert(ctx, s.st.addWindow, stream, w.Start, w.End, 0, 0); err != nil {
			return err
		}
	}
	_, err = s.st.addHour.ExecContext(ctx, schema.Hour(w.End), first, last)
	return err
}

// Rows of one INSERT: the parsing and stepping of the statement is paid once for all of them.
const (
	recordColumns = 10
	recordRows    = 32
)

func (s *SQLite) records(ctx context.Context, window int64, boot string, records []flow.Record) error {
	s.args = s.args[:0]
	for i := range records {
		r := &records[i]
		actor, err := s.actor(ctx, boot, r)
		if err != nil {
			return err
		}
		local, err := s.address(ctx, r.Local.Addr())
		if err != nil {
			return err
		}
		remote, err := s.address(ctx, r.Remote.Addr())
		if err != nil {
			return err
		}
		domain, err := s.domain(ctx, r.Domain)
		if err != nil {
			return err
		}
		s.args = append(s.args, window*schema.PartRecords+int64(i), actor,
			local, int64(r.Local.Port()), remote, int64(r.Port()), domain,
			clamp(r.Conns), clamp(r.Sent), clamp(r.Received))
		if len(s.args) == recordColumns*recordRows {
			if _, err := s.st.addRecords.ExecContext(ctx, s.args...); err != nil {
				return err
			}
			s.args = s.args[:0]
		}
	}
	for rest := s.args; len(rest) > 0; rest = rest[recordColumns:] {
		if _, err := s.st.addRecord.ExecContext(ctx, rest[:recordColumns]...); err != nil {
			return err
		}
	}
	return nil
}

// clamp turns a count into what SQLite can hold.
func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func insert(ctx context.Context, st *sql.Stmt, args ...any) (int64, error) {
	r, err := st.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return r.LastInsertId()
}

func (s *SQLite) statements(ctx context.Context) error {
	row := "(?" + strings.Repeat(",?", recordColumns-1) + ")"
	for _, p := range []struct {
		st   **sql.Stmt
		text string
	}{
		{&s.st.findStream, `SELECT id FROM streams WHERE stream = ?`},
		{&s.st.addStream, `INSERT INTO streams (stream, program, host, boot, hook_set, started) VALUES (?,?,?,?,?,?)`},
		{&s.st.setPosition, `INSERT INTO positions (stream, sink, batch, flows) VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET batch = excluded.batch, flows = excluded.flows`},
		{&s.st.addWindow, `INSERT INTO windows (stream, start, "end", unattributed_sent, unattributed_received) VALUES (?,?,?,?,?)`},
		{&s.st.addLoss, `INSERT INTO losses (window, reason, count) VALUES (?,?,?)`},
		{&s.st.findExecutable, `SELECT id FROM executables WHERE inode = ?1 AND path = ?2 AND device = ?3 AND generation = ?4 AND ctime = ?5 AND size = ?6 AND sha256 = ?7 AND reason = ?8 AND id > ?9 LIMIT 1`},
		{&s.st.addExecutable, `INSERT INTO executables (inode, path, device, generation, ctime, size, sha256, reason) VALUES (?,?,?,?,?,?,?,?)`},
		{&s.st.setExecutable, `UPDATE executables SET sha256 = ?, reason = ? WHERE id = ? AND sha256 = ''`},
		{&s.st.pending, `SELECT id, path, reason FROM executables WHERE inode = ? AND device = ? AND generation = ? AND ctime = ? AND size = ? AND sha256 = ''`},
		{&s.st.findProgram, `SELECT id FROM programs WHERE key = ? AND +executable = ? AND name = ? AND cmdline = ? AND script IS ? AND script_kind = ? AND preload = ? AND parent IS ? LIMIT 1`},
		{&s.st.addProgram, `INSERT INTO programs (key, executable, name, cmdline, script, script_kind, preload, parent) VALUES (?,?,?,?,?,?,?,?)`},
		{&s.st.findPlace, `SELECT id FROM places WHERE boot = ? AND cgroup = ? AND path = ? AND name = ? AND kind = ? AND unit = ? AND owner = ? AND user_unit = ? AND session = ? AND runtime = ? AND container = ? AND pod = ? AND app = ? LIMIT 1`},
		{&s.st.addPlace, `INSERT INTO places (boot, cgroup, path, name, kind, unit, owner, user_unit, session, runtime, container, pod, app) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)`},
		{&s.st.findAddress, `SELECT id FROM addresses WHERE ip = ?`},
		{&s.st.addAddress, `INSERT INTO addresses (ip) VALUES (?)`},
		{&s.st.findDomain, `SELECT id FROM domains WHERE name = ? AND source = ?`},
		{&s.st.addDomain, `INSERT INTO domains (name, source) VALUES (?,?)`},
		{&s.st.findKind, `SELECT id FROM kinds WHERE family = ? AND protocol = ? AND direction = ? AND layer = ? AND peer = ?`},
		{&s.st.addKind, `INSERT INTO kinds (family, protocol, direction, layer, peer) VALUES (?,?,?,?,?)`},
		{&s.st.findActor, `SELECT id FROM actors WHERE program = ? AND place IS ? AND uid = ? AND kind = ? AND net_ns = ?`},
		{&s.st.addActor, `INSERT INTO actors (program, place, uid, kind, net_ns) VALUES (?,?,?,?,?)`},
		{&s.st.addTotal, `INSERT INTO totals (stream, reason, count) VALUES (?,?,?) ON CONFLICT DO UPDATE SET count = min(count, 9223372036854775807 - excluded.count) + excluded.count`},
		{&s.st.addHour, `INSERT INTO hours (hour, first, last) VALUES (?,?,?) ON CONFLICT DO UPDATE SET first = min(first, excluded.first), last = max(last, excluded.last)`},
		{&s.st.addRecord, `INSERT INTO raw VALUES ` + row},
		{&s.st.addRecords, `INSERT INTO raw VALUES ` + row + strings.Repeat(","+row, recordRows-1)},
	} {
		st, err := s.conn.PrepareContext(ctx, p.text)
		if err != nil {
			return err
		}
		*p.st = st
		s.prepared = append(s.prepared, st)
	}
	return nil
}
