package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// olderName is what the database of the picosnitch before this one is called when it was set aside.
const olderName = "picosnitch-0.11"

// takeover is the work of copying the rows of such a database. The rows and how far they are there are written together, so that it
// goes on where a kill interrupted it.
type takeover struct {
	path   string
	db     *sql.DB
	query  string
	done   int64 // last rowid that is taken over
	last   int64 // the greatest rowid
	at     int64 // time of the last row, unix seconds
	bad    int64 // rows whose time, address or a number could not be read
	hashes map[string]*flow.Digest
}

// Takeover says how much of the database of the picosnitch before this one is taken over, from 0 to 1, and which it is; "": none is being.
func (s *SQLite) Takeover() (file string, done float64) {
	t := s.care.takeover
	if t == nil {
		return "", 0
	}
	return filepath.Base(t.path), float64(t.done) / float64(max(t.last, 1))
}

// findTakeover looks for a database that was set aside and is not taken over yet.
func (s *SQLite) findTakeover(ctx context.Context) error {
	s.endTakeover()
	ext := filepath.Ext(s.path)
	files, err := filepath.Glob(globEscape(strings.TrimSuffix(s.path, ext)) + "." + olderName + "*" + ext)
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		finished, err := s.progress(ctx, "takeover "+filepath.Base(path))
		if err != nil {
			return err
		}
		if finished != 0 {
			continue
		}
		t, err := openTakeover(ctx, path)
		if err != nil {
			s.tell(fmt.Sprintf("%s cannot be taken over: %v", filepath.Base(path), err), "it stays where it is")
			if err := s.setProgress(ctx, "takeover "+filepath.Base(path), -1); err != nil {
				return err
			}
			continue
		}
		r, err := s.Resume(ctx, t.stream())
		if err != nil {
			t.db.Close()
			return err
		}
		t.done = int64(r.Position.Batch)
		s.care.takeover = t
		s.tell(fmt.Sprintf("%d rows of %s are taken over, beside the recording", max(t.last-t.done, 0), filepath.Base(path)), "`picosnitch status` shows how far it is; the file stays as it is")
		return nil
	}
	return nil
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func (s *SQLite) endTakeover() {
	if s.care.takeover != nil {
		s.care.takeover.db.Close()
		s.care.takeover = nil
	}
}

// Columns of the flat table, in the order in which they are read; the versions before the last lack some.
func olderColumns() []string {
	return []string{"exe", "name", "cmdline", "sha256", "contime", "domain", "ip", "port", "uid", "pexe", "pname", "pcmdline", "psha256", "conns", "send", "recv"}
}

func openTakeover(ctx context.Context, path string) (*takeover, error) {
	if i, err := os.Lstat(path); err != nil || !i.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is no regular file"))
	}
	// A log of it that was not checked in is read, too: for that, SQLite needs to write beside it.
	db, err := sql.Open("sqlite", dsn(path, false, time.Second))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	t := &takeover{path: path, db: db, hashes: make(map[string]*flow.Digest)}
	has := make(map[string]bool)
	rows, err := db.QueryContext(ctx, "SELECT name FROM pragma_table_info('connections')")
	if err != nil {
		db.Close()
		return nil, err
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			break
		}
		has[strings.ToLower(name)] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		db.Close()
		return nil, err
	}
	if !has["exe"] || !has["contime"] {
		db.Close()
		return nil, errors.New("it has no table of connections with exe and contime")
	}
	var columns []string
	for _, c := range olderColumns() {
		switch {
		case has[c] && slices.Contains([]string{"port", "uid", "conns", "send", "recv"}, c):
			// Whatever the column holds: a number.
			columns = append(columns, "CAST("+c+" AS INTEGER)")
		case has[c]:
			columns = append(columns, "CAST("+c+" AS TEXT)")
		case slices.Contains([]string{"port", "uid", "conns", "send", "recv"}, c):
			columns = append(columns, "0")
		default:
			columns = append(columns, "''")
		}
	}
	for i, c := range columns {
		columns[i] = "coalesce(" + c + ", " + map[bool]string{true: "0", false: "''"}[strings.Contains(c, "INTEGER") || c == "0"] + ")"
	}
	t.query = "SELECT rowid, " + strings.Join(columns, ", ") + " FROM connections WHERE rowid > ? ORDER BY rowid LIMIT ?"
	if err := db.QueryRowContext(ctx, "SELECT coalesce(max(rowid), 0) FROM connections").Scan(&t.last); err != nil {
		db.Close()
		return nil, err
	}
	return t, nil
}

func (t *takeover) stream() string { return "takeover " + filepath.Base(t.path) }

// takeoverRows bounds one step.
const takeoverRows = 1000

// takeOver copies some rows.
func (s *SQLite) takeOver(ctx context.Context, _ int64) (bool, error) {
	t := s.care.takeover
	if t == nil {
		return false, nil
	}
	zone := s.care.zone
	if zone == nil {
		zone = time.Local
	}
	windows, err := t.read(ctx, zone)
	if err != nil {
		// The rest of it is not readable. What was taken over stays.
		s.tell(fmt.Sprintf("%s could be taken over up to row %d of %d only: %v", filepath.Base(t.path), t.done, t.last, err), "the file stays as it is: `sqlite3 "+filepath.Base(t.path)+" .recover` may save what is in it")
		windows = nil
	}
	if len(windows) > 0 {
		if err := s.write(ctx, windows); err != nil {
			return false, err
		}
		t.done = int64(windows[len(windows)-1].Position.Batch)
		return true, nil
	}
	if err := s.setProgress(ctx, "takeover "+filepath.Base(t.path), 1); err != nil {
		return false, err
	}
	if err == nil {
		hint := "it is not needed any more: delete it when you like"
		if t.bad > 0 {
			hint = fmt.Sprintf("in %d rows a time, an address or a number could not be read: they have the time of the row before, or no address; keep the file if that matters", t.bad)
		}
		s.tell(filepath.Base(t.path)+" is taken over", hint)
	}
	s.endTakeover()
	return true, s.findTakeover(ctx)
}

// read makes windows of the next rows: one for each time.
func (t *takeover) read(ctx context.Context, zone *time.Location) ([]*flow.Window, error) {
	rows, err := t.db.QueryContext(ctx, t.query, t.done, takeoverRows)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var windows []*flow.Window
	var w *flow.Window
	var x [16]any
	var text [16]string
	var number [16]int64
	var id int64
	pointers := []any{&id}
	for i, c := range olderColumns() {
		x[i] = &text[i]
		if slices.Contains([]string{"port", "uid", "conns", "send", "recv"}, c) {
			x[i] = &number[i]
		}
		pointers = append(pointers, x[i])
	}
	for rows.Next() {
		if err := rows.Scan(pointers...); err != nil {
			return nil, err
		}
		for i := range text {
			text[i] = event.Text([]byte(text[i])) // the edge: nobody has made these printable yet
		}
		bad := false
		at, err := time.ParseInLocation(time.DateTime, text[4], zone)
		if err == nil && at.Unix() > 0 {
			t.at = at.Unix()
		} else {
			bad = true
		}
		if w == nil || w.End != t.at {
			w = &flow.Window{Hello: event.Hello{Stream: t.stream(), Program: "picosnitch 0.11"}, Start: max(t.at-1, 0), End: t.at}
			windows = append(windows, w)
		}
		r := flow.Record{Key: flow.Key{Program: t.program(text[0], text[1], text[2], text[3]), Domain: &flow.Domain{}}}
		if text[9] != "" || text[10] != "" {
			r.Program.Parent = t.program(text[9], text[10], text[11], text[12])
		}
		if text[5] != "" {
			r.Domain = &flow.Domain{Name: flow.Printable(text[5]), Source: "0.11"}
		}
		ip, err := netip.ParseAddr(text[6])
		bad = bad || (err != nil && text[6] != "")
		family := "inet"
		if ip.Is6() {
			family = "inet6"
		}
		port := number[7]
		if port == event.PortExec {
			family = event.FamilyExec
		}
		if port < event.PortExec || port > 65535 || number[8] < 0 || number[8] > 1<<32-1 || number[13] < 0 || number[14] < 0 || number[15] < 0 {
			bad = true
		}
		r.Kind = &flow.Kind{Family: family, Layer: event.LayerPayload}
		r.Remote = netip.AddrPortFrom(ip.WithZone(""), uint16(min(max(port, 0), 65535)))
		r.UID = uint32(min(max(number[8], 0), 1<<32-1))
		r.Conns, r.Sent, r.Received = uint64(max(number[13], 0)), uint64(max(number[14], 0)), uint64(max(number[15], 0))
		if bad {
			t.bad++
		}
		w.Records = append(w.Records, r)
		w.Position = flow.Position{Stream: t.stream(), Batch: uint64(id)}
	}
	return windows, rows.Err()
}

func (t *takeover) program(exe, name, cmdline, sum string) *flow.Program {
	d := t.hashes[sum]
	if d == nil {
		d = &flow.Digest{}
		if b, err := hex.DecodeString(sum); err == nil && len(b) == 32 {
			d.SHA256 = strings.ToLower(sum)
		} else {
			d.Reason = flow.PrintableReason(sum)
		}
		keep(t.hashes, maxPrograms, sum, d)
	}
	// An identity that no file has: a hash that comes late is never that of a row from then.
	return &flow.Program{Executable: &flow.Executable{Path: flow.PrintablePath(exe), File: event.FileID{Ctime: -1}, Digest: d}, Name: flow.Printable(name), Cmdline: flow.Printable(cmdline)}
}
