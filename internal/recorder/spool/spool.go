// Package spool is a bounded queue on disk, for what must reach a server exactly once although the server, the network or we
// ourselves are away for hours. It belongs to the recorder's wing. It keeps frames of bytes in order and knows nothing of what is
// in them, but how many records and bytes to count when it has to drop one. It does not know the server: whoever empties it
// asks the server how far it is (see Batch).
package spool

import (
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
	Payload []byte // from Read, nil if it was damaged (and is counted as dropped already)

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
	Dropped Count // since it was opened
	Damaged int64 // bytes that could not be read; since it was opened
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
	bytes    int64      // of all segments; guarded by mu
	dropped  Count      // guarded by mu
	unsaid   Count      // dropped, and not yet in a frame; guarded by mu
	damaged  int64      // guarded by mu
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
	for _, name := range names {
		if err := s.load(name); err != nil {
			s.close()
			return nil, err
		}
	}
	// A chain of our own: what an earlier process was writing when it was killed is never written on.
	if err := s.begin(); err != nil {
		s.close()
		return nil, err
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
func (s *Spool) load(name string) error {
	var number uint64
	if _, err := fmt.Sscanf(filepath.Base(name), "%016x", &number); err != nil {
		return nil // not ours
	}
	s.next = max(s.next, number+1)
	g, mark, damaged, err := load(name)
	s.damaged += damaged
	if err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	if g == nil {
		// Not even a whole header: nothing was ever acknowledged of it.
		return os.Remove(name)
	}
	if mark != nil {
		s.mark = mark
	}
	s.segments = append(s.segments, g)
	s.bytes += g.size
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
	s.unsaid = Count{}
	s.bytes += size
	s.mark = slices.Clone(f.Mark)
	for _, v := range victims {
		s.dropped = s.dropped.Add(v.left().Count)
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
	over := s.bytes + size - s.limit
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

// purge removes segments of which everything was delivered.
func (s *Spool) purge() {
	for _, g := range slices.Clone(s.segments[:len(s.segments)-1]) {
		if g.number >= g.frames && !g.busy {
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
// and bytes. Until Done or Release they cannot be dropped. nil: nothing waits.
func (s *Spool) Read(records uint64, bytes int64) (*Batch, error) {
	s.mu.Lock()
	g := s.oldest()
	if g == nil {
		s.mu.Unlock()
		return nil, nil
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
			s.giveUp(g)
			s.Release(b)
			return nil, err
		}
		if len(b.Frames) > 0 && b.sum.Records+f.Records > records { // whole frames only
			break
		}
		if f.Payload == nil {
			s.damage(g, b.end, &f)
		}
		b.Frames = append(b.Frames, f)
		b.sum = b.sum.add(tally{f.Count, f.Lost})
		b.end += size
		b.Last++
	}
	return b, nil
}

// giveUp counts what cannot be read any more, from the next frame to the end of the segment.
func (s *Spool) giveUp(g *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := g.left()
	s.dropped, s.unsaid = s.dropped.Add(left.Count), s.unsaid.Add(left.Count).Add(left.lost)
	s.damaged += g.size - g.offset
	g.done, g.number, g.offset = g.total, g.frames, g.size
}

// damage counts a frame whose payload cannot be read, once.
func (s *Spool) damage(g *segment, offset int64, f *Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset < g.known {
		return
	}
	g.known = offset + f.size
	s.dropped, s.unsaid = s.dropped.Add(f.Count), s.unsaid.Add(f.Count)
	s.damaged += f.size
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

// Count is what the batch holds.
func (b *Batch) Count() Count { return b.sum.Count }

// Lost is what was dropped before its frames.
func (b *Batch) Lost() Count { return b.sum.lost }

// Done forgets a batch: it was delivered.
func (s *Spool) Done(b *Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
func (s *Spool) Skip(chain string, last uint64) (delivered uint64, err error) {
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
				return 0, err
			}
			g.offset += h.size()
			g.number++
			g.done = g.done.add(tally{h.Count, h.Lost})
		}
		delivered = g.number
	}
	return delivered, nil
}

// Status says what is there.
func (s *Spool) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Bytes: s.bytes, Dropped: s.dropped, Damaged: s.damaged}
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
	s.purge()
	err = errors.Join(err, s.segments[len(s.segments)-1].f.Sync())
	return errors.Join(err, s.close())
}

func (s *Spool) close() (err error) {
	for _, g := range s.segments {
		err = errors.Join(err, g.f.Close())
	}
	return err
}
