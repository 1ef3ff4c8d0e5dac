package kernel

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// A hook of each set that it cannot do without, and one that it can.
var required = map[string]string{SetTracepoint: "sock_send_length", SetFexit: "fexit/inet_sendmsg", SetKprobe: "kprobe/inet_sendmsg"}

var optional = map[string]string{SetTracepoint: "cgroup/recvmsg6", SetFexit: "fexit/inet6_recvmsg", SetKprobe: "kprobe/inet6_recvmsg"}

// TestFallThrough refuses hooks as a kernel might, and sees the next set chosen, said, and exact.
func TestFallThrough(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	k, err := probe()
	if err != nil {
		t.Fatal(err)
	}
	order, _ := k.order()
	works := slices.DeleteFunc(slices.Clone(order), func(set string) bool {
		err := tryOut(set)
		if err != nil {
			t.Logf("this kernel has no set %s: %v", set, err)
		}
		return err != nil
	})
	t.Logf("this kernel's sets: %q of %q", works, order)
	if len(works) == 0 {
		t.Fatal("no hook set works")
	}
	for _, c := range []struct {
		name  string
		stage string
		hooks map[string]string
		chain bool // one set more is refused each time, until none is left; loading takes long under emulation
	}{
		{"a program that the kernel does not load", "load", required, true},
		{"a program that the kernel does not attach", "attach", required, false},
		{"a program that is not loaded, and something is not seen without it", "load", optional, true},
		{"a program that is not attached, and something is not seen without it", "attach", optional, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for n := 1; n <= len(works); n++ {
				if n > 1 && !c.chain {
					break
				}
				without := works[:n]
				refuse := func(stage, set, hook string) error {
					if stage == c.stage && slices.Contains(without, set) && hook == c.hooks[set] {
						return errors.New("refused for the test")
					}
					return nil
				}
				none := n == len(works)
				if none { // the best of the sets that work, though not complete, is taken after all
					fallTo(t, without, works[0], c.hooks[works[0]] == required[works[0]], refuse)
				} else {
					fallTo(t, without, works[n], false, refuse)
				}
			}
		})
	}
	t.Run("a hook of all sets that none can do without", func(t *testing.T) {
		fallTo(t, works, "", true, func(stage, _, hook string) error {
			if stage == "attach" && hook == "sched_process_fork" {
				return errors.New("refused for the test")
			}
			return nil
		})
	})
}

// fallTo loads what is best, and looks what that is. The sets without were refused something.
func fallTo(t *testing.T, without []string, want string, fails bool, refuse func(stage, set, hook string) error) *Hooks {
	t.Helper()
	h, err := Load(Options{Bandwidth: true, refuse: refuse})
	if err == nil {
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		err = h.Attach()
	}
	if fails {
		if err == nil {
			t.Errorf("without %q: set %s is taken", without, h.Set())
			return h
		}
		for _, set := range without {
			if !strings.Contains(err.Error(), set+": ") {
				t.Errorf("the error does not say what is wrong with %s: %v", set, err)
			}
		}
		return h
	}
	if err != nil {
		t.Fatalf("without %q: %v", without, err)
	}
	if h.Set() != want {
		t.Errorf("without %q: set %s is taken, not %s (%s)", without, h.Set(), want, h.Why())
	}
	for _, set := range without {
		if set != want && !strings.Contains(h.Why(), "not "+set+": ") {
			t.Errorf("why %s: %q does not say what is wrong with %s", want, h.Why(), set)
		}
	}
	if slices.Contains(without, want) && h.missing() == "" {
		t.Errorf("without %q: %s says that it loses nothing", without, want)
	}
	var got totals
	sent, received := exchange(t, 0, 200)
	if err := h.Drain(newCollector(), got.add); err != nil {
		t.Fatal(err)
	}
	tally, err := h.Tally()
	if err != nil {
		t.Fatal(err)
	}
	if w := (event.Bytes{Sent: sent, Received: received}); got.bytes != w && tally.Losses[event.LostSkipped] == 0 {
		t.Errorf("without %q: set %s drained %+v, moved %+v, ledger %+v", without, want, got.bytes, w, tally)
	}
	return h
}
