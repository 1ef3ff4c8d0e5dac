package sensor

import (
	"context"
	"sync"
	"time"
)

// lookups asks what may have to wait for a file system. Workers do it, so that the loop, which alone uses this, never hangs in one.
type lookups struct {
	ctx    context.Context // of the workers
	jobs   chan *lookup
	done   chan *lookup
	open   map[*lookup]struct{} // those that were not given up
	stuck  int                  // workers that hang
	budget time.Duration        // how long the loop may still wait before the next tick
}

// lookup is one question. find runs in a worker; what it returns is run by the loop.
type lookup struct {
	find  func() func()
	apply func()
	stuck bool // its worker was replaced

	mu       sync.Mutex // guards what follows
	begun    time.Time  // when a worker took it; zero: none did
	done     bool
	replaced bool // the worker ends when it has the answer
}

// begin and end are the worker's; end reports whether it goes on.
func (j *lookup) begin() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.begun = time.Now()
}

func (j *lookup) end() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done = true
	return !j.replaced
}

// late reports whether a worker has had the question for too long. If may is true it is to be replaced.
func (j *lookup) late(may bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.begun.IsZero() || j.done || time.Since(j.begun) < lookupLimit {
		return false
	}
	j.replaced = may
	return true
}

const (
	lookupsMax    = 4096 // questions at once
	lookupWorkers = 2
	lookupsStuck  = 16              // workers that may hang before there are no more replacements
	lookupLimit   = 2 * time.Second // that a worker may take for one answer
	lookupBudget  = 300 * time.Millisecond
)

// newLookups starts the workers. They end with ctx; those that hang in a file system then are left behind.
func newLookups(ctx context.Context) *lookups {
	k := &lookups{
		ctx: ctx, jobs: make(chan *lookup, lookupsMax), done: make(chan *lookup, lookupsMax),
		open: map[*lookup]struct{}{}, budget: lookupBudget,
	}
	for range lookupWorkers {
		go k.work()
	}
	return k
}

func (k *lookups) work() {
	for {
		select {
		case <-k.ctx.Done():
			return
		case j := <-k.jobs:
			j.begin()
			j.apply = j.find()
			goesOn := j.end()
			select {
			case k.done <- j:
			case <-k.ctx.Done():
				return
			}
			if !goesOn {
				return
			}
		}
	}
}

// ask reports whether the question was taken.
func (k *lookups) ask(find func() func()) bool {
	j := &lookup{find: find}
	select {
	case k.jobs <- j:
		k.open[j] = struct{}{}
		return true
	default:
		return false
	}
}

// take applies the answers that are there.
func (k *lookups) take() {
	for {
		select {
		case j := <-k.done:
			k.apply(j)
		default:
			return
		}
	}
}

func (k *lookups) apply(j *lookup) {
	delete(k.open, j)
	if j.stuck {
		k.stuck--
	}
	j.apply()
}

// await applies answers until enough is true, nothing more is to come, or the budget is used up.
func (k *lookups) await(enough func() bool) {
	k.take()
	for len(k.open) > 0 && k.budget > 0 && !enough() {
		begin := time.Now()
		select {
		case j := <-k.done:
			k.apply(j)
		case <-time.After(k.budget):
		}
		k.budget -= time.Since(begin)
	}
}

// tick gives up what takes too long, replaces workers that hang, and allows the loop to wait again.
func (k *lookups) tick() {
	k.take()
	k.budget = lookupBudget
	for j := range k.open {
		may := k.stuck < lookupsStuck
		if !j.late(may) {
			continue
		}
		if may {
			delete(k.open, j) // its answer is still taken when it comes
			j.stuck = true
			k.stuck++
			go k.work()
		}
	}
}
