// Package monitor runs the real picosnitch for the end-to-end tests and the benchmarks, and reads what it left on
// disk. It uses only what a user has: the binary, its configuration, its exit codes and its files. It deliberately
// imports nothing of picosnitch, so that an error in its packages cannot hide itself here.
package monitor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Build compiles a package of this module into folder, static, and returns the path of the program.
func Build(folder, pkg string) (string, error) {
	root, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	out := filepath.Join(folder, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(root)))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	// A program that ran within the tick in which it was written may not be hashed after its end.
	time.Sleep(50 * time.Millisecond)
	return out, nil
}

// Monitor is one running picosnitch.
type Monitor struct {
	Program string // path of the binary
	Dir     string // of its files
	RunDir  string
	Ready   time.Duration // from start to the first status that it answered

	hooks  string
	within time.Duration
	cmd    *exec.Cmd
	output lockedBuffer
	ended  chan struct{}
	err    error // of the process; valid after ended
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// readyWithin bounds the start and the end, if nothing else is said.
const readyWithin = 20 * time.Second

// Options of StartWith.
type Options struct {
	Program string         // path of picosnitch
	Parent  string         // folder for its files, which everybody must reach
	Config  map[string]any // keys of config.json
	Hooks   string         // hook set; "" is the best that works
	Within  time.Duration  // bound of the start and of the end; 0 is 20 s. Emulated machines need more.
}

// Start runs `picosnitch start-no-daemon` with its files in new folders below parent, which everybody must reach, and the given keys in its
// configuration, and returns when `picosnitch status` says that it runs.
func Start(program, parent string, config map[string]any) (*Monitor, error) {
	return StartWith(Options{Program: program, Parent: parent, Config: config})
}

// StartWith is Start with more to choose.
func StartWith(o Options) (*Monitor, error) {
	folder, err := os.MkdirTemp(o.Parent, "monitor")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		return nil, err
	}
	// As on a real system: everybody reaches /run, only its owner reaches the home folder.
	home := filepath.Join(folder, "home")
	m := &Monitor{Program: o.Program, hooks: o.Hooks, within: cmp.Or(o.Within, readyWithin), Dir: filepath.Join(home, "files"), RunDir: filepath.Join(folder, "run")}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{home, 0o700}, {m.Dir, 0o755}, {m.RunDir, 0o755}} {
		if err := os.Mkdir(d.path, d.mode); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(o.Config)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "config.json"), b, 0o600); err != nil {
		return nil, err
	}
	return m, m.Restart()
}

// Restart runs picosnitch again on the same files, after Stop or Kill.
func (m *Monitor) Restart() error {
	start := time.Now()
	args := []string{"start-no-daemon"}
	if m.hooks != "" {
		args = append(args, "--hooks", m.hooks)
	}
	m.cmd = m.command(args...)
	m.cmd.Stdout, m.cmd.Stderr = &m.output, &m.output
	// The recorder holds the same descriptors; after a kill of the sensor it must not keep Wait waiting.
	m.cmd.WaitDelay = time.Second
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	ended := make(chan struct{})
	m.ended = ended
	go func() {
		m.err = m.cmd.Wait()
		close(ended)
	}()
	for {
		if err := m.command("status").Run(); err == nil {
			m.Ready = time.Since(start)
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("monitor ended at its start: %w\n%s", m.err, m.Output())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(start) > m.within {
			return errors.Join(fmt.Errorf("monitor is not ready after %v\n%s", m.within, m.Output()), m.Kill())
		}
	}
}

func (m *Monitor) command(args ...string) *exec.Cmd {
	cmd := exec.Command(m.Program, args...)
	cmd.Env = append(os.Environ(), "PICOSNITCH_DIR="+m.Dir, "PICOSNITCH_RUN_DIR="+m.RunDir)
	return cmd
}

// PID is the sensor's.
func (m *Monitor) PID() int { return m.cmd.Process.Pid }

// Output is what the monitor printed, and its error.log.
func (m *Monitor) Output() string {
	b, err := os.ReadFile(filepath.Join(m.Dir, "error.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b = []byte(err.Error())
	}
	return "output:\n" + m.output.String() + "error.log:\n" + string(b)
}

// Running reports whether the sensor has not ended yet.
func (m *Monitor) Running() bool {
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// Stop ends the monitor by SIGTERM and waits until it has written everything.
func (m *Monitor) Stop() error {
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop monitor: %w\n%s", err, m.Output())
	}
	select {
	case <-m.ended:
	case <-time.After(m.within):
		return errors.Join(fmt.Errorf("monitor did not end within %v of SIGTERM\n%s", m.within, m.Output()), m.Kill())
	}
	if m.err != nil {
		return fmt.Errorf("monitor ended with %w\n%s", m.err, m.Output())
	}
	return nil
}

// Kill ends the sensor and the recorder by SIGKILL.
func (m *Monitor) Kill() error {
	s, statusErr := m.Status()
	err := m.cmd.Process.Kill()
	if statusErr == nil && s.RecorderPID > 0 {
		if e := syscall.Kill(s.RecorderPID, syscall.SIGKILL); e != nil && e != syscall.ESRCH {
			err = errors.Join(err, e)
		}
	}
	<-m.ended
	return err
}

// Status is the part of `picosnitch status --json` that the tests need.
type Status struct {
	PID          int               `json:"pid"`
	RecorderPID  int               `json:"recorder_pid"`
	HookSet      string            `json:"hook_set"`
	SelfTest     string            `json:"self_test"`
	Batch        uint64            `json:"batch"`
	Durable      uint64            `json:"durable"`
	Events       uint64            `json:"events"`
	Seen         Bytes             `json:"seen"`
	Attributed   Bytes             `json:"attributed"`
	Unattributed Bytes             `json:"unattributed"`
	Lost         map[string]uint64 `json:"lost"`
	UnknownFlows uint64            `json:"unknown_flows"`
	BadLines     uint64            `json:"bad_lines"`
}

// Bytes is a pair of totals.
type Bytes struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// Status asks the running monitor.
func (m *Monitor) Status() (Status, error) {
	var s Status
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.Program, "status", "--json")
	cmd.Env = m.command().Env
	b, err := cmd.Output()
	if err != nil {
		return s, fmt.Errorf("status: %w: %s", err, b)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("status: %w: %s", err, b)
	}
	return s, nil
}

// Cost is what a process takes.
type Cost struct {
	PSS int64         // proportional set size, bytes
	CPU time.Duration // user and system, since its start
}

// ReadCost reads it from /proc.
func ReadCost(pid int) (Cost, error) {
	var c Cost
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return c, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return c, fmt.Errorf("read memory: %w", err)
			}
			c.PSS = kib << 10
		}
	}
	b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return c, fmt.Errorf("read times: %w", err)
	}
	// The name may hold anything, so the fields are counted from its end: utime and stime are 14 and 15 of proc(5).
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return c, fmt.Errorf("read times: %q", b)
	}
	for _, s := range f[11:13] {
		ticks, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return c, fmt.Errorf("read times: %w", err)
		}
		c.CPU += time.Duration(ticks) * time.Second / 100 // USER_HZ
	}
	return c, nil
}

// Costs is the sum over sensor and recorder.
func (m *Monitor) Costs() (Cost, error) {
	s, err := m.Status()
	if err != nil {
		return Cost{}, err
	}
	a, err := ReadCost(m.PID())
	if err != nil {
		return Cost{}, err
	}
	b, err := ReadCost(s.RecorderPID)
	return Cost{PSS: a.PSS + b.PSS, CPU: a.CPU + b.CPU}, err
}
