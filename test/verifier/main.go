// Command verifier collects the "VERIFIER" lines that TestVerifierBudget prints, from standard input, into the file of budgets, and prints
// what changed.
//
//	go test -count=1 -v -run TestVerifierBudget ./internal/sensor/kernel | go run ./test/verifier
//
// What guests printed (make kernels keeps it with -keep) can be piped in as well. Kernels that are not in the input stay as they are.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const file = "internal/sensor/kernel/testdata/verifier.json"

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "verifier:", err)
		os.Exit(1)
	}
}

var line = regexp.MustCompile(`VERIFIER (\d+\.\d+ \w+ \w+) (\w+) (\d+)`)

func run(in io.Reader, out io.Writer) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	known := map[string]map[string]int{}
	if err := json.Unmarshal(old, &known); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	now := map[string]map[string]int{}
	failed := false
	for s := bufio.NewScanner(in); s.Scan(); {
		failed = failed || strings.HasPrefix(strings.TrimSpace(s.Text()), "--- FAIL")
		if m := line.FindStringSubmatch(s.Text()); m != nil {
			if now[m[1]] == nil {
				now[m[1]] = map[string]int{}
			}
			now[m[1]][m[2]], _ = strconv.Atoi(m[3])
		}
	}
	if len(now) == 0 {
		return fmt.Errorf("no VERIFIER lines in the input: does a hook set load here?")
	}
	for _, key := range slices.Sorted(maps.Keys(now)) {
		for _, program := range slices.Sorted(maps.Keys(now[key])) {
			if n, was := now[key][program], known[key][program]; n != was {
				fmt.Fprintf(out, "%-28s %-28s %7d → %d\n", key, program, was, n)
			}
		}
		known[key] = now[key]
	}
	text, err := json.MarshalIndent(known, "", "\t")
	if err != nil {
		return err
	}
	if failed {
		fmt.Fprintln(out, "some grew over their budget: look before you commit the new one")
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
