package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
)

// stage is one run of one scenario: its folder, its copies of this program and its actors.
type stage struct {
	name   string
	dir    string
	self   string
	claims []claim.Claim
}

func newStage(name, dir string) *stage {
	self, err := os.Executable()
	check("find own file", err)
	dir, err = filepath.Abs(filepath.Join(dir, name))
	check("make folder absolute", err)
	check("make folder", os.MkdirAll(dir, 0o755))
	s := &stage{name: name, dir: dir, self: self}
	s.copyTo(filepath.Join(dir, "gen-client"))
	s.copyTo(filepath.Join(dir, "gen-server"))
	age()
	return s
}

// age lets files get older than a tick of the kernel's coarse clock. A program that is written and run within one tick
// cannot be told from one that replaced it later in that tick, so a monitor may not hash it after its end.
func age() { time.Sleep(40 * time.Millisecond) }

// copy makes a copy of this program that differs in name and content (a trailer, which the loader of ELF files
// does not read) from every other one, and returns its path.
func (s *stage) copy(name string) string {
	path := filepath.Join(s.dir, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	s.copyTo(path)
	age()
	return path
}

func (s *stage) copyTo(path string) {
	from, err := os.Open(s.self)
	check("open own file", err)
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	check("make copy", err)
	_, err = io.Copy(to, from)
	check("copy", err)
	_, err = fmt.Fprintf(to, "\n%s %s %d\n", s.name, path, os.Getpid())
	check("write trailer", err)
	check("close copy", to.Close())
}

// actor is a process on the stage.
type actor struct {
	cmd   *exec.Cmd
	role  string
	in    io.WriteCloser
	lines *bufio.Reader
}

// option changes how an actor is started.
type option func(*exec.Cmd)

// withFlags starts the actor with clone(2) flags.
func withFlags(flags uintptr) option {
	return func(c *exec.Cmd) { c.SysProcAttr.Cloneflags = flags }
}

// withUser starts the actor as another user.
func withUser(uid uint32) option {
	return func(c *exec.Cmd) { c.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid} }
}

// withFiles passes descriptors on, as 3, 4, ….
func withFiles(f ...*os.File) option {
	return func(c *exec.Cmd) { c.ExtraFiles = f }
}

// start runs a role in the copy called file.
func (s *stage) start(file, role string, p param, opts ...option) *actor {
	return s.startAt(s.copy(file), role, p, opts...)
}

func (s *stage) startAt(path, role string, p param, opts ...option) *actor {
	p.Dir, p.Parent = s.dir, s.self
	if p.File == "" {
		p.File = path
	}
	cmd := exec.Command(path, "role", role, p.encode())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	// The runtime's own signals would interrupt the system calls that are counted.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	for _, o := range opts {
		o(cmd)
	}
	in, err := cmd.StdinPipe()
	check("make pipe", err)
	out, err := cmd.StdoutPipe()
	check("make pipe", err)
	check("start "+role, cmd.Start())
	return &actor{cmd: cmd, role: role, in: in, lines: bufio.NewReader(out)}
}

// ready waits until the actor says that it is ready and returns what it says, usually its address.
func (a *actor) ready() string {
	line, err := a.lines.ReadString('\n')
	if err != nil {
		a.explain("waiting for ready", err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if !ok {
		fail(a.role, fmt.Errorf("says %q instead of ready", line))
	}
	return text
}

// release lets an actor go on that waits in role.await.
func (a *actor) release() {
	_, err := io.WriteString(a.in, "go\n")
	check("release "+a.role, err)
}

// explain ends the program with the actor's own exit code, so that a lack stays a lack.
func (a *actor) explain(what string, err error) {
	if werr := a.cmd.Wait(); werr != nil && a.cmd.ProcessState.ExitCode() == 3 {
		os.Exit(3)
	}
	fail(a.role+": "+what, err)
}

// wait waits for the actor's end and returns its claims.
func (a *actor) wait() []claim.Claim {
	a.in.Close()
	all := readClaims(a.role, a.lines)
	if err := a.cmd.Wait(); err != nil {
		if a.cmd.ProcessState.ExitCode() == 3 {
			os.Exit(3)
		}
		fail(a.role, err)
	}
	return all
}

// readClaims reads all lines of claims up to the end.
func readClaims(role string, lines *bufio.Reader) []claim.Claim {
	var all []claim.Claim
	for {
		line, err := lines.ReadString('\n')
		if text, ok := strings.CutPrefix(line, "claims "); ok {
			c, err := claim.Decode([]byte(text))
			check(role, err)
			all = append(all, c...)
		}
		if err != nil {
			return all
		}
	}
}

// take waits for actors and keeps their claims.
func (s *stage) take(actors ...*actor) {
	for _, a := range actors {
		s.claims = append(s.claims, a.wait()...)
	}
}

// hold tells the test that everything is open, and waits for its line: between the two the monitor is started.
func (s *stage) hold() {
	fmt.Fprintln(os.Stderr, "held")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	check("wait for the test", err)
}

func (s *stage) finish() {
	if len(s.claims) == 0 {
		fail(s.name, fmt.Errorf("no claims"))
	}
	b, err := json.Marshal(s.claims)
	check("encode claims", err)
	fmt.Println(string(b))
}
