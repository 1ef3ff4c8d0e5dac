package recorder

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// flush writes what waits and acknowledges what is on disk.
func (r *recorder) flush(force bool) bool {
	ok := true
	for i, q := range r.queues {
		waiting := q.Waiting()
		err := q.Flush(context.Background(), r.at/1e9, force)
		if err != nil {
			r.tell.add("write:"+q.Name(), 1)
			if n := r.tell.due("write:"+q.Name(), r.at, false); n > 0 {
				r.notice("error", fmt.Sprintf("%v (%d windows wait in memory)", err, q.Waiting()), "free disk space, or end what locks the file; it is tried again")
			}
		} else if waiting > 0 && q.Waiting() == 0 {
			r.now.LastWrite = r.at
		}
		if d := q.Dropped(); d.Records > r.dropped[i].Records {
			r.tell.add("drop:"+q.Name(), d.Records-r.dropped[i].Records)
		}
		if d := q.Dropped(); d.Digests > r.dropped[i].Digests {
			r.tell.add("digests:"+q.Name(), d.Digests-r.dropped[i].Digests)
		}
		r.dropped[i] = q.Dropped()
		if n := r.tell.due("digests:"+q.Name(), r.at, force); n > 0 {
			r.notice("error", fmt.Sprintf("late hashes that were lost because %s could not be written for too long: %d", q.Name(), n), "some rows stay without a hash; free disk space, or end what locks the file")
		}
		if n := r.tell.due("drop:"+q.Name(), r.at, force); n > 0 {
			r.notice("error", fmt.Sprintf("%d records for %s were lost because it could not be written for too long", n, q.Name()), "free disk space, or end what locks the file")
		}
		ok = ok && q.Waiting() == 0
	}
	r.acknowledge()
	return ok
}

// careTime bounds what the database's other work takes of the time between two ledgers, which is a second.
const (
	careTime     = 50 * time.Millisecond
	takeoverTime = 300 * time.Millisecond // while an older database is taken over: the sensor's queue waits meanwhile
)

// care lets the database do some of its other work: roll-ups, deletion.
func (r *recorder) care(final bool) {
	if r.sqlite == nil || final || r.queues[0].Waiting() > 0 {
		return
	}
	budget := careTime
	if file, _ := r.sqlite.Takeover(); file != "" {
		budget = takeoverTime
	}
	if _, err := r.sqlite.Care(context.Background(), r.at/second, budget); err != nil {
		r.tell.add("care", 1)
		if n := r.tell.due("care", r.at, false); n > 0 {
			r.notice("error", "sum up and delete old rows in snitch.db: "+err.Error(), "nothing is lost: it is tried again; `picosnitch db check` examines the database")
		}
	}
}

// acknowledge tells the sensor how far everything is on disk.
func (r *recorder) acknowledge() {
	batch := r.closed
	for _, q := range r.queues {
		if q.Waiting() > 0 {
			d := q.Durable()
			if d.Stream != r.hello.Stream {
				return
			}
			batch = min(batch, d.Batch)
		}
	}
	if batch <= r.acked {
		return
	}
	r.acked = batch
	if r.o.Ack == nil {
		return
	}
	if err := r.o.Ack(batch); err != nil {
		r.log.Debug("acknowledge", "batch", batch, "error", err) // the sensor is gone: the stream ends next
	}
}

// The end of a recorder waits for a locked or full disk: with the last try's own second, six seconds. The sensor gives it ten.
const (
	finalTime  = 5 * time.Second
	finalPause = time.Second / 2
)

// linger is how long the end of a recorder goes on delivering to the SQL server: it and finalTime must be less than what the
// sensor gives.
const linger = 3 * time.Second

// tellServer tells what the delivery to the SQL server has to say.
func (r *recorder) tellServer() {
	if r.server == nil {
		return
	}
	for _, n := range r.server.Notices() {
		r.notice(n.Level, n.Text, n.Hint)
	}
	st := r.server.Status()
	if n := st.Dropped.Records - r.serverDropped; n > 0 {
		r.tell.add("spool", n)
		r.serverDropped = st.Dropped.Records
	}
	if n := st.Unreadable.Records - r.serverUnreadable; n > 0 {
		r.tell.add("spool unreadable", n)
		r.serverUnreadable = st.Unreadable.Records
	}
	if n := r.tell.due("spool unreadable", r.at, r.final); n > 0 {
		r.notice("error", fmt.Sprintf("%d records did not reach the SQL server because its spool is damaged: they cannot be read", n), "look after the disk; snitch.db has them")
	}
	if n := r.tell.due("spool", r.at, r.final); n > 0 {
		r.notice("error", fmt.Sprintf("%d records did not reach the SQL server and were dropped from its full spool", n), "bring the server back, or raise \"DB spool limit (MB)\"; snitch.db has them")
	}
}

// finish writes what waits, and tries again for finalTime in all: at the last ledger, so that it is acknowledged, and again
// when the stream ends. It reports whether all is on disk.
func (r *recorder) finish() bool {
	if r.deadline.IsZero() {
		r.deadline = time.Now().Add(finalTime)
	}
	for !r.flush(true) {
		left := time.Until(r.deadline)
		if left <= 0 {
			return false
		}
		time.Sleep(min(left, finalPause))
	}
	return true
}

// close writes the last window and closes everything.
func (r *recorder) close() error {
	var err error
	r.forgetUnread()
	r.closeWindow()
	if !r.finish() {
		for _, q := range r.queues {
			if _, cause := q.Failures(); q.Waiting() > 0 {
				err = errors.Join(err, fmt.Errorf("the last %d windows could not be written to %s: %w", q.Waiting(), q.Name(), cause))
			}
		}
		r.notice("error", err.Error(), "free disk space, or end what locks the file")
	}
	r.tellLosses(true)
	r.tellBadLines(true)
	if !r.final && r.hello.Stream != "" {
		r.notice("warning", "the stream ended without its last ledger: the sensor ended unexpectedly", "what moved after this moment is not recorded")
	}
	if r.live != nil {
		r.live.print(r.at)
	}
	return errors.Join(err, r.shut())
}

func (r *recorder) shut() error {
	var err error
	if r.virustotal != nil {
		r.stopVirusTotal()
		r.asked = time.Time{}
		r.askVirusTotal() // what was said is written down
		r.tellUnkept()
	}
	r.known.Digested(r.at)
	r.teller.close()
	r.saveLimits(true)
	r.known.Close(r.at)
	r.tellKnown()
	for _, q := range r.queues {
		err = errors.Join(err, q.Close())
	}
	if r.desk != nil {
		r.desk.Close()
	}
	r.tellServer()
	if r.feed != nil {
		err = errors.Join(err, r.feed.Close()) // last: a reader may need a moment to go
	}
	if e := r.errors.retry(r.at); e != nil {
		err = errors.Join(err, fmt.Errorf("%d lines of error.log could not be written: %w", r.errors.Waiting(), e))
	}
	r.errors.Close()
	return err
}
