package coverage

import (
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/suite"
	"github.com/picosnitch/picosnitch/test/kernels/lab"
)

// A suite that stays green whatever is broken proves nothing: without one hook, the rows that rest on it must go red, and only those.
func TestBrokenHookTurnsItsRowsRed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks and the network namespaces do; run it as root")
	}
	folder, err := suite.Folder()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	t.Chdir("../..")
	faulty, err := lab.Builder{Folder: folder, Arch: runtime.GOARCH, Tags: "fault"}.Program(t.Context(), "./cmd/picosnitch")
	if err != nil {
		t.Fatal(err)
	}
	generate, err := monitor.Build(folder, "./test/coverage/generate")
	if err != nil {
		t.Fatal(err)
	}
	scenarios := []string{"tcp-up", "udp-by-sendto", "packet-raw", "tcp-to-splice"}
	for hook, red := range map[string][]string{
		"sock_send_length":     scenarios,
		"sock_recv_length":     {"udp-by-sendto", "packet-raw"},
		"tcp_rcv_space_adjust": {"tcp-up", "tcp-to-splice"},
	} {
		t.Run(hook, func(t *testing.T) {
			t.Setenv("PICOSNITCH_FAULT_REMOVE", hook)
			folder, err := suite.Folder()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(folder) })
			r, err := suite.Play(suite.Options{
				Picosnitch: faulty, Generate: generate, Folder: folder, Hooks: "tracepoint",
				Wanted: func(name string) bool { return slices.Contains(scenarios, name) },
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range r.Scenarios {
				if s.Outcome.Err != nil || s.Outcome.Lack != "" {
					t.Errorf("%s: %v %s", s.Name, s.Outcome.Err, s.Outcome.Lack)
				} else if got, want := len(s.Differences) > 0, slices.Contains(red, s.Name); got != want {
					t.Errorf("without %s, %s is red: %t, not %t", hook, s.Name, got, want)
				}
			}
			if r.Status.SelfTest == "ok" {
				t.Errorf("the self test does not notice that %s is missing", hook)
			}
		})
	}
}
