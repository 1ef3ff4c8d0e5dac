package desk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// session is the session process of a user, as this test plays it.
type session struct {
	t *testing.T
	*errand.Conn
	mu   sync.Mutex
	got  []errand.Message // guarded by mu
	lazy bool             // does not answer; guarded by mu
}

type room struct {
	*Desk
	door *errand.Door
	dir  string
}

func open(t *testing.T, o Options) *room {
	t.Helper()
	ours, theirs, err := errand.Pair()
	if err != nil {
		t.Fatal(err)
	}
	r := &room{dir: t.TempDir()}
	if r.door, err = errand.NewDoor(ours); err != nil {
		t.Fatal(err)
	}
	inner, err := errand.NewDoor(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if o.Mutes == "" {
		o.Mutes = filepath.Join(r.dir, MutesName)
	}
	if r.Desk, err = New(o); err != nil {
		t.Fatal(err)
	}
	r.Listen(inner)
	t.Cleanup(func() { r.Close(); r.door.Close() })
	return r
}

func (r *room) login(t *testing.T, uid uint32, lazy bool) *session {
	t.Helper()
	ours, theirs, err := errand.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.door.Pass(uid, ours, time.Second); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	s := &session{t: t, lazy: lazy}
	if s.Conn, err = errand.NewConn(theirs); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.listen() }()
	t.Cleanup(func() { s.Close(); <-done })
	return s
}

func (s *session) listen() {
	for {
		m, _, err := s.Receive()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.got = append(s.got, m)
		lazy := s.lazy
		s.mu.Unlock()
		if m.Show != nil && !lazy {
			s.Send(errand.Message{Done: &errand.Done{N: m.Show.N}}, nil, time.Second)
		}
	}
}

func (s *session) shows() []errand.Show {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []errand.Show
	for _, m := range s.got {
		if m.Show != nil {
			all = append(all, *m.Show)
		}
	}
	return all
}

func (s *session) last() errand.Show { all := s.shows(); return all[len(all)-1] }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func notice(n int, u notify.Urgency) notify.Notice {
	path := fmt.Sprintf("/bin/%d", n)
	return notify.Notice{Kind: notify.NewProgram, Count: 1, Title: "New program: " + path, Body: path, Urgency: u, Path: path, Mute: path}
}

func (s *session) press(n uint64, key string) {
	s.t.Helper()
	if err := s.Send(errand.Message{Invoked: &errand.Invoked{N: n, Key: key}}, nil, time.Second); err != nil {
		s.t.Fatal(err)
	}
}

func (r *room) told(t *testing.T, word string) {
	t.Helper()
	var all []News
	until(t, "word of "+word, func() bool {
		all = append(all, r.Take()...)
		for _, n := range all {
			if strings.Contains(n.Text, word) {
				return true
			}
		}
		return false
	})
}

// TestMute: a button silences one kind about one file for one user, is told, survives a restart, and is undone by the other button or
// in the file.
func TestMute(t *testing.T) {
	mutes := filepath.Join(t.TempDir(), MutesName)
	r := open(t, Options{Desktop: true, Mutes: mutes})
	s, other := r.login(t, 1000, false), r.login(t, 1001, false)
	until(t, "both sessions", func() bool { return len(r.Sessions()) == 2 })
	way := r.Desktop()
	way.Offer(notice(1, notify.Normal))
	until(t, "the notice", func() bool { return len(s.shows()) == 1 && len(other.shows()) == 1 })
	if a := s.last().Actions; len(a) != 1 || a[0].Key != "mute" {
		t.Fatalf("buttons %v", a)
	}
	s.press(s.last().N, "mute")
	r.told(t, "uid 1000 muted")
	until(t, "the confirmation", func() bool { return len(s.shows()) == 2 })

	other.press(s.last().N, "undo") // another user's number
	way.Offer(notice(1, notify.Normal))
	changed := notice(1, notify.Normal)
	changed.Kind = notify.Changed
	way.Offer(changed)
	until(t, "what was not muted", func() bool { return len(other.shows()) >= 3 && len(s.shows()) == 3 })
	if s.last().Title != changed.Title || s.last().Actions[0].Key != "mute" {
		t.Errorf("shown: %+v", s.last())
	}
	if n := r.Status()[0].Muted; n != 1 {
		t.Errorf("%d muted", n)
	}

	// Another recorder.
	r.Close()
	r = open(t, Options{Desktop: true, Mutes: mutes})
	s = r.login(t, 1000, false)
	until(t, "the session", func() bool { return len(r.Sessions()) == 1 })
	way = r.Desktop()
	way.Offer(notice(1, notify.Normal))
	way.Offer(notice(2, notify.Normal))
	until(t, "the other notice", func() bool { return len(s.shows()) == 1 })
	if s.last().Body != "/bin/2" {
		t.Errorf("shown: %+v", s.last())
	}
	// A button of a notice of before the restart does nothing, and says so.
	s.press(1, "mute")
	until(t, "the word about it", func() bool { return len(s.shows()) == 2 })

	// Root empties the file.
	if err := os.WriteFile(mutes, []byte("[]"), 0o644); err != nil {
		t.Fatal(err)
	}
	way.Offer(notice(1, notify.Normal))
	until(t, "the notice that is not muted any more", func() bool { return s.last().Body == "/bin/1" })

	// Undo.
	s.press(s.last().N, "mute")
	until(t, "the confirmation", func() bool { return s.last().Title == "Muted" })
	s.press(s.last().N, "undo")
	r.told(t, "uid 1000 unmuted")
	way.Offer(notice(1, notify.Normal))
	until(t, "the notice after the undo", func() bool { return s.last().Body == "/bin/1" })
}

func TestDamagedMutes(t *testing.T) {
	path := filepath.Join(t.TempDir(), MutesName)
	if err := os.WriteFile(path, []byte("{\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{Mutes: path})
	if err == nil || !strings.Contains(err.Error(), "put aside") {
		t.Errorf("error %v", err)
	}
	if d.mutes.has(Mute{UID: 1}) {
		t.Error("something is muted")
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}

// TestMuchWaits: many notices become one, critical ones stay; what finds no room is counted.
func TestMuchWaits(t *testing.T) {
	r := open(t, Options{Desktop: true})
	way := r.Desktop()
	for n := range maxQueue + 36 {
		u := notify.Normal
		if n == 50 {
			u = notify.Critical
		}
		way.Offer(notice(n, u))
	}
	if way.Dropped() != 36 {
		t.Errorf("%d dropped, want 36", way.Dropped())
	}
	s := r.login(t, 1000, false)
	until(t, "two notices", func() bool { return len(s.shows()) == 2 })
	all := s.shows()
	if all[0].Body != "/bin/50" || all[0].Urgency != errand.Critical {
		t.Errorf("first %+v", all[0])
	}
	if all[1].Title != "99 notices while you were away" || strings.Count(all[1].Body, "\n") > 9 {
		t.Errorf("then %+v", all[1])
	}
	time.Sleep(50 * time.Millisecond)
	if n := len(s.shows()); n != 2 {
		t.Errorf("%d notices", n)
	}
}

// TestManyAlarms: of more critical notices than are shown one by one, the one that stands for the others is critical, and names them first,
// also when it is made anew of one that was made before.
func TestManyAlarms(t *testing.T) {
	n := func(kind notify.Kind, u notify.Urgency, what string) notify.Notice {
		return notify.Notice{Kind: kind, Urgency: u, Title: what, Count: 1}
	}
	d, err := New(Options{Desktop: true})
	if err != nil {
		t.Fatal(err)
	}
	u := &user{uid: 1000, wake: make(chan struct{}, 1)}
	for i := range 20 {
		d.queue(u, n(notify.NewProgram, notify.Normal, fmt.Sprint("new ", i)))
	}
	for i := range 3 {
		d.queue(u, n(notify.Suspicious, notify.Critical, fmt.Sprint("suspicious ", i)))
	}
	for i := range 2 {
		d.queue(u, n(notify.Tampered, notify.Critical, fmt.Sprint("tampered ", i)))
	}
	for again := range 2 {
		u.digest()
		var titles []string
		for _, s := range u.shows {
			titles = append(titles, s.errand.Title)
		}
		all := 22 + again
		if want := []string{"tampered 0", "tampered 1", "suspicious 0", fmt.Sprintf("%d notices while you were away", all)}; !slices.Equal(titles, want) {
			t.Fatalf("%q, want %q", titles, want)
		}
		one := u.shows[3]
		if one.errand.Urgency != errand.Critical || one.errand.Icon != "dialog-warning" || !strings.HasPrefix(one.errand.Body, "suspicious 1\nsuspicious 2\nnew 0\n") || one.stands != all || len(one.ids) != all {
			t.Errorf("%+v", one)
		}
		d.queue(u, n(notify.NewProgram, notify.Normal, "later"))
	}
	// What finds no room is the least critical.
	for range 2 * maxQueue {
		d.queue(u, n(notify.Suspicious, notify.Critical, "flood"))
	}
	if u.shows[0].errand.Title != "tampered 0" || u.shows[1].errand.Title != "tampered 1" {
		t.Errorf("%+v", u.shows[:2])
	}
}

// TestSessionDies: what it had not answered goes to the next one, once.
func TestSessionDies(t *testing.T) {
	r := open(t, Options{Desktop: true})
	way := r.Desktop()
	lazy := r.login(t, 1000, true)
	until(t, "the session", func() bool { return len(r.Sessions()) == 1 })
	way.Offer(notice(1, notify.Normal))
	way.Offer(notice(2, notify.Normal))
	until(t, "the first notice", func() bool { return len(lazy.shows()) == 1 })
	time.Sleep(20 * time.Millisecond)
	if len(lazy.shows()) != 1 {
		t.Error("a second notice before the first was answered")
	}
	lazy.Close()
	until(t, "its end", func() bool { return len(r.Sessions()) == 0 })
	s := r.login(t, 1000, false)
	until(t, "both notices", func() bool { return len(s.shows()) == 2 })
	if way.Dropped() != 0 {
		t.Errorf("%d dropped", way.Dropped())
	}
}

// TestLiar: a session process that says what makes no sense is not listened to, and can neither mute nor hash what it was not asked.
func TestLiar(t *testing.T) {
	r := open(t, Options{Desktop: true})
	s := r.login(t, 1000, true)
	until(t, "the session", func() bool { return len(r.Sessions()) == 1 })
	file := event.FileID{Inode: 7, Size: 1}
	if !r.Hash(1000, event.ProcessID{PID: 1}, "/x", file) {
		t.Fatal("cannot ask")
	}
	if r.Hash(1001, event.ProcessID{PID: 1}, "/x", file) {
		t.Error("asks a user who is not there")
	}
	until(t, "the question", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.got) == 2 })
	s.mu.Lock()
	n := s.got[1].Hash.N
	s.mu.Unlock()
	sum := strings.Repeat("ab", 32)
	for i := range uint64(20) { // of no errand of ours
		s.Send(errand.Message{Done: &errand.Done{N: n + 1 + i, SHA256: strings.Repeat("ef", 32)}}, nil, time.Second)
	}
	s.Send(errand.Message{Done: &errand.Done{N: n, SHA256: sum}}, nil, time.Second)
	s.Send(errand.Message{Done: &errand.Done{N: n, SHA256: strings.Repeat("cd", 32)}}, nil, time.Second) // twice
	var news []News
	until(t, "the hash", func() bool { news = append(news, r.Take()...); return len(news) > 0 })
	if len(news) != 1 || news[0].SHA256 != sum || news[0].UID != 1000 || news[0].File != file {
		t.Errorf("%+v", news)
	}
	for i := range uint64(200) {
		if s.Send(errand.Message{Invoked: &errand.Invoked{N: i, Key: "mute"}}, nil, time.Second) != nil {
			break
		}
	}
	r.told(t, "makes no sense")
	until(t, "its end", func() bool { return len(r.Sessions()) == 0 })
	if len(r.mutes.all) != 0 {
		t.Errorf("muted: %v", r.mutes.all)
	}
}

// TestCommandFields: one at a time, only the owner's session, what is lost is counted.
func TestCommandQueue(t *testing.T) {
	r := open(t, Options{Command: []string{"/bin/x", "a b"}, Owner: 1000})
	way := r.Command()
	for n := range maxRuns + 5 {
		way.Offer(notice(n, notify.Normal))
	}
	if way.Dropped() != 5 {
		t.Errorf("%d dropped", way.Dropped())
	}
	other := r.login(t, 1001, false)
	s := r.login(t, 1000, false)
	runs := func(s *session) (all []errand.Run) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range s.got {
			if m.Run != nil {
				all = append(all, *m.Run)
			}
		}
		return all
	}
	for n := range maxRuns {
		until(t, "a command", func() bool { return len(runs(s)) == n+1 })
		run := runs(s)[n]
		if got := strings.Join(run.Fields, "\n"); !strings.Contains(got, fmt.Sprintf("PICOSNITCH_EXE=/bin/%d\n", n)) || len(run.Argv) != 2 {
			t.Fatalf("%v: %s", run.Argv, got)
		}
		reason := ""
		if n == 3 {
			reason = "exit status 1"
		}
		s.Send(errand.Message{Done: &errand.Done{N: run.N, Reason: reason}}, nil, time.Second)
	}
	r.told(t, "exit status 1")
	if way.Dropped() != 6 || len(runs(other)) != 0 {
		t.Errorf("%d dropped, the other user ran %d", way.Dropped(), len(runs(other)))
	}
}
