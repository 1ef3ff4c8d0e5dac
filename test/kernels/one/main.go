// Command one runs the tests of one package, or a program, on kernels of distributions, in emulated machines, and shows what they say. It needs no root, but what
// it boots must have been fetched, or fetching must be possible (test/kernels/fetch.sh).
//
//	go run ./test/kernels/one [-kernels 5.10,newest] [-arch amd64] [-env NAME=VALUE,…] PACKAGE [TEST FLAGS]
//	go run ./test/kernels/one -program [-kernels …] PACKAGE [ARGUMENTS]
//
// For example the verifier's numbers on all kernels:
//
//	go run ./test/kernels/one ./internal/sensor/kernel -test.v -test.run TestVerifierBudget | go run ./test/verifier
//
// Exit codes: 0 all passed, 1 not, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/kernels/lab"
)

func main() {
	kernels := flag.String("kernels", "5.10,6.1,6.12,newest", "kernels")
	arch := flag.String("arch", "amd64", "amd64 or arm64")
	env := flag.String("env", "", "variables for the tests, with commas between")
	limit := flag.Duration("limit", 8*time.Minute, "how long the tests may take on one kernel")
	program := flag.Bool("program", false, "the package is a program")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	err := run(ctx, *program, *arch, words(*kernels), words(*env), *limit, flag.Arg(0), flag.Args()[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "one:", err)
		os.Exit(1)
	}
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool { return c == ',' })
}

func run(ctx context.Context, program bool, arch string, kernels, env []string, limit time.Duration, pkg string, args []string) error {
	dir, err := os.MkdirTemp("", "kernels")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := lab.Builder{Folder: dir, Arch: arch}
	build := b.Test
	if program {
		build = b.Program
	}
	test, err := build(ctx, pkg)
	if err != nil {
		return err
	}
	if test == "" {
		return fmt.Errorf("%s has no tests", pkg)
	}
	init, err := b.Program(ctx, "./test/kernels/guest")
	if err != nil {
		return err
	}
	l, err := lab.Fetch(ctx, "test/kernels", arch, kernels...)
	if err != nil {
		return err
	}
	var errs []error
	at := path.Join("/tests", pkg)
	files := map[string]string{at + "/run": test}
	if data := path.Join(pkg, "testdata"); isFolder(data) {
		files[at+"/testdata"] = data
	}
	for _, k := range l.Kernels {
		fmt.Printf("=== KERNEL %s %s\n", k.Release, arch)
		got, err := l.Run(ctx, lab.Guest{
			Kernel: k, Init: init, Retry: true, Memory: 2048, Files: files, Modules: strings.Fields("veth dummy overlay loop tun fuse"),
			Steps: []lab.Step{{Name: "test", Dir: at, Args: append([]string{at + "/run"}, args...), Env: append(env, "TMPDIR=/tmp"), Limit: limit}},
		}, os.Stdout)
		if o := got.Outcomes["test"]; err == nil && (o.Code != 0 || o.TimedOut) {
			err = fmt.Errorf("exit code %d, out of time %t", o.Code, o.TimedOut)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.Release, err))
		}
	}
	return errors.Join(errs...)
}

func isFolder(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
