package digest

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	// looks is how often the crew is looked at within Options.Late.
	looks = 4
	// haltAfter is how many times Options.Late jobs must wait, while none is done, to count as a halt.
	haltAfter = 5
	// hangsMax is how many workers may hang in one file system before the jobs of its files wait for it to answer: one may hang for one file only.
	hangsMax = 2
)

// crew is the workers of a Digester. One goroutine looks after it.
type crew struct {
	d       *Digester
	ctx     context.Context
	all     sync.WaitGroup // those that hang are not waited for
	workers []*worker
	left    []*worker // given up, and not come back yet
	looked  time.Time
}

func (d *Digester) run(ctx context.Context) error {
	c := &crew{d: d, ctx: ctx, looked: time.Now()}
	for range d.o.Workers {
		c.start(false)
	}
	look := time.NewTicker(max(min(d.o.Stall, d.o.Late)/looks, time.Millisecond))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			c.leave()
			return nil
		case now := <-look.C:
			c.look(now)
		}
	}
}

func (c *crew) start(hurried bool) {
	w := &worker{hurried: hurried}
	c.workers = append(c.workers, w)
	c.all.Go(func() { c.d.work(c.ctx, w) })
}

// leave waits for the workers, which see the end of the context after the current chunk, but not for those that
// hang.
func (c *crew) leave() {
	done := make(chan struct{})
	go func() { c.all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

// look gives up workers that hang for long and replaces them, and starts one more, that does not give its priority away, when jobs wait though it is
// not long that anybody hangs: on a busy machine a thread of the lowest priority may come to nothing for minutes.
func (c *crew) look(now time.Time) {
	hangs, lost := map[uint64]int{}, map[uint64]int{} // by device: workers; of them those that were given up
	kept, hurried, steady, hanging := c.workers[:0], false, 0, 0
	var gone []*job
	for _, w := range c.workers {
		quiet := w.quietFor(now)
		if quiet >= c.d.o.Stall && len(c.left) < maxStuck {
			if j := w.giveUp(); j != nil {
				c.left, gone = append(c.left, w), append(gone, j)
				c.d.count(func(s *Stats) { s.Stuck++ })
				continue
			}
		}
		switch {
		case w.ended.Load():
			continue
		case quiet >= c.d.o.Late:
			hangs[w.device()]++
			hanging++
		case w.hurried:
			hurried = true
		}
		if !w.hurried {
			steady++
		}
		kept = append(kept, w)
	}
	clear(c.workers[len(kept):])
	c.workers = kept
	left := c.left[:0]
	for _, w := range c.left {
		if !w.ended.Load() {
			left = append(left, w)
			hangs[w.device()]++
			lost[w.device()]++
		}
	}
	clear(c.left[len(left):])
	c.left = left
	for range c.d.o.Workers - steady {
		c.start(false)
	}
	late, jobs := c.d.attend(now, hangs, lost, now.Sub(c.looked))
	c.looked = now
	if late && !hurried && hanging+len(c.left) < maxStuck {
		c.start(true)
	}
	for _, j := range append(gone, jobs...) {
		c.d.finish(c.ctx, j, event.Executable{}, "", maxAskers, because(ReasonStalled))
	}
}

// attend notes in which file systems workers hang. It reports whether a job waits too long that is of none of them, and takes those jobs out of
// the queue whose file systems workers were given up in. since is the time from the last call to this.
func (d *Digester) attend(now time.Time, hangs, lost map[uint64]int, since time.Duration) (late bool, gone []*job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = nil
	for device, n := range hangs {
		if n >= hangsMax && device != 0 {
			if d.hangs == nil {
				d.hangs = map[uint64]bool{}
			}
			d.hangs[device] = true
		}
	}
	if len(d.queue) == 0 {
		return false, nil
	}
	if limit := haltAfter * d.o.Late; now.Sub(d.queue[0].wanted) >= limit && now.Sub(d.done) >= limit {
		d.stats.Halted += since
	}
	queue := d.queue[:0]
	for _, j := range d.queue {
		device := j.key.file.Device
		if d.hangs[device] && lost[device] >= hangsMax {
			gone = append(gone, j)
			continue
		}
		late = late || !d.hangs[device] && (d.hurry || now.Sub(j.wanted) >= d.o.Late)
		queue = append(queue, j)
	}
	clear(d.queue[len(queue):])
	d.queue = queue
	d.poke() // jobs that waited for a file system may be taken now
	return late, gone
}

// take is the first job of the queue that need not wait for its file system, or nil. d.mu is held.
func (d *Digester) take() *job {
	for i, j := range d.queue {
		if d.hangs[j.key.file.Device] {
			continue
		}
		if i == 0 {
			d.queue[0] = nil
			d.queue = d.queue[1:]
		} else {
			copy(d.queue[i:], d.queue[i+1:])
			d.queue[len(d.queue)-1] = nil
			d.queue = d.queue[:len(d.queue)-1]
		}
		if len(d.queue) > 0 {
			d.poke()
		}
		return j
	}
	return nil
}

// quietFor is for how long the worker has been at the same place of its job, and not for want of a processor.
func (w *worker) quietFor(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.progress.Load(); w.job == nil || p != w.since || w.quiet.IsZero() || runnable(int(w.thread.Load())) {
		w.since, w.quiet = p, now
		return 0
	}
	return now.Sub(w.quiet)
}

// giveUp returns the worker's job, which is the caller's now, or nil if there is none.
func (w *worker) giveUp() *job {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given = w.job != nil
	return w.job
}

// device is that of the file of the worker's job, or 0.
func (w *worker) device() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.job == nil {
		return 0
	}
	return w.job.key.file.Device
}

// runnable reports whether a thread of this process runs or waits for a processor (proc_pid_stat(5)).
func runnable(thread int) bool {
	b, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(thread) + "/stat")
	if err != nil {
		return false
	}
	after := b[bytes.LastIndexByte(b, ')')+1:]
	return len(after) > 1 && after[1] == 'R'
}
