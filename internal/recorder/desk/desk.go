// Package desk is the recorder's side of the desktop: it keeps a queue per user, hands the notices to the session processes as
// they come and go, asks them for the hashes and the files that only their users can read, has them run the user's command, and
// keeps what the users muted. It belongs to the recorder's wing. It never blocks the recorder, and what a session process
// answers is bounded and taken for its user's word, never for the truth. It does not decide what is told (recorder/notify does).
package desk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// Bounds.
const (
	maxUsers  = 16
	maxQueue  = 64  // notices that wait for a user; the oldest that is not critical goes first
	maxRuns   = 32  // commands that wait; the newest is refused
	maxFiles  = 256 // files that wait for a user's session; the newest is refused
	maxNews   = 512 // answers that wait for the recorder
	separate  = 3   // notices that are shown one by one when more have waited, besides the critical ones
	named     = 8   // titles in the one that stands for many
	maxShown  = 256 // notices whose buttons are known
	sendWait  = time.Second
	maxTalk   = 200 // messages of a session in talkTime; with more, it waits
	talkTime  = time.Second
	oddLimit  = 100 // answers that make no sense, after which a session is not listened to any more
	whileAway = "exe.log has everything"
)

// Options of New.
type Options struct {
	Desktop bool     // "Desktop notifications"
	Command []string // "Notify command"; empty: none
	Owner   uint32   // whose folder it is: the command runs as this user
	Mutes   string   // path of the file of what is muted
	Logger  *slog.Logger
}

// Desk serves the sessions. Its methods are safe for concurrent use.
type Desk struct {
	o       Options
	mu      sync.Mutex
	users   map[uint32]*user // guarded by mu
	backlog []notify.Notice  // that nobody has seen yet, for users who never came before; guarded by mu
	missed  int              // of them, the ones that found no room; guarded by mu
	next    uint64           // number of the next errand; guarded by mu
	news    []News           // guarded by mu
	left    int              // news that found no room; guarded by mu
	mutes   mutes            // guarded by mu
	closed  bool             // guarded by mu
	work    sync.WaitGroup
	door    *errand.Door

	notShown atomic.Uint64
	notRun   atomic.Uint64
}

// News is what came from the sessions, for the recorder. Either Text or File is set.
type News struct {
	Level, Text, Hint string // to be told, as event.Notice

	File   event.FileID // of a Hash that was asked
	Path   string
	SHA256 string // "": it could not be hashed, see Reason
	Reason string
	UID    uint32 // whose word it is
}

// user is a user whose session process is or was there. Guarded by Desk.mu, but for wake.
type user struct {
	uid    uint32
	conn   *errand.Conn  // nil: no session process now
	wake   chan struct{} // capacity 1: something may be sent
	shows  []show
	runs   []notify.Notice
	files  []file
	missed int // notices that found no room and are not told yet
	odd    int // answers that made no sense
	greet  bool

	// What is being done; nil: nothing.
	showing *show
	running *notify.Notice
	reading *file
	n       struct{ show, run, file uint64 } // their numbers

	shown []shown // oldest first
	state errand.State
}

// show is a notice, or a word of the desk's own.
type show struct {
	errand errand.Show
	mute   Mute
	undo   Mute
	stands int // for how many notices
	ids    []uint64
	rank   int    // see rank
	names  []name // of a digest: what it names; nil: it is none
}

type name struct {
	title string
	rank  int
}

type shown struct {
	n          uint64
	mute, undo Mute
}

type file struct {
	errand errand.File
	id     event.FileID
	asked  chan<- Opened // nil: to be hashed
}

// Opened is the answer to Open.
type Opened struct {
	File   *os.File // nil: see Reason
	Reason string
}

// New returns a Desk without sessions. An error is told about a file of mutes that cannot be used; the Desk works without it.
func New(o Options) (*Desk, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Desk{o: o, users: make(map[uint32]*user)}
	// A session may still do what an earlier recorder asked: its numbers are not ours.
	d.next = rand.Uint64N(1 << 52)
	if o.Owner != 0 && (o.Desktop || len(o.Command) > 0) { // root has no session
		d.user(o.Owner) // who has a queue from the beginning, whoever else comes first
	}
	err := d.mutes.load(o.Mutes)
	return d, err
}

// Listen takes sessions from the door until Close.
func (d *Desk) Listen(door *errand.Door) {
	d.door = door
	d.work.Go(func() {
		for {
			uid, conn, err := door.Take()
			switch {
			case err == nil:
				d.welcome(uid, conn)
			case errors.Is(err, io.EOF):
				return
			default:
				d.mu.Lock()
				d.tell("warning", fmt.Sprintf("a session process could not be reached: %v", err), "nothing is shown on that user's desktop until picosnitch is restarted; exe.log has everything")
				d.mu.Unlock()
				if !errors.Is(err, errand.ErrMessage) {
					return
				}
			}
		}
	})
}

// welcome takes a session process in, in the place of an earlier one.
func (d *Desk) welcome(uid uint32, conn *errand.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.users[uid]
	fresh := u == nil
	if fresh && !d.closed {
		u = d.user(uid)
	}
	if d.closed || u == nil {
		conn.Close()
		return
	}
	d.leave(u)
	u.conn, u.greet, u.odd, u.state = conn, true, 0, errand.State{}
	if fresh {
		for _, n := range d.backlog {
			d.queue(u, n)
		}
		u.missed += d.missed
		d.missed = 0
	}
	gone, stop := context.WithCancel(context.Background())
	d.work.Go(func() { defer stop(); d.receive(u, conn) })
	d.work.Go(func() { d.send(gone, u, conn) })
	u.poke()
}

// user is the user with a number; nil: there are too many. Called with mu held.
func (d *Desk) user(uid uint32) *user {
	u := d.users[uid]
	if u == nil && len(d.users) < maxUsers {
		u = &user{uid: uid, wake: make(chan struct{}, 1)}
		d.users[uid] = u
	}
	return u
}

func (u *user) poke() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// leave ends what the session process of u was doing: it is asked again of the next one. Called with mu held.
func (d *Desk) leave(u *user) {
	if u.conn == nil {
		return
	}
	u.conn.Close()
	u.conn = nil
	if u.showing != nil {
		u.shows = append([]show{*u.showing}, u.shows...)
	}
	if u.running != nil {
		// It may have run: twice is worse than the count.
		d.notRun.Add(1)
	}
	if u.reading != nil {
		d.answer(u, u.reading, nil, "", "the session process ended")
	}
	u.showing, u.running, u.reading, u.shown = nil, nil, nil, nil
}

// send sends what there is to do, one errand of a kind at a time.
func (d *Desk) send(gone context.Context, u *user, conn *errand.Conn) {
	for {
		d.mu.Lock()
		if u.conn != conn {
			d.mu.Unlock()
			return
		}
		m, ok := d.pick(u)
		d.mu.Unlock()
		if !ok {
			select {
			case <-u.wake:
			case <-gone.Done():
				return
			}
			continue
		}
		for {
			err := conn.Send(m, nil, sendWait)
			if err == nil {
				break
			}
			if errors.Is(err, errand.ErrMessage) { // ours was none: that is no reason to leave the session
				d.unsent(u, conn, &m, err)
				break
			}
			var late interface{ Timeout() bool }
			if !errors.As(err, &late) || !late.Timeout() || gone.Err() != nil {
				conn.Close() // receive sees it
				return
			}
		}
	}
}

// unsent ends an errand that cannot be sent, with its reason.
func (d *Desk) unsent(u *user, conn *errand.Conn, m *errand.Message, why error) {
	a := errand.Done{Reason: errand.Clip(why.Error(), 300)}
	switch {
	case m.Show != nil:
		a.N = m.Show.N
	case m.Run != nil:
		a.N = m.Run.N
	case m.Hash != nil:
		a.N = m.Hash.N
	case m.Open != nil:
		a.N = m.Open.N
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if u.conn == conn {
		d.done(u, &a, nil)
	}
}

// pick chooses the next errand and notes that it is being done. Called with mu held.
func (d *Desk) pick(u *user) (errand.Message, bool) {
	switch {
	case u.greet:
		u.greet = false
		return errand.Message{Hello: &errand.Hello{Desktop: d.o.Desktop}}, true
	case u.reading == nil && len(u.files) > 0:
		f := u.files[0]
		u.files = u.files[1:]
		f.errand.N = d.number(&u.n.file)
		u.reading = &f
		if f.asked != nil {
			return errand.Message{Open: &f.errand}, true
		}
		return errand.Message{Hash: &f.errand}, true
	case u.running == nil && len(u.runs) > 0:
		n := u.runs[0]
		u.runs = u.runs[1:]
		u.running = &n
		run := &errand.Run{N: d.number(&u.n.run), Argv: d.o.Command, Fields: fields(&n)}
		run.Fit()
		return errand.Message{Run: run}, true
	case u.showing == nil && (len(u.shows) > 0 || u.missed > 0):
		u.digest()
		s := u.shows[0]
		u.shows = u.shows[1:]
		s.errand.N = d.number(&u.n.show)
		u.showing = &s
		return errand.Message{Show: &s.errand}, true
	}
	return errand.Message{}, false
}

func (d *Desk) number(to *uint64) uint64 {
	d.next++
	*to = d.next
	return d.next
}

// receive takes the answers of a session process until it ends.
func (d *Desk) receive(u *user, conn *errand.Conn) {
	begun, talk := time.Now(), 0
	for {
		if talk++; talk > maxTalk { // its messages cost it time, not the recorder
			time.Sleep(talkTime - min(time.Since(begun), talkTime))
		}
		if time.Since(begun) >= talkTime {
			begun, talk = time.Now(), 0
		}
		m, f, err := conn.Receive()
		d.mu.Lock()
		if u.conn != conn {
			d.mu.Unlock()
			if f != nil {
				f.Close()
			}
			return
		}
		ok := false
		switch {
		case errors.Is(err, errand.ErrMessage):
		case err != nil:
			d.leave(u)
			d.mu.Unlock()
			return
		case m.Done != nil:
			ok = d.done(u, m.Done, f)
			f = nil
		case m.Invoked != nil:
			ok = d.invoked(u, m.Invoked)
		case m.State != nil:
			u.state, ok = *m.State, true
			u.state.Server, u.state.Problem = event.Text([]byte(u.state.Server)), event.Text([]byte(u.state.Problem))
		}
		if !ok {
			u.odd++
		}
		if u.odd > oddLimit {
			d.tell("warning", fmt.Sprintf("the session process of uid %d says what makes no sense: it is not listened to any more", u.uid), "find out who speaks in its place; exe.log has everything")
			d.leave(u)
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
		if f != nil {
			f.Close()
		}
		u.poke()
	}
}

// done takes the end of an errand. Called with mu held; f is closed or passed on.
func (d *Desk) done(u *user, a *errand.Done, f *os.File) bool {
	reason := event.Text([]byte(a.Reason))
	switch {
	case u.reading != nil && a.N == u.n.file:
		r := u.reading
		u.reading = nil
		d.answer(u, r, f, a.SHA256, reason)
		return true
	case f != nil:
		f.Close()
		return false
	case u.showing != nil && a.N == u.n.show:
		s := u.showing
		u.showing = nil
		if reason != "" {
			d.notShown.Add(uint64(s.stands))
			d.tell("warning", fmt.Sprintf("a notice was not shown to uid %d: %s", u.uid, reason), whileAway)
			return true
		}
		d.backlog = slices.DeleteFunc(d.backlog, func(n notify.Notice) bool { return slices.Contains(s.ids, n.ID) })
		if u.shown = append(u.shown, shown{a.N, s.mute, s.undo}); len(u.shown) > maxShown {
			u.shown = u.shown[1:]
		}
		return true
	case u.running != nil && a.N == u.n.run:
		u.running = nil
		if reason != "" {
			d.notRun.Add(1)
			d.tell("warning", fmt.Sprintf("\"Notify command\" (%s): %s", event.Text([]byte(d.o.Command[0])), reason), "run it by hand as that user; it gets what is to be told in PICOSNITCH_TITLE and the like")
		}
		return true
	}
	return true // an earlier recorder's
}

// answer gives a file's answer to who asked. Called with mu held.
func (d *Desk) answer(u *user, r *file, f *os.File, sha256, reason string) {
	if r.asked != nil {
		if f == nil && reason == "" {
			reason = "the session process sent no file"
		}
		r.asked <- Opened{f, reason} // has room for it
		return
	}
	if f != nil {
		f.Close()
	}
	if sha256 == "" && reason == "" {
		reason = "the session process gave no hash"
	}
	if reason != "" {
		sha256 = ""
	}
	d.add(News{File: r.id, Path: r.errand.Path, SHA256: sha256, Reason: reason, UID: u.uid})
}

// tell has something written to error.log. Called with mu held.
func (d *Desk) tell(level, text, hint string) { d.add(News{Level: level, Text: text, Hint: hint}) }

func (d *Desk) add(n News) {
	if len(d.news) >= maxNews {
		d.left++
		return
	}
	d.news = append(d.news, n)
}

// Take returns what came from the sessions since the last call.
func (d *Desk) Take() []News {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.news
	if d.left > 0 {
		n = append(n, News{Level: "warning", Text: fmt.Sprintf("answers and messages of session processes that were left out because there were too many at once: %d", d.left), Hint: "find out which user's programs make them; what was not hashed by them is named beside this line"})
	}
	d.news, d.left = nil, 0
	return n
}

// Close ends all sessions' connections.
func (d *Desk) Close() {
	d.mu.Lock()
	d.closed = true
	for _, u := range d.users {
		d.leave(u)
		u.poke()
	}
	d.mu.Unlock()
	if d.door != nil {
		d.door.Close()
	}
	d.work.Wait()
}
