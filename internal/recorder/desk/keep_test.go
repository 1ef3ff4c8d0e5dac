package desk

import (
	"testing"

	"github.com/google/go-cmp/cmp"

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
	if diff := cmp.Diff(map[uint64][]string{1: {""}}, keeper.Waiting()); diff != "" {
		t.Errorf("nobody is there: %s", diff)
	}
	next, err := New(Options{Desktop: true, Command: []string{"x"}, Owner: 7})
	if err != nil {
		t.Fatal(err)
	}
	keeper = next.Desktop().(notify.Keeper)
	for id, whom := range map[uint64][]string{1: {""}, 2: {"1000"}, 3: {"1000", "1001"}, 4: {"1000"}, 5: {"1000"}} {
		if id > 1 {
			keeper.Resume(n(id), whom)
		}
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
