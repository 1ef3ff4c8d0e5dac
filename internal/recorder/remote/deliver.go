package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
)

// server is a connection to one.
type server interface {
	// last is the number of the last frame of a chain that the server has.
	last(ctx context.Context, chain string) (uint64, error)
	// send delivers all of a batch or nothing; errThere if it is there already.
	send(ctx context.Context, d *delivery) error
	// cut counts, by column, values that did not fit; who takes note of them clears it.
	cut() map[string]uint64
	// warning is what the user should know of the tables; "": nothing.
	warning() (text, hint string)
	// alive is false when the connection is of no use any more.
	alive() bool
	close()
}

// delivery is a batch as the server gets it.
type delivery struct {
	chain       string
	first, last uint64
	windows     []*flow.Window
	dropped     uint64 // records that the spool had to drop before it
}

// place is a frame of a chain.
type place struct {
	chain string
	first uint64
}

var errThere = errors.New("the batch is there already")

// Bounds of one transaction: they bound the memory, too.
const (
	maxBatchRecords = 4 << 10
	maxBatchBytes   = 1 << 20
)

// Waits between tries.
const (
	firstWait = time.Second
	maxWait   = time.Minute
)

// run delivers until ctx ends, or until nothing can be delivered any more after leave was closed.
func (r *Remote) run(ctx context.Context) {
	var s server
	defer func() {
		if s != nil {
			s.close()
		}
	}()
	wait, told := r.opt.Wait, ""
	var since time.Time
	asked := "" // the chain of which the server has said how far it is
	for {
		if r.spool.Chain() == "" {
			if !r.pause(ctx, r.spool.Ready(), 0) {
				return
			}
			continue
		}
		var err error
		if s == nil || !s.alive() {
			if s != nil {
				s.close()
			}
			asked = ""
			if s, err = r.dial(ctx); err != nil {
				s = nil
			} else if text, hint := s.warning(); text != "" && !r.warned {
				r.warned = true
				r.tell("warning", text, hint)
			}
		}
		held, sent := time.Duration(0), false
		if err == nil {
			held, sent, err = r.deliver(ctx, s, &asked)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if sent {
				r.succeed(s, &told, since)
				wait = r.opt.Wait
			}
			if held > 0 && !r.pause(ctx, nil, held) {
				return
			}
		default:
			asked = ""
			if s != nil {
				s.close() // rights and settings may be those of the moment at which it connected
				s = nil
			}
			if told == "" {
				since = r.opt.Clock()
			}
			r.fail(err, &told)
			// Many recorders must not come back in the same moment.
			if !r.pause(ctx, nil, wait/2+rand.N(wait)) {
				return
			}
			wait = min(2*wait, maxWait)
		}
	}
}

// pause waits for a value or a time; 0 is no time. It is false when it is time to leave.
func (r *Remote) pause(ctx context.Context, ready <-chan struct{}, d time.Duration) bool {
	var after <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-ready:
		return true
	default:
	}
	select {
	case <-ready:
		return true
	case <-after:
		return true
	case <-r.leave:
		return false
	case <-ctx.Done():
		return false
	}
}

func (r *Remote) dial(ctx context.Context) (s server, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	defer understood(&err)
	if r.o.Dialect == Postgres {
		return dialPostgres(ctx, r.o, r.opt.Zone)
	}
	return dialMySQL(ctx, r.o, r.opt.Zone)
}

// deliver brings one batch to the server. It returns how long the next one has to wait for a hash (0: it need not), and whether
// one was sent.
func (r *Remote) deliver(ctx context.Context, s server, asked *string) (held time.Duration, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	if chain := r.spool.Chain(); chain != *asked {
		last, err := ask(ctx, s, chain)
		if err != nil {
			return 0, false, err
		}
		delivered := r.spool.Skip(chain, last)
		if delivered > last && r.lost != chain {
			r.lost = chain
			r.tell("error", fmt.Sprintf("the SQL server (%s) has lost batches that it had confirmed: %d of chain %s", r.o.where(), delivered-last, chain), "was it restored from a backup? snitch.db has them, the server has not")
		}
		*asked = chain
		return 0, false, nil // the oldest frame may be of another chain now
	}
	b := r.spool.Read(maxBatchRecords, maxBatchBytes)
	if b == nil {
		return 0, false, nil
	}
	defer func() {
		if !sent {
			r.spool.Release(b)
		}
	}()
	d, without, held := r.prepare(b)
	if held > 0 {
		return held, false, nil
	}
	err = send(ctx, s, d)
	if errors.Is(err, errThere) {
		// Committed after we had asked: by a connection of ours that we took for dead.
		*asked = ""
		if again := (place{b.Chain, b.First}); r.there != again {
			r.there = again
			return 0, false, nil
		}
		return 0, false, &schemaError{fmt.Sprintf("batch %d of chain %s is refused as a duplicate, but cannot be read", b.First, b.Chain)}
	}
	if err != nil {
		return 0, false, err
	}
	sent = true
	r.spool.Done(b)
	r.mu.Lock()
	r.status.Delivered = r.status.Delivered.Add(b.Count())
	r.status.NoHash += without
	r.status.Last = r.opt.Clock().Unix()
	r.mu.Unlock()
	return 0, true, nil
}

func ask(ctx context.Context, s server, chain string) (n uint64, err error) {
	defer understood(&err)
	return s.last(ctx, chain)
}

func send(ctx context.Context, s server, d *delivery) (err error) {
	defer understood(&err)
	return s.send(ctx, d)
}

// understood makes an error of a panic. The library for MariaDB and MySQL looks for the parts of a packet without asking whether they are there:
// who answers with a packet that is too short must not end the recorder.
func understood(err *error) {
	if x := recover(); x != nil {
		*err = &answerError{fmt.Sprint(x)}
	}
}

// prepare decodes a batch. It is shortened to what need not wait for a hash any more, and held tells how long the first frame
// has to wait if that is nothing. without counts rows that go without the hash of their executable.
func (r *Remote) prepare(b *spool.Batch) (d *delivery, without uint64, held time.Duration) {
	now := r.opt.Clock()
	d = &delivery{chain: b.Chain, first: b.First}
	for i, f := range b.Frames {
		if len(f.Payload) == 0 {
			continue // damaged, or there is only what was lost before it
		}
		w, pending, err := decode(f.Payload, r.late.find)
		if err != nil {
			// It was written by a newer version, or its checksum is right by accident: the others must not wait for ever.
			b.Frames[i].Payload = nil
			if !r.strange {
				r.strange = true
				r.tell("error", fmt.Sprintf("%v: its records will not reach the SQL server", err), "`picosnitch status` counts them; snitch.db has them; if no newer picosnitch has run here, report it")
			}
			continue
		}
		if age := now.Sub(time.Unix(f.At, 0)); pending && age >= 0 && age < lateLimit {
			if i == 0 {
				return nil, 0, min(lateLimit-age, time.Second)
			}
			b.Keep(i)
			break
		}
		if pending {
			for i := range w.Records {
				if x := w.Records[i].Program.Executable.Digest; x.SHA256 == "" && x.Reason == "" {
					without++
				}
			}
		}
		d.windows = append(d.windows, w)
	}
	d.last, d.dropped = b.Last, b.Lost().Records+b.Unreadable().Records
	return d, without, 0
}

// succeed takes note of a delivery.
func (r *Remote) succeed(s server, told *string, since time.Time) {
	if *told != "" {
		r.tell("info", fmt.Sprintf("the SQL server (%s) is there again after %v: what waited is being delivered", r.o.where(), r.opt.Clock().Sub(since).Round(time.Second)), "")
		*told = ""
	}
	r.mu.Lock()
	r.status.Connected, r.status.Error = true, ""
	before := r.status.Cut
	names := ""
	for name, n := range s.cut() {
		r.status.Cut += n
		names = name
	}
	clear(s.cut())
	first := before == 0 && r.status.Cut > 0
	r.mu.Unlock()
	if first {
		r.tell("warning", fmt.Sprintf("values do not fit into the SQL server's table and are cut, the first in column %s", names), "make the column wider; `picosnitch status` counts them")
	}
}

// fail takes note of a failure, and tells one of a kind once.
func (r *Remote) fail(err error, told *string) {
	class, hint := classify(err)
	text := r.o.scrub(err).Error()
	r.mu.Lock()
	r.status.Connected, r.status.Error = false, text
	r.status.Failures++
	r.mu.Unlock()
	if *told != class {
		*told = class
		r.tell("error", fmt.Sprintf("the SQL server (%s): %s (rows wait in the spool, %d MB at most)", r.o.where(), text, r.o.Limit>>20), hint)
	}
}
