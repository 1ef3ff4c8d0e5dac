package sensor

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestLookupsOutliveAHangingFileSystem: questions that get no answer hold neither the loop nor the others up for longer than its budget.
func TestLookupsOutliveAHangingFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		k := newLookups(ctx)
		hang := make(chan struct{})
		late := 0
		for range lookupWorkers {
			k.ask(func() func() { <-hang; return func() { late++ } })
		}
		answered := 0
		ask := func() {
			if !k.ask(func() func() { return func() { answered++ } }) {
				t.Error("the question was not taken")
			}
		}
		ask()
		begin := time.Now()
		k.await(func() bool { return answered > 0 })
		if d := time.Since(begin); answered != 0 || d != lookupBudget {
			t.Errorf("waited %v, %d answers; want %v and none: all workers hang", d, answered, lookupBudget)
		}
		k.await(func() bool { return answered > 0 }) // the budget is used up: at once
		if d := time.Since(begin); d != lookupBudget {
			t.Errorf("waited %v before the next tick", d)
		}
		for answered == 0 && time.Since(begin) < time.Minute {
			time.Sleep(time.Second)
			k.tick()
			k.await(func() bool { return answered > 0 })
		}
		if d := time.Since(begin); answered != 1 || d > 2*lookupLimit {
			t.Errorf("%d answers after %v: the workers were not replaced", answered, d)
		}
		ask()
		k.await(func() bool { return answered == 2 })
		if answered != 2 || k.stuck != lookupWorkers {
			t.Errorf("%d answers, %d stuck", answered, k.stuck)
		}
		close(hang)
		synctest.Wait()
		k.take()
		if late != lookupWorkers || k.stuck != 0 || len(k.open) != 0 {
			t.Errorf("%d late answers, %d stuck, %d open", late, k.stuck, len(k.open))
		}
	})
}

func TestLookupsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		k := newLookups(ctx)
		hang := make(chan struct{})
		taken := 0
		for range 2 * lookupsMax {
			if k.ask(func() func() { <-hang; return func() {} }) {
				taken++
			}
			synctest.Wait()
		}
		if taken != lookupsMax+lookupWorkers {
			t.Errorf("%d questions taken, want %d", taken, lookupsMax+lookupWorkers)
		}
		close(hang)
	})
}

// TestLookupsThatHangLater: questions that waited for long before their worker hung count like others, and a worker that was replaced ends.
func TestLookupsThatHangLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		k := newLookups(ctx)
		hang := make(chan struct{})
		const hanging = 3 * lookupWorkers // more than one after the other
		for range hanging {
			k.ask(func() func() { <-hang; return func() {} })
		}
		answered := false
		k.ask(func() func() { return func() { answered = true } })
		begin := time.Now()
		for !answered && time.Since(begin) < time.Minute {
			time.Sleep(time.Second)
			k.tick()
			synctest.Wait()
		}
		if d := time.Since(begin); !answered || d > 4*lookupLimit+time.Second {
			t.Errorf("answered %v after %v", answered, d)
		}
		if k.stuck != hanging {
			t.Errorf("%d workers hang, want %d", k.stuck, hanging)
		}
		close(hang)
		synctest.Wait()
		k.take()
		if k.stuck != 0 {
			t.Errorf("%d stuck", k.stuck)
		}
		// Who is left takes questions: as many at once as there are workers.
		wait := make(chan struct{})
		var taken atomic.Int32
		for range 2 * hanging {
			k.ask(func() func() { taken.Add(1); <-wait; return func() {} })
		}
		synctest.Wait()
		if n := taken.Load(); n != lookupWorkers {
			t.Errorf("%d workers are left, want %d", n, lookupWorkers)
		}
		close(wait)
	})
}
