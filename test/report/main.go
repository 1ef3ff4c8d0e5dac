// Command report reads the events of `go test -json` and says what a person wants to know: which packages are fine, what
// failed and with which words, and what was skipped and why. It ends with 1 when something failed, when a skip has
// no reason, and, with -root, when a test was left out for want of root.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
)

type line struct {
	Action, Package, Test, Output, ImportPath string

	Elapsed float64 // seconds
}

func main() {
	suite := flag.String("suite", "", "name of the suite")
	skips := flag.String("skips", "", "file to which the skips are added")
	asRoot := flag.Bool("root", false, "the suite runs as root: nothing may be left out for want of it")
	flag.Parse()
	out, err := os.OpenFile(*skips, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
	bad := read(*suite, *asRoot, out)
	if err := out.Close(); err != nil || bad {
		os.Exit(1)
	}
}

// read reports whether something failed.
func read(suite string, asRoot bool, skips *os.File) bool {
	wantsRoot := regexp.MustCompile(`(needs root|not root)($|:| to )`)
	noise := regexp.MustCompile(`^\s*(=== |--- (PASS|SKIP)|PASS|\S*testscript\.go:\d+: $)`)
	said := map[string]string{}
	failed := false
	s := bufio.NewScanner(os.Stdin)
	s.Buffer(nil, 64<<20)
	for s.Scan() {
		var l line
		if json.Unmarshal(s.Bytes(), &l) != nil {
			fmt.Println(s.Text()) // not of a test: go's own words
			continue
		}
		name := strings.TrimPrefix(l.Package, "github.com/picosnitch/picosnitch/")
		key := l.Package + " " + l.Test
		switch l.Action {
		case "output", "build-output":
			if l.ImportPath != "" {
				fmt.Print(l.Output)
			}
			if !noise.MatchString(l.Output) {
				said[key] += l.Output
			}
		case "pass":
			if l.Test == "" {
				fmt.Printf("ok   %s (%.0f s)\n", name, l.Elapsed)
			}
		case "fail", "build-fail":
			failed = true
			fmt.Printf("FAIL %s %s\n%s", name, l.Test, said[key])
		case "skip":
			if l.Test == "" {
				continue // a package without tests
			}
			reason := strings.Join(strings.Fields(said[key]), " ")
			if _, why, ok := strings.Cut(reason, "] skip '"); ok { // a script's own words
				reason, _, _ = strings.Cut(why, "'")
			}
			if r := []rune(reason); len(r) > 200 {
				reason = "…" + string(r[len(r)-200:])
			}
			switch {
			case reason == "":
				failed = true
				reason = "NO REASON GIVEN: that is a failure"
			case asRoot && wantsRoot.MatchString(reason):
				failed = true
				reason += ": it can run here: that is a failure"
			}
			fmt.Fprintf(skips, "%s: %s %s: %s\n", suite, name, l.Test, reason)
		}
		if l.Action != "output" {
			delete(said, key)
		}
	}
	return failed || s.Err() != nil
}
