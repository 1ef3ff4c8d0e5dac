// Command compare runs picosnitch and what Debian packages of other monitors give (nethogs, a bpftrace script of ours, tcplife of the
// BCC tools) through the 24 comparable scenarios, and writes docs/comparison.md: which saw the program, how many bytes, at what CPU and
// memory. Every tool runs alone, in a network namespace where it sees the clients' devices; the peers are in another one. Each
// is judged at the layer that it counts at.
//
//	go run ./test/compare [-docs FOLDER]
//
// It needs root and a kernel on which the hooks work. Exit codes: 0 the page is written, 1 something failed.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/play"
	"golang.org/x/sys/unix"
)

func main() {
	docs := flag.String("docs", "docs", "folder for comparison.md")
	flag.Parse()
	// Namespaces belong to threads, and what is started inherits this one's.
	runtime.LockOSThread()
	if err := run(*docs); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// hold is how long clients and their sockets stay after the traffic, but for the scenario of short lives.
const hold = 1500 * time.Millisecond

// line is what a tool says about one process.
type line struct {
	pid  int    // 0 if the tool does not tell
	name string // of the program, or its path
	claim.Bytes
}

// tool is one monitor.
type tool struct {
	name, counts string   // and at which layer
	packages     []string // of Debian
	version      []string // command that tells it
	start        func(folder string) *exec.Cmd
	warm         time.Duration // until it is surely at work
	after        time.Duration // until it has told what it saw
	read         func(output string) []line
}

// found is what a tool saw of one scenario.
type found struct {
	scenario string
	lack     string
	moved    claim.Bytes // by the client, as it counted itself
	told     claim.Bytes
	programs int // that moved bytes
	seen     int // of them
}

// verdict is one tool.
type verdict struct {
	tool
	told    string // version
	failed  string // why there is nothing
	all     []found
	cost    monitor.Cost
	seconds float64
}

func run(docs string) error {
	if out, err := exec.Command("test/deps.sh", "nethogs", "bpftrace", "libbpf-tools").CombinedOutput(); err != nil {
		return fmt.Errorf("install the tools: %w: %s", err, out)
	}
	folder, err := os.MkdirTemp("", "compare")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if err := os.Chmod(folder, 0o755); err != nil {
		return err
	}
	picosnitch, err := monitor.Build(folder, "./cmd/picosnitch")
	if err != nil {
		return err
	}
	generate, err := monitor.Build(folder, "./test/coverage/generate")
	if err != nil {
		return err
	}
	leave, err := enter(generate)
	if err != nil {
		return err
	}
	defer leave()
	g := play.Generator{Program: generate, Folder: filepath.Join(folder, "copies")}
	list, err := g.List()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(n string) bool { return !isPeer(n) && n != paced })
	verdicts := []verdict{ours(picosnitch, folder, g, list)}
	for i, t := range tools(folder) {
		g.Folder = filepath.Join(folder, fmt.Sprintf("copies-%d", i+1))
		verdicts = append(verdicts, theirs(t, folder, g, list))
	}
	for _, v := range verdicts {
		fmt.Println(v.summary())
	}
	f, err := os.Create(filepath.Join(docs, "comparison.md"))
	if err != nil {
		return err
	}
	write(f, verdicts)
	return f.Close()
}

// paced is a scenario more: a megabyte in five seconds, as tools that look at packets and into /proc need it. It is not in the sums.
const paced = "tcp-paced"

// isPeer reports whether a scenario is one of the 24.
func isPeer(name string) bool {
	return len(name) > 3 && name[0] == 's' && name[1] >= '0' && name[1] <= '2' && name[2] >= '0' && name[2] <= '9' && name[3] == '-'
}

// enter moves this thread into a network namespace of its own, with a pair of devices to another one.
func enter(generate string) (func(), error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	// bpftrace reads the tracepoints' formats there.
	for kind, at := range map[string]string{"tracefs": "/sys/kernel/tracing", "debugfs": "/sys/kernel/debug"} {
		if err := unix.Mount(kind, at, kind, 0, ""); err != nil && err != unix.EBUSY {
			return nil, fmt.Errorf("mount %s: %w", kind, err)
		}
	}
	peer := exec.Command("unshare", "-n", "sleep", "3600")
	if err := peer.Start(); err != nil {
		return nil, err
	}
	leave := func() {
		_ = peer.Process.Kill()
		_ = peer.Wait()
	}
	time.Sleep(500 * time.Millisecond) // until it is in its namespace
	if out, err := exec.Command(generate, "lay", fmt.Sprint(peer.Process.Pid)).CombinedOutput(); err != nil {
		leave()
		return nil, fmt.Errorf("lay the pair of devices: %w: %s", err, out)
	}
	return leave, errors.Join(os.Setenv("GENERATE_PEER", fmt.Sprintf("/proc/%d/ns/net", peer.Process.Pid)), os.Setenv("GENERATE_HOLD", hold.String()))
}

// through plays all scenarios, one after the other.
func through(g play.Generator, list []string) []play.Outcome {
	var all []play.Outcome
	for _, name := range list {
		all = append(all, g.Run(name, nil, nil))
	}
	return all
}

// ours measures picosnitch as the others: by what it tells a user.
func ours(program, folder string, g play.Generator, list []string) verdict {
	v := verdict{tool: tool{name: "picosnitch", counts: "bytes that the program hands to the socket and gets from it (frames for AF_PACKET)"}, told: "this tree"}
	m, err := monitor.Start(program, folder, map[string]any{"DB write limit (seconds)": 1})
	if err != nil {
		v.failed = err.Error()
		return v
	}
	before, _ := m.Costs()
	begin := time.Now()
	outcomes := through(g, list)
	v.seconds = time.Since(begin).Seconds()
	cost, err := m.Costs()
	if e := m.Stop(); err == nil {
		err = e
	}
	rows, e := m.Rows()
	if err = cmp.Or(err, e); err != nil {
		v.failed = err.Error()
		return v
	}
	v.cost = monitor.Cost{PSS: cost.PSS, CPU: cost.CPU - before.CPU}
	var lines []line
	for _, r := range rows {
		lines = append(lines, line{name: r.Exe, Bytes: claim.Bytes{Sent: r.Sent, Received: r.Received}})
	}
	v.judge(list, outcomes, lines)
	return v
}

// theirs measures one of the other tools.
func theirs(t tool, folder string, g play.Generator, list []string) verdict {
	v := verdict{tool: t}
	if out, _ := exec.Command(t.version[0], t.version[1:]...).CombinedOutput(); len(t.version) > 0 {
		v.told = strings.TrimSpace(string(out))
	}
	cmd := t.start(folder)
	path := filepath.Join(folder, t.name+".out")
	out, err := os.Create(path)
	if err != nil {
		v.failed = err.Error()
		return v
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		v.failed = err.Error()
		return v
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	said := func() string {
		b, _ := os.ReadFile(path)
		s := strings.Join(strings.Fields(string(b)), " ")
		return s[:min(len(s), 300)]
	}
	select {
	case err := <-ended:
		v.failed = fmt.Sprintf("it ends at once (%v): %s", err, said())
		return v
	case <-time.After(t.warm):
	}
	before, _ := monitor.ReadCost(cmd.Process.Pid)
	begin := time.Now()
	outcomes := through(g, list)
	v.seconds = time.Since(begin).Seconds()
	time.Sleep(t.after)
	cost, err := monitor.ReadCost(cmd.Process.Pid)
	if err != nil {
		v.failed = fmt.Sprintf("it ended meanwhile: %s", said())
		return v
	}
	v.cost = monitor.Cost{PSS: cost.PSS, CPU: cost.CPU - before.CPU}
	_ = cmd.Process.Signal(unix.SIGINT)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
	}
	b, err := os.ReadFile(path)
	if err != nil {
		v.failed = err.Error()
		return v
	}
	v.judge(list, outcomes, t.read(string(b)))
	return v
}

// judge holds what a tool told against what the clients counted.
func (v *verdict) judge(list []string, outcomes []play.Outcome, lines []line) {
	for i, o := range outcomes {
		f := found{scenario: list[i], lack: o.Lack}
		if o.Err != nil {
			f.lack = "the generator failed: " + strings.Join(strings.Fields(o.Err.Error()), " ")
		}
		clients := map[string]bool{}
		for _, c := range o.Claims {
			if strings.Contains(c.Role, "server") {
				continue
			}
			f.moved.Sent += c.Sent
			f.moved.Received += c.Received
			clients[fmt.Sprintf("%s %d", c.Exe, c.PID)] = false
		}
		pids := map[string]bool{}
		paths := map[string]bool{}
		for _, l := range lines {
			for _, c := range o.Claims {
				if strings.Contains(c.Role, "server") || !l.is(c) {
					continue
				}
				f.told.Sent += l.Sent
				f.told.Received += l.Received
				if l.Sent+l.Received > 0 {
					paths[c.Exe] = true
					if l.pid != 0 {
						pids[fmt.Sprintf("%s %d", c.Exe, c.PID)] = true
					}
				}
				break // one line belongs to one client
			}
		}
		f.programs, f.seen = len(clients), len(pids)
		if len(pids) == 0 && len(paths) > 0 { // told by path: all runs of it
			f.seen = f.programs
		}
		v.all = append(v.all, f)
	}
}

// is reports whether the line is about the process of a claim. A container's process has another number inside.
func (l line) is(c claim.Claim) bool {
	name := filepath.Base(c.Exe)
	if l.pid == 0 || c.PID < 10 {
		return l.name == c.Exe || strings.HasPrefix(name, "contained-") && filepath.Base(l.name) == name[:min(len(name), 15)]
	}
	return l.pid == c.PID
}
