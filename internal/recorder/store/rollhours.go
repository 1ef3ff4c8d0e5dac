package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// Bounds of one step, for its time and the memory it takes: raw rows, windows, segments of a day.
const (
	rollRows     = 1 << 14
	rollWindows  = 1 << 12
	rollSegments = 1 << 6
)

// errOtherWriter is what a step ends with when another program did the same work in the same moment: nothing of it is kept.
var errOtherWriter = errors.New("another program writes to the database, too")

// rollHours puts windows that no segment holds yet into segments of their hours: those before the present hour, and those of the present
// one when they are many. The hour of the last window is the present one.
func (s *SQLite) rollHours(ctx context.Context, _ int64) (bool, error) {
	rolled, err := s.progress(ctx, schema.ProgressRolled)
	if err != nil {
		return false, err
	}
	var last, end int64
	err = s.conn.QueryRowContext(ctx, `SELECT id, "end" FROM windows ORDER BY id DESC LIMIT 1`).Scan(&last, &end)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && last <= rolled) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	hours, upTo, err := s.pendingWindows(ctx, rolled)
	if err != nil {
		return false, err
	}
	entries, upTo, err := s.rawSums(ctx, rolled, upTo, hours, schema.Hour(end))
	if err != nil || upTo == rolled {
		return false, err
	}
	err = s.inTransaction(ctx, func() error {
		if now, err := s.progress(ctx, schema.ProgressRolled); err != nil || now != rolled {
			return errors.Join(err, errOtherWriter)
		}
		for hour, e := range entries {
			if err := s.addSegment(ctx, schema.HourSeconds, hour, e); err != nil {
				return err
			}
		}
		return s.setProgress(ctx, schema.ProgressRolled, upTo)
	})
	return err == nil, err
}

// pendingWindows returns the hours of the next windows after one, by id, and the last of them.
func (s *SQLite) pendingWindows(ctx context.Context, after int64) (hours map[int64]int64, last int64, err error) {
	rows, err := s.conn.QueryContext(ctx, `SELECT id, "end" FROM windows WHERE id > ? ORDER BY id LIMIT ?`, after, rollWindows)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	hours, last = make(map[int64]int64), after
	for rows.Next() {
		var end int64
		if err := rows.Scan(&last, &end); err != nil {
			return nil, 0, err
		}
		hours[last] = schema.Hour(end)
	}
	return hours, last, rows.Err()
}

// rawSums reads raw rows of windows after one up to another, and says up to which it came: before a window of the present hour it stops, unless
// so many rows wait that they make a segment of their own.
func (s *SQLite) rawSums(ctx context.Context, after, upTo int64, hours map[int64]int64, present int64) (map[int64][]rollup.Entry, int64, error) {
	rows, err := s.conn.QueryContext(ctx, `SELECT id, actor, local_port, coalesce(remote, 0), remote_port, coalesce(domain, 0), conns, sent, received FROM raw WHERE id >= ? AND id < ? ORDER BY id LIMIT ?`,
		(after+1)*schema.PartRecords, (upTo+1)*schema.PartRecords, rollRows+1)
	if err != nil {
		return nil, after, err
	}
	type row struct {
		window int64
		local  int64
		rollup.Entry
	}
	var all []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.window, &r.Actor, &r.local, &r.Remote, &r.Port, &r.Domain, &r.Conns, &r.Sent, &r.Received); err != nil {
			rows.Close()
			return nil, after, err
		}
		r.window /= schema.PartRecords
		all = append(all, r)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, after, err
	}
	if len(all) > rollRows { // there are more: whole windows only
		upTo = all[len(all)-1].window - 1
		for len(all) > 0 && all[len(all)-1].window > upTo {
			all = all[:len(all)-1]
		}
	} else if len(hours) < rollWindows {
		// The newest windows are among them: those of the present hour wait for more.
		stop := upTo + 1
		for w, h := range hours {
			if h == present {
				stop = min(stop, w)
			}
		}
		upTo = max(after, stop-1)
	}
	entries := make(map[int64][]rollup.Entry)
	for i := range all {
		r := &all[i]
		if r.window > upTo {
			break
		}
		direction, err := s.direction(ctx, r.Actor)
		if err != nil {
			return nil, after, err
		}
		r.Port = rollup.ServicePort(direction, r.local, r.Port)
		h := hours[r.window]
		entries[h] = append(entries[h], r.Entry)
	}
	return entries, upTo, nil
}

// direction is the direction of what an actor moves.
func (s *SQLite) direction(ctx context.Context, actor int64) (string, error) {
	if d, ok := s.care.directions[actor]; ok {
		return d, nil
	}
	var d string
	if err := s.conn.QueryRowContext(ctx, "SELECT direction FROM actors a JOIN kinds k ON k.id = a.kind WHERE a.id = ?", actor).Scan(&d); err != nil {
		return "", err
	}
	if s.care.directions == nil {
		s.care.directions = make(map[int64]string)
	}
	keep(s.care.directions, maxIDs, actor, d)
	return d, nil
}

func (s *SQLite) addSegment(ctx context.Context, seconds, bucket int64, entries []rollup.Entry) error {
	actors, peers, sum, err := rollup.Encode(rollup.Merge(entries))
	if err != nil {
		return err
	}
	r, err := s.conn.ExecContext(ctx, "INSERT INTO segments (seconds, bucket, merged, conns, sent, received) VALUES (?,?,0,?,?,?)", seconds, bucket, clamp(sum.Conns), clamp(sum.Sent), clamp(sum.Received))
	if err != nil {
		return err
	}
	id, err := r.LastInsertId()
	if err != nil {
		return err
	}
	if _, err = s.conn.ExecContext(ctx, "INSERT INTO segment_actors VALUES (?,?)", id, actors); err == nil && seconds == schema.HourSeconds {
		_, err = s.conn.ExecContext(ctx, "INSERT INTO segment_peers VALUES (?,?)", id, peers)
	}
	return err
}

// rollDays adds the hours of a day that is over up.
func (s *SQLite) rollDays(ctx context.Context, _ int64) (bool, error) {
	var first, last sql.NullInt64
	err := s.conn.QueryRowContext(ctx, "SELECT min(bucket), max(bucket) FROM segments WHERE seconds = ? AND merged = 0", schema.HourSeconds).Scan(&first, &last)
	if err != nil || !first.Valid {
		return false, err
	}
	const hours = schema.DaySeconds / schema.HourSeconds
	day := schema.Bucket(first.Int64, hours)
	if day == schema.Bucket(last.Int64, hours) {
		return false, nil
	}
	rows, err := s.conn.QueryContext(ctx, "SELECT segment, data FROM segments JOIN segment_actors ON segment = id WHERE seconds = ? AND merged = 0 AND bucket >= ? AND bucket < ? LIMIT ?", schema.HourSeconds, day*hours, (day+1)*hours, rollSegments)
	if err != nil {
		return false, err
	}
	var ids []int64
	var entries []rollup.Entry
	var a rollup.Actors
	for rows.Next() {
		var id int64
		var data sql.RawBytes
		if err := rows.Scan(&id, &data); err != nil {
			rows.Close()
			return false, err
		}
		if err := errors.Join(a.Read(data), a.ReadSums(nil)); err != nil {
			rows.Close()
			return false, err
		}
		for i := range a.Actor {
			entries = append(entries, rollup.Entry{Actor: a.Actor[i], Port: a.Port[i], Sum: rollup.Sum{Conns: a.Conns[i], Sent: a.Sent[i], Received: a.Received[i]}})
		}
		ids = append(ids, id)
		if len(entries) > 1<<16 {
			break
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return false, err
	}
	err = s.inTransaction(ctx, func() error {
		for _, id := range ids {
			r, err := s.conn.ExecContext(ctx, "UPDATE segments SET merged = 1 WHERE id = ? AND merged = 0", id)
			if err != nil {
				return err
			}
			if n, _ := r.RowsAffected(); n != 1 {
				return errOtherWriter
			}
		}
		return s.addSegment(ctx, schema.DaySeconds, day, entries)
	})
	return err == nil, err
}
