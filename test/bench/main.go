// Command bench measures what the monitor costs, and prints one Markdown table of it: first the time of socket operations
// with the hooks on over off, then the figures of the running program. Run it as root on a quiet machine:
//
//	go run ./test/bench [-quick]
//
// The operations run in one pinned thread over loopback. Their ratio is paired and interleaved: adjacent measurements
// of about 60 ms, one with and one without the hooks, in alternating order, and of all pairs the median and the quartiles;
// nothing else is comparable on a machine that others share. The table is emptied between the measurements.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

func main() {
	quick := flag.Bool("quick", false, "fewer pairs and a shorter idle time: shows that it works, measures little")
	only := flag.String("only", "", "only the workloads whose name contains this, and no process")
	set := flag.String("hooks", "", "hook set, the best if empty")
	hooksOnly := flag.Bool("hooks-only", false, "no process")
	flag.Parse()
	plan := plan{pairs: 41, slice: 60 * time.Millisecond, idle: 20 * time.Second, only: *only, set: *set, hooksOnly: *hooksOnly}
	if *quick {
		plan.pairs, plan.idle = 7, 3*time.Second
	}
	if err := run(plan); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// plan says how long to measure.
type plan struct {
	pairs int           // of one measurement with and one without hooks
	slice time.Duration // of one measurement
	idle  time.Duration // over which the idle time is taken
	only  string

	set       string
	hooksOnly bool
}

func run(p plan) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root, as the hooks do")
	}
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // the program allocates little, and a collection would land in one half of a pair
	fmt.Printf("%s %s, %d CPUs, %d pairs of %v\n\n", runtime.GOOS, kernelRelease(), runtime.NumCPU(), p.pairs, p.slice)
	fmt.Println("| operation | off ns | on ns | on/off median | quartiles | target |")
	fmt.Println("| --- | ---: | ---: | ---: | --- | ---: |")
	if err := hooks(p); err != nil {
		return err
	}
	if p.only != "" || p.hooksOnly {
		return nil
	}
	fmt.Println()
	fmt.Println("| figure | measured | target |")
	fmt.Println("| --- | ---: | ---: |")
	return process(p)
}
