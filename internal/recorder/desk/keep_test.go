package desk

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// TestKeep: what waits is told apart by user, also when it was made one notice, and goes on in the next recorder.
func TestKeep(t *testing.T) {
	n := func(id uint64) notify.Notice { return notify.Notice{ID: id, Kind: notify.NewProgram, Title: "t"} }
	d, err := New(Options{Desktop: true, Command: []string{"x"}, Owner: 7})
	if err != nil {
		t.Fatal(err)
	}
	keeper := d.Desktop().(notify.Keeper)
	keeper.Offer(n(1))
	if diff := cmp.Diff(map[uint64][]string{1: {"", "7"}}, keeper.Waiting()); diff != "" {
		t.Errorf("nobody is there: %s", diff)
	}
	next, err := New(Options{Desktop: true, Command: []string{"x"}, Owner: 7})
	if err != nil {
		t.Fatal(err)
	}
	keeper = next.Desktop().(notify.Keeper)
	for id, whom := range map[uint64][]string{2: {"1000"}, 3: {"1000", "1001"}, 4: {"1000"}, 5: {"1000"}} {
		keeper.Resume(n(id), whom)
	}
	want := map[uint64][]string{2: {"1000"}, 3: {"1000", "1001"}, 4: {"1000"}, 5: {"1000"}}
	sorted := cmp.Transformer("sort", func(all []string) map[string]bool {
		m := make(map[string]bool)
		for _, s := range all {
			m[s] = true
		}
		return m
	})
	if diff := cmp.Diff(want, keeper.Waiting(), sorted); diff != "" {
		t.Errorf("resumed: %s", diff)
	}
	next.mu.Lock()
	next.users[1000].digest()
	next.mu.Unlock()
	if diff := cmp.Diff(want, keeper.Waiting(), sorted); diff != "" {
		t.Errorf("made one: %s", diff)
	}
	run := next.Command().(notify.Keeper)
	run.Resume(n(9), []string{owner})
	if diff := cmp.Diff(map[uint64][]string{9: {owner}}, run.Waiting()); diff != "" {
		t.Errorf("command: %s", diff)
	}
}

// TestBeforeAnybodyCame: what nobody has seen waits for the owner and for whoever else comes first, also over a restart, also when the
// owner's session process is there for "Notify command" only; nobody is told twice.
func TestBeforeAnybodyCame(t *testing.T) {
	const own, other, third = 7, 8, 9
	for _, command := range [][]string{nil, {"x"}} {
		t.Run(fmt.Sprint(command), func(t *testing.T) {
			o := Options{Desktop: true, Command: command, Owner: own}
			r := open(t, o)
			offer := func(id uint64) {
				n := notice(int(id), notify.Normal)
				n.ID = id
				r.Desktop().Offer(n)
				if command != nil {
					r.Command().Offer(n)
				}
			}
			offer(1)
			owner := r.login(t, own, true) // it has no bus: what it is asked to show waits
			until(t, "the first notice at the owner's process", func() bool { return len(owner.shows()) == 1 })
			offer(2)

			// The next recorder goes on.
			before := r.Desktop().(notify.Keeper).Waiting()
			r.Close()
			r = open(t, o)
			for id, whom := range before {
				n := notice(int(id), notify.Normal)
				n.ID = id
				r.Desktop().(notify.Keeper).Resume(n, whom)
			}
			titles := func(s *session) []string {
				var all []string
				for _, one := range s.shows() {
					all = append(all, one.Title)
				}
				slices.Sort(all)
				return all
			}
			both := []string{"New program: /bin/1", "New program: /bin/2"}
			first := r.login(t, other, false)
			until(t, "both for who comes first", func() bool { return slices.Equal(titles(first), both) })
			until(t, "nothing waits but for the owner", func() bool {
				return cmp.Diff(map[uint64][]string{1: {"7"}, 2: {"7"}}, r.Desktop().(notify.Keeper).Waiting()) == ""
			})
			late := r.login(t, third, false)
			owner = r.login(t, own, false)
			until(t, "both for the owner", func() bool { return slices.Equal(titles(owner), both) })
			offer(3)
			until(t, "the third for all", func() bool {
				return len(titles(first)) == 3 && len(titles(owner)) == 3 && slices.Equal(titles(late), []string{"New program: /bin/3"})
			})
		})
	}
}

// TestManyBeforeAnybodyCame: what waits is bounded, and what found no room is told to who comes.
func TestManyBeforeAnybodyCame(t *testing.T) {
	r := open(t, Options{Desktop: true, Owner: 7})
	for n := range 200 {
		one := notice(n, notify.Normal)
		one.ID = uint64(n + 1)
		r.Desktop().Offer(one)
	}
	if n := len(r.Desktop().(notify.Keeper).Waiting()); n > maxQueue {
		t.Errorf("%d wait", n)
	}
	for _, uid := range []uint32{8, 7} {
		s := r.login(t, uid, false)
		until(t, "one notice of all", func() bool { return len(s.shows()) == 1 })
		if got := s.last().Title; got != "200 notices while you were away" {
			t.Errorf("uid %d was shown %q", uid, got)
		}
	}
}

// TestTooMuchNews: what the recorder does not take in time is counted, and told.
func TestTooMuchNews(t *testing.T) {
	r := open(t, Options{Desktop: true})
	r.mu.Lock()
	for range maxNews + 5 {
		r.tell("warning", "word", "")
	}
	r.mu.Unlock()
	if all := r.Take(); len(all) != maxNews+1 || !strings.HasSuffix(all[maxNews].Text, ": 5") {
		t.Errorf("%d, the last %q", len(all), all[len(all)-1].Text)
	}
	if all := r.Take(); len(all) != 0 {
		t.Errorf("told twice: %+v", all)
	}
}

// TestTalks: a session process that never stops talking does not have the recorder listen all the time.
func TestTalks(t *testing.T) {
	r := open(t, Options{Desktop: true})
	s := r.login(t, 7, true)
	sent := 0
	for start := time.Now(); time.Since(start) < 1500*time.Millisecond; sent++ {
		if err := s.Send(errand.Message{State: &errand.State{Server: fmt.Sprint(sent)}}, nil, 100*time.Millisecond); err != nil {
			break // the socket is full
		}
	}
	time.Sleep(100 * time.Millisecond)
	r.mu.Lock()
	server := r.users[7].state.Server
	r.mu.Unlock()
	if n, err := strconv.Atoi(server); err != nil || n > 600 || n < 10 {
		t.Errorf("%q of %d messages were taken in a second and a half", server, sent)
	}
}
