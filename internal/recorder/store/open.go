package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/schema"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// Fixed places of SQLite's file header (https://www.sqlite.org/fileformat.html).
const (
	headerMagic       = "SQLite format 3\x00"
	headerUserVersion = 60
	headerApplication = 68
	headerSize        = 100
)

// dsn names a database for the driver. The settings keep the writer small: 1 MiB of page cache, a log that is
// cut back after a burst; NORMAL is durable against the end of the process, and against the end of the
// machine but for the last seconds, which the sensor would lose with it.
func dsn(path string, readOnly bool, busy time.Duration) string {
	v := url.Values{}
	v.Add("_pragma", fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds()))
	if readOnly {
		v.Add("mode", "ro")
	} else {
		v.Add("mode", "rw")
		v.Add("_pragma", "synchronous(NORMAL)")
		v.Add("_pragma", "cache_size(-1024)")
		v.Add("_pragma", "journal_size_limit(4194304)")
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: v.Encode()}
	return u.String()
}

// prepare makes sure that path is a database of ours, or an empty file with the right mode. What is in the way is set
// aside, and told; a newer database of ours is an error.
func (s *SQLite) prepare(ctx context.Context) error {
	// Made here and not by SQLite, for the mode: owner writes, group reads; the -wal and -shm files follow it.
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err == nil {
		err = f.Chmod(0o640) // whatever the umask
		return errors.Join(err, f.Close())
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	kind, err := s.inspect(ctx)
	var why, text string
	switch {
	case damaged(err):
		why, text = "corrupt", fmt.Sprintf("is damaged (%v)", err)
	case err != nil:
		return err
	case kind == schema.Older:
		why, text = olderName, "was written by the picosnitch before this one"
	case kind == schema.Foreign:
		why, text = "not-ours", "is not a database of picosnitch"
	default:
		return nil
	}
	aside, err := setAside(s.path, why)
	if err != nil {
		return fmt.Errorf("%s %s, and cannot be set aside: %w", filepath.Base(s.path), text, err)
	}
	s.tell(fmt.Sprintf("%s %s: it was set aside as %s and a new one was begun", filepath.Base(s.path), text, filepath.Base(aside)), "nothing was deleted: keep it, or remove it when you do not need it")
	return s.prepare(ctx)
}

// inspect says whose the file at path is, without changing it.
func (s *SQLite) inspect(ctx context.Context) (schema.Kind, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var h [headerSize]byte
	switch n, err := io.ReadFull(f, h[:]); {
	case n == 0 && err == io.EOF:
		return schema.Empty, nil
	case err != nil && err != io.ErrUnexpectedEOF:
		return 0, err
	case !strings.HasPrefix(string(h[:n]), headerMagic) || n < headerSize:
		return 0, errNotADatabase
	}
	app := int64(binary.BigEndian.Uint32(h[headerApplication:]))
	version := int64(binary.BigEndian.Uint32(h[headerUserVersion:]))
	// From the header alone, so that a newer database is not even opened.
	if kind, err := schema.Classify(app, version, 1); err != nil || kind == schema.Ours {
		return kind, err
	}
	db, err := sql.Open("sqlite", dsn(s.path, true, s.busy))
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var tables int
	err = db.QueryRowContext(ctx, "SELECT count(*), (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version) FROM sqlite_schema").Scan(&tables, &app, &version)
	if err != nil {
		return 0, err
	}
	return schema.Classify(app, version, tables)
}

var errNotADatabase = errors.New("no SQLite header")

// damaged reports whether the error says that the file's content is at fault.
func damaged(err error) bool {
	if errors.Is(err, errNotADatabase) {
		return true
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == lib.SQLITE_CORRUPT || code == lib.SQLITE_NOTADB
}

// readOnly reports whether the error says that the file may not be written.
func readOnly(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == lib.SQLITE_READONLY
}

// setAside gives the database and the files that belong to it another name: snitch.db becomes
// snitch.WHY.db, snitch.WHY-2.db, …. All new names exist before an old one goes, so that a kill in
// between leaves two names and no half.
func setAside(path, why string) (string, error) {
	ext := filepath.Ext(path)
	for n := 1; n < 1000; n++ {
		aside := strings.TrimSuffix(path, ext) + "." + why + ext
		if n > 1 {
			aside = fmt.Sprintf("%s.%s-%d%s", strings.TrimSuffix(path, ext), why, n, ext)
		}
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		for _, suffix := range [...]string{"-wal", "-shm", "-journal", ""} {
			os.Remove(aside + suffix) // what a kill left of an earlier try; the database itself is not there
			if err := os.Link(path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		for _, suffix := range [...]string{"-wal", "-shm", "-journal", ""} {
			if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		return aside, nil
	}
	return "", fmt.Errorf("there are too many %s databases beside it: remove some", why)
}

// connect opens the database, makes the tables where there are none, and prepares what Write needs.
func (s *SQLite) connect(ctx context.Context) (err error) {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	s.db, err = sql.Open("sqlite", dsn(s.path, false, s.busy))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.disconnect()
		}
	}()
	s.db.SetMaxOpenConns(1)
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	var tables int
	if err = s.conn.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return err
	}
	if tables == 0 {
		if err = s.exec(ctx, schema.SQLite()); err != nil {
			s.exec(ctx, "ROLLBACK")
			return err
		}
	}
	if err = s.migrate(ctx); err != nil {
		return err
	}
	if s.file, err = os.Stat(s.path); err != nil {
		return err
	}
	s.enterWAL(ctx)
	s.forget()
	if err = s.conn.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM executables").Scan(&s.before); err != nil {
		return err
	}
	if err = s.statements(ctx); err != nil {
		return err
	}
	return s.findTakeover(ctx)
}

// enterWAL makes readers and the writer independent of each other. A reader that is in the middle of a query
// can refuse it for the moment: everything works without, so Write tries again.
func (s *SQLite) enterWAL(ctx context.Context) {
	var mode string
	err := s.conn.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode)
	if s.wal = err == nil && mode == "wal"; s.wal {
		s.persist(true)
	}
}

// leaveWAL brings everything into one file: a reader without the right to write here could not open a database in WAL mode
// whose -shm file is gone. Where a reader holds it, the files stay, and then it can.
func (s *SQLite) leaveWAL(ctx context.Context) {
	s.exec(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	s.persist(false)
	var mode string
	err := s.conn.QueryRowContext(ctx, "PRAGMA journal_mode = DELETE").Scan(&mode)
	if err != nil || mode != "delete" {
		s.persist(true)
		return
	}
	s.wal = false
}

// persist says whether the -wal and -shm files stay when the last connection closes.
func (s *SQLite) persist(on bool) {
	mode := 0
	if on {
		mode = 1
	}
	s.conn.Raw(func(c any) error {
		if fc, ok := c.(sqlite.FileControl); ok {
			_, err := fc.FileControlPersistWAL("main", mode)
			return err
		}
		return nil
	})
}

func (s *SQLite) disconnect() error {
	s.endTakeover()
	for _, st := range s.prepared {
		st.Close()
	}
	s.prepared = nil
	var err error
	if s.conn != nil {
		err = s.conn.Close()
		s.conn = nil
	}
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
		s.db = nil
	}
	return err
}
