package desk

import (
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// TestLongCommand: what strangers name their programs does not make a command too long to be sent; one that is too long all the same
// is counted and told, and the session stays.
func TestLongCommand(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		argv []string
		lost uint64
	}{
		"html":         {strings.Repeat("<&>", 2000), []string{"/bin/x"}, 0},
		"control":      {strings.Repeat("\x01", 6000), []string{"/bin/x"}, 0},
		"long command": {"x", []string{"/bin/x", strings.Repeat("\x01", 9000)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, Options{Command: c.argv, Owner: 1000, Desktop: true})
			s := r.login(t, 1000, false)
			way := r.Command()
			x := c.text
			way.Offer(notify.Notice{Kind: notify.NewProgram, Count: 1, Title: x, Body: x, Name: x, Path: x, Script: x, Parent: x, Before: x, Remote: x, Detail: x})
			until(t, "the command, or its end", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				for _, m := range s.got {
					if m.Run != nil {
						return true
					}
				}
				return way.Dropped() > 0
			})
			if way.Dropped() != c.lost || len(r.Sessions()) != 1 {
				t.Errorf("%d lost, want %d; sessions %v", way.Dropped(), c.lost, r.Sessions())
			}
			if c.lost > 0 {
				r.told(t, "not an errand")
			}
		})
	}
}
