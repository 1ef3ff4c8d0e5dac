// Command cover runs the coverage suite and writes docs/coverage.md and docs/coverage.json.
//
//	cover play -picosnitch P -generate G [-trials N] [-hooks SET] [-only REGEXP] [-out FILE]   on this machine, with programs that were built before
//	cover guest -kernel 6.12 [-trials N] [-hooks SET] [-only REGEXP] [-v] [-out FILE]                  builds all, plays in a guest only
//	cover page [-trials N] [-guests 6.12,…] [-docs FOLDER]                                     builds all, plays here and, what this kernel lacks, in guests
//	cover merge [-docs FOLDER] FILE…                                                           writes the page from what play wrote; the first file that has a scenario counts
//
// It needs root. Exit codes: 0 every scenario that runs is equal or a documented limit, 1 not, 2 usage.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/compare"
	"github.com/picosnitch/picosnitch/test/coverage/page"
	"github.com/picosnitch/picosnitch/test/coverage/suite"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "play":
			os.Exit(playCommand(os.Args[2:]))
		case "guest":
			os.Exit(guestCommand(os.Args[2:]))
		case "merge":
			os.Exit(mergeCommand(os.Args[2:]))
		case "page":
			os.Exit(pageCommand(os.Args[2:]))
		}
	}
	fmt.Fprintln(os.Stderr, "usage: cover play|guest|merge|page, see its first lines")
	os.Exit(2)
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "cover:", err)
	return 1
}

// options of play.
type options struct {
	suite.Options
	trials  int
	machine string
	only    string
	verbose bool // all differences
}

func playCommand(args []string) int {
	f := flag.NewFlagSet("play", flag.ExitOnError)
	var o options
	f.StringVar(&o.Picosnitch, "picosnitch", "", "path of picosnitch")
	f.StringVar(&o.Generate, "generate", "", "path of test/coverage/generate")
	f.StringVar(&o.Hooks, "hooks", "", "hook set, the best if empty")
	f.StringVar(&o.machine, "machine", "native", "name of this machine")
	f.IntVar(&o.trials, "trials", 1, "how often everything is played")
	f.DurationVar(&o.Within, "within", 0, "how long picosnitch may take to start and to stop")
	f.BoolVar(&o.verbose, "v", false, "tell every difference")
	f.StringVar(&o.only, "only", "", "regular expression of the scenarios that are played")
	out := f.String("out", "", "file for the results as JSON")
	f.Parse(args)
	match, err := regexp.Compile("^(" + o.only + ")$")
	if err != nil {
		return complain(err)
	}
	o.Wanted = func(name string) bool { return o.only == "" || match.MatchString(name) }
	report, err := play(o)
	if *out != "" {
		if e := save(*out, report); e != nil {
			return complain(e)
		}
	}
	if err != nil {
		return complain(err)
	}
	rows := report.Best()
	fmt.Println(page.Summary(rows))
	bad := page.Bad(rows)
	for _, b := range bad {
		fmt.Println("  " + b)
	}
	if len(bad) > 0 {
		return 1
	}
	return 0
}

func save(path string, r page.Report) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// play plays all trials here.
func play(o options) (page.Report, error) {
	var r page.Report
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return r, err
	}
	kernel := unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	for n := range o.trials {
		folder, err := suite.Folder()
		if err != nil {
			return r, err
		}
		o.Folder = folder
		run, err := suite.Play(o.Options)
		if e := os.RemoveAll(folder); err == nil {
			err = e
		}
		if err != nil {
			return r, fmt.Errorf("trial %d: %w\n%s", n+1, err, run.Output)
		}
		if o.verbose {
			fmt.Println(run.Output)
			for _, s := range run.Scenarios {
				compare.Table(os.Stdout, s.Differences)
			}
		}
		r.Add(page.Machine{Name: o.machine, Kernel: kernel, HookSet: run.Status.HookSet}, run)
		fmt.Printf("trial %d of %d on %s, hook set %s: ready after %v\n", n+1, o.trials, kernel, run.Status.HookSet, run.Ready.Round(time.Millisecond))
	}
	return r, nil
}

// oneOf is a regular expression that matches exactly these names.
func oneOf(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = regexp.QuoteMeta(n)
	}
	slices.Sort(quoted)
	return strings.Join(quoted, "|")
}
