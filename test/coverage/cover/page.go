package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/page"
	"github.com/picosnitch/picosnitch/test/coverage/suite"
	"github.com/picosnitch/picosnitch/test/kernels/lab"
)

// modules are what the scenarios need of a kernel that has them as modules.
func modules() []string {
	return strings.Fields("veth dummy overlay tun sctp tls vsock_loopback nbd nfsv4 xsk_diag")
}

func pageCommand(args []string) int {
	f := flag.NewFlagSet("page", flag.ExitOnError)
	trials := f.Int("trials", 3, "how often everything is played")
	guests := f.String("guests", "6.12", "kernels that play what this one lacks, in this order")
	docs := f.String("docs", "docs", "folder for coverage.md and coverage.json")
	f.Parse(args)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	report, err := everywhere(ctx, *trials, strings.FieldsFunc(*guests, func(c rune) bool { return c == ',' }))
	if err != nil {
		return complain(err)
	}
	return write(*docs, report)
}

// write writes the page and says what is bad.
func write(docs string, report page.Report) int {
	page.Sort(report.Rows)
	report.Date = time.Now().UTC().Format(time.DateOnly)
	var text strings.Builder
	report.Write(&text)
	if err := errors.Join(save(filepath.Join(docs, "coverage.json"), report), os.WriteFile(filepath.Join(docs, "coverage.md"), []byte(text.String()), 0o644)); err != nil {
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

func mergeCommand(args []string) int {
	f := flag.NewFlagSet("merge", flag.ExitOnError)
	docs := f.String("docs", "docs", "folder for coverage.md and coverage.json")
	f.Parse(args)
	var all page.Report
	for _, path := range f.Args() {
		var r page.Report
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil {
			return complain(err)
		}
		all.Machines = append(all.Machines, r.Machines...)
		all.Rows = append(all.Rows, r.Rows...)
	}
	return write(*docs, all)
}

// everywhere plays here, and in guests what no kernel so far offers.
func everywhere(ctx context.Context, trials int, guests []string) (page.Report, error) {
	b, o, err := build(ctx)
	defer os.RemoveAll(b.Folder)
	if err != nil {
		return page.Report{}, err
	}
	o.trials, o.machine = trials, "native"
	report, err := play(o)
	if err != nil {
		return report, err
	}
	for _, name := range guests {
		lacking := report.Lacking()
		if len(lacking) == 0 {
			break
		}
		fmt.Printf("%d scenarios need another kernel: %s\n", len(lacking), strings.Join(lacking, " "))
		o := o
		o.only = oneOf(lacking)
		found, err := inGuest(ctx, b, o, name)
		if err != nil {
			return report, err
		}
		report.Machines = append(report.Machines, found.Machines...)
		report.Rows = append(report.Rows, found.Rows...)
	}
	return report, nil
}

// build compiles what is needed on both sides. The folder is the caller's to remove.
func build(ctx context.Context) (lab.Builder, options, error) {
	b, o := lab.Builder{Arch: runtime.GOARCH}, options{}
	dir, err := suite.Folder()
	if err != nil {
		return b, o, err
	}
	b.Folder = dir
	if o.Picosnitch, err = b.Program(ctx, "./cmd/picosnitch"); err != nil {
		return b, o, err
	}
	o.Generate, err = b.Program(ctx, "./test/coverage/generate")
	return b, o, err
}

func guestCommand(args []string) int {
	f := flag.NewFlagSet("guest", flag.ExitOnError)
	var o options
	kernel := f.String("kernel", "6.12", "5.10, 6.1, 6.12 or newest")
	f.IntVar(&o.trials, "trials", 1, "how often everything is played")
	f.StringVar(&o.Hooks, "hooks", "", "hook set, the best if empty")
	f.StringVar(&o.only, "only", "", "regular expression of the scenarios that are played")
	f.BoolVar(&o.verbose, "v", false, "tell every difference")
	out := f.String("out", "", "file for the results as JSON")
	f.Parse(args)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	b, built, err := build(ctx)
	defer os.RemoveAll(b.Folder)
	if err != nil {
		return complain(err)
	}
	o.Picosnitch, o.Generate = built.Picosnitch, built.Generate
	r, err := inGuest(ctx, b, o, *kernel)
	if err == nil && *out != "" {
		err = save(*out, r)
	}
	if err != nil {
		return complain(err)
	}
	if len(page.Bad(r.Best())) > 0 {
		return 1
	}
	return 0
}

// inGuest plays scenarios on another kernel.
func inGuest(ctx context.Context, b lab.Builder, o options, name string) (page.Report, error) {
	var r page.Report
	l, err := lab.Fetch(ctx, "test/kernels", b.Arch, name)
	if err != nil {
		return r, err
	}
	init, err := b.Program(ctx, "./test/kernels/guest")
	if err != nil {
		return r, err
	}
	cover, err := b.Program(ctx, "./test/coverage/cover")
	if err != nil {
		return r, err
	}
	result, err := l.Run(ctx, lab.Guest{
		Kernel: l.Kernels[0], Init: init, Retry: true, Memory: 4096, Modules: modules(),
		Files: map[string]string{"/picosnitch": o.Picosnitch, "/generate": o.Generate, "/cover": cover},
		Steps: []lab.Step{{
			Name: "play", Limit: time.Duration(o.trials) * 10 * time.Minute, Env: []string{"GENERATE_PATIENCE=2m"},
			Args: []string{
				"/cover", "play", "-picosnitch", "/picosnitch", "-generate", "/generate", "-machine", "guest", "-within", "5m",
				"-trials", fmt.Sprint(o.trials), "-only", o.only, "-hooks", o.Hooks, fmt.Sprintf("-v=%t", o.verbose), "-out", "/out/report.json",
			},
		}},
	}, os.Stdout)
	if err != nil {
		return r, err
	}
	if result.Files["report.json"] == nil {
		return r, fmt.Errorf("the guest gave no report: %s", result.Outcomes["play"].Output)
	}
	return r, json.Unmarshal(result.Files["report.json"], &r)
}
