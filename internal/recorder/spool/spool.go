// Package spool is a bounded queue on disk, for what must reach a server exactly once although the server, the network or we
// ourselves are away for hours. It belongs to the recorder's wing. It keeps frames of bytes in order and knows nothing of what is
// in them, but how many records and bytes to count when it has to drop one. It does not know the server: whoever empties it
// asks the server how far it is (see Batch).
package spool

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// MinLimit is the smallest bound of a spool, in bytes: it must hold two segments, of which one may be in use.
const MinLimit = 16 << 20

// Count is what frames hold.
type Count struct {
	Records  uint64 `json:"records"`
	Sent     uint64 `json:"sent"`     // bytes
	Received uint64 `json:"received"` // bytes
}

// Add returns the sum.
func (c Count) Add(d Count) Count {
	return Count{c.Records + d.Records, c.Sent + d.Sent, c.Received + d.Received}
}

func (c Count) minus(d Count) Count {
	return Count{c.Records - d.Records, c.Sent - d.Sent, c.Received - d.Received}
}

// Frame is one entry of the queue.
type Frame struct {
	Count
	At      int64  // unix seconds at which it was appended
	Mark    []byte // the caller's position, at most 64 KB; Spool.Mark has the last one after a restart
	Lost    Count  // what was dropped before this frame
	Payload []byte // from Read, nil if it is damaged; who reads sets it to nil when it cannot be understood: Done counts it as unreadable

	size int64 // in the file
}

// Batch is a run of frames of one chain. The chain is a random id; frames of a chain are numbered 1, 2, … and delivered in order.
// A server that keeps (chain, first, last) with what a batch holds can therefore say which frames it has, whatever became of
// the answer to a commit.
type Batch struct {
	Chain       string
	First, Last uint64
	Frames      []Frame

	seg *segment
	end int64
	sum tally
}

// Status is what a spool holds now.
type Status struct {
	Waiting Count
	Frames  uint64
	Bytes   int64 // on disk
	Oldest  int64 // unix seconds; 0: nothing waits
	Dropped Count // since it was opened, because it was full

	// What is damaged, since it was opened.
	Unreadable Count    // in frames that cannot be read; where not even their headers can, what could be found
	Damaged    int64    // bytes that cannot be read
	Short      int      // files that end too early: how much they held is not known
	Foreign    []string // files of another version of picosnitch: left alone
	Aside      []string // files whose beginning is damaged, by their new names
}

// Spool is the queue. It is safe for concurrent use by one that appends and one that reads.
type Spool struct {
	dir   string
	limit int64
	size  int64 // of a segment
	clock func() time.Time
	ready chan struct{} // holds a token after an Append

	mu       sync.Mutex
	segments []*segment // the last one is appended to; guarded by mu
	next     uint64     // number of the next segment; guarded by mu
	mark     []byte     // guarded by mu
	whole    uint64     // number of the segment whose last frame mark is of, while they are loaded
	bytes    int64      // of all segments; guarded by mu
	foreign  int64      // bytes of files that are left alone
	lost     Status     // its counts of what was lost; guarded by mu
	unsaid   Count      // lost, and not yet in a frame; guarded by mu
	synced   time.Time  // guarded by mu
	scratch  []byte     // guarded by mu
}

// Open opens or creates the spool in dir, for at most limit bytes.
func Open(dir string, limit int64) (*Spool, error) {
	if limit < MinLimit {
		return nil, fmt.Errorf("open spool %s: a limit of %d bytes is too small, use %d or more", dir, limit, MinLimit)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	s := &Spool{dir: dir, limit: limit, size: min(max(limit/32, 1<<20), 8<<20), clock: time.Now, ready: make(chan struct{}, 1), next: 1}
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for i, name := range names {
		if err := s.load(name, i == len(names)-1); err != nil {
			s.close()
			return nil, err
		}
	}
	// A chain of our own: what an earlier process was writing when it was killed is never written on.
	if err := s.begin(); err != nil {
		s.close()
		return nil, err
	}
	// What is damaged goes once a frame tells of it: else it would be counted again with each start. Killed in between, it is told twice.
	if err := s.say(); err == nil {
		s.tidy()
	}
	s.purge()
	s.ready <- struct{}{}
	return s, nil
}

// begin starts a segment.
func (s *Spool) begin() error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	g, err := create(filepath.Join(s.dir, fmt.Sprintf("%016x%s", s.next, suffix)), id, s.mark)
	if err != nil {
		return err
	}
	s.next++
	s.segments = append(s.segments, g)
	s.bytes += g.size
	return syncDir(s.dir)
}

// load takes in a segment of an earlier process.
func (s *Spool) load(name string, last bool) error {
	var number uint64
	if _, err := fmt.Sscanf(filepath.Base(name), "%016x", &number); err != nil {
		return nil // not ours
	}
	s.next = max(s.next, number+1)
	l, err := load(name)
	if err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	switch {
	case l.foreign:
		s.foreign += l.damaged
		s.lost.Foreign = append(s.lost.Foreign, filepath.Base(name))
		return nil
	case l.segment == nil && l.damaged == 0:
		// Not even a whole header. If it is the last, it was killed in begin, and nothing was ever acknowledged of it; before another one
		// is begun, such a file goes.
		if !last {
			s.lost.Short++
		}
		return os.Remove(name)
	}
	s.lost.Damaged += l.damaged
	s.lost.Unreadable, s.unsaid = s.lost.Unreadable.Add(l.unreadable.Count), s.unsaid.Add(l.unreadable.Count).Add(l.unreadable.lost)
	if l.segment == nil {
		s.lost.Aside = append(s.lost.Aside, filepath.Base(name)+aside)
		return nil
	}
	l.segment.lossy = l.damaged > 0
	// A segment begins with the last mark of the one before it.
	if s.whole == number-1 && s.whole > 0 && !bytes.Equal(s.mark, l.first) {
		s.lost.Short++
	}
	s.whole = number
	if l.damaged > 0 {
		s.whole = 0 // and it is counted already
	}
	if l.mark != nil {
		s.mark = l.mark
	}
	s.segments = append(s.segments, l.segment)
	s.bytes += l.segment.size
	return nil
}

// Mark is that of the last frame, also when it was delivered long ago; nil: there was none.
func (s *Spool) Mark() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mark)
}

// Ready gives a value when there may be something to read.
func (s *Spool) Ready() <-chan struct{} { return s.ready }

// syncEvery is how much may be lost to a power cut, which also takes what the sensor could send again. A kill takes nothing.
const syncEvery = 5 * time.Second

// Append puts a frame behind the others. The oldest are dropped when there is no room. After an error nothing of it is there.
func (s *Spool) Append(f Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.At = s.clock().Unix()
	g := s.segments[len(s.segments)-1]
	if g.broken || g.size >= s.size {
		if !g.broken {
			if err := g.f.Sync(); err != nil {
				return err
			}
		}
		if err := s.begin(); err != nil {
			return err
		}
		s.purge()
		g = s.segments[len(s.segments)-1]
	}
	// Counted first: killed in between, a loss is told that was none, and none is hidden.
	size := frameSize(&f)
	victims := s.victims(size)
	lost := s.unsaid
	for _, v := range victims {
		lost = lost.Add(v.left().Count).Add(v.left().lost)
	}
	f.Lost = lost
	s.scratch = appendFrame(s.scratch[:0], &f)
	err := g.append(s.scratch, &f)
	if cap(s.scratch) > 4<<20 {
		s.scratch = nil
	}
	if err != nil {
		return err
	}
	s.said()
	s.bytes += size
	s.mark = slices.Clone(f.Mark)
	for _, v := range victims {
		s.lost.Dropped = s.lost.Dropped.Add(v.left().Count)
		s.remove(v)
	}
	if now := s.clock(); now.Sub(s.synced) >= syncEvery || now.Before(s.synced) {
		s.synced = now
		_ = g.f.Sync() // the frame is there all the same: an error would bring it twice
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
	return nil
}

// victims are the oldest segments that must go for size more bytes: not the one that is written, nor one that is being delivered
// (its frames may be there already).
func (s *Spool) victims(size int64) (v []*segment) {
	over := s.bytes + size - max(s.limit-s.foreign, MinLimit)
	for _, g := range s.segments[:len(s.segments)-1] {
		if over <= 0 {
			break
		}
		if !g.busy {
			v = append(v, g)
			over -= g.size
		}
	}
	return v
}

func (s *Spool) remove(g *segment) {
	if err := os.Remove(g.f.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return // it is tried again with the next purge
	}
	s.bytes -= g.size
	g.f.Close()
	s.segments = slices.DeleteFunc(s.segments, func(o *segment) bool { return o == g })
}

// purge removes segments of which everything was delivered. What could not be read of them is told by another one first.
func (s *Spool) purge() {
	_ = s.say() // it is tried again with the next purge
	for _, g := range slices.Clone(s.segments[:len(s.segments)-1]) {
		if g.number >= g.frames && !g.busy && !g.lossy {
			s.remove(g)
		}
	}
}

// Chain is the chain of the oldest frame that waits; "": none waits.
func (s *Spool) Chain() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.oldest(); g != nil {
		return hex.EncodeToString(g.chain[:])
	}
	return ""
}

func (s *Spool) oldest() *segment {
	for _, g := range s.segments {
		if g.number < g.frames {
			return g
		}
	}
	return nil
}

// Read returns the oldest frames, one at least if there is one, and of one chain: at most limit records (of more than one frame)
// and bytes. Until Done or Release they cannot be dropped. nil: nothing waits, or only what is damaged beyond finding its frames: it is
// counted and skipped.
func (s *Spool) Read(records uint64, bytes int64) *Batch {
	s.mu.Lock()
	g := s.oldest()
	if g == nil {
		s.mu.Unlock()
		return nil
	}
	g.busy = true
	offset, number, last := g.offset, g.number, g.frames
	s.mu.Unlock()

	b := &Batch{Chain: hex.EncodeToString(g.chain[:]), First: number + 1, Last: number, seg: g, end: offset}
	for b.Last < last && (len(b.Frames) == 0 || b.sum.Records < records && b.end-offset < bytes) {
		f, size, err := g.read(b.end)
		if err != nil {
			if len(b.Frames) > 0 {
				break // the next Read begins with it
			}
			s.mu.Lock()
			s.giveUp(g)
			g.busy = false
			s.purge()
			s.mu.Unlock()
			return nil
		}
		if len(b.Frames) > 0 && b.sum.Records+f.Records > records { // whole frames only
			break
		}
		b.Frames = append(b.Frames, f)
		b.sum = b.sum.add(tally{f.Count, f.Lost})
		b.end += size
		b.Last++
	}
	return b
}

// Keep shortens a batch to its first n frames.
func (b *Batch) Keep(n int) {
	for _, f := range b.Frames[n:] {
		b.end -= f.size
		b.sum = b.sum.minus(tally{f.Count, f.Lost})
		b.Last--
	}
	b.Frames = b.Frames[:n]
}

// Count is what the batch holds, without what is unreadable.
func (b *Batch) Count() Count { return b.sum.Count.minus(b.Unreadable()) }

// Unreadable is what its frames without a payload held.
func (b *Batch) Unreadable() (c Count) {
	for i := range b.Frames {
		if b.Frames[i].Payload == nil {
			c = c.Add(b.Frames[i].Count)
		}
	}
	return c
}

// Lost is what was dropped before its frames.
func (b *Batch) Lost() Count { return b.sum.lost }

// Done forgets a batch: it was delivered, but for what is unreadable, which is counted.
func (s *Spool) Done(b *Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost.Unreadable = s.lost.Unreadable.Add(b.Unreadable())
	for i := range b.Frames {
		if b.Frames[i].Payload == nil {
			s.lost.Damaged += b.Frames[i].size
		}
	}
	g := b.seg
	g.busy = false
	g.offset, g.number, g.done = b.end, b.Last, g.done.add(b.sum)
	s.purge()
}

// Release gives a batch back: it was not delivered, and comes again with the next Read.
func (s *Spool) Release(b *Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.seg.busy = false
}

// Skip forgets the frames of a chain up to number last: the server has them. It returns how many were delivered as far as we know:
// more than last when the server has lost what it had confirmed.
func (s *Spool) Skip(chain string, last uint64) (delivered uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.purge()
	for _, g := range s.segments {
		if hex.EncodeToString(g.chain[:]) != chain {
			continue
		}
		for g.number < last && g.number < g.frames {
			h, err := g.header(g.offset)
			if err != nil {
				s.giveUp(g) // also what the server may have: a loss that is told and was none
				break
			}
			g.offset += h.size()
			g.number++
			g.done = g.done.add(tally{h.Count, h.Lost})
		}
		delivered = g.number
	}
	return delivered
}

// Status says what is there.
func (s *Spool) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.lost
	st.Bytes = s.bytes
	for _, g := range s.segments {
		st.Waiting = st.Waiting.Add(g.left().Count)
		st.Frames += g.frames - g.number
		if st.Oldest == 0 && g.number < g.frames {
			st.Oldest = g.since
			if h, err := g.header(g.offset); err == nil {
				st.Oldest = h.At
			}
		}
	}
	return st
}

// Close closes the files. What waits stays for the next Open.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if g := s.segments[len(s.segments)-1]; g.frames > 0 && g.number == g.frames {
		err = s.begin() // so that all of what was delivered can go, and only the mark stays
	}
	s.purge() // a loss of which nothing tells yet is told
	err = errors.Join(err, s.segments[len(s.segments)-1].f.Sync())
	return errors.Join(err, s.close())
}

func (s *Spool) close() (err error) {
	for _, g := range s.segments {
		err = errors.Join(err, g.f.Close())
	}
	return err
}
