// Package store keeps windows: in SQLite (snitch.db) and as text (conn.log). It belongs to the recorder's wing and is the only
// place that writes a database. It does not decide what is logged (recorder/flow does).
package store

import (
	"context"
	"fmt"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// Sink receives windows.
type Sink interface {
	// Name is the file's name, for messages.
	Name() string
	// Write makes a window durable, all of it or nothing. After an error the same window may be written again.
	Write(ctx context.Context, w *flow.Window) error
	// Close leaves the file in the state that is best for readers.
	Close() error
}

// Resume is what a sink knows of a stream: where it stopped, and the totals that are on disk.
type Resume struct {
	Position     flow.Position
	Losses       map[string]uint64
	Unattributed event.Bytes
}

// LossSink is the reason under which a Queue tells of the records that it had to drop.
const LossSink = "sink"

// Queue stands before a sink and keeps the windows that it could not write. It is not safe for concurrent use.
type Queue struct {
	sink    Sink
	limit   int
	from    flow.Position // what the sink has of the stream that is read
	waiting []*flow.Window
	held    int        // records in waiting
	bytes   int        // of the texts in waiting
	sizes   flow.Sizes // of its programs
	nextTry int64
	wait    int64

	durable  flow.Position
	lastErr  error
	failures uint64
	dropped  Dropped
	lost     uint64 // records dropped, not yet written as a loss
}

// Dropped is what a queue could not keep.
type Dropped struct {
	Windows  uint64 `json:"windows"`
	Digests  uint64 `json:"digests"` // late hashes
	Records  uint64 `json:"records"`
	Sent     uint64 `json:"sent"`     // bytes
	Received uint64 `json:"received"` // bytes
}

// NewQueue returns a queue that keeps at most limit records.
func NewQueue(s Sink, limit int) *Queue {
	return &Queue{sink: s, limit: limit, sizes: make(flow.Sizes)}
}

// Name is the sink's.
func (q *Queue) Name() string { return q.sink.Name() }

// Durable is how far the stream is on disk (or told as dropped).
func (q *Queue) Durable() flow.Position { return q.durable }

// Failures counts writes that failed; the error is the last one's, nil once a write succeeded.
func (q *Queue) Failures() (uint64, error) { return q.failures, q.lastErr }

// Dropped is what was lost for this sink.
func (q *Queue) Dropped() Dropped { return q.dropped }

// Waiting is the number of windows that are not written yet.
func (q *Queue) Waiting() int { return len(q.waiting) }

// Resume says what the sink has already of the stream whose windows come next.
func (q *Queue) Resume(p flow.Position) {
	q.from = p
	if len(q.waiting) == 0 {
		q.durable = p
	}
}

// Offer takes a window. Records that the sink has already (see Resume) are not written again. When too much
// waits, the oldest windows are dropped and counted.
func (q *Queue) Offer(w *flow.Window) {
	if w.Position.Stream == q.from.Stream && !w.Position.After(q.from) {
		// Hashes and losses are of now all the same.
		c := *w
		c.Records, c.Programs, c.Position = nil, nil, q.from
		w = &c
	}
	if w.Empty() {
		return
	}
	q.waiting = append(q.waiting, w)
	q.count(w)
	for len(q.waiting) > 1 && (q.held > q.limit || q.bytes > maxBytes || len(q.waiting) > maxWaiting) {
		old := q.waiting[0]
		q.pop()
		q.dropped.Windows++
		q.dropped.Records += uint64(len(old.Records))
		q.lost += uint64(len(old.Records))
		for i := range old.Records {
			q.dropped.Sent += old.Records[i].Sent
			q.dropped.Received += old.Records[i].Received
		}
		// The small things of the dropped window are not lost: its successor carries them.
		q.uncount(q.waiting[0])
		next := *q.waiting[0]
		next.Losses = add(old.Losses, next.Losses)
		next.Unattributed.Sent += old.Unattributed.Sent
		next.Unattributed.Received += old.Unattributed.Received
		all := append(append([]flow.Digested(nil), old.Digests...), next.Digests...)
		first := max(len(all)-maxWaiting, 0)
		for digestBytes(all[first:]) > maxDigestBytes {
			first++
		}
		q.dropped.Digests += uint64(first)
		next.Digests = all[first:]
		q.waiting[0] = &next
		q.count(&next)
	}
}

// Bounds of what waits: windows (and the digests of one), a quiet machine with a full disk for hours; bytes of texts.
const (
	maxWaiting     = 1 << 10
	maxBytes       = 16 << 20
	maxDigestBytes = 1 << 20
)

func digestBytes(ds []flow.Digested) (n int) {
	for i := range ds {
		n += len(ds[i].Path) + len(ds[i].SHA256) + len(ds[i].Reason)
	}
	return n
}

func (q *Queue) count(w *flow.Window) {
	q.held += len(w.Records)
	q.bytes += digestBytes(w.Digests)
	for i := range w.Records {
		q.bytes += q.sizes.Add(w.Records[i].Program)
	}
	for _, p := range w.Programs {
		q.bytes += q.sizes.Add(p)
	}
}

func (q *Queue) uncount(w *flow.Window) {
	q.held -= len(w.Records)
	q.bytes -= digestBytes(w.Digests)
	for i := range w.Records {
		q.bytes -= q.sizes.Remove(w.Records[i].Program)
	}
	for _, p := range w.Programs {
		q.bytes -= q.sizes.Remove(p)
	}
}

func (q *Queue) pop() {
	q.uncount(q.waiting[0])
	q.waiting[0] = nil
	q.waiting = q.waiting[1:]
}

func add(a, b map[string]uint64) map[string]uint64 {
	if len(a) == 0 {
		return b
	}
	s := make(map[string]uint64, len(a)+len(b))
	for k, v := range a {
		s[k] += v
	}
	for k, v := range b {
		s[k] += v
	}
	return s
}

// maxBackoff is the longest wait between two tries, in seconds.
const maxBackoff = 32

// Flush writes what waits. After a failure it does nothing until the back-off (in seconds of now, unix seconds) is over,
// unless forced. The error is the failure's.
func (q *Queue) Flush(ctx context.Context, now int64, force bool) error {
	if len(q.waiting) == 0 || (!force && q.nextTry > now && q.nextTry-now <= maxBackoff) {
		return nil
	}
	for len(q.waiting) > 0 {
		w := q.waiting[0]
		if q.lost > 0 {
			c := *w
			c.Losses = add(map[string]uint64{LossSink: q.lost}, w.Losses)
			w = &c
		}
		if err := q.sink.Write(ctx, w); err != nil {
			q.failures++
			q.lastErr = err
			q.wait = min(max(2*q.wait, 1), maxBackoff)
			q.nextTry = now + q.wait
			return fmt.Errorf("write %s: %w", q.sink.Name(), err)
		}
		q.lost = 0
		q.durable = w.Position
		q.pop()
	}
	q.lastErr, q.wait, q.nextTry = nil, 0, 0
	return nil
}

// Close closes the sink.
func (q *Queue) Close() error { return q.sink.Close() }
