package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/page"
	"github.com/picosnitch/picosnitch/test/kernels/lab"
)

// What go test says is read with the reasons of what failed and what was skipped, also within tests.
func TestReadTests(t *testing.T) {
	got := readTests("p", lab.Outcome{Code: 1, Output: `=== RUN   TestGood
--- PASS: TestGood (0.00s)
=== RUN   TestSystems
=== RUN   TestSystems/ext4
=== RUN   TestSystems/erofs
    x_test.go:7: needs erofs
=== NAME  TestSystems
    x_test.go:9: after all
--- PASS: TestSystems (0.10s)
    --- PASS: TestSystems/ext4 (0.00s)
    --- SKIP: TestSystems/erofs (0.00s)
=== RUN   TestBad
=== RUN   TestBad/inner
    x_test.go:20: it is 1, not 2
--- FAIL: TestBad (0.10s)
    --- FAIL: TestBad/inner (0.00s)
=== RUN   TestNot
    x_test.go:30: not here
--- SKIP: TestNot (0.00s)
FAIL
`})
	if got.Passed != 2 || strings.Join(got.Skipped, "|") != "TestSystems/erofs: x_test.go:7: needs erofs|TestNot: x_test.go:30: not here" || strings.Join(got.Failed, "|") != "TestBad: x_test.go:20: it is 1, not 2" {
		t.Errorf("%+v", got)
	}
	if got := readTests("p", lab.Outcome{Code: -1, Output: "panic: x"}); len(got.Failed) != 1 {
		t.Errorf("a test that never ended: %+v", got)
	}
}

// The page keeps each part as it was when it ran last, with what was wrong, and a choice does not replace the whole.
func TestPartsOfThePage(t *testing.T) {
	dir := t.TempDir()
	write := func(r *Result) string {
		t.Helper()
		if err := save(dir, Report{Kernels: []*Result{r}}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "kernel-support.md"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	kernel := func(release string, parts map[string]Part) *Result {
		return &Result{Name: "6.12", Arch: "amd64", Release: release, Parts: parts}
	}
	full := kernel("6.12.1", map[string]Part{"tests": {Date: "2026-01-01"}, "scenarios": {Date: "2026-01-01"}})
	full.Tests = []Test{{Package: "p", Passed: 50, Failed: []string{"x"}, Skipped: []string{"TestY: no Y"}}}
	full.Coverage = []page.Row{{ID: "a", Result: page.Equal}, {ID: "b", Result: page.Equal}}
	full.problem("tests", "x is wrong")
	write(full)
	fast := kernel("6.12.1", map[string]Part{"scenarios": {Date: "2026-02-02", Fast: true}, "faults": {Date: "2026-02-02"}})
	fast.Coverage = []page.Row{{ID: "a", Result: page.Equal}}
	fast.Faults = []Fault{{Name: "f", OK: true}}
	text := write(fast)
	for _, want := range []string{"50 passed, **1 failed**, 1 skipped (2026-01-01)", "| 2 equal (2026-01-01)", "1 of 1 as they should (2026-02-02)", "| not run |", "x is wrong", "TestY: no Y"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if !fast.OK() || len(fast.Parts) != 2 {
		t.Errorf("a run is judged by an earlier one: %+v", fast)
	}
	mended := kernel("6.12.1", map[string]Part{"tests": {Date: "2026-03-03"}})
	mended.Tests = []Test{{Package: "p", Passed: 51}}
	if text := write(mended); strings.Contains(text, "x is wrong") || !strings.Contains(text, "51 passed (2026-03-03)") || !strings.Contains(text, "2 equal (2026-01-01)") {
		t.Errorf("mended:\n%s", text)
	}
	// A choice of faults mends those that it has.
	bad := kernel("6.12.1", map[string]Part{"faults": {Date: "2026-04-04", Fast: true}})
	bad.Faults = []Fault{{Name: "g", Why: "it runs"}}
	if text := write(bad); !strings.Contains(text, "1 of 2 as they should (2026-04-04)") && !strings.Contains(text, "1 of 2 as they should, *some* (2026-04-04)") || !strings.Contains(text, `fault "g": it runs`) {
		t.Errorf("a choice of faults:\n%s", text)
	}
	bad.Faults = []Fault{{Name: "g", OK: true}}
	if text := write(bad); !strings.Contains(text, "2 of 2 as they should") || strings.Contains(text, "it runs") {
		t.Errorf("a mended fault:\n%s", text)
	}
	// So does a choice of packages; the tests are "some" until all of them ran.
	one := kernel("6.12.1", map[string]Part{"tests": {Date: "2026-05-05", Fast: true}})
	one.Tests = []Test{{Package: "internal/sensor/procfs", Passed: 7, Failed: []string{"y is wrong"}}}
	if text := write(one); !strings.Contains(text, "58 passed, **1 failed**, *some* (2026-05-05)") || !strings.Contains(text, "y is wrong") {
		t.Errorf("a choice of packages:\n%s", text)
	}
	one.Tests = nil
	for _, pkg := range testPackages(false) {
		one.Tests = append(one.Tests, Test{Package: pkg, Passed: 1})
	}
	if text := write(one); strings.Contains(text, "*some* (2026-05-05)") || strings.Contains(text, "y is wrong") {
		t.Errorf("all packages:\n%s", text)
	}
	few := kernel("6.12.1", map[string]Part{"tests": {Date: "2026-06-06", Fast: true}})
	few.Tests = []Test{{Package: "internal/sensor/kernel", Passed: 100, Some: true}}
	if text := write(few); strings.Contains(text, "*some* (2026-06-06)") || !strings.Contains(text, "57 passed (2026-06-06)") {
		t.Errorf("a few of the tests of a package replace all of them:\n%s", text)
	}
	// Another kernel of the same name starts from nothing.
	if text := write(kernel("6.12.2", map[string]Part{})); strings.Contains(text, "6.12.1") || strings.Contains(text, "51 passed") {
		t.Errorf("a newer kernel has results of an older one:\n%s", text)
	}
}
