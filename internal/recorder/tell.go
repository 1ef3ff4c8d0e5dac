package recorder

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/known"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
	"github.com/picosnitch/picosnitch/internal/recorder/origin"
)

const (
	maxUntold  = 1 << 12          // things that wait for the teller
	maxQueries = 1 << 6           // of one question
	originWait = 5 * time.Second  // for how long a question may take
	originBusy = 20 * time.Second // for how long a thing waits for its origin while a package manager is at work
	originPace = time.Second      // between two questions meanwhile
	keepEvery  = 5 * time.Second  // the most between taking a thing in and writing that down
)

// finder answers where files are from; see origin.Finder.
type finder interface {
	Find(ctx context.Context, queries []origin.Query) []origin.Verdict
}

// teller takes what is worth a word from the recorder, asks where its file is from, lets the Decider decide, and offers notices to
// the ways out. It has a goroutine of its own: neither a hash of a large file nor a way out may hold the stream up.
type teller struct {
	known   *known.Known
	finder  finder // nil: nobody is asked
	ways    []notify.Way
	publish func(notify.Notice) // besides the ways
	log     *slog.Logger

	mu     sync.Mutex
	queue  []*untold // guarded by mu
	left   uint64    // guarded by mu: things that found the queue full
	words  []string  // guarded by mu: for error.log
	wake   chan struct{}
	stop   chan struct{}
	done   chan struct{}
	status atomic.Pointer[NoticeStatus]

	// The goroutine's own.
	decider *notify.Decider
	asking  []*untold // their origin is not known yet
	late    []*untold // told without, and still to be asked about
	asked   chan []origin.Query
	answers chan []origin.Verdict
	pending []*untold // what asked has
	askedAt time.Time // since when
	took    []uint64  // taken in since the state was kept
	changed bool      // the state, since it was kept
	kept    time.Time
	told    uint64
	blind   uint64     // told without an answer
	out     []outgoing // given out, not delivered yet
	full    uint64     // of left, told
	lastID  uint64
	gave    time.Time // when the last one of out was
	look    time.Time // when the ways were last asked what is delivered
}

// untold is a thing on its way to the Decider.
type untold struct {
	seq   uint64 // in the journal of known; 0: it is not there
	n     notify.Notice
	since time.Time
	next  time.Time // not to be asked about before
	// verdict is the last answer; nil: there is none.
	verdict *origin.Verdict
}

// NoticeStatus tells how the notices do.
type NoticeStatus struct {
	Told    uint64 `json:"told"`    // notices given out since the start of the recorder
	Waiting int    `json:"waiting"` // things that wait to be told, in groups
	Ignored uint64 `json:"ignored"` // things left out by "Notify ignore"
	Left    uint64 `json:"left"`    // things left out because there were too many at once
	// Uncompared counts the things told before it was known whether their file is what its package ships.
	Uncompared uint64 `json:"uncompared"`
}

func newTeller(k *known.Known, d *notify.Decider, ways []notify.Way, o Options, publish func(notify.Notice)) *teller {
	t := &teller{
		known: k, decider: d, ways: ways, publish: publish, log: o.Logger,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		asked: make(chan []origin.Query), answers: make(chan []origin.Verdict, 1), kept: time.Now(),
	}
	if o.Tool != nil {
		t.finder = origin.New(origin.Options{Tool: o.Tool})
	}
	var state kept
	open := k.Restore(&state)
	d.Restore(state.State, time.Now().UnixNano())
	t.resume(state.Out)
	for _, seq := range slices.Sorted(maps.Keys(open)) {
		t.offer(seq, open[seq])
	}
	t.figures()
	return t
}

// offer hands a thing over. It never blocks.
func (t *teller) offer(seq uint64, n notify.Notice) {
	t.mu.Lock()
	if len(t.queue) < maxUntold || n.Kind == notify.DataLimit { // of those, there are two for each limit: one left out would come after the next start
		t.queue = append(t.queue, &untold{seq: seq, n: n, since: time.Now()})
	} else {
		t.left++
	}
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run tells until close.
func (t *teller) run() {
	defer close(t.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if t.finder != nil {
		defer close(t.asked)
		go func() {
			for q := range t.asked {
				t.answers <- t.finder.Find(ctx, q) // there is room: one question at a time
			}
		}()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.wake:
		case <-timer.C:
		case v := <-t.answers:
			t.answer(v)
		case <-t.stop:
			t.take()
			for _, u := range t.asking {
				if u.seq == 0 { // the others are in the journal, and asked about after the next start
					t.add(u)
				}
			}
			t.keep()
			return
		}
		t.take()
		t.ask()
		t.tell()
		timer.Reset(t.pause())
	}
}

// take empties the queue.
func (t *teller) take() {
	t.mu.Lock()
	queue, left := t.queue, t.left
	t.queue = nil
	t.mu.Unlock()
	for _, u := range queue {
		switch {
		case t.finder == nil || !hasOrigin(u.n.Kind):
			t.add(u)
		case len(t.asking) < maxUntold:
			t.asking = append(t.asking, u)
		default: // who is asked is too slow for all of them: told without, and asked about afterwards
			t.add(u)
			t.afterward(u)
		}
	}
	if left > t.full {
		n := notify.Notice{Kind: notify.Failure, At: time.Now().UnixNano(), Key: "left", Detail: fmt.Sprintf("%d things were not told because there were too many at once", left-t.full), Hint: "exe.log has them all"}
		t.full = left
		t.say(n.Detail + ": " + n.Hint)
		t.add(&untold{n: n})
	}
}

// afterward keeps a thing that was told without an answer, to ask about it when there is time.
func (t *teller) afterward(u *untold) {
	if len(t.late) < maxUntold {
		t.late = append(t.late, u)
	}
}

// fileOf is the file that a notice is about.
func fileOf(n *notify.Notice) string {
	if n.Script != "" {
		return n.Script
	}
	return n.Path
}

// hasOrigin reports whether the kind is about a file.
func hasOrigin(k notify.Kind) bool {
	switch k {
	case notify.Loss, notify.Failure, notify.Suspicious, notify.DataLimit:
		return false
	}
	return true
}

// ask asks about everything that is to be asked about, if nobody is thinking.
func (t *teller) ask() {
	now := time.Now()
	var queries []origin.Query
	var rest, sent []*untold
	for _, u := range t.asking {
		if now.Sub(u.since) >= t.patience(now) {
			t.add(u)
			if u.verdict == nil && !slices.Contains(t.pending, u) {
				t.afterward(u)
			}
			continue
		}
		rest = append(rest, u)
		if len(t.pending) > 0 || len(queries) >= maxQueries || now.Before(u.next) {
			continue
		}
		sent = append(sent, u)
		queries = append(queries, origin.Query{Path: fileOf(&u.n), SHA256: u.n.SHA256})
	}
	t.asking = rest
	if len(t.pending) == 0 {
		t.late = slices.DeleteFunc(t.late, func(u *untold) bool {
			if len(queries) >= maxQueries || now.Before(u.next) {
				return false
			}
			sent = append(sent, u)
			queries = append(queries, origin.Query{Path: fileOf(&u.n), SHA256: u.n.SHA256})
			return true
		})
	}
	if len(queries) == 0 {
		return
	}
	t.pending, t.askedAt = sent, now
	t.asked <- queries // its goroutine waits: nothing was pending
}

// patience is for how long a thing waits for its origin: as long as answers come.
func (t *teller) patience(now time.Time) time.Duration {
	if len(t.pending) > 0 && now.Sub(t.askedAt) >= originWait {
		return originWait // whoever is asked hangs
	}
	return originBusy
}

// answer takes the answers to the last question in.
func (t *teller) answer(verdicts []origin.Verdict) {
	now := time.Now()
	for i, u := range t.pending {
		at := slices.Index(t.asking, u)
		if at < 0 {
			t.afterwards(u, verdicts[i])
			continue
		}
		u.verdict = &verdicts[i]
		if verdicts[i].Unsettled && now.Sub(u.since) < originBusy {
			u.next = now.Add(originPace)
			continue
		}
		t.asking = slices.Delete(t.asking, at, at+1)
		t.add(u)
	}
	t.pending = nil
}

// afterwards takes the answer about a thing in that was told before it came. An alarm is told nevertheless, as a thing of its own: whoever can
// make the answer late could make it unheard else.
func (t *teller) afterwards(u *untold, v origin.Verdict) {
	if now := time.Now(); v.Unsettled && now.Sub(u.since) < originBusy {
		u.next = now.Add(originPace)
		t.late = append(t.late, u)
		return
	}
	n := u.n
	if judge(&n, v); n.Kind == notify.Tampered {
		t.add(&untold{n: u.n, since: u.since, verdict: &v})
	}
}

// judge writes the origin into a notice, and makes it the kind that it is: an upgrade is another thing than a file that should
// not have changed.
func judge(n *notify.Notice, v origin.Verdict) {
	n.Origin = v.String()
	if n.Kind == notify.Modified {
		// What is there now is not known yet; but package managers put new files in place of old ones, they do not write to them.
		n.Origin = ""
		switch {
		case v.Package != "" && v.State != origin.Conffile:
			n.Kind = notify.Tampered
			n.Hint = "if you did not do it: install package " + v.Package + " again, and find out who did"
		case v.State == origin.Unowned:
			n.Origin = v.String()
		}
		return
	}
	switch v.State {
	case origin.Shipped:
		if n.Kind == notify.Changed || n.Kind == notify.ChangedScript || n.Kind == notify.Tampered && n.Before != "" {
			n.Kind = notify.Upgraded
		}
	case origin.Differs: // whatever it was
		n.Kind = notify.Tampered
		n.Hint = "if you did not do it: install package " + v.Package + " again, and find out who did"
	}
}

// add gives a thing to the Decider, as what it is by the last answer.
func (t *teller) add(u *untold) {
	n := u.n
	switch v := u.verdict; {
	case v != nil:
		judge(&n, *v)
		if v.State == origin.Differs && n.SHA256 != "" {
			t.known.Differs(fileOf(&n), n.SHA256, strings.TrimSpace(v.Package+" "+v.Version), n.At)
		}
	case t.finder != nil && hasOrigin(n.Kind):
		n.Origin = "not compared with its package in time"
		t.blind++
	}
	t.decider.Add(n, time.Now().UnixNano())
	t.changed = true
	if u.seq != 0 {
		t.took = append(t.took, u.seq)
	}
}

// tell gives out what is due, and keeps the state.
func (t *teller) tell() {
	now := time.Now()
	due := t.decider.Due(now.UnixNano())
	for i := range due {
		t.told++
		due[i].ID = max(t.lastID+1, uint64(now.UnixNano()))
		t.lastID = due[i].ID
		t.outgo(due[i])
	}
	delivered := len(due) == 0 && t.delivered(now)
	if len(due) > 0 || delivered || t.changed && now.Sub(t.kept) >= keepEvery {
		t.keep() // before anybody gets them: a kill repeats what was not offered, and nothing else
	}
	for _, n := range due {
		for _, w := range t.ways {
			w.Offer(n)
		}
		t.publish(n)
	}
	t.figures()
}

func (t *teller) keep() {
	if !t.changed && len(t.took) == 0 {
		return
	}
	t.known.Took(kept{t.decider.State(), t.out}, t.took)
	t.took, t.changed, t.kept = nil, false, time.Now()
}

// say leaves words for error.log, which is the recorder's.
func (t *teller) say(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.words) < maxNotices {
		t.words = append(t.words, text)
	}
}

// said gives the words for error.log.
func (t *teller) said() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	words := t.words
	t.words = nil
	return words
}

// pause is how long nothing is to be done unless something comes.
func (t *teller) pause() time.Duration {
	now := time.Now()
	pause := time.Hour
	until := func(d time.Duration) { pause = max(0, min(pause, d)) }
	if next := t.decider.Next(); next != 0 {
		until(time.Unix(0, next).Sub(now))
	}
	if len(t.out) > 0 {
		until(t.look.Add(t.lookEvery(now)).Sub(now))
	}
	if t.changed {
		until(keepEvery - now.Sub(t.kept))
	}
	for _, u := range t.asking {
		if d := originWait - now.Sub(t.askedAt); len(t.pending) > 0 && d > 0 {
			until(d)
		} else if len(t.pending) == 0 {
			until(u.next.Sub(now))
		}
		until(t.patience(now) - now.Sub(u.since))
	}
	for _, u := range t.late {
		if len(t.pending) == 0 {
			until(u.next.Sub(now))
		}
	}
	return max(pause, time.Millisecond)
}

func (t *teller) figures() {
	s := t.decider.State()
	f := &NoticeStatus{Told: t.told, Ignored: s.Ignored, Uncompared: t.blind, Waiting: s.First.Count + len(t.asking)}
	for _, g := range s.Groups {
		f.Waiting += g.Count
	}
	t.mu.Lock()
	f.Left = t.left
	t.mu.Unlock()
	t.status.Store(f)
}

// close ends the teller. What was not told is in the journal.
func (t *teller) close() {
	close(t.stop)
	<-t.done
}

// class is a message without its figures: messages of one class are not repeated.
func class(text string) string {
	text = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
	if len(text) > 80 {
		text = strings.ToValidUTF8(text[:80], "")
	}
	return text
}
