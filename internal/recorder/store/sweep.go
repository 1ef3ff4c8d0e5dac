package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// Bounds of one step of a sweep.
const (
	sweepSegments = 1 << 5
	sweepRows     = 1 << 14
	sweepNames    = 1 << 9
	sweepTexts    = 1 << 9
)

// sweep is the deletion of texts (addresses, domains, programs, …) that nothing names any more. It begins when days were deleted. First what
// is named is marked: by the segments, by the raw rows (their local addresses are in no segment), by the rows that are in no segment yet, and, once
// the actors that nobody names are gone, by those that stay. Then what is not marked is deleted, a bounded piece in each transaction, after what was
// written since is marked in the same one. So whoever writes meanwhile, also another program, nothing that is named is deleted. A sweep that is
// interrupted, or meets a row that it cannot read, begins anew: what that row names cannot be known, so nothing is deleted.
type sweep struct {
	rollups int64 // the progress of deletion at which it began

	segment   int64 // segments up to this one are marked
	raw, upTo int64 // raw rows up to raw have their local address marked; those up to upTo have to
	tail      int64 // raw rows up to this one that no segment held when it began are marked

	actors, addresses, domains    marks
	places, programs, executables marks
	table                         int   // of tables: which one is being cleaned
	id                            int64 // its rows up to this one are done
	program                       int64 // the greatest program that an actor which is deleted had
	actor                         int64 // actors up to this one have what they name marked
	later                         int64 // so have the programs after program up to this one
}

// marks is a set of numbers of rows.
type marks []uint64

const maxMarked = 1 << 32 // a number beyond that is none of ours: 512 MiB of marks

func (m *marks) add(id int64) error {
	if id < 0 || id >= maxMarked {
		return fmt.Errorf("the database names row %d of a table of texts: `picosnitch db check` examines it", id)
	}
	if n := int(id>>6) + 1; n > len(*m) {
		*m = append(*m, make([]uint64, n-len(*m))...)
	}
	(*m)[id>>6] |= 1 << (id & 63)
	return nil
}

func (m marks) has(id int64) bool { return id>>6 < int64(len(m)) && m[id>>6]>>(id&63)&1 == 1 }

// sweepTexts does one step.
func (s *SQLite) sweepTexts(ctx context.Context, _ int64) (bool, error) {
	rollups, err := s.progress(ctx, schema.ProgressRollups)
	if err != nil {
		return false, err
	}
	w := s.care.sweep
	if w == nil || w.rollups != rollups {
		done, err := s.progress(ctx, schema.ProgressTexts)
		if err != nil || rollups <= done {
			s.care.sweep = nil
			return false, err
		}
		if w, err = s.newSweep(ctx, rollups); err != nil {
			return false, err
		}
		s.care.sweep = w
	}
	again, err := s.sweepStep(ctx, w)
	if err != nil {
		s.care.sweep = nil // what was marked is not all, or of another state than what is there
	}
	return again && err == nil, err
}

func (s *SQLite) sweepStep(ctx context.Context, w *sweep) (bool, error) {
	for _, mark := range []func(context.Context, *sweep) (bool, error){s.markSegments, s.markLocal, s.markTail, s.markNames} {
		if again, err := mark(ctx, w); again || err != nil {
			return again, err
		}
	}
	return s.deleteTexts(ctx, w)
}

func (s *SQLite) newSweep(ctx context.Context, rollups int64) (*sweep, error) {
	rolled, err := s.progress(ctx, schema.ProgressRolled)
	if err != nil {
		return nil, err
	}
	w := &sweep{rollups: rollups, tail: (rolled+1)*schema.PartRecords - 1}
	last, err := s.numbers(ctx, "SELECT id FROM raw ORDER BY id DESC LIMIT 1")
	if len(last) > 0 {
		w.upTo = last[0]
	}
	return w, err
}

// markSegments marks what some segments name. It reports whether there were any.
func (s *SQLite) markSegments(ctx context.Context, w *sweep) (some bool, err error) {
	rows, err := s.conn.QueryContext(ctx, "SELECT s.id, a.data, p.data FROM segments s JOIN segment_actors a ON a.segment = s.id LEFT JOIN segment_peers p ON p.segment = s.id WHERE s.id > ? ORDER BY s.id LIMIT ?", w.segment, sweepSegments)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	var a rollup.Actors
	var p rollup.Peers
	for rows.Next() {
		var actors, peers sql.RawBytes
		if err := rows.Scan(&w.segment, &actors, &peers); err != nil {
			return false, err
		}
		some = true
		if err := a.Read(actors); err != nil {
			return false, err
		}
		for _, id := range a.Actor {
			if err := w.actors.add(id); err != nil {
				return false, err
			}
		}
		if peers == nil { // a day: its hours have them
			continue
		}
		n, err := p.Read(peers, len(a.Actor), rollup.Want{Remote: true, Domain: true})
		if err != nil {
			return false, err
		}
		for i := range n {
			if err := errors.Join(w.addresses.add(p.Remote[i]), w.domains.add(p.Domain[i])); err != nil {
				return false, err
			}
		}
	}
	return some, rows.Err()
}

func (s *SQLite) markLocal(ctx context.Context, w *sweep) (bool, error) {
	return s.mark(ctx, &w.raw, w.upTo, "SELECT max(id), 0, coalesce(local, 0), 0, 0 FROM (SELECT id, local FROM raw WHERE id > ? AND id <= ? ORDER BY id LIMIT ?) GROUP BY local", w)
}

func (s *SQLite) markTail(ctx context.Context, w *sweep) (bool, error) {
	return s.mark(ctx, &w.tail, 1<<62, "SELECT id, actor, coalesce(local, 0), coalesce(remote, 0), coalesce(domain, 0) FROM raw WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", w)
}

// mark marks what some raw rows name, and moves after to the last of them. It reports whether there were any.
func (s *SQLite) mark(ctx context.Context, after *int64, upTo int64, q string, w *sweep) (some bool, err error) {
	rows, err := s.conn.QueryContext(ctx, q, *after, upTo, sweepRows)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, actor, local, remote, domain int64
		if err := rows.Scan(&id, &actor, &local, &remote, &domain); err != nil {
			return false, err
		}
		*after = max(*after, id)
		some = true
		if err := errors.Join(w.actors.add(actor), w.addresses.add(local), w.addresses.add(remote), w.domains.add(domain)); err != nil {
			return false, err
		}
	}
	return some, rows.Err()
}

// markNames marks what some actors name, and the programs that are younger than all that were deleted: a program of which nothing is logged is
// named by nothing from the first. It reports whether there were any.
func (s *SQLite) markNames(ctx context.Context, w *sweep) (bool, error) {
	if w.table <= tableActors { // some of them are still to go
		return false, nil
	}
	rows, err := s.triples(ctx, "SELECT id, program, coalesce(place, 0) FROM actors WHERE id > ? ORDER BY id LIMIT ?", w.actor, sweepNames)
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		if err := errors.Join(s.markProgram(ctx, w, r[1]), w.places.add(r[2])); err != nil {
			return false, err
		}
		w.actor = r[0]
	}
	if len(rows) > 0 {
		return true, nil
	}
	// The last one stays whatever it is.
	rows, err = s.triples(ctx, "SELECT id, 0, 0 FROM programs WHERE id > max(min(?, (SELECT max(id) - 1 FROM programs)), ?) ORDER BY id LIMIT ?", w.program, w.later, sweepNames)
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		if err := s.markProgram(ctx, w, r[0]); err != nil {
			return false, err
		}
		w.later = r[0]
	}
	return len(rows) > 0, nil
}

// markProgram marks a program, its ancestors, and what they name.
func (s *SQLite) markProgram(ctx context.Context, w *sweep, id int64) error {
	for id != 0 && !w.programs.has(id) {
		r, err := s.triples(ctx, "SELECT executable, coalesce(script, 0), coalesce(parent, 0) FROM programs WHERE id = ?", id)
		if err != nil {
			return err
		}
		if len(r) == 0 {
			return fmt.Errorf("the database names program %d, which it does not have: `picosnitch db check` examines it", id)
		}
		if err := errors.Join(w.programs.add(id), w.executables.add(r[0][0]), w.executables.add(r[0][1])); err != nil {
			return err
		}
		id = r[0][2]
	}
	return nil
}

// triples returns the rows of a query of three numbers.
func (s *SQLite) triples(ctx context.Context, q string, args ...any) (all [][3]int64, err error) {
	rows, err := s.conn.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r [3]int64
		if err := rows.Scan(&r[0], &r[1], &r[2]); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// sweptTable is a table of texts.
type sweptTable struct {
	name   string
	marked *marks // what is named
}

const tableActors = 2 // of tables

// tables are in the order in which they name each other. The last row of a table stays whatever it is: its number must not be given again, to a
// reader that remembers what it was.
func (w *sweep) tables() []sweptTable {
	return []sweptTable{
		{"addresses", &w.addresses},
		{"domains", &w.domains},
		{"actors", &w.actors},
		{"places", &w.places},
		{"programs", &w.programs},
		{"executables", &w.executables},
	}
}

// deleteTexts deletes some rows that nothing names. It reports whether there may be more.
func (s *SQLite) deleteTexts(ctx context.Context, w *sweep) (bool, error) {
	tables := w.tables()
	if w.table == len(tables) {
		s.care.sweep = nil
		return false, s.setProgress(ctx, schema.ProgressTexts, w.rollups)
	}
	t := &tables[w.table]
	deleted := false
	err := s.inTransaction(ctx, func() error {
		// What was written since it was looked for: by us between two steps, or by another program.
		for _, mark := range []func(context.Context, *sweep) (bool, error){s.markSegments, s.markTail, s.markNames} {
			for again := true; again; {
				var err error
				if again, err = mark(ctx, w); err != nil {
					return err
				}
			}
		}
		if now, err := s.progress(ctx, schema.ProgressRollups); err != nil || now != w.rollups {
			return errors.Join(err, errOtherWriter)
		}
		ids, last, err := s.unnamed(ctx, w, t)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if t.name == "actors" {
				program, err := s.numbers(ctx, "SELECT program FROM actors WHERE id = ?", id)
				if err != nil {
					return err
				}
				w.program = max(w.program, program[0])
			}
			if _, err := s.conn.ExecContext(ctx, "DELETE FROM "+t.name+" WHERE id = ?", id); err != nil {
				return err
			}
		}
		if deleted = len(ids) > 0; deleted {
			// Whoever remembers numbers of rows forgets them before he writes.
			_, err = s.conn.ExecContext(ctx, "INSERT INTO progress VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1", schema.ProgressSwept)
		}
		if w.id = last; last == 0 {
			w.table++
		}
		return err
	})
	if deleted {
		s.care.vacuum = true
	}
	return true, err
}

// unnamed returns rows of a table that nothing names, and the row at which it goes on; 0: it is done.
func (s *SQLite) unnamed(ctx context.Context, w *sweep, t *sweptTable) (ids []int64, last int64, err error) {
	all, err := s.numbers(ctx, "SELECT id FROM "+t.name+" WHERE id > ? AND id < (SELECT max(id) FROM "+t.name+") ORDER BY id LIMIT ?", w.id, sweepRows)
	if err != nil {
		return nil, 0, err
	}
	for _, id := range all {
		last = id
		if !t.marked.has(id) {
			if ids = append(ids, id); len(ids) == sweepTexts {
				break
			}
		}
	}
	return ids, last, nil
}

// stillThere empties the memory of what has which number when rows were deleted since; it belongs into the transaction that writes.
func (s *SQLite) stillThere(ctx context.Context) error {
	swept, err := s.progress(ctx, schema.ProgressSwept)
	if err == nil && swept != s.ids.swept {
		s.forget()
		s.ids.swept = swept
	}
	return err
}
