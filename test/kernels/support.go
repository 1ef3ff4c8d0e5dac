package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// save writes the results; those of kernels that did not run this time stay as they are.
func save(dir string, r Report) error {
	var old Report
	if b, err := os.ReadFile(filepath.Join(dir, "kernel-support.json")); err == nil {
		if err := json.Unmarshal(b, &old); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, "kernel-support.json"), err)
		}
	}
	for _, k := range old.Kernels {
		// A run without faults, or without tests, does not take those of an earlier one away.
		if i := slices.IndexFunc(r.Kernels, func(x *Result) bool { return x.Release == k.Release && x.Arch == k.Arch && len(x.Faults) == 0 }); i >= 0 {
			r.Kernels[i].Faults = k.Faults
		}
		if i := slices.IndexFunc(r.Kernels, func(x *Result) bool { return x.Release == k.Release && x.Arch == k.Arch && len(x.Tests) == 0 }); i >= 0 {
			r.Kernels[i].Tests = k.Tests
		}
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

// write writes docs/kernel-support.md.
func (r Report) write(w io.Writer) {
	fmt.Fprint(w, `# Kernel support

Written by `+"`make kernels`"+`; do not edit. Each kernel is Debian's, unchanged, booted in QEMU without KVM. The newest one is what Debian sid had that day. A full run has the tests that
load hooks (loader, ledger, exec and exit identity, fanotify), scenarios of the coverage suite ([coverage.md](coverage.md) says what "equal" means), and
starts with something taken away. A fast run has the test of exec identity and some of the scenarios.

| kernel | architecture | run | hook set | self test | tests | scenarios | faults | QEMU | date |
|---|---|---|---|---|---|---|---|---|---|
`)
	for _, k := range r.Kernels {
		passed, failed := 0, 0
		for _, t := range k.Tests {
			passed += t.Passed
			failed += len(t.Failed)
		}
		tests := fmt.Sprintf("%d passed", passed)
		if failed > 0 {
			tests += fmt.Sprintf(", **%d failed**", failed)
		}
		set := k.HookSet
		if set == "" {
			set = "**none**"
		}
		mode := "full"
		if k.Fast {
			mode = "fast"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", k.Release, k.Arch, mode, set, k.SelfTest, tests, counts(k.Coverage), faults(k.Faults), k.QEMU, k.Date)
	}
	r.hooks(w)
	r.scenarios(w)
	r.faults(w)
	for _, k := range r.Kernels {
		if len(k.Problems) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n## What is not right on %s %s\n\n", k.Release, k.Arch)
		for _, p := range k.Problems {
			fmt.Fprintf(w, "- %s\n", escape(p))
		}
	}
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
	if len(all) == 0 {
		return ""
	}
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

// faults tells what a user sees when something is taken away.
func (r Report) faults(w io.Writer) {
	fmt.Fprint(w, `
## When something is missing

Each of these was done to a running kernel, and then picosnitch was started, with traffic beside it. The service does not try again after exit code 4, and backs off after the others.

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
				fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", name, k.Release, what, equal, escape(f.Said))
			}
		}
	}
}
