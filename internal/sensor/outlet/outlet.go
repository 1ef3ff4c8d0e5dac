// Package outlet brings the stream to the recorder: it starts one, starts another when that ends, and sends again what
// the last one had not acknowledged. It belongs to the root wing, knows batches of lines and not what is in them, and
// never blocks the sensor's loop.
package outlet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Connect starts a recorder and returns the sensor's end of its stream. Lines go down; {"ack":N} lines come up.
type Connect func(ctx context.Context) (io.ReadWriteCloser, error)

// Limit bounds the memory of batches that are not acknowledged, in bytes.
const Limit = 8 << 20

// Back-off between a recorder's end and the next one's start.
const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 30 * time.Second
	healthy    = time.Minute // a recorder that lived so long starts the back-off anew
)

// Stats of an Outlet.
type Stats struct {
	Connected bool
	Acked     uint64 // last batch that is durable
	Restarts  uint64 // unexpected ends of a recorder
	// Dropped counts lines of sent batches that were forgotten to keep within Limit and then proved to be missing,
	// because the recorder ended before it acknowledged them.
	Dropped uint64
	// DroppedSent and DroppedReceived are the bytes of flows in them.
	DroppedSent, DroppedReceived uint64
}

// Batch is a piece of the stream that is acknowledged as a whole.
type Batch struct {
	Number         uint64
	Data           []byte
	Lines          uint64
	Sent, Received uint64 // bytes of the flows in it
}

// Outlet is one stream to a succession of recorders. Make it with New.
type Outlet struct {
	connect  Connect
	preamble func(next uint64) []byte
	failed   func(error)
	log      *slog.Logger

	mu        sync.Mutex
	cond      *sync.Cond
	queue     []Batch // not acknowledged, in order
	sent      int     // of queue: handed to the present recorder
	size      int     // bytes of queue
	forgotten []Batch // sent, not acknowledged, data dropped
	last      uint64  // number of the last batch that Send took
	stats     Stats
	closing   bool
}

// New returns an Outlet. preamble gives the lines with which every stream begins (the hello, and all processes that
// later lines may name); next is the number of the batch that follows them. failed is told why a recorder could not be started or ended.
func New(connect Connect, preamble func(next uint64) []byte, failed func(error), log *slog.Logger) *Outlet {
	o := &Outlet{connect: connect, preamble: preamble, failed: failed, log: log}
	o.cond = sync.NewCond(&o.mu)
	return o
}

// Send queues a batch. It never blocks; see Full.
func (o *Outlet) Send(b Batch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(o.queue, b)
	o.last = b.Number
	o.size += len(b.Data)
	// What the recorder already has is only kept for the case that it dies.
	for o.size > Limit && o.sent > 0 {
		first := o.queue[0]
		o.size -= len(first.Data)
		first.Data = nil
		o.forgotten = append(o.forgotten, first)
		o.queue = o.queue[1:]
		o.sent--
	}
	o.cond.Broadcast()
}

// Full reports whether the recorder is so far behind that the counts should rather stay in the kernel.
func (o *Outlet) Full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.size > Limit/2 && o.sent < len(o.queue)
}

// Stats returns the present figures.
func (o *Outlet) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stats
}

// Run serves until ctx is done. Then it sends what is queued, waits until all is acknowledged or grace has passed, and closes the
// stream. It returns an error when batches were not acknowledged.
func (o *Outlet) Run(ctx context.Context, grace time.Duration) error {
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		o.mu.Lock()
		o.closing = true
		o.cond.Broadcast()
		o.mu.Unlock()
		time.AfterFunc(grace, cancel)
	})
	defer stop()
	backoff := backoffMin
	for {
		began := time.Now()
		err := o.serve(hard)
		o.mu.Lock()
		done := o.closing && len(o.queue) == 0
		left := len(o.queue)
		o.mu.Unlock()
		switch {
		case done:
			return nil
		case hard.Err() != nil:
			return fmt.Errorf("the recorder did not take the last %d batches within %s: %w", left, grace, err)
		}
		o.failed(err)
		if time.Since(began) > healthy {
			backoff = backoffMin
		}
		o.log.Warn("recorder ended", "err", err, "again_in", backoff)
		select {
		case <-hard.Done():
		case <-time.After(backoff):
		}
		backoff = min(backoff*2, backoffMax)
	}
}

// serve runs one recorder until it ends, or until everything is acknowledged after closing.
func (o *Outlet) serve(ctx context.Context) error {
	link, err := o.connect(ctx)
	if err != nil {
		return fmt.Errorf("start the recorder: %w", err)
	}
	var once sync.Once
	end := func() { once.Do(func() { link.Close() }) }
	defer end()
	stop := context.AfterFunc(ctx, end)
	defer stop()

	o.mu.Lock()
	o.sent = 0
	o.lose()
	next := o.last + 1
	if len(o.queue) > 0 {
		next = o.queue[0].Number
	}
	o.stats.Connected = true
	o.mu.Unlock()

	acks := make(chan error, 1)
	go func() {
		acks <- o.readAcks(link)
		o.mu.Lock() // the writer may be waiting
		o.cond.Broadcast()
		o.mu.Unlock()
	}()
	err = o.write(patient{link, end}, o.preamble(next), acks)
	end()
	readErr := <-acks
	o.mu.Lock()
	o.stats.Connected = false
	if !o.closing || len(o.queue) > 0 {
		o.stats.Restarts++
	}
	o.mu.Unlock()
	if err == nil {
		err = readErr
	}
	return err
}

// stall is how long a recorder may leave a write unread before it is given up and another one is started.
const stall = time.Minute

// patient ends the link under a write that does not return.
type patient struct {
	io.Writer
	end func()
}

func (p patient) Write(b []byte) (int, error) {
	late := time.AfterFunc(stall, p.end)
	defer late.Stop()
	n, err := p.Writer.Write(b)
	if err != nil && !late.Stop() {
		err = fmt.Errorf("it took nothing for %s: %w", stall, err)
	}
	return n, err
}

// lose counts what the recorder that ended had, and cannot be sent again. Called with mu held.
func (o *Outlet) lose() {
	for _, b := range o.forgotten {
		o.stats.Dropped += b.Lines
		o.stats.DroppedSent += b.Sent
		o.stats.DroppedReceived += b.Received
	}
	o.forgotten = nil
}

// write sends the preamble and then batch after batch. It returns nil when all is acknowledged and closing.
func (o *Outlet) write(link io.Writer, preamble []byte, acks chan error) error {
	if _, err := link.Write(preamble); err != nil {
		return fmt.Errorf("send to the recorder: %w", err)
	}
	for {
		o.mu.Lock()
		for o.sent == len(o.queue) && !(o.closing && len(o.queue) == 0) && len(acks) == 0 {
			o.cond.Wait()
		}
		if len(acks) > 0 {
			o.mu.Unlock()
			return nil // the reader says why
		}
		if o.sent == len(o.queue) {
			o.mu.Unlock()
			return nil
		}
		b := o.queue[o.sent]
		o.sent++
		o.mu.Unlock()
		if _, err := link.Write(b.Data); err != nil {
			return fmt.Errorf("send to the recorder: %w", err)
		}
	}
}

func (o *Outlet) readAcks(link io.Reader) error {
	s := bufio.NewScanner(link)
	for s.Scan() {
		var line struct {
			Ack uint64 `json:"ack"`
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			return fmt.Errorf("answer of the recorder: %w", err)
		}
		o.acked(line.Ack)
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read from the recorder: %w", err)
	}
	return io.ErrUnexpectedEOF
}

func (o *Outlet) acked(n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) > 0 && o.queue[0].Number <= n && o.sent > 0 {
		o.size -= len(o.queue[0].Data)
		o.queue = o.queue[1:]
		o.sent--
	}
	for len(o.forgotten) > 0 && o.forgotten[0].Number <= n {
		o.forgotten = o.forgotten[1:]
	}
	o.stats.Acked = max(o.stats.Acked, n)
	o.cond.Broadcast()
}
