// Package coverage is the end-to-end suite: the real picosnitch records what the generators move, and every byte,
// connection, program, hash, parent and user in snitch.db and conn.log must equal what the generators counted
// themselves. It needs root and a kernel with the hooks; it never talks to another machine.
package coverage

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/compare"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/play"
)

// held begins the names of scenarios whose sockets are open before the monitor starts.
const held = "before-"

func TestCoverage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks and the network namespaces do; run it as root")
	}
	only := flag.Lookup("test.run").Value.String()
	folder, err := os.MkdirTemp("", "coverage")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	// Generators run as other users, too.
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	picosnitch, err := monitor.Build(folder, "./cmd/picosnitch")
	if err != nil {
		t.Fatal(err)
	}
	program, err := monitor.Build(folder, "./test/coverage/generate")
	if err != nil {
		t.Fatal(err)
	}
	g := play.Generator{Program: program, Folder: filepath.Join(folder, "copies")}
	list, err := g.List()
	if err != nil {
		t.Fatal(err)
	}
	var before, after []string
	for _, name := range list {
		switch {
		case !selected(only, name):
		case strings.HasPrefix(name, held):
			before = append(before, name)
		default:
			after = append(after, name)
		}
	}

	outcomes := make(map[string]play.Outcome)
	results := make(chan func(), len(before))
	holding, release := make(chan string, len(before)), make(chan struct{})
	for _, name := range before {
		go func() {
			o := g.Run(name, func() error {
				holding <- ""
				<-release
				return nil
			}, nil)
			if o.Err != nil || o.Lack != "" {
				holding <- name
			}
			results <- func() { outcomes[name] = o }
		}()
	}
	for range before {
		<-holding
	}
	start := func() (*monitor.Monitor, error) {
		return monitor.Start(picosnitch, folder, map[string]any{"DB write limit (seconds)": 1, "DB text log": true})
	}
	m, err := start()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready %v after the start", m.Ready)
	close(release)
	for range before {
		(<-results)()
	}
	for _, name := range after {
		outcomes[name] = g.Run(name, nil, nil)
	}
	cost, costErr := m.Costs()
	status, statusErr := m.Status()
	if err := errors.Join(m.Stop(), costErr, statusErr); err != nil {
		t.Fatal(err)
	}
	t.Logf("status at the end: %+v", status)
	t.Log(m.Output())

	t.Run("memory", func(t *testing.T) {
		const bound = 40 << 20
		t.Logf("PSS of sensor and recorder: %.1f MiB", float64(cost.PSS)/(1<<20))
		if cost.PSS > bound {
			t.Errorf("PSS of sensor and recorder is %d bytes after the run, at most %d", cost.PSS, bound)
		}
	})
	check(t, m, append(before, after...), outcomes)
}

// selected reports whether -run names a scenario, so that one can be played alone.
func selected(only, name string) bool {
	_, sub, ok := strings.Cut(only, "/")
	match, err := regexp.MatchString(sub, name)
	return !ok || sub == "memory" || err == nil && match
}

// check compares all scenarios with all sources.
func check(t *testing.T, m *monitor.Monitor, names []string, outcomes map[string]play.Outcome) {
	var sources []compare.Source
	for _, s := range []struct {
		name string
		read func() ([]monitor.Row, error)
		flat bool
	}{{"snitch.db", m.Rows, false}, {"connections", m.View, true}, {"conn.log", m.Text, true}} {
		rows, err := s.read()
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		// A line of text cannot be completed when the hash comes after its window, as it may for hundreds of new files in seconds.
		sources = append(sources, compare.Source{Name: s.name, Rows: rows, Flat: s.flat, LateHash: s.name == "conn.log"})
	}
	if err := monitor.Intact(m.Database()); err != nil {
		t.Error(err)
	}
	compared := 0
	var all []compare.Difference
	comparer := compare.New()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			o := outcomes[name]
			if o.Lack != "" {
				t.Skipf("this kernel lacks it: %s", o.Lack)
			}
			if o.Err != nil {
				t.Fatalf("generator: %v", o.Err)
			}
			for _, c := range o.Claims {
				if c.Limit != "" {
					t.Logf("known limit: %s: moved %d/%d, expected to be shown %+v", c.Limit, c.Sent, c.Received, c.Expected())
				}
			}
			compared++
			for _, s := range sources {
				if found := comparer.Compare(name, o.Claims, s); len(found) > 0 {
					all = append(all, found...)
					var table strings.Builder
					compare.Table(&table, found)
					t.Errorf("records differ from what the generator counted:\n%s", table.String())
				}
			}
		})
	}
	if len(all) > 0 {
		var table strings.Builder
		compare.Table(&table, all)
		t.Logf("all differences:\n%s", table.String())
	}
	t.Logf("%d of %d scenarios compared", compared, len(names))
}
