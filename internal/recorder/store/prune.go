package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/picosnitch/picosnitch/internal/schema"
)

// Bounds of one step of deletion.
const (
	pruneRows     = 1 << 12
	pruneWindows  = 1 << 8
	pruneSegments = 1 << 6
)

const dayHours = schema.DaySeconds / schema.HourSeconds

// prune deletes some of what is kept no longer: raw rows first, and then everything of a day. What is not in a segment yet is never
// deleted, nor is the last window (its number must not be given again).
func (s *SQLite) prune(ctx context.Context, now int64) (bool, error) {
	k := &s.care.keep
	var raw, all int64 // hours before which there is nothing to keep
	if now >= s.care.settled {
		if k.RawDays > 0 {
			raw = dayHours * schema.Bucket(now-int64(k.RawDays)*schema.DaySeconds, schema.DaySeconds)
		}
		if k.Days > 0 {
			all = dayHours * schema.Bucket(now-int64(k.Days)*schema.DaySeconds, schema.DaySeconds)
		}
	}
	if k.Bytes > 0 {
		r, a, err := s.tooLarge(ctx, now)
		if err != nil {
			return false, err
		}
		raw, all = max(raw, r), max(all, a)
	}
	if all > 0 {
		if again, err := s.pruneAll(ctx, all); again || err != nil {
			return again, err
		}
	}
	if raw > all {
		return s.pruneRaw(ctx, raw)
	}
	return false, nil
}

// pruneRaw deletes raw rows of one hour before another one. Windows that lost something stay, to say so.
func (s *SQLite) pruneRaw(ctx context.Context, before int64) (bool, error) {
	done, err := s.progress(ctx, schema.ProgressPruned)
	if err != nil {
		return false, err
	}
	var h span
	err = s.conn.QueryRowContext(ctx, "SELECT hour, first, last FROM hours WHERE hour >= ? AND hour < ? ORDER BY hour LIMIT 1", done, before).Scan(&h.hour, &h.first, &h.last)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := s.setProgress(ctx, schema.ProgressRaw, h.hour+1); err != nil { // from now on the hour is not whole
		return false, err
	}
	return s.pruneHour(ctx, &h, `NOT EXISTS (SELECT 1 FROM losses WHERE window = windows.id) AND unattributed_sent = 0 AND unattributed_received = 0`, func() error {
		return s.setProgress(ctx, schema.ProgressPruned, h.hour+1)
	})
}

// pruneAll deletes what there is of one hour before another one, and its segments.
func (s *SQLite) pruneAll(ctx context.Context, before int64) (bool, error) {
	var h span
	err := s.conn.QueryRowContext(ctx, "SELECT hour, first, last FROM hours WHERE hour < ? ORDER BY hour LIMIT 1", before).Scan(&h.hour, &h.first, &h.last)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return s.pruneSegments(ctx, before)
	case err != nil:
		return false, err
	}
	if raw, err := s.progress(ctx, schema.ProgressRaw); err != nil || raw <= h.hour {
		if err == nil {
			err = s.setProgress(ctx, schema.ProgressRaw, h.hour+1)
		}
		if err != nil {
			return false, err
		}
	}
	again, err := s.pruneHour(ctx, &h, "1", func() error {
		_, err := s.conn.ExecContext(ctx, "DELETE FROM hours WHERE hour = ?", h.hour)
		return err
	})
	if err != nil || again {
		return again, err
	}
	return s.pruneSegments(ctx, dayHours*schema.Bucket(h.hour, dayHours)) // the hour has a window that must stay
}

func (s *SQLite) pruneSegments(ctx context.Context, before int64) (again bool, err error) {
	for seconds, bucket := range map[int]int64{schema.HourSeconds: before, schema.DaySeconds: before / dayHours} {
		ids, err := s.numbers(ctx, "SELECT id FROM segments WHERE seconds = ? AND merged IN (0, 1) AND bucket < ? LIMIT ?", seconds, bucket, pruneSegments)
		if err != nil {
			return false, err
		}
		if len(ids) == 0 {
			continue
		}
		s.care.sweep = nil // their numbers may be given again
		err = s.inTransaction(ctx, func() error {
			for _, id := range ids {
				for _, q := range []string{"DELETE FROM segment_actors WHERE segment = ?", "DELETE FROM segment_peers WHERE segment = ?", "DELETE FROM segments WHERE id = ?"} {
					if _, err := s.conn.ExecContext(ctx, q, id); err != nil {
						return err
					}
				}
			}
			return s.setProgress(ctx, schema.ProgressRollups, before)
		})
		if err != nil {
			return false, err
		}
		again = true
	}
	return again, nil
}

// span is a row of hours.
type span struct{ hour, first, last int64 }

// pruneHour deletes some raw rows of an hour and the windows for which a condition holds; finish is run with the last of them. It
// reports whether it did something.
func (s *SQLite) pruneHour(ctx context.Context, h *span, windows string, finish func() error) (bool, error) {
	rolled, err := s.progress(ctx, schema.ProgressRolled)
	if err != nil {
		return false, err
	}
	// By the time of their end, because windows of other hours may be among them.
	ids, err := s.numbers(ctx, `SELECT id FROM windows WHERE id BETWEEN ? AND ? AND "end" > ? AND "end" <= ? AND ((`+windows+`) OR EXISTS (SELECT 1 FROM raw WHERE raw.id >= windows.id * 1024 AND raw.id < windows.id * 1024 + 1024)) ORDER BY id LIMIT ?`,
		h.first, h.last, h.hour*schema.HourSeconds, (h.hour+1)*schema.HourSeconds, pruneWindows)
	if err != nil {
		return false, err
	}
	last, err := s.numbers(ctx, "SELECT id FROM windows ORDER BY id DESC LIMIT 1")
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		if id > rolled || (len(last) > 0 && id >= last[0]) {
			return false, nil // it comes later
		}
	}
	err = s.inTransaction(ctx, func() error {
		deleted := int64(0)
		for i, id := range ids {
			r, err := s.conn.ExecContext(ctx, "DELETE FROM raw WHERE id >= ? AND id < ?", id*schema.PartRecords, (id+1)*schema.PartRecords)
			if err != nil {
				return err
			}
			if windows == "1" {
				if _, err := s.conn.ExecContext(ctx, "DELETE FROM losses WHERE window = ?", id); err != nil {
					return err
				}
			}
			if _, err := s.conn.ExecContext(ctx, "DELETE FROM windows WHERE id = ? AND "+windows, id); err != nil {
				return err
			}
			n, _ := r.RowsAffected()
			if deleted += n; deleted >= pruneRows && i < len(ids)-1 {
				return nil
			}
		}
		if len(ids) < pruneWindows {
			return finish()
		}
		return nil
	})
	s.care.vacuum = true
	return err == nil, err
}

// tooLarge says before which hours raw rows, and everything, have to go because the database is larger than it may be: one hour more of
// the one, or one day of the other, than is gone already. The present day stays.
func (s *SQLite) tooLarge(ctx context.Context, now int64) (raw, all int64, err error) {
	var used int64
	err = s.conn.QueryRowContext(ctx, "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size").Scan(&used)
	if err != nil || used <= s.care.keep.Bytes {
		return 0, 0, err
	}
	done, err := s.progress(ctx, schema.ProgressPruned)
	if err != nil {
		return 0, 0, err
	}
	today := dayHours * schema.Bucket(now, schema.DaySeconds)
	oldest, err := s.numbers(ctx, "SELECT hour FROM hours WHERE hour >= ? AND hour < ? ORDER BY hour LIMIT 1", done, today)
	if err != nil {
		return 0, 0, err
	}
	if len(oldest) > 0 {
		raw = oldest[0] + 1
	} else if oldest, err = s.numbers(ctx, "SELECT min(bucket) FROM segments WHERE seconds = ? AND merged IN (0, 1) HAVING min(bucket) IS NOT NULL", schema.HourSeconds); err != nil {
		return 0, 0, err
	} else if len(oldest) > 0 && oldest[0] < today {
		all = dayHours * (schema.Bucket(oldest[0], dayHours) + 1)
	}
	if !s.care.full {
		s.care.full = true
		text, hint := "the oldest raw rows are deleted; their sums by hour stay", ""
		switch {
		case raw == 0 && all == 0:
			text, hint = "the present day alone is more than that, and is kept", "raise \"DB size limit (MB)\", or \"DB write limit (seconds)\""
		case raw == 0:
			text = "the oldest days are deleted"
		}
		s.tell(fmt.Sprintf("%s holds %d MB, more than \"DB size limit (MB)\" allows: %s", s.Name(), used>>20, text), hint)
	}
	return raw, all, nil
}

// Giving pages back moves others: it begins when so many are free that it is worth it, and no page is kept waiting for the next rows.
const (
	shrinkShare = 20 // one in
	shrinkPages = 1 << 6
)

// shrink gives some free pages back to the file system.
func (s *SQLite) shrink(ctx context.Context, _ int64) (bool, error) {
	if !s.care.vacuum {
		return false, nil
	}
	var pages, free int64
	if err := s.conn.QueryRowContext(ctx, "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count").Scan(&pages, &free); err != nil {
		return false, err
	}
	if free <= pages/shrinkShare+shrinkPages {
		s.care.vacuum = false
		return false, nil
	}
	// Every step of the statement gives one page back; it has rows without columns.
	rows, err := s.conn.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", shrinkPages))
	if err != nil {
		return false, err
	}
	for rows.Next() {
	}
	err = errors.Join(rows.Err(), rows.Close())
	return err == nil, err
}

// numbers reads a column of numbers.
func (s *SQLite) numbers(ctx context.Context, q string, args ...any) (all []int64, err error) {
	rows, err := s.conn.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, rows.Err()
}
