package recorder

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/known"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
	"github.com/picosnitch/picosnitch/internal/recorder/origin"
)

// fakeWay keeps what it is offered.
type fakeWay struct {
	mu   sync.Mutex
	got  []notify.Notice
	when []time.Time
}

func (w *fakeWay) Name() string { return "fake" }

func (w *fakeWay) Offer(n notify.Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, n)
	w.when = append(w.when, time.Now())
}

func (w *fakeWay) Dropped() uint64 { return 0 }

func (w *fakeWay) all() []notify.Notice {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]notify.Notice(nil), w.got...)
}

func (w *fakeWay) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got, w.when = nil, nil
}

// after is how long after an instant the n-th notice came.
func (w *fakeWay) after(start time.Time, n int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.when[n].Sub(start)
}

// fakeFinder answers by path.
type fakeFinder func(q origin.Query) origin.Verdict

func (f fakeFinder) Find(_ context.Context, queries []origin.Query) []origin.Verdict {
	all := make([]origin.Verdict, len(queries))
	for i, q := range queries {
		all[i] = f(q)
	}
	return all
}

// stage is known and a teller, in a bubble of time.
type stage struct {
	t    *testing.T
	dir  string
	k    *known.Known
	tell *teller
	way  *fakeWay
	more notify.Way // nil: none
	f    finder
}

func newStage(t *testing.T, f finder) *stage {
	s := &stage{t: t, dir: t.TempDir(), way: &fakeWay{}, f: f}
	s.start()
	return s
}

func (s *stage) start() {
	s.k = known.Open(known.Options{Dir: s.dir, Zone: time.UTC, Tell: func(seq uint64, n notify.Notice) { s.tell.offer(seq, n) }}, time.Now().UnixNano())
	o := Options{Logger: slog.New(slog.DiscardHandler)}
	first := time.Duration(0)
	if s.k.First() && s.t.Name() == "TestTellFirstMinutes" {
		first = 3 * time.Minute
	}
	ways := []notify.Way{s.way}
	if s.more != nil {
		ways = append(ways, s.more)
	}
	s.tell = newTeller(s.k, notify.New(notify.Options{First: first}), ways, o, func(notify.Notice) {})
	s.tell.finder = s.f
	go s.tell.run()
}

func (s *stage) stop() {
	s.tell.close()
	s.k.Close(time.Now().UnixNano())
}

func (s *stage) seen(path string, hash int) {
	p := &flow.Program{Executable: &flow.Executable{Path: path, Digest: &flow.Digest{SHA256: fmt.Sprintf("%064x", hash)}}, Name: "x"}
	s.k.Seen(p, time.Now().UnixNano(), func() string { return "" })
}

func (s *stage) kinds() string {
	var b strings.Builder
	for _, n := range s.way.all() {
		fmt.Fprintf(&b, "%s %d %s|", n.Kind, n.Count, n.Path)
	}
	return b.String()
}

func TestTellInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, fakeFinder(func(origin.Query) origin.Verdict {
			time.Sleep(100 * time.Millisecond)
			return origin.Verdict{State: origin.Shipped, Package: "curl", Version: "1"}
		}))
		defer s.stop()
		time.Sleep(time.Minute)
		start := time.Now()
		s.seen("/usr/bin/curl", 1)
		time.Sleep(time.Minute)
		if s.kinds() != "new-program 1 /usr/bin/curl|" || s.way.after(start, 0) > 600*time.Millisecond {
			t.Errorf("%s after %v", s.kinds(), s.way.after(start, 0))
		}
		if n := s.way.all()[0]; n.Origin != "from package curl 1, unchanged" || !strings.Contains(n.Body, n.Origin) {
			t.Errorf("%+v", n)
		}
		// The same program, for a day.
		for range 24 * 60 {
			s.seen("/usr/bin/curl", 1)
			s.k.Forget()
			time.Sleep(time.Minute)
		}
		if n := len(s.way.all()); n != 1 {
			t.Errorf("%d notices in a day", n)
		}
	})
}

func TestTellOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		verdicts := map[string]origin.Verdict{
			"/usr/bin/upgraded": {State: origin.Shipped, Package: "p", Version: "2"},
			"/usr/bin/evil":     {State: origin.Differs, Package: "p", Version: "2"},
			"/home/u/own":       {State: origin.Unowned},
			"/usr/bin/secret":   {State: origin.Unknown, Package: "p", Reason: "permission denied"},
			"/usr/bin/docker":   {State: origin.Elsewhere},
		}
		alarm := verdicts["/usr/bin/evil"]
		s := newStage(t, fakeFinder(func(q origin.Query) origin.Verdict {
			if strings.HasSuffix(q.SHA256, "01") {
				return origin.Verdict{State: origin.Unowned}
			}
			if q.Path == "/usr/bin/new" {
				return alarm
			}
			return verdicts[q.Path]
		}))
		defer s.stop()
		for path := range verdicts {
			s.seen(path, 1)
		}
		time.Sleep(time.Hour)
		s.way.clear()
		for path := range verdicts {
			s.seen(path, 2)
		}
		time.Sleep(time.Second)
		got := s.way.all()
		if len(got) != 3 || got[0].Kind != notify.Upgraded || got[0].Path != "/usr/bin/upgraded" || got[1].Kind != notify.Changed || got[1].Count != 3 ||
			got[2].Kind != notify.Tampered || got[2].Path != "/usr/bin/evil" || got[2].Urgency != notify.Critical || got[2].Mute != "" {
			t.Errorf("%s", s.kinds())
		}
		log := readFile(t, s.dir, "exe.log")
		if n := strings.Count(log, fmt.Sprintf("%064x", 2)[:16]+" /usr/bin/evil (differs from package p 2)\n"); n != 1 || strings.Count(log, "differs") != 1 {
			t.Errorf("exe.log:\n%s", log)
		}
		// A new program that is not what its package ships is an alarm, too.
		time.Sleep(time.Hour)
		s.seen("/usr/bin/new", 2)
		time.Sleep(time.Second)
		if got := s.way.all(); len(got) != 4 || got[3].Kind != notify.Tampered {
			t.Errorf("%s", s.kinds())
		}
	})
}

// TestTellUpgrade: 500 programs change within a minute because their packages were upgraded, while dpkg is still at work.
func TestTellUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done atomic.Bool
		s := newStage(t, fakeFinder(func(q origin.Query) origin.Verdict {
			if !done.Load() {
				return origin.Verdict{State: origin.Differs, Package: "p", Unsettled: true}
			}
			return origin.Verdict{State: origin.Shipped, Package: "p", Version: "2"}
		}))
		defer s.stop()
		done.Store(true)
		for i := range 500 {
			s.seen(fmt.Sprintf("/usr/bin/p%d", i), 1)
		}
		time.Sleep(3 * time.Hour)
		done.Store(false)
		before := len(s.way.all())
		for i := range 500 {
			s.seen(fmt.Sprintf("/usr/bin/p%d", i), 2)
			time.Sleep(100 * time.Millisecond)
			if i == 150 {
				done.Store(true) // dpkg is ready with what was unpacked 15 seconds ago
			}
		}
		time.Sleep(3 * time.Hour)
		sum := 0
		for _, n := range s.way.all()[before:] {
			if n.Kind != notify.Upgraded {
				t.Errorf("%+v", n)
			}
			sum += n.Count
		}
		if n := len(s.way.all()) - before; n > 2 || sum != 500 {
			t.Errorf("%d notices for %d programs", n, sum)
		}
	})
}

// TestTellUnsettled: a file that stays wrong is told, in the end.
func TestTellUnsettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, fakeFinder(func(origin.Query) origin.Verdict {
			return origin.Verdict{State: origin.Differs, Package: "p", Unsettled: true}
		}))
		defer s.stop()
		start := time.Now()
		s.seen("/usr/bin/evil", 1)
		time.Sleep(time.Minute)
		if got := s.way.all(); len(got) != 1 || got[0].Kind != notify.Tampered || s.way.after(start, 0) > 22*time.Second {
			t.Errorf("%s", s.kinds())
		}
	})
}

// TestTellHangs: whoever is asked for the origin hangs, for ever.
func TestTellHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s := newStage(t, fakeFinder(func(origin.Query) origin.Verdict { <-hang; return origin.Verdict{} }))
		for i := range 100 {
			s.seen(fmt.Sprintf("/usr/bin/p%d", i), 1)
		}
		time.Sleep(6 * time.Second)
		s.seen("/usr/bin/later", 1)
		time.Sleep(time.Hour)
		sum := 0
		for _, n := range s.way.all() {
			sum += n.Count
		}
		if sum != 101 {
			t.Errorf("%d of 101 were told: %s", sum, s.kinds())
		}
		s.stop()
		close(hang)
	})
}

// TestTellHangsFlood: while who is asked hangs, no more than so many things wait for an answer; the others are told without, and counted.
func TestTellHangsFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s := newStage(t, fakeFinder(func(origin.Query) origin.Verdict { <-hang; return origin.Verdict{} }))
		const things = 3 * maxUntold
		for i := range things {
			s.tell.offer(0, notify.Notice{Kind: notify.Changed, Path: fmt.Sprint("/", i)})
			if i%1000 == 999 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		if f := s.tell.status.Load(); f.Uncompared < things-maxUntold {
			t.Errorf("of %d things only %d were told without an answer: the others wait", things, f.Uncompared)
		}
		time.Sleep(24 * time.Hour)
		if f := s.tell.status.Load(); f.Uncompared != things || f.Left != 0 {
			t.Errorf("%+v", f)
		}
		s.stop()
		close(hang)
	})
}

// TestTellLate: the answer comes after the thing was told without it. An alarm is heard nevertheless, also about a file that was not even
// asked about before.
func TestTellLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, fakeFinder(func(q origin.Query) origin.Verdict {
			if q.Path == "/usr/bin/slow" {
				time.Sleep(10 * time.Second)
			}
			if q.Path == "/usr/bin/good" {
				return origin.Verdict{State: origin.Shipped, Package: "p", Version: "2"}
			}
			return origin.Verdict{State: origin.Differs, Package: "p", Version: "2"}
		}))
		defer s.stop()
		s.seen("/usr/bin/slow", 1)
		time.Sleep(time.Second)
		s.seen("/usr/bin/evil", 2)
		s.seen("/usr/bin/good", 3)
		time.Sleep(8 * time.Second)
		first := s.way.all()
		sum := 0
		for _, n := range first {
			sum += n.Count
			if n.Kind != notify.NewProgram || !strings.Contains(n.Body, "not compared with its package in time") {
				t.Errorf("%+v", n)
			}
		}
		if got := s.tell.status.Load().Uncompared; sum != 3 || got != 3 {
			t.Errorf("%d told, %d counted: %s", sum, got, s.kinds())
		}
		time.Sleep(time.Hour)
		sum = 0
		for _, n := range s.way.all()[len(first):] {
			sum += n.Count
			if n.Kind != notify.Tampered || n.Urgency != notify.Critical || !strings.Contains(n.Body, "differs from package p 2") {
				t.Errorf("%+v", n)
			}
		}
		if log := readFile(t, s.dir, "exe.log"); sum != 2 || strings.Count(log, "(differs from package p 2)\n") != 2 {
			t.Errorf("%d alarms: %s\nexe.log:\n%s", sum, s.kinds(), log)
		}
		if n := s.tell.status.Load(); n.Waiting != 0 {
			t.Errorf("%+v", n)
		}
	})
}

func TestTellFirstMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, nil)
		for i := range 50 {
			s.seen(fmt.Sprintf("/usr/bin/p%d", i), 1)
			time.Sleep(time.Second)
			if i%10 == 5 { // restarts do not change it
				s.stop()
				s.start()
			}
		}
		time.Sleep(5 * time.Minute)
		if s.kinds() != "new-program 50 |" {
			t.Errorf("%s", s.kinds())
		}
		s.stop()
	})
}

// TestTellRestart: the recorder is ended, or killed, at every stage of a notice's way.
func TestTellRestart(t *testing.T) {
	for pause := time.Duration(0); pause <= time.Second; pause += 50 * time.Millisecond {
		for _, kill := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, fakeFinder(func(origin.Query) origin.Verdict {
					time.Sleep(120 * time.Millisecond)
					return origin.Verdict{State: origin.Unowned}
				}))
				s.seen("/bin/a", 1)
				time.Sleep(pause)
				if kill {
					// What is not on disk is gone: the teller goes on without its journal and its ways.
					synctest.Wait()
					s.tell.ways = nil
					s.tell.known = known.Open(known.Options{Dir: t.TempDir(), Zone: time.UTC}, 0)
					s.tell.close()
				} else {
					s.stop()
				}
				s.start()
				s.seen("/bin/a", 1) // the batch comes again
				time.Sleep(time.Minute)
				if s.kinds() != "new-program 1 /bin/a|" {
					t.Errorf("after %v, killed %v: %s", pause, kill, s.kinds())
				}
				s.stop()
			})
		}
	}
}

// fakeKeeper holds notices until somebody takes them.
type fakeKeeper struct {
	mu    sync.Mutex
	held  []notify.Notice
	whom  [][]string
	taken *[]notify.Notice // outlives it
}

func (k *fakeKeeper) Name() string    { return "keeper" }
func (k *fakeKeeper) Dropped() uint64 { return 0 }

func (k *fakeKeeper) Offer(n notify.Notice) { k.Resume(n, []string{"all"}) }

func (k *fakeKeeper) Resume(n notify.Notice, whom []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held, k.whom = append(k.held, n), append(k.whom, whom)
}

func (k *fakeKeeper) Waiting() map[uint64][]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make(map[uint64][]string)
	for i, n := range k.held {
		all[n.ID] = slices.Clone(k.whom[i])
	}
	return all
}

func (k *fakeKeeper) take() {
	k.mu.Lock()
	defer k.mu.Unlock()
	*k.taken = append(*k.taken, k.held...)
	k.held, k.whom = nil, nil
}

// TestTellUndelivered: what a way holds when the recorder is killed is delivered by the next one, and what it delivered is not repeated.
func TestTellUndelivered(t *testing.T) {
	for pause := time.Duration(0); pause < 3*time.Second; pause += 130 * time.Millisecond {
		for _, delivery := range []time.Duration{600 * time.Millisecond, 1500 * time.Millisecond, time.Hour} {
			if d := pause - delivery; d >= 0 && d < 150*time.Millisecond {
				continue // delivered, and not asked yet
			}
			synctest.Test(t, func(t *testing.T) {
				var taken []notify.Notice
				k := &fakeKeeper{taken: &taken}
				s := &stage{t: t, dir: t.TempDir(), way: &fakeWay{}, more: k}
				s.start()
				s.seen("/bin/a", 1)
				if delivery < pause {
					time.Sleep(delivery)
					k.take()
					time.Sleep(pause - delivery)
				} else {
					time.Sleep(pause)
				}
				synctest.Wait()
				s.tell.ways = nil
				s.tell.known = known.Open(known.Options{Dir: t.TempDir(), Zone: time.UTC}, 0)
				s.tell.close()
				for range 3 { // the second and third find what the first one kept
					k = &fakeKeeper{taken: &taken}
					s.more = k
					s.start()
					time.Sleep(3 * time.Second)
					s.stop()
				}
				k.take()
				if len(taken) != 1 || taken[0].Path != "/bin/a" || taken[0].Title == "" {
					t.Errorf("killed after %v, taken after %v: %+v", pause, delivery, taken)
				}
				s.start()
				time.Sleep(time.Minute)
				s.stop()
			})
		}
	}
}

// TestTellFlood: more at once than the queue holds.
func TestTellFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, nil)
		defer s.stop()
		for i := range maxUntold + 1000 {
			s.tell.offer(0, notify.Notice{Kind: notify.Changed, Path: fmt.Sprint("/", i)})
		}
		time.Sleep(24 * time.Hour)
		sum, left := 0, uint64(0)
		for _, n := range s.way.all() {
			if n.Kind == notify.Changed {
				sum += n.Count
			}
			if n.Kind == notify.Failure {
				left++
			}
		}
		if f := s.tell.status.Load(); uint64(sum)+f.Left != maxUntold+1000 || (f.Left > 0) != (left > 0) {
			t.Errorf("%d told, %d left: %s", sum, f.Left, s.kinds())
		}
	})
}

// TestLimitWhenFull: a data limit is told although more things wait than there is room for.
func TestLimitWhenFull(t *testing.T) {
	tell := &teller{wake: make(chan struct{}, 1)}
	for range maxUntold + 1 {
		tell.offer(0, notify.Notice{Kind: notify.NewProgram})
	}
	tell.offer(7, notify.Notice{Kind: notify.DataLimit})
	if last := tell.queue[len(tell.queue)-1]; last.seq != 7 || tell.left != 1 || len(tell.queue) != maxUntold+1 {
		t.Errorf("%d wait, %d were left out, the last is %+v", len(tell.queue), tell.left, last)
	}
}

// TestLookAfterClockBack: the ways are asked seldom after a while, also when the ID of a notice is in the future because the clock was set back.
func TestLookAfterClockBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tell := &teller{ways: []notify.Way{new(fakeKeeper)}}
		tell.outgo(notify.Notice{ID: uint64(time.Now().Add(time.Hour).UnixNano())})
		if every := tell.lookEvery(time.Now()); every != 100*time.Millisecond {
			t.Errorf("at once every %v", every)
		}
		time.Sleep(2 * time.Minute)
		if every := tell.lookEvery(time.Now()); every != 10*time.Second {
			t.Errorf("two minutes later every %v", every)
		}
	})
}
