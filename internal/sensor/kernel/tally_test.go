package kernel

import (
	"maps"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestSkippedRunsAreTold: each by its name, also those of hooks that nobody was seen to need.
func TestSkippedRunsAreTold(t *testing.T) {
	for _, c := range []struct {
		name   string
		others bool
		want   map[string]uint64
	}{
		{"before the first use of another family", false, map[string]uint64{event.LostSkipped: 10, event.LostSkippedOther: 7}},
		{"after it", true, map[string]uint64{event.LostSkipped: 17}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Tally{Losses: map[string]uint64{}}
			got.skip("fexit_inet_sendmsg", 10, c.others)
			got.skip(otherSent, 4, c.others)
			got.skip(otherReceived, 3, c.others)
			got.skip("fexit_inet_recvmsg", 0, c.others)
			if !maps.Equal(got.Losses, c.want) {
				t.Errorf("told %v, want %v", got.Losses, c.want)
			}
		})
	}
	for key := range map[string]bool{event.LostSkipped: true, event.LostSkippedOther: true} {
		known := false
		for _, l := range event.Losses() {
			known = known || l.Key == key
		}
		if !known {
			t.Errorf("%s is not explained to the user", key)
		}
	}
}
