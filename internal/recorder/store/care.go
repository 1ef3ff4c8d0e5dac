package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"
)

// care is the state of the work that is done in small steps between two windows: roll-ups, deletion, giving pages back.
type care struct {
	keep Keep

	directions map[int64]string // of actors
	settled    int64            // unix seconds from which the clock is trusted; 0: not known yet
	seen       int64            // the last now
	sweep      *sweep           // nil: none
	vacuum     bool             // there may be pages to give back
	full       bool             // the user was told of the size limit
	takeover   *takeover        // nil: none
	zone       *time.Location   // of the times in a database that is taken over; nil: time.Local
	long       bool             // the user was told of a log that a reader keeps from being cut
	idle       int64            // nothing waits until then, if no window comes
}

// Keep says for how long the database keeps what. 0 is for ever, or without a bound.
type Keep struct {
	RawDays int   // raw rows
	Days    int   // everything
	Bytes   int64 // the size of the file
}

// SetKeep sets for how long the database keeps what.
func (s *SQLite) SetKeep(k Keep) { s.care.keep = k }

// Care does some of the work that waits, in steps of some milliseconds each, until there is none or the time is over. now
// is the time of the stream in unix seconds. It reports whether there is more to do.
func (s *SQLite) Care(ctx context.Context, now int64, budget time.Duration) (more bool, err error) {
	if s.conn == nil {
		return false, nil
	}
	s.settle(now)
	if now < s.care.idle && s.care.idle-now <= idleTime {
		return false, nil
	}
	deadline := time.Now().Add(budget)
	// The sweep reads every segment: one that is damaged keeps only the sweep from its work.
	for _, step := range []func(context.Context, int64) (bool, error){s.rollHours, s.rollDays, s.prune, s.shrink, s.takeOver, s.sweepTexts, s.shrink} {
		for {
			again, err := step(ctx, now)
			if err != nil {
				s.watchLog()
				s.care.idle = now + idleTime // what is damaged is not read again every second
				return true, err
			}
			if !again {
				break
			}
			if !time.Now().Before(deadline) {
				return true, nil
			}
		}
	}
	s.watchLog()
	s.care.idle = now + idleTime
	return false, nil
}

// logLimit is the size of the log (-wal) above which something must be wrong, in bytes: usually it is 4 MiB.
const logLimit = 64 << 20

// watchLog tells of a reader that stays: as long as it reads, the log cannot be cut and grows. Nothing is lost by that.
func (s *SQLite) watchLog() {
	i, err := os.Stat(s.path + "-wal")
	if err != nil || i.Size() < logLimit {
		s.care.long = false
		return
	}
	if !s.care.long {
		s.care.long = true
		s.tell(fmt.Sprintf("%s-wal has grown to %d MB: a program has been reading the database for long without a pause", s.Name(), i.Size()>>20), "end it, `fuser -v "+s.Name()+"` says which it is: the file shrinks then")
	}
}

// idleTime is how long nothing is looked for when there was nothing to do, in seconds: days end and clocks settle without a window, too.
const idleTime = 60

// A clock that jumps is not trusted at once: a machine whose clock stood at the wrong year for a minute must not delete its past.
const (
	settleTime = 3600 // seconds
	maxStep    = 3600
)

func (s *SQLite) settle(now int64) {
	c := &s.care
	if c.settled == 0 || now < c.seen-maxStep || now > c.seen+maxStep {
		c.settled = now + settleTime
	}
	c.seen = now
}

// inTransaction runs f, all of it or nothing.
func (s *SQLite) inTransaction(ctx context.Context, f func() error) error {
	err := s.exec(ctx, "BEGIN IMMEDIATE")
	if err != nil {
		return err
	}
	if err = f(); err == nil {
		err = s.exec(ctx, "COMMIT")
	}
	if err != nil {
		s.exec(context.WithoutCancel(ctx), "ROLLBACK")
	}
	return err
}

func (s *SQLite) progress(ctx context.Context, name string) (n int64, err error) {
	err = s.conn.QueryRowContext(ctx, "SELECT value FROM progress WHERE name = ?", name).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return n, err
}

// setProgress never goes back: what is gone does not come again.
func (s *SQLite) setProgress(ctx context.Context, name string, n int64) error {
	_, err := s.conn.ExecContext(ctx, "INSERT INTO progress VALUES (?, ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)", name, n)
	return err
}
