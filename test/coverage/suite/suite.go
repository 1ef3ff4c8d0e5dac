// Package suite plays the scenarios of the coverage suite against the real picosnitch and holds what was recorded against
// what the generators counted. The Go test, the command `cover` and the guests of test/kernels all use it. It needs root
// and a kernel with hooks, and two programs that were built before: picosnitch and test/coverage/generate.
package suite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/compare"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/play"
)

// held begins the names of scenarios whose sockets are open before the monitor starts.
const held = "before-"

// Options of a run.
type Options struct {
	Picosnitch string        // path of the program
	Generate   string        // path of test/coverage/generate
	Folder     string        // for files; everybody must reach it, for generators run as other users, too
	Hooks      string        // hook set; "" is the best that works
	Within     time.Duration // bound of the monitor's start and end; 0 is that of a real machine
	Wanted     func(name string) bool
}

// Scenario is what became of one scenario.
type Scenario struct {
	Name        string
	Outcome     play.Outcome
	Differences []compare.Difference // in all places where picosnitch writes
	Totals      compare.Totals       // of snitch.db
}

// Run is what became of all of them.
type Run struct {
	Scenarios []Scenario
	Ready     time.Duration // from the monitor's start to its first answer
	Status    monitor.Status
	Cost      monitor.Cost // of sensor and recorder, at the end
	Output    string       // what the monitor said, and its error.log
}

// Play plays the wanted scenarios once. The error says that the suite itself could not run, or that picosnitch ended badly.
func Play(o Options) (Run, error) {
	var r Run
	g := play.Generator{Program: o.Generate, Folder: filepath.Join(o.Folder, "copies")}
	list, err := g.List()
	if err != nil {
		return r, err
	}
	var before, after []string
	for _, name := range list {
		switch {
		case o.Wanted != nil && !o.Wanted(name):
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
	m, err := monitor.StartWith(monitor.Options{
		Program: o.Picosnitch, Parent: o.Folder, Hooks: o.Hooks, Within: o.Within, Config: map[string]any{"DB write limit (seconds)": 1, "DB text log": true},
	})
	if err != nil {
		return r, err
	}
	r.Ready = m.Ready
	close(release)
	for range before {
		(<-results)()
	}
	for _, name := range after {
		outcomes[name] = g.Run(name, nil, nil)
	}
	cost, costErr := m.Costs()
	status, statusErr := m.Status()
	stopErr := m.Stop()
	r.Cost, r.Status, r.Output = cost, status, m.Output()
	if err := errors.Join(stopErr, costErr, statusErr); err != nil {
		return r, err
	}
	return r, r.compare(m, append(before, after...), outcomes)
}

// compare compares all scenarios with all places.
func (r *Run) compare(m *monitor.Monitor, names []string, outcomes map[string]play.Outcome) error {
	var sources []compare.Source
	for _, s := range []struct {
		name string
		read func() ([]monitor.Row, error)
		flat bool
	}{{"snitch.db", m.Rows, false}, {"connections", m.View, true}, {"conn.log", m.Text, true}} {
		rows, err := s.read()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		// A line of text cannot be completed when the hash comes after its window, as it may for hundreds of new files in seconds.
		sources = append(sources, compare.Source{Name: s.name, Rows: rows, Flat: s.flat, LateHash: s.name == "conn.log"})
	}
	if err := monitor.Intact(m.Database()); err != nil {
		return err
	}
	comparer := compare.New()
	for _, name := range names {
		s := Scenario{Name: name, Outcome: outcomes[name]}
		if s.Outcome.Err == nil && s.Outcome.Lack == "" {
			for i, source := range sources {
				found := comparer.Compare(name, s.Outcome.Claims, source)
				if i == 0 {
					s.Totals = compare.Sum(s.Outcome.Claims, source, found)
				}
				s.Differences = append(s.Differences, found...)
			}
		}
		r.Scenarios = append(r.Scenarios, s)
	}
	return nil
}

// Folder makes a folder that everybody can reach.
func Folder() (string, error) {
	folder, err := os.MkdirTemp("", "coverage")
	if err != nil {
		return "", err
	}
	return folder, os.Chmod(folder, 0o755)
}
