// Package coverage is the end-to-end suite: the real picosnitch records what the generators move, and every byte,
// connection, program, hash, parent and user in snitch.db and conn.log must equal what the generators counted
// themselves. It needs root and a kernel with the hooks; it never talks to another machine.
package coverage

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/compare"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/suite"
)

func TestCoverage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks and the network namespaces do; run it as root")
	}
	only := flag.Lookup("test.run").Value.String()
	folder, err := suite.Folder()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	picosnitch, err := monitor.Build(folder, "./cmd/picosnitch")
	if err != nil {
		t.Fatal(err)
	}
	program, err := monitor.Build(folder, "./test/coverage/generate")
	if err != nil {
		t.Fatal(err)
	}
	r, err := suite.Play(suite.Options{
		Picosnitch: picosnitch, Generate: program, Folder: folder,
		Wanted: func(name string) bool { return selected(only, name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready %v after the start", r.Ready)
	t.Logf("status at the end: %+v", r.Status)
	t.Log(r.Output)

	t.Run("memory", func(t *testing.T) {
		// Measured right after the run: 44 to 48 MiB on 6.18. An idle pair has about 25.
		const bound = 56 << 20
		t.Logf("PSS of sensor and recorder: %.1f MiB", float64(r.Cost.PSS)/(1<<20))
		if r.Cost.PSS > bound {
			t.Errorf("PSS of sensor and recorder is %d bytes after the run, at most %d", r.Cost.PSS, bound)
		}
	})
	compared := 0
	var all []compare.Difference
	for _, s := range r.Scenarios {
		t.Run(s.Name, func(t *testing.T) {
			if s.Outcome.Lack != "" {
				t.Skipf("this kernel lacks it: %s", s.Outcome.Lack)
			}
			if s.Outcome.Err != nil {
				t.Fatalf("generator: %v", s.Outcome.Err)
			}
			for _, c := range s.Outcome.Claims {
				if c.Limit != "" {
					t.Logf("known limit: %s: moved %d/%d, expected to be shown %+v", c.Limit, c.Sent, c.Received, c.Expected())
				}
			}
			compared++
			if len(s.Differences) > 0 {
				all = append(all, s.Differences...)
				var table strings.Builder
				compare.Table(&table, s.Differences)
				t.Errorf("records differ from what the generator counted:\n%s", table.String())
			}
		})
	}
	if len(all) > 0 {
		var table strings.Builder
		compare.Table(&table, all)
		t.Logf("all differences:\n%s", table.String())
	}
	t.Logf("%d of %d scenarios compared", compared, len(r.Scenarios))
}

// selected reports whether -run names a scenario, so that one can be played alone.
func selected(only, name string) bool {
	_, sub, ok := strings.Cut(only, "/")
	match, err := regexp.MatchString(sub, name)
	return !ok || sub == "memory" || err == nil && match
}
