package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/page"
)

// Report is what docs/kernel-support.json holds.
type Report struct {
	Kernels []*Result `json:"kernels"`
}

// save writes the results into the page: a part that did not run this time stays as it was when it ran last on this very kernel.
func save(dir string, r Report) error {
	var old Report
	if b, err := os.ReadFile(filepath.Join(dir, "kernel-support.json")); err == nil {
		if err := json.Unmarshal(b, &old); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, "kernel-support.json"), err)
		}
	}
	for i, k := range r.Kernels {
		merged := *k // the run's own result goes on being judged by what ran
		r.Kernels[i] = &merged
		merged.Parts, merged.Problems = maps.Clone(k.Parts), slices.Clone(k.Problems)
		for _, o := range old.Kernels {
			if o.Release == k.Release && o.Arch == k.Arch {
				merged.keep(o)
			}
		}
	}
	for _, k := range old.Kernels {
		if !slices.ContainsFunc(r.Kernels, func(x *Result) bool { return x.Name == k.Name && x.Arch == k.Arch }) {
			r.Kernels = append(r.Kernels, k)
		}
	}
	place := func(k *Result) int {
		return slices.Index(strings.Fields("amd64/5.10 amd64/6.1 amd64/6.12 amd64/newest arm64/6.1 arm64/6.12"), k.Arch+"/"+k.Name)
	}
	slices.SortStableFunc(r.Kernels, func(a, b *Result) int { return place(a) - place(b) })
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	var text strings.Builder
	r.write(&text)
	return errors.Join(os.WriteFile(filepath.Join(dir, "kernel-support.json"), append(b, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "kernel-support.md"), []byte(text.String()), 0o644))
}

// keep takes over the parts of an earlier run that this one did not have, with what was not right about them. A choice of tests or
// scenarios does not replace a run of them all.
func (r *Result) keep(old *Result) {
	for name, part := range old.Parts {
		now, ran := r.Parts[name]
		if ran && now.Fast && name == "faults" {
			r.keepFaults(old, part)
			continue
		}
		if ran && now.Fast && name == "tests" {
			r.keepTests(old, part)
			continue
		}
		if ran && (!now.Fast || part.Fast) {
			continue
		}
		r.Parts[name] = part
		r.Problems = slices.DeleteFunc(r.Problems, func(p Problem) bool { return p.Part == name })
		for _, p := range old.Problems {
			if p.Part == name {
				r.Problems = append(r.Problems, p)
			}
		}
		switch name {
		case "hooks":
			r.Hooks, r.SelfTest, r.HookSet = old.Hooks, old.SelfTest, old.HookSet
		case "tests":
			r.Tests = old.Tests
		case "scenarios":
			r.Coverage, r.PSS = old.Coverage, old.PSS
			r.HookSet = cmp.Or(r.HookSet, old.HookSet)
		case "faults":
			r.Faults = old.Faults
		case "unit":
			r.Unit = old.Unit
		}
	}
}

// keepFaults takes over those faults of an earlier run that a choice of them did not have: each stands alone.
func (r *Result) keepFaults(old *Result, part Part) {
	all := slices.Clone(old.Faults)
	for _, f := range r.Faults {
		if i := slices.IndexFunc(all, func(x Fault) bool { return x.Name == f.Name }); i >= 0 {
			all[i] = f
		} else {
			all = append(all, f)
		}
	}
	r.Faults = all
	r.Parts["faults"] = Part{Date: r.Parts["faults"].Date, Fast: part.Fast, Took: part.Took}
	r.Problems = slices.DeleteFunc(r.Problems, func(p Problem) bool { return p.Part == "faults" })
	for _, f := range all {
		if !f.OK {
			r.problem("faults", "fault %q: %s; it said: %s", f.Name, f.Why, f.Said)
		}
	}
}

// keepTests takes over those packages of an earlier run whose tests did not run this time, or not all of them while they did then.
func (r *Result) keepTests(old *Result, part Part) {
	all := slices.Clone(r.Tests)
	for _, o := range old.Tests {
		i := slices.IndexFunc(all, func(x Test) bool { return x.Package == o.Package })
		switch {
		case i < 0:
			all = append(all, o)
		case all[i].Some && !o.Some:
			all[i] = o
		}
	}
	r.Tests = all
	r.Parts["tests"] = Part{Date: r.Parts["tests"].Date, Fast: !complete(all), Took: part.Took + r.Parts["tests"].Took}
	r.Problems = slices.DeleteFunc(r.Problems, func(p Problem) bool { return p.Part == "tests" })
	for _, t := range all {
		for _, f := range t.Failed {
			r.problem("tests", "test %s: %s", t.Package, f)
		}
	}
}

// complete reports whether all tests ran of all packages whose tests depend on the kernel.
func complete(all []Test) bool {
	for _, pkg := range testPackages(false) {
		if i := slices.IndexFunc(all, func(x Test) bool { return x.Package == pkg }); i < 0 || all[i].Some {
			return false
		}
	}
	return true
}

// write writes docs/kernel-support.md.
func (r Report) write(w io.Writer) {
	fmt.Fprint(w, `# Kernel support

Written by `+"`make kernels`"+`; do not edit. Each kernel is Debian's, unchanged, booted in QEMU without KVM. The newest one is what Debian sid had that day.

- **tests**: those Go tests that need a kernel: loader, ledger, exec and exit identity, scripts, preloads, hashes, races, fanotify, file systems.
- **scenarios** of the coverage suite; [coverage.md](coverage.md) says what "equal" means.
- **faults**: starts with something taken away.
- **service**: the unit that `+"`picosnitch systemd`"+` writes, under a systemd that is the machine's first process.

*Some* means that not all of them ran. Each part stands as it was when it ran last. On arm64 faults and service are not run: they are the same code.

| kernel | architecture | hook set | self test | tests | scenarios | faults | service | QEMU |
|---|---|---|---|---|---|---|---|---|
`)
	for _, k := range r.Kernels {
		set := k.HookSet
		if set == "" {
			set = "**none**"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", k.Release, k.Arch, set, k.SelfTest,
			k.cell("tests", tests(k.Tests)), k.cell("scenarios", counts(k.Coverage)), k.cell("faults", faults(k.Faults)), k.cell("unit", unit(k.Unit)), k.QEMU)
	}
	r.hooks(w)
	r.scenarios(w)
	r.skips(w)
	r.faults(w)
	r.units(w)
	for _, k := range r.Kernels {
		if len(k.Problems) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n## What is not right on %s %s\n\n", k.Release, k.Arch)
		for _, p := range k.Problems {
			fmt.Fprintf(w, "- %s\n", escape(p.Text))
		}
	}
}

// cell is what the table says of a part.
func (r *Result) cell(part, text string) string {
	p, ran := r.Parts[part]
	switch {
	case !ran:
		return "not run"
	case p.Fast:
		text += ", *some*"
	}
	return text + " (" + p.Date + ")"
}

func tests(all []Test) string {
	passed, failed, skipped := 0, 0, 0
	for _, t := range all {
		passed, failed, skipped = passed+t.Passed, failed+len(t.Failed), skipped+len(t.Skipped)
	}
	text := fmt.Sprintf("%d passed", passed)
	if failed > 0 {
		text += fmt.Sprintf(", **%d failed**", failed)
	}
	if skipped > 0 {
		text += fmt.Sprintf(", %d skipped", skipped)
	}
	return text
}

func unit(all []Check) string {
	ok := 0
	for _, c := range all {
		if c.OK {
			ok++
		}
	}
	return fmt.Sprintf("%d of %d as they should", ok, len(all))
}

func escape(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(s)
}

func counts(rows []page.Row) string {
	n := map[string]int{}
	for _, x := range rows {
		n[x.Result]++
	}
	parts := []string{fmt.Sprintf("%d equal", n[page.Equal])}
	for _, k := range []string{page.Limited, page.Skipped, page.Differs, page.Failed, page.Lacks} {
		if n[k] == 0 {
			continue
		}
		word := k
		if k == page.Skipped {
			word += ", counted and told"
		}
		parts = append(parts, fmt.Sprintf("%d %s", n[k], word))
	}
	return strings.Join(parts, ", ")
}

func faults(all []Fault) string {
	ok := 0
	for _, f := range all {
		if f.OK {
			ok++
		}
	}
	return fmt.Sprintf("%d of %d as they should", ok, len(all))
}

// hooks tells which hooks are not on, and what that costs.
func (r Report) hooks(w io.Writer) {
	fmt.Fprint(w, "\n## Hooks\n\n`picosnitch doctor` shows the same on your machine.\n\n")
	for _, k := range r.Kernels {
		on, off := []string{}, []string{}
		for _, h := range k.Hooks {
			if h.Attached || h.Waits {
				on = append(on, h.Name)
			} else {
				off = append(off, fmt.Sprintf("%s (not seen without it: %s)", h.Name, h.Cost))
			}
		}
		if len(k.Hooks) == 0 {
			continue
		}
		fmt.Fprintf(w, "- **%s %s**, set %s: %s.", k.Release, k.Arch, k.HookSet, strings.Join(on, ", "))
		if len(off) > 0 {
			fmt.Fprintf(w, " Not on: %s.", escape(strings.Join(off, "; ")))
		}
		fmt.Fprintln(w)
	}
}

// scenarios tells what is not equal somewhere.
func (r Report) scenarios(w io.Writer) {
	fmt.Fprint(w, "\n## Scenarios that are not equal, or that a kernel does not offer\n\n")
	for _, k := range r.Kernels {
		for _, x := range k.Coverage {
			if x.Result != page.Equal {
				what := x.Result
				if what == page.Skipped {
					what = "a known limit"
				}
				fmt.Fprintf(w, "- %s %s: `%s`, %s: %s\n", k.Release, k.Arch, x.ID, what, escape(x.Reason))
			}
		}
	}
}

// skips tells which tests a guest cannot run, and why.
func (r Report) skips(w io.Writer) {
	fmt.Fprint(w, "\n## Tests that were skipped\n\n")
	for _, k := range r.Kernels {
		for _, t := range k.Tests {
			for _, s := range t.Skipped {
				fmt.Fprintf(w, "- %s %s: %s: %s\n", k.Release, k.Arch, t.Package, escape(s))
			}
		}
	}
}

// units tells how the service behaves.
func (r Report) units(w io.Writer) {
	fmt.Fprint(w, "\n## As a service of systemd\n\n| kernel | what | as it should | what was seen |\n|---|---|---|---|\n")
	for _, k := range r.Kernels {
		for _, c := range k.Unit {
			ok := "yes"
			if !c.OK {
				ok = "**no**"
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s |\n", k.Release, escape(c.Name), ok, escape(c.Said))
		}
	}
}

// faults tells what a user sees when something is taken away.
func (r Report) faults(w io.Writer) {
	fmt.Fprint(w, `
## When something is missing

Each of these was done to a running kernel, and then picosnitch was started, with the traffic of three scenarios beside it (TCP, and UDP over IPv4 and
IPv6 without a connection). As it should means one of three things:

- Nothing is lost by it: picosnitch starts, and all three are recorded to the byte, with the right program and peer. It has nothing to say then.
- A hook is gone that no other set replaces (refused, removed from the table, no right to attach it): it starts, says what is not seen, and the scenarios that
  need the hook do differ, because otherwise the suite could not see that it is gone. So fewer than three are equal there, and that is right.
- It cannot work at all: it ends with one message that says why, and an exit code of its own. 4 is the kernel's, 6 the recorder's, which must be found out before
  any hook is loaded. The service does not try again after 4, and gives up after five starts in five minutes.

| what | kernel | picosnitch | records | it says |
|---|---|---|---|---|
`)
	names := []string{}
	seen := map[string]bool{}
	for _, k := range r.Kernels {
		for _, f := range k.Faults {
			if !seen[f.Name] {
				seen[f.Name] = true
				names = append(names, f.Name)
			}
		}
	}
	for _, name := range names {
		for _, k := range r.Kernels {
			for _, f := range k.Faults {
				if f.Name != name {
					continue
				}
				what := fmt.Sprintf("ends with code %d after %v of CPU", f.Code, f.CPU.Round(10*time.Millisecond))
				if f.Starts {
					what = "starts"
				}
				if !f.OK {
					what = "**not as it should: " + escape(f.Why) + "**"
				}
				equal := f.Equal
				if equal != "" {
					equal += " equal"
				}
				said := escape(f.Said)
				if said == "" && f.OK {
					said = "*(nothing is lost)*"
				}
				fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", name, k.Release, what, equal, said)
			}
		}
	}
}
