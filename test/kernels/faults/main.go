//go:build linux

// Command faults takes away, one after the other, what picosnitch rests on, starts it, and says what a user then sees: it starts
// with what is left and says what is lost, or it ends with one clear message and an exit code of its own. It changes the machine
// (mounts, sysctls, lockdown, which cannot be undone) and so runs in guests only; see test/kernels.
//
//	faults run PICOSNITCH FAULTY GENERATE OUT REGEXP   FAULTY is built with the tag "fault"; the results go to OUT as JSON;
//	                                                   REGEXP chooses conditions by their names
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/suite"
	"golang.org/x/sys/unix"
)

// within bounds a start, in an emulated machine.
const within = 5 * time.Minute

// cheap is how much CPU a start may cost, emulated, that ends because the recorder cannot write: no hook may have been loaded.
const cheap = 3 * time.Second

// Fault is one condition and what came of it.
type Fault struct {
	Name   string        `json:"name"`
	Starts bool          `json:"starts"`
	Code   int           `json:"code"`  // exit code, if it does not start
	Said   string        `json:"said"`  // what the user is told about it
	Equal  string        `json:"equal"` // scenarios that are equal all the same, of those played
	CPU    time.Duration `json:"cpu"`   // of a start that fails
	OK     bool          `json:"ok"`
	Why    string        `json:"why,omitempty"` // it is not
}

// condition is what is done before the start, and what must come of it.
type condition struct {
	name   string
	set    func() error // in this machine, for good
	unset  func() error
	env    []string
	wrap   []string // program and arguments that start picosnitch
	faulty bool     // use the build that can be broken
	starts bool     // what must be
	code   int
	said   string // regular expression: must be in what the user is told
	red    bool   // the scenarios must not be equal
	hooks  string // force this set
	closed bool   // of a start that fails: the folder is in a home that only its owner may enter
}

func main() {
	runtime.LockOSThread()
	if len(os.Args) > 3 && os.Args[1] == "without" {
		fmt.Fprintln(os.Stderr, without(os.Args[2], os.Args[3:]))
		os.Exit(126)
	}
	if len(os.Args) != 7 || os.Args[1] != "run" {
		fmt.Fprintln(os.Stderr, "usage: faults run PICOSNITCH FAULTY GENERATE OUT REGEXP")
		os.Exit(2)
	}
	b := bench{picosnitch: os.Args[2], faulty: os.Args[3], generate: os.Args[4]}
	b.set = hookSet(b.picosnitch)
	wanted, err := regexp.Compile(os.Args[6])
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(2)
	}
	var all []Fault
	bad := 0
	for _, c := range conditions(b.set) {
		if !wanted.MatchString(c.name) {
			continue
		}
		f := b.try(c)
		all = append(all, f)
		fmt.Printf("%-28s starts %-5t code %d equal %s ok %t %s\n    %s\n", f.Name, f.Starts, f.Code, f.Equal, f.OK, f.Why, f.Said)
		if !f.OK {
			bad++
		}
		// After each: a slow machine may not get to the last one.
		text, err := json.Marshal(all)
		if err == nil {
			err = os.WriteFile(os.Args[5], text, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "faults:", err)
			os.Exit(1)
		}
	}
	if bad > 0 {
		os.Exit(1)
	}
}

// hookSet is the set that this kernel gets, "" if none works.
func hookSet(picosnitch string) string {
	out, _ := exec.Command(picosnitch, "doctor", "--json").Output() // ends with 4 where none works
	var r struct {
		HookSet string `json:"hook_set"`
	}
	_ = json.Unmarshal(out, &r)
	return r.HookSet
}

type bench struct{ picosnitch, faulty, generate, set string }

// try sets a condition, starts picosnitch with traffic, and takes the condition away again.
func (b bench) try(c condition) Fault {
	f := Fault{Name: c.name}
	if c.set != nil {
		if err := c.set(); err != nil {
			f.Why = "the condition cannot be made: " + err.Error()
			f.OK = b.set == "" // a kernel that picosnitch does not support says so elsewhere
			return f
		}
	}
	program := b.picosnitch
	if c.faulty {
		program = b.faulty
	}
	b.play(c, program, &f)
	if c.unset != nil {
		if err := c.unset(); err != nil {
			f.OK, f.Why = false, "the condition cannot be undone: "+err.Error()
		}
	}
	return f
}

// play starts picosnitch, moves bytes, and judges.
func (b bench) play(c condition, program string, f *Fault) {
	start, cleanup, err := wrapper(program, c)
	if err != nil {
		f.Why = err.Error()
		return
	}
	defer cleanup()
	folder, err := suite.Folder()
	if err != nil {
		f.Why = err.Error()
		return
	}
	defer os.RemoveAll(folder)
	for _, e := range c.env {
		k, v, _ := strings.Cut(e, "=")
		os.Setenv(k, v)
		defer os.Unsetenv(k)
	}
	if !c.starts {
		b.ends(c, start, folder, f)
		return
	}
	run, err := suite.Play(suite.Options{Picosnitch: start, Generate: b.generate, Folder: folder, Hooks: c.hooks, Within: within, Wanted: func(name string) bool {
		return name == "tcp-duplex" || name == "udp-by-sendto" || name == "udp6-by-sendmsg"
	}})
	if err != nil {
		f.Why, f.Said = "it does not run: "+firstLine(err.Error()), lastWords(err.Error())
		return
	}
	f.Starts = true
	equal := 0
	for _, s := range run.Scenarios {
		if len(s.Differences) == 0 && s.Outcome.Err == nil && s.Outcome.Lack == "" {
			equal++
		}
	}
	f.Equal = fmt.Sprintf("%d of %d", equal, len(run.Scenarios))
	f.Said = relevant(run.Output, c.said)
	switch {
	case !c.red && equal != len(run.Scenarios):
		f.Why = "the records are not equal"
	case c.red && equal == len(run.Scenarios):
		f.Why = "the records are equal although a hook is missing: the suite cannot see it"
	case c.said != "" && f.Said == "":
		f.Why = fmt.Sprintf("it does not say %q: %s", c.said, lastWords(run.Output))
	default:
		f.OK = true
	}
}

// ends runs a start that must fail.
func (b bench) ends(c condition, start, folder string, f *Fault) {
	home := filepath.Join(folder, "home")
	mode := os.FileMode(0o755)
	if c.closed {
		mode = 0o700
	}
	if err := os.Mkdir(home, mode); err != nil {
		f.Why = err.Error()
		return
	}
	cmd := exec.Command(start, "start-no-daemon")
	cmd.Env = append(os.Environ(), "PICOSNITCH_DIR="+filepath.Join(home, "files"), "PICOSNITCH_RUN_DIR="+folder)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		f.Why = err.Error()
		return
	}
	timer := time.AfterFunc(within, func() { cmd.Process.Signal(unix.SIGTERM) })
	_ = cmd.Wait() // the code is what counts
	f.Starts = !timer.Stop()
	f.Code = cmd.ProcessState.ExitCode()
	f.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	f.Said = lastWords(out.String())
	lines := strings.Count(strings.TrimSpace(out.String()), "\n") + 1
	switch {
	case f.Starts:
		f.Why = "it runs"
	case f.Code != c.code:
		f.Why = fmt.Sprintf("exit code %d, not %d", f.Code, c.code)
	case !regexp.MustCompile(c.said).MatchString(f.Said):
		f.Why = fmt.Sprintf("it does not say %q", c.said)
	case f.Code == unrecordable && f.CPU > cheap:
		f.Why = fmt.Sprintf("it cost %v of CPU to find out", f.CPU)
	case lines > 4: // a line for each hook set
		f.Why = fmt.Sprintf("%d lines instead of one message", lines)
	default:
		f.OK = true
	}
}

// wrapper is a program that starts picosnitch as the condition says.
func wrapper(program string, c condition) (string, func(), error) {
	if len(c.wrap) == 0 {
		return program, func() {}, nil
	}
	dir, err := suite.Folder()
	if err != nil {
		return "", nil, err
	}
	path := filepath.Join(dir, "start")
	text := "#!/bin/sh\nexec " + strings.Join(c.wrap, " ") + " " + program + ` "$@"` + "\n"
	return path, func() { os.RemoveAll(dir) }, os.WriteFile(path, []byte(text), 0o755)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// lastWords is the end of what was said, as one line.
func lastWords(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 600 {
		s = "…" + string(r[len(r)-600:])
	}
	return s
}

// relevant is the first line of the output that has the wanted words.
func relevant(output, words string) string {
	if words == "" {
		return ""
	}
	match := regexp.MustCompile(words)
	for line := range strings.Lines(output) {
		if match.MatchString(line) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
