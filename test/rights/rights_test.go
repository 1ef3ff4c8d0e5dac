// Package rights starts picosnitch with a right of root's less, for each capability that its service has: it starts and says what is
// lost, or it ends with one message and an exit code of its own before it has cost anything. Starts are native and load hooks; what
// else can be missing test/kernels takes away in guests.
package rights

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Exit codes, as README.md lists them.
const (
	unsupported  = 4
	unrecordable = 6
)

// start is how long an unhindered start, and what must end, may take on a busy machine.
const start = 60 * time.Second

// cheap is how much CPU a start may cost that ends because the recorder cannot work: it must be found before hooks are loaded.
const cheap = 2 * time.Second

// program builds picosnitch where everybody may execute it.
func program(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: `make test` runs it with sudo")
	}
	dir, err := os.MkdirTemp("", "picosnitch-rights-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "picosnitch")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "../../cmd/picosnitch")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// outcome is what became of a start.
type outcome struct {
	ready  bool // it said that hooks are on
	code   int  // its exit code, if it was not ready
	cpu    time.Duration
	errors string // standard error
	status string // what `picosnitch status` then showed
}

// try is run without capabilities.
func try(t *testing.T, picosnitch string, without ...string) outcome {
	t.Helper()
	list := "+chown" // changes nothing
	if len(without) > 0 {
		list = "-" + strings.Join(without, ",-")
	}
	return run(t, picosnitch, list, nil)
}

// run starts picosnitch with the capabilities of a list for setpriv(1), in a home that only its owner may enter as most are, and stops it once it
// is ready, its status can be had, and meanwhile returned.
func run(t *testing.T, picosnitch, list string, meanwhile func(env []string)) outcome {
	t.Helper()
	dir, err := os.MkdirTemp("", "picosnitch-rights-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	home, runDir := filepath.Join(dir, "home"), filepath.Join(dir, "run")
	// The home is not root's: its rights, and not its number, must let it in.
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(home, 0o700), os.Chown(home, 61000, 61000), os.Mkdir(runDir, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("setpriv", "--bounding-set", list, "--inh-caps", list, picosnitch, "start-no-daemon")
	env := append(os.Environ(), "PICOSNITCH_DIR="+filepath.Join(home, "files"), "PICOSNITCH_RUN_DIR="+runDir)
	cmd.Env = env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in its state
	}()
	o := outcome{}
	limit := time.After(start)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
wait:
	for {
		select {
		case <-ended:
			break wait
		case <-limit:
			t.Errorf("with %s: neither ready nor ended after %v", list, start)
			break wait
		case <-tick.C:
		}
		status := exec.Command(picosnitch, "status")
		status.Env = env
		if text, err := status.Output(); err == nil {
			o.ready, o.status = true, string(text)
			break
		}
	}
	if o.ready && meanwhile != nil {
		meanwhile(env)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(start):
		cmd.Process.Kill()
		<-ended
		t.Errorf("with %s: it does not stop", list)
	}
	o.code, o.errors = cmd.ProcessState.ExitCode(), errs.String()
	o.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return o
}

// granted are the capabilities that the service has, as setpriv(1) writes them.
func granted(t *testing.T, picosnitch string) []string {
	t.Helper()
	cmd := exec.Command(picosnitch, "systemd", "--print")
	cmd.Env = append(os.Environ(), "PICOSNITCH_DIR=/nowhere")
	unit, err := cmd.Output()
	if err != nil {
		t.Fatalf("systemd --print: %v", err)
	}
	line := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if line == nil {
		t.Fatal("the unit has no CapabilityBoundingSet")
	}
	var caps []string
	for c := range strings.FieldsSeq(string(line[1])) {
		caps = append(caps, strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	return caps
}

// TestLess: see the package.
func TestLess(t *testing.T) {
	picosnitch := program(t)
	caps := granted(t, picosnitch)
	if len(caps) < 10 {
		t.Fatalf("the service has only %v", caps)
	}
	// Without these it must end: nobody without rights could be made of root, or the folder would not be the recorder's.
	must := strings.Fields("chown fowner setuid setgid setpcap dac_override sys_admin")
	sets := [][]string{{}, {"bpf", "perfmon", "sys_admin"}, {"net_admin", "sys_admin"}}
	for _, c := range caps {
		sets = append(sets, []string{c})
	}
	for _, without := range sets {
		t.Run(fmt.Sprint("without ", without), func(t *testing.T) {
			o := try(t, picosnitch, without...)
			ends := slices.ContainsFunc(without, func(c string) bool { return slices.Contains(must, c) })
			lines := strings.Split(strings.TrimSpace(o.errors), "\n")
			switch {
			case o.ready && ends:
				t.Errorf("it starts: %s", o.errors)
			case !o.ready && !ends:
				t.Errorf("it ends with code %d: %s", o.code, o.errors)
			case o.ready:
				// What is lost is told; that hooks and fanotify tell it others test.
				for _, c := range without {
					if slices.Contains([]string{"sys_ptrace", "dac_read_search", "fsetid", "kill"}, c) && !strings.Contains(o.errors, "runs without CAP_"+strings.ToUpper(c)) {
						t.Errorf("it does not say what is lost: %s", o.errors)
					}
				}
				if len(without) == 0 && strings.Contains(o.errors, "runs without") {
					t.Errorf("it misses what it has: %s", o.errors)
				}
				if o.code != 0 {
					t.Errorf("stopped, it ends with code %d: %s", o.code, o.errors)
				}
			case o.code != unrecordable && o.code != unsupported:
				t.Errorf("exit code %d: %s", o.code, o.errors)
			case len(lines) > 1 && o.code == unrecordable || !strings.HasPrefix(lines[0], "picosnitch: "):
				t.Errorf("not one message: %s", o.errors)
			case o.cpu > cheap && o.code == unrecordable:
				t.Errorf("it cost %v of CPU", o.cpu)
			}
			t.Logf("ready %t, code %d, CPU %v: %s", o.ready, o.code, o.cpu, lines[len(lines)-1])
		})
	}
}

// TestRunDirectory: a run directory that others may not enter is found at once, too.
func TestRunDirectory(t *testing.T) {
	picosnitch := program(t)
	dir, err := os.MkdirTemp("", "picosnitch-rights-") // of mode 0700
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command(picosnitch, "start-no-daemon")
	cmd.Env = append(os.Environ(), "PICOSNITCH_DIR="+filepath.Join(dir, "files"), "PICOSNITCH_RUN_DIR="+dir)
	time.AfterFunc(start, func() { cmd.Process.Kill() })
	out, _ := cmd.CombinedOutput() // the code is what counts
	if code := cmd.ProcessState.ExitCode(); code != unrecordable || !strings.Contains(string(out), "PICOSNITCH_RUN_DIR") {
		t.Errorf("code %d: %s", code, out)
	}
}
