package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/page"
	"github.com/picosnitch/picosnitch/test/kernels/lab"
)

// Hook is one line of `picosnitch doctor --json`.
type Hook struct {
	Name     string `json:"name"`
	Attached bool   `json:"attached"`
	Waits    bool   `json:"waits,omitempty"`
	Cost     string `json:"cost,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Test is one test, or all of a package that pass.
type Test struct {
	Package string   `json:"package"`
	Passed  int      `json:"passed"`
	Failed  []string `json:"failed,omitempty"`
	Skipped []string `json:"skipped,omitempty"` // with the reason
	Some    bool     `json:"some,omitempty"`    // of the package's tests a few only
}

// Fault is what test/kernels/faults found.
type Fault struct {
	Name   string        `json:"name"`
	Starts bool          `json:"starts"`
	Code   int           `json:"code"`
	Said   string        `json:"said"`
	Equal  string        `json:"equal"`
	CPU    time.Duration `json:"cpu"`
	OK     bool          `json:"ok"`
	Why    string        `json:"why,omitempty"`
}

// Check is what test/kernels/unit found.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Said string `json:"said"`
}

// Result is one kernel.
type Result struct {
	// Parts are "hooks", "tests", "scenarios", "faults" and "unit", as far as they ran: each when it ran last.
	Parts    map[string]Part `json:"parts"`
	Name     string          `json:"name"`
	Arch     string          `json:"arch"`
	Release  string          `json:"release"`
	QEMU     string          `json:"qemu"`
	Boot     time.Duration   `json:"boot"`
	Took     time.Duration   `json:"took"`
	HookSet  string          `json:"hook_set"`
	Hooks    []Hook          `json:"hooks,omitempty"`
	SelfTest string          `json:"self_test"`
	Tests    []Test          `json:"tests,omitempty"`
	Coverage []page.Row      `json:"coverage,omitempty"`
	PSS      int64           `json:"pss_bytes"`
	Faults   []Fault         `json:"faults,omitempty"`
	Unit     []Check         `json:"unit,omitempty"`
	Missing  []string        `json:"missing_modules,omitempty"`
	Problems []Problem       `json:"problems,omitempty"` // why it is not right
}

// Part is one run of a part.
type Part struct {
	Date string        `json:"date"`
	Fast bool          `json:"fast,omitempty"` // some of its tests or scenarios only
	Took time.Duration `json:"took"`           // in the guest
}

// Problem is something that is not right.
type Problem struct {
	Part string `json:"part,omitempty"` // "" is the run itself
	Text string `json:"text"`
}

// OK reports whether everything that ran is right.
func (r *Result) OK() bool { return len(r.Problems) == 0 }

func (r *Result) problem(part, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{part, fmt.Sprintf(format, args...)})
}

// ran notes that a part ran.
func (r *Result) ran(part string, fast bool, took time.Duration) {
	p := r.Parts[part]
	r.Parts[part] = Part{Date: time.Now().UTC().Format(time.DateOnly), Fast: fast, Took: p.Took + took.Round(time.Second)}
}

// dozen are the scenarios of the fast matrix: one for each way in which hook sets differ.
func dozen() []string {
	return strings.Fields("s01-tcp-down s04-udp-both-ways s05-icmp-echo s10-raw-253 s12-af-packet s13-io-uring-up s14-sendfile s15-sendmmsg s16-loopback s22-splice-down" +
		" s24-udp6 mptcp-up sctp-both tcp-to-peek udp-to-recv process-fork")
}

// limit is how long the tests of a package may take, emulated: those of the kernel side load every hook set, some of them many times.
func limit(pkg string) time.Duration {
	if pkg == "internal/sensor/kernel" {
		return 30 * time.Minute
	}
	return 8 * time.Minute
}

func (r *Result) run(ctx context.Context, o options, l *lab.Lab, p programs, k lab.Kernel) {
	r.Parts = map[string]Part{}
	slow := time.Duration(1)
	if k.Arch == "arm64" {
		slow = 3
	}
	var steps []lab.Step
	if o.doctor && o.take == "" && !slices.Equal(o.parts, []string{"unit"}) { // the fast matrix loads hooks as seldom as it can: it takes most of the time
		steps = append(steps, lab.Step{Name: "doctor", Args: []string{"/picosnitch", "doctor", "--json"}, Limit: slow * 2 * time.Minute})
	}
	for _, pkg := range p.tests {
		dir := "/tests/" + pkg
		steps = append(steps, lab.Step{Name: pkg, Dir: dir, Args: []string{dir + "/run", "-test.v", "-test.run", testsOf(o.fast)}, Env: []string{"TMPDIR=/tmp"}, Limit: slow * limit(pkg)})
	}
	only := o.only
	if only == "" && (o.fast && !slices.Contains(o.all, k.Name) || k.Arch == "arm64") {
		only = strings.Join(dozen(), "|")
	}
	coverage := lab.Step{Name: "coverage", Limit: slow * 15 * time.Minute, Env: []string{"GENERATE_PATIENCE=" + (slow * 2 * time.Minute).String()}, Args: []string{
		"/cover", "play", "-picosnitch", "/picosnitch", "-generate", "/generate", "-machine", "guest", "-within", (slow * 5 * time.Minute).String(), "-only", only, "-out", "/out/coverage.json",
	}}
	if o.has("scenarios") {
		steps = append(steps, coverage)
	}
	if o.breaks(k.Arch, k.Name) {
		steps = append(steps, lab.Step{Name: "faults", Limit: 50 * time.Minute, Args: []string{"/faults", "run", "/picosnitch", "/faulty", "/generate", "/out/faults.json", o.take}})
	}
	r.serve(ctx, o, l, p, k)
	if len(steps) == 0 {
		if !o.serves(k.Arch) {
			r.problem("", "nothing was asked of it")
		}
		return
	}
	got, err := l.Run(ctx, lab.Guest{
		Kernel: k, Init: p.init, Userland: len(p.tests) > 0 && !o.fast, Retry: true, Memory: 4096, Files: p.files, Steps: steps,
		Modules: strings.Fields("veth dummy overlay loop tun sctp tls vsock_loopback nbd nfsv4 fuse btrfs squashfs erofs"),
	}, nil)
	r.QEMU, r.Boot, r.Took, r.Missing = got.QEMU, got.Boot, got.Took, got.Missing
	if o.kept != "" {
		if e := keep(filepath.Join(o.kept, k.Release), got); e != nil {
			r.problem("", "keep: %v", e)
		}
	}
	switch {
	case ctx.Err() != nil:
		r.problem("", "interrupted")
	case err != nil:
		r.problem("", "%v", err)
	}
	r.read(o, got, p)
	for _, s := range steps {
		part := map[string]string{"doctor": "hooks", "coverage": "scenarios", "faults": "faults"}[s.Name]
		if out := got.Outcomes[s.Name]; out.Took > 0 {
			r.ran(cmp.Or(part, "tests"), part == "" && !complete(r.Tests) || part == "scenarios" && only != "" || part == "faults" && o.take != "", out.Took)
		}
	}
}

// serve runs picosnitch as a service, in a guest of its own whose first process is systemd.
func (r *Result) serve(ctx context.Context, o options, l *lab.Lab, p programs, k lab.Kernel) {
	if !o.serves(k.Arch) {
		return
	}
	got, err := l.Run(ctx, lab.Guest{
		Kernel: k, Init: p.init, Userland: true, Systemd: true, Retry: true, Memory: 4096, Files: p.files,
		Steps: []lab.Step{{Name: "unit", Limit: 8 * time.Minute, Args: []string{"/unit", "run", "/picosnitch", "/out/unit.json"}}},
	}, nil)
	if o.kept != "" {
		if e := keep(filepath.Join(o.kept, k.Release+"-unit"), got); e != nil {
			r.problem("", "keep: %v", e)
		}
	}
	if err != nil {
		r.problem("unit", "unit: %v", err)
	}
	r.QEMU, r.Boot = got.QEMU, got.Boot
	r.ran("unit", false, got.Outcomes["unit"].Took)
	if err := json.Unmarshal(got.Files["unit.json"], &r.Unit); err != nil {
		r.problem("unit", "unit: %s", oneLine(cmp.Or(got.Outcomes["unit"].Output, "did not run")))
	}
	for _, c := range r.Unit {
		if !c.OK {
			r.problem("unit", "unit: %s: %s", c.Name, c.Said)
		}
	}
}

// keep writes everything that a guest said to a folder.
func keep(dir string, got lab.Result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string]string{"console": got.Console}
	for name, content := range got.Files {
		files[name] = string(content)
	}
	for name, o := range got.Outcomes {
		files[strings.ReplaceAll(name, "/", "-")] = o.Output
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// read turns what the steps said into the result.
func (r *Result) read(o options, got lab.Result, p programs) {
	var d struct {
		HookSet  string `json:"hook_set"`
		Hooks    []Hook `json:"hooks"`
		SelfTest []struct {
			Name string `json:"name"`
			OK   bool   `json:"ok"`
		} `json:"self_test"`
	}
	out := got.Outcomes["doctor"].Output
	if i := strings.Index(out, "{"); i >= 0 {
		_ = json.NewDecoder(strings.NewReader(out[i:])).Decode(&d) // what is missing then is told below
	}
	r.HookSet, r.Hooks = d.HookSet, d.Hooks
	if _, asked := got.Outcomes["doctor"]; d.HookSet == "" && asked {
		r.problem("hooks", "no hook set: %s", oneLine(out))
	}
	r.SelfTest = "ok"
	for _, s := range d.SelfTest {
		if !s.OK {
			r.SelfTest = s.Name
			r.problem("hooks", "self test: %s", s.Name)
		}
	}
	for _, pkg := range p.tests {
		t := readTests(pkg, got.Outcomes[pkg])
		t.Some = o.fast
		r.Tests = append(r.Tests, t)
		for _, f := range t.Failed {
			r.problem("tests", "test %s: %s", pkg, f)
		}
	}
	var report page.Report
	if err := json.Unmarshal(got.Files["coverage.json"], &report); err != nil && o.has("scenarios") {
		r.problem("scenarios", "coverage: %s", oneLine(cmp.Or(got.Outcomes["coverage"].Output, "did not run")))
	}
	if report.Rows == nil && len(got.Files["coverage.json"]) > 0 {
		r.problem("scenarios", "coverage: no scenario was played: %s", oneLine(got.Outcomes["coverage"].Output))
	}
	for _, m := range report.Machines {
		r.PSS, r.HookSet = m.PSS, m.HookSet
	}
	page.Sort(report.Rows)
	r.Coverage = report.Rows
	for _, b := range page.Bad(report.Rows) {
		r.problem("scenarios", "coverage: %s", b)
	}
	if _, ok := got.Outcomes["faults"]; ok {
		if err := json.Unmarshal(got.Files["faults.json"], &r.Faults); err != nil {
			r.problem("faults", "faults: %s", oneLine(cmp.Or(got.Outcomes["faults"].Output, "did not run")))
		}
		if out := got.Outcomes["faults"]; out.TimedOut {
			r.problem("faults", "faults: not done in time after %d: %s", len(r.Faults), oneLine(out.Output))
		}
		for _, f := range r.Faults {
			if !f.OK {
				r.problem("faults", "fault %q: %s; it said: %s", f.Name, f.Why, f.Said)
			}
		}
	}
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 500 {
		s = "…" + string(r[len(r)-500:])
	}
	return s
}

// readTests reads the verbose output of a Go test. Tests at the top are counted; what is skipped is told also of those within them.
func readTests(pkg string, o lab.Outcome) Test {
	t := Test{Package: pkg}
	said := map[string][]string{} // by test
	now := ""
	for line := range strings.Lines(o.Output) {
		trimmed := strings.TrimSpace(line)
		verdict, name, isVerdict := strings.Cut(strings.TrimPrefix(trimmed, "--- "), ": ")
		isVerdict = isVerdict && strings.HasPrefix(trimmed, "--- ")
		name, _, _ = strings.Cut(name, " (")
		switch {
		case isVerdict && verdict == "SKIP":
			t.Skipped = append(t.Skipped, name+": "+oneLine(strings.Join(said[name], " ")))
		case isVerdict && strings.HasPrefix(line, "--- PASS"):
			t.Passed++
		case isVerdict && strings.HasPrefix(line, "--- FAIL"):
			var why []string
			for _, n := range slices.Sorted(maps.Keys(said)) {
				if n == name || strings.HasPrefix(n, name+"/") {
					why = append(why, said[n]...)
				}
			}
			t.Failed = append(t.Failed, name+": "+oneLine(strings.Join(why, " ")))
		case strings.HasPrefix(line, "=== "):
			if f := strings.Fields(line); len(f) > 2 {
				now = f[2]
			}
		case strings.HasPrefix(line, "    ") && !isVerdict:
			said[now] = append(said[now], trimmed)
		}
	}
	if o.Code != 0 && (len(t.Failed) == 0 || o.TimedOut) {
		t.Failed = append(t.Failed, fmt.Sprintf("exit code %d, timed out %t: %s", o.Code, o.TimedOut, oneLine(o.Output)))
	}
	return t
}

// took says how long each part took in the guest.
func (r *Result) took() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(r.Parts)) {
		parts = append(parts, fmt.Sprintf("%s %v", name, r.Parts[name].Took))
	}
	return strings.Join(parts, ", ")
}

// tell writes the result for people.
func (r *Result) tell(w io.Writer) {
	state := "ok"
	if !r.OK() {
		state = "NOT RIGHT"
	}
	passed, skippedTests := 0, 0
	for _, t := range r.Tests {
		passed += t.Passed
		skippedTests += len(t.Skipped)
	}
	fmt.Fprintf(w, "%s %s (%s): %s: hook set %q, self test %s, %d tests passed, %d skipped; %s; %d faults; %v (%s)\n", r.Release, r.Arch, r.QEMU, state, r.HookSet, r.SelfTest,
		passed, skippedTests, page.Summary(r.Coverage), len(r.Faults), r.Took.Round(time.Second), r.took())
	for _, p := range r.Problems {
		fmt.Fprintf(w, "    %s\n", p.Text)
	}
	for _, t := range r.Tests {
		for _, s := range t.Skipped {
			fmt.Fprintf(w, "    skipped: %s: %s %s\n", r.Release, t.Package, s)
		}
	}
	for _, x := range r.Coverage {
		if x.Result == page.Skipped {
			fmt.Fprintf(w, "    known limit: %s: %s: %s\n", r.Release, x.ID, x.Reason)
		}
		if x.Result == page.Lacks {
			fmt.Fprintf(w, "    skipped: %s: %s: this kernel lacks it: %s\n", r.Release, x.ID, x.Reason)
		}
	}
}
