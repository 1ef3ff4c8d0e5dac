// Command kernels runs picosnitch on the kernels of distributions, in emulated machines, and writes docs/kernel-support.md: on each
// kernel the tests that load hooks, scenarios of the coverage suite, and what happens when something that picosnitch rests on
// is taken away. It needs root, because it installs QEMU; what it boots it fetches (fetch.sh).
//
//	go run ./test/kernels [-fast] [-parts tests,scenarios,faults,unit] [-kernels 5.10,…] [-arm64 6.1,…] [-docs FOLDER]
//
// Exit codes: 0 all is right, 1 not, 2 usage, 3 the kernels cannot be fetched here.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/picosnitch/picosnitch/test/kernels/lab"
)

// options of a run.
type options struct {
	fast  bool     // load, and a dozen scenarios
	only  string   // scenarios, instead of those that belong to the mode
	parts []string // "tests", "scenarios", "faults", "unit"
	// faults names the amd64 kernels from which things are taken away; nil is all of them, but in the fast mode none.
	faults []string
	doctor bool     // also in the fast mode
	all    []string // amd64 kernels that play every scenario, also in the fast mode
	kept   string   // folder for what the guests said, "" to forget it
	take   string   // regular expression of what is taken away, "" for all
	pkgs   []string // packages whose tests run, nil for those that belong to the mode
}

func main() {
	var o options
	flag.BoolVar(&o.fast, "fast", false, "load, and a dozen scenarios per kernel")
	flag.StringVar(&o.only, "only", "", "regular expression of the scenarios to play")
	parts := flag.String("parts", "", "what to run, of tests, scenarios, faults and unit; all, but with -fast tests and scenarios")
	flag.StringVar(&o.take, "take", "", "regular expression of what to take away")
	pkgs := flag.String("packages", "", "packages whose tests run, instead of those that belong to the mode")
	flag.StringVar(&o.kept, "keep", "", "folder for everything that the guests say")
	kernels := flag.String("kernels", "5.10,6.1,6.12,newest", "amd64 kernels")
	arm := flag.String("arm64", "6.1,6.12", "arm64 kernels; they are emulated, too")
	at := flag.Int("j", 2, "guests at a time")
	docs := flag.String("docs", "", "folder for kernel-support.md and .json")
	faults := flag.String("faults", "", "kernels from which things are taken away; all, but with -fast none")
	every := flag.String("all", "", "kernels that play every scenario, also with -fast")
	flag.Parse()
	o.parts = words(*parts)
	if len(o.parts) == 0 {
		o.parts = allParts()
		if o.fast {
			o.parts = []string{"tests", "scenarios"}
		}
	}
	o.all, o.pkgs = words(*every), words(*pkgs)
	o.faults, o.doctor = words(*faults), !o.fast || *docs != ""
	if i := slices.IndexFunc(o.parts, func(p string) bool { return !slices.Contains(allParts(), p) }); i >= 0 {
		fmt.Fprintf(os.Stderr, "kernels: no part %q: choose of %v\n", o.parts[i], allParts())
		os.Exit(2)
	}
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if o.only != "" && *docs != "" {
		fmt.Fprintln(os.Stderr, "kernels: a choice of scenarios does not belong into the page: leave -docs out, or -only")
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	code, err := run(ctx, o, map[string][]string{"amd64": words(*kernels), "arm64": words(*arm)}, *at, *docs)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
	}
	os.Exit(code)
}

func allParts() []string { return []string{"tests", "scenarios", "faults", "unit"} }

// breaks reports whether things are taken away on any kernel of an architecture, or on the one that is named.
func (o options) breaks(arch string, name ...string) bool {
	if arch != "amd64" || !o.has("faults") && len(o.faults) == 0 {
		return false // the same code, emulated ten times slower
	}
	if len(o.faults) == 0 {
		return true
	}
	return len(name) == 0 || slices.Contains(o.faults, name[0])
}

func (o options) has(part string) bool { return slices.Contains(o.parts, part) }

// serves reports whether the service is run on an architecture.
func (o options) serves(arch string) bool { return o.has("unit") && arch == "amd64" }

func words(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool { return c == ',' || c == ' ' })
}

func run(ctx context.Context, o options, kernels map[string][]string, at int, docs string) (int, error) {
	dir, err := os.MkdirTemp("", "kernels")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	var all, done []*Result
	var saved sync.Mutex // also of standard output and done
	var jobs []func()
	for _, arch := range []string{"amd64", "arm64"} {
		if len(kernels[arch]) == 0 {
			continue
		}
		l, err := lab.Fetch(ctx, "test/kernels", arch, kernels[arch]...)
		if errors.Is(err, lab.ErrUnreachable) {
			return 3, err
		}
		if err != nil {
			return 1, err
		}
		p, err := prepare(ctx, o, lab.Builder{Folder: dir, Arch: arch})
		if err != nil {
			return 1, err
		}
		for _, k := range l.Kernels {
			r := &Result{Name: k.Name, Arch: arch, Release: k.Release}
			all = append(all, r)
			jobs = append(jobs, func() {
				r.run(ctx, o, l, p, k)
				saved.Lock()
				defer saved.Unlock()
				r.tell(os.Stdout)
				done = append(done, r)
				if docs == "" {
					return
				}
				// After each, so that an hour's work is not lost with the last kernel.
				if err := save(docs, Report{Kernels: slices.Clone(done)}); err != nil {
					r.problem("", "%v", err)
				}
			})
		}
	}
	inParallel(at, jobs)
	bad := 0
	for _, r := range all {
		if !r.OK() {
			bad++
		}
	}
	if bad > 0 {
		return 1, fmt.Errorf("%d of %d kernels are not right", bad, len(all))
	}
	return 0, nil
}

func inParallel(at int, jobs []func()) {
	var wait sync.WaitGroup
	free := make(chan struct{}, max(at, 1))
	for _, j := range jobs {
		free <- struct{}{}
		wait.Go(func() {
			j()
			<-free
		})
	}
	wait.Wait()
}

// programs are what the guests of one architecture get.
type programs struct {
	init  string
	files map[string]string
	tests []string // packages whose tests run
}

// prepare builds everything for one architecture.
func prepare(ctx context.Context, o options, b lab.Builder) (programs, error) {
	p := programs{files: map[string]string{}}
	var err error
	if p.init, err = b.Program(ctx, "./test/kernels/guest"); err != nil {
		return p, err
	}
	wanted := map[string]string{"/picosnitch": "./cmd/picosnitch", "/generate": "./test/coverage/generate", "/cover": "./test/coverage/cover"}
	if o.breaks(b.Arch) {
		wanted["/faults"] = "./test/kernels/faults"
	}
	if o.serves(b.Arch) {
		wanted["/unit"] = "./test/kernels/unit"
	}
	for to, pkg := range wanted {
		if p.files[to], err = b.Program(ctx, pkg); err != nil {
			return p, err
		}
	}
	if o.breaks(b.Arch) {
		faulty := b
		faulty.Tags = "fault"
		if p.files["/faulty"], err = faulty.Program(ctx, "./cmd/picosnitch"); err != nil {
			return p, err
		}
	}
	if !o.has("tests") || o.fast && !o.doctor {
		return p, nil // the scenarios check identity, too
	}
	wantedPkgs := o.pkgs
	if len(wantedPkgs) == 0 {
		wantedPkgs = testPackages(o.fast)
	}
	for _, pkg := range wantedPkgs {
		if _, err := os.Stat(pkg); err != nil {
			continue // not there yet, or not any more
		}
		path, err := b.Test(ctx, "./"+pkg)
		if err != nil {
			return p, err
		}
		if path == "" {
			continue
		}
		p.tests = append(p.tests, pkg)
		p.files["/tests/"+pkg+"/run"] = path
		if data := filepath.Join(pkg, "testdata"); exists(data) {
			p.files["/tests/"+pkg+"/testdata"] = data
		}
	}
	return p, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// testsOf is a regular expression of the tests to run.
func testsOf(fast bool) string {
	if fast {
		return "^TestExecIdentity$" // who it is; that bytes are right the scenarios show
	}
	return "."
}

// testPackages are those whose tests depend on the kernel.
func testPackages(fast bool) []string {
	if fast {
		return []string{"internal/sensor/kernel"}
	}
	return []string{"internal/sensor/kernel", "internal/sensor/fanotify", "internal/sensor/procfs", "internal/sensor/digest", "internal/sensor/script", "internal/sensor"}
}
