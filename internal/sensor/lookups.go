package sensor

import (
	"context"
	"sync/atomic"
	"time"
)

// lookups asks what may have to wait for a file system. Workers do it, so that the loop, which alone uses this, never hangs in one.
type lookups struct {
	ctx    context.Context // of the workers
	jobs   chan *lookup
	done   chan *lookup
	open   map[*lookup]time.Time // when they were asked
	stuck  int                   // workers that hang
	budget time.Duration         // how long the loop may still wait before the next tick
}

// lookup is one question. find runs in a worker; what it returns is run by the loop.
type lookup struct {
	find  func() func()
	apply func()
	begun atomic.Bool
	stuck bool // its worker was replaced
}

const (
	lookupsMax    = 4096 // questions at once
	lookupWorkers = 2
	lookupsStuck  = 16              // workers that may hang before there are no more replacements
	lookupLimit   = 2 * time.Second // after which nobody waits for an answer any more
	lookupBudget  = 300 * time.Millisecond
)

// newLookups starts the workers. They end with ctx; those that hang in a file system then are left behind.
func newLookups(ctx context.Context) *lookups {
	k := &lookups{
		ctx: ctx, jobs: make(chan *lookup, lookupsMax), done: make(chan *lookup, lookupsMax),
		open: map[*lookup]time.Time{}, budget: lookupBudget,
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
			j.begun.Store(true)
			j.apply = j.find()
			select {
			case k.done <- j:
			case <-k.ctx.Done():
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
		k.open[j] = time.Now()
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
	for j, asked := range k.open {
		if time.Since(asked) < lookupLimit {
			continue
		}
		delete(k.open, j) // its answer is still taken when it comes
		if j.begun.Load() && k.stuck < lookupsStuck {
			j.stuck = true
			k.stuck++
			go k.work()
		}
	}
}
