package kernel

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// budget is what the verifier of each kernel had to look at when the file was last made (make verifier), by kernel, set and
// program. The kernel's limit is a million.
//
//go:embed testdata/verifier.json
var budget []byte

// TestVerifierBudget compares how many instructions the verifier looks at with what is committed. A program that grows by more than a
// fifth is on its way to what some other kernel refuses.
func TestVerifierBudget(t *testing.T) {
	known := map[string]map[string]int{}
	if err := json.Unmarshal(budget, &known); err != nil {
		t.Fatal(err)
	}
	eachSet(t, func(t *testing.T, set string) {
		if err := rlimit.RemoveMemlock(); err != nil { // as Load does
			t.Fatal(err)
		}
		h, err := loadSet(Options{HookSet: set, Bandwidth: true, logLevel: ebpf.LogLevelStats}, set)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		key := kernelSeries(t) + " " + set
		got := verified(t, h)
		for _, name := range slices.Sorted(maps.Keys(got)) {
			n, was := got[name], known[key][name]
			fmt.Printf("VERIFIER %s %s %d\n", key, name, n) // test/verifier collects these
			switch {
			case was == 0:
				t.Logf("%s: %d instructions; not in testdata/verifier.json: make verifier", name, n)
			case overBudget(was, n):
				t.Errorf("%s: %d instructions, %d before: %+.0f %%", name, n, was, 100*(float64(n)/float64(was)-1))
			case n != was:
				t.Logf("%s: %d instructions, %d before", name, n, was)
			}
		}
	})
}

func overBudget(was, now int) bool { return now > was+was/5 && now > was+50 }

func TestOverBudget(t *testing.T) {
	for _, c := range []struct {
		was, now int
		over     bool
	}{{1000, 1200, false}, {1000, 1201, true}, {1000, 500, false}, {20, 60, false}, {20, 71, true}} {
		if overBudget(c.was, c.now) != c.over {
			t.Errorf("%+v", c)
		}
	}
}

var processed = regexp.MustCompile(`processed (\d+) insns`)

func verified(t *testing.T, h *Hooks) map[string]int {
	got := map[string]int{}
	for name, p := range h.collection.Programs {
		m := processed.FindStringSubmatch(p.VerifierLog)
		if m == nil {
			t.Errorf("%s: the verifier's log says nothing: %q", name, p.VerifierLog)
			continue
		}
		got[name], _ = strconv.Atoi(m[1])
	}
	if len(got) < 5 {
		t.Errorf("only %d programs", len(got))
	}
	return got
}

// kernelSeries is the kernel's major and minor number and the machine.
func kernelSeries(t *testing.T) string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	series := regexp.MustCompile(`^\d+\.\d+`).FindString(unix.ByteSliceToString(u.Release[:]))
	if series == "" {
		t.Fatalf("kernel release %q", unix.ByteSliceToString(u.Release[:]))
	}
	return series + " " + runtime.GOARCH
}
