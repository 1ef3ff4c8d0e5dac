package sensor

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// witnesses makes programs that say themselves which bytes they are (testdata/witness.c), executes them, and collects what they
// said: the truth about each exec, however paths and numbers change under it.
type witnesses struct {
	t        testing.TB
	dir      string // of the race
	race     string
	template []byte
	next     atomic.Uint64 // tokens
	out      *os.File      // what all of them write to
	done     chan struct{}

	mu   sync.Mutex
	sums map[string]string   // digest by identity
	said map[string][]string // identities by token
	path map[string]string   // by token, where it is known
}

const placeholder = "0000000000000000"

func newWitnesses(t testing.TB) *witnesses {
	t.Helper()
	w := &witnesses{
		t: t, dir: t.TempDir(), done: make(chan struct{}),
		sums: map[string]string{}, said: map[string][]string{}, path: map[string]string{},
	}
	program := filepath.Join(w.dir, "witness")
	command(t, "gcc", "-O1", "-static", "-nostdlib", "-fno-stack-protector", "-fno-builtin", "-Wl,--build-id=none", "-o", program, "testdata/witness.c")
	var err error
	if w.template, err = os.ReadFile(program); err != nil {
		t.Fatal(err)
	}
	if bytes.Count(w.template, []byte(placeholder)) != 1 {
		t.Fatal("the witness does not hold one place for its identity")
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = out
	go func() {
		defer close(w.done)
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			token, identity, _ := strings.Cut(lines.Text(), " ")
			w.mu.Lock()
			w.said[token] = append(w.said[token], identity)
			w.mu.Unlock()
		}
		in.Close()
	}()
	return w
}

// bytes is a program with an identity of its own.
func (w *witnesses) bytes() []byte {
	var b [8]byte
	rand.Read(b[:])
	identity := hex.EncodeToString(b[:])
	program := bytes.Replace(w.template, []byte(placeholder), []byte(identity), 1)
	sum := sha256.Sum256(program)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sums[identity] = hex.EncodeToString(sum[:])
	return program
}

func (w *witnesses) file(name string) string {
	w.t.Helper()
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(w.dir, name)
	}
	if err := os.WriteFile(path, w.bytes(), 0o755); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// exec executes path, which may be replaced meanwhile: then it may be missing or busy, and nothing ran. It waits for its end.
func (w *witnesses) exec(path string, attr *syscall.SysProcAttr, args ...string) {
	token := fmt.Sprint(w.race, "-", w.next.Add(1))
	w.mu.Lock()
	w.path[token] = path
	w.mu.Unlock()
	argv := append([]string{path, token}, args...)
	var pid int
	var err error
	for range 50 { // a fork beside this one holds a file that was just written for a moment
		pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Files: []uintptr{0, w.out.Fd(), 2}, Sys: attr})
		if !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	if err != nil {
		if !errors.Is(err, unix.ETXTBSY) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOEXEC) && !errors.Is(err, unix.EACCES) {
			w.t.Errorf("%s: %v", path, err)
		}
		return
	}
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			w.t.Error(err)
			return
		}
		switch {
		case status.Stopped(): // a tracer's child stops at its exec
			if err := unix.PtraceDetach(pid); err != nil {
				w.t.Error(err)
			}
		case status.Exited() || status.Signaled():
			return
		}
	}
}

// check compares what the stream tells with what the programs said.
func (w *witnesses) check(r *running) {
	w.t.Helper()
	w.out.Close()
	<-w.done
	x := r.told()
	byToken := map[string][]event.Process{}
	for _, p := range x.processes {
		if p.Source == event.SourceExec && len(p.Argv) > 1 {
			byToken[p.Argv[1]] = append(byToken[p.Argv[1]], p)
		}
	}
	type count struct {
		execs, right int
		without      map[string]int
	}
	counts := map[string]*count{}
	numbers := map[uint32]map[string]bool{} // programs that one number had, in the race of few numbers
	missing := uint64(0)
	for token, said := range w.said {
		told := byToken[token]
		if len(told) == 0 {
			missing += uint64(len(said))
			continue
		}
		if len(told) != len(said) {
			w.t.Errorf("%s ran %d times and was told %d times", token, len(said), len(told))
			continue
		}
		race, _, _ := strings.Cut(token, "-")
		c := counts[race]
		if c == nil {
			c = &count{without: map[string]int{}}
			counts[race] = c
		}
		c.execs += len(said)
		for _, p := range told {
			if race == "wrap" {
				if numbers[p.ID.PID] == nil {
					numbers[p.ID.PID] = map[string]bool{}
				}
				numbers[p.ID.PID][p.Path] = true
			}
			e := x.digests[p.File]
			switch {
			case e.SHA256 == "":
				c.without[e.Reason]++
			case w.sums[said[0]] != e.SHA256:
				w.t.Errorf("%s (%s): a wrong digest, from %+v", token, p.Path, p.File)
			default:
				c.right++
			}
			if path := w.path[token]; path != "" && p.Path != path {
				w.t.Errorf("%s: path %q, want %q", token, p.Path, path)
			}
		}
	}
	for race, c := range counts {
		w.t.Logf("%s: %d execs, %d with the right digest; without one: %v", race, c.execs, c.right, c.without)
		if c.right < c.execs/4 { // one race after the other leaves a file no time to prove itself
			w.t.Errorf("%s: %d of %d execs have a digest: this proves nothing", race, c.right, c.execs)
		}
	}
	both := 0
	for _, programs := range numbers {
		if len(programs) > 1 {
			both++
		}
	}
	w.t.Logf("wrap: %d of %d process numbers were those of two programs", both, len(numbers))
	if both == 0 {
		w.t.Error("no process number was given again")
	}
	// Under the race detector the sensor is too slow for a fork bomb: what the full ring buffer cost must be told.
	if lost := x.lost[event.LostExec]; missing > lost {
		w.t.Errorf("%d execs were not told, and only %d are counted as lost", missing, lost)
	} else if missing > 0 {
		w.t.Logf("%d execs were not told; %d are counted as lost", missing, lost)
	}
	if len(counts) == 0 {
		w.t.Error("nothing ran")
	}
}

// raceTime is how long all races take together.
func raceTime(t testing.TB) time.Duration {
	if s := os.Getenv("PICOSNITCH_RACE_TIME"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("PICOSNITCH_RACE_TIME: %v", err)
		}
		return d
	}
	return 6 * time.Second
}

// No race makes picosnitch attribute a path or a digest to the wrong program: each program says itself who it is.
func TestRaces(t *testing.T) {
	races := []struct {
		name string
		run  func(t *testing.T, w *witnesses, more func() bool)
	}{
		{"storm", raceStorm},
		{"bomb", raceBomb},
		{"reuse", raceReuse},
		{"wrap", raceWrap},
		{"rename", raceRename},
		{"in place", raceInPlace},
		{"self", raceSelf},
		{"namespace", raceNamespace},
		{"disguise", raceDisguise},
	}
	// The drivers of the races are in this process, too: they must not keep the sensor's threads waiting.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	r := runSensor(t, Options{EveryExe: true, RingPages: 256})
	w := newWitnesses(t)
	each := raceTime(t) / time.Duration(len(races))
	root := w.dir
	for _, race := range races {
		w.race = strings.ReplaceAll(race.name, " ", "")
		w.dir = mkdir(t, root, w.race)
		end := time.Now().Add(each)
		race.run(t, w, func() bool { return time.Now().Before(end) })
	}
	time.Sleep(1200 * time.Millisecond) // the last digests
	r.stop()
	w.check(r)
}

func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// raceStorm executes many programs at once, each of which unlinks itself.
func raceStorm(_ *testing.T, w *witnesses, more func() bool) {
	parallel(4, func(i int) {
		for n := 0; more(); n++ {
			w.exec(w.file(fmt.Sprintf("storm-%d-%d", i, n)), nil, "gone")
		}
	})
}

// raceBomb forks in a tree, bounded; each child executes.
func raceBomb(_ *testing.T, w *witnesses, more func() bool) {
	for n := 0; more(); n++ {
		w.exec(w.file(fmt.Sprint("bomb", n)), nil, "bomb", "64")
	}
}

// raceReuse gives one number to a hundred processes of two programs in turn.
func raceReuse(_ *testing.T, w *witnesses, more func() bool) {
	starter := w.file("starter")
	for n := 0; more(); n++ {
		a, b := w.file(fmt.Sprintf("a%d", n)), w.file(fmt.Sprintf("b%d", n))
		w.exec(starter, nil, "reuse", a, b)
	}
}

// raceWrap executes two programs in turn while the machine has so few numbers for processes that they are given again after a moment. It is
// the machine's own limit, for as long as the race takes: what a pid namespace has (since Linux 6.14) is not what the hooks see.
func raceWrap(t *testing.T, w *witnesses, more func() bool) {
	const file = "/proc/sys/kernel/pid_max"
	before, err := os.ReadFile(file)
	must(t, err)
	load, err := os.ReadFile("/proc/loadavg")
	must(t, err)
	var tasks, most int
	if _, err := fmt.Sscanf(strings.Fields(string(load))[3], "%d/%d", new(int), &tasks); err != nil {
		t.Fatalf("%s: %v", load, err)
	}
	// Numbers below 300 are given once only (RESERVED_PIDS of kernel/pid.c). Nobody else must lack any.
	few := 300 + 2*tasks + 512
	if _, err := fmt.Sscan(string(before), &most); err != nil || few >= most {
		t.Fatalf("%d tasks run: too many for a race with few numbers (%s: %s)", tasks, file, before)
	}
	must(t, os.WriteFile(file, []byte(fmt.Sprint(few)), 0))
	defer func() { must(t, os.WriteFile(file, before, 0)) }()
	a, b := w.file("a"), w.file("b")
	parallel(4, func(int) {
		for more() {
			w.exec(a, nil)
			w.exec(b, nil)
		}
	})
}

// raceRename executes a path that is replaced all the time.
func raceRename(t *testing.T, w *witnesses, more func() bool) {
	path := w.file("prog")
	parallel(3, func(i int) {
		for n := 0; more(); n++ {
			if i > 0 {
				w.exec(path, nil)
				continue
			}
			if err := os.Rename(w.file("new"), path); err != nil {
				t.Error(err)
				return
			}
			if n%4 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
}

// raceInPlace overwrites a file whenever it does not run, with write(2) and through a mapping, which moves no change time on tmpfs.
func raceInPlace(t *testing.T, w *witnesses, more func() bool) {
	memory := filepath.Join(w.dir, "memory")
	mount(t, "tmpfs", memory, "tmpfs", 0, "")
	settle()
	for _, path := range []string{w.file("prog"), w.file(filepath.Join(memory, "prog"))} {
		parallel(3, func(i int) {
			for n := 0; more() && n < 400; n++ {
				if i > 0 {
					w.exec(path, nil)
					continue
				}
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil { // it runs
					continue
				}
				b := w.bytes()
				if n%2 == 0 {
					_, err = f.Write(b)
				} else if m, e := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); e == nil {
					copy(m, b)
					err = unix.Munmap(m)
				}
				if err = errors.Join(err, f.Close()); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(n%5) * time.Millisecond)
			}
		})
	}
}

// raceSelf executes a program that puts another in its place and executes that in the same process.
func raceSelf(_ *testing.T, w *witnesses, more func() bool) {
	parallel(2, func(i int) {
		for n := 0; more(); n++ {
			w.exec(w.file(fmt.Sprintf("self-%d-%d", i, n)), nil, "self", w.file(fmt.Sprintf("next-%d-%d", i, n)))
		}
	})
}

// raceNamespace executes one path in two mount namespaces, where it is two files.
func raceNamespace(t *testing.T, w *witnesses, more func() bool) {
	path := w.file("prog")
	other := w.file("other")
	parallel(2, func(i int) {
		if i == 0 {
			for more() {
				w.exec(path, nil)
			}
			return
		}
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		); err != nil {
			t.Error(err)
			return
		}
		for more() {
			if err := unix.Mount(other, path, "", unix.MS_BIND, ""); err != nil {
				t.Error(err)
				return
			}
			w.exec(path, nil)
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
				return
			}
			w.exec(path, nil)
		}
	})
}

// raceDisguise executes programs that take another's name or arguments, that run as another user by their mode, and that are traced.
func raceDisguise(t *testing.T, w *witnesses, more func() bool) {
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}}
	everybody := t.TempDir()
	open(t, everybody)
	runtime.LockOSThread() // ptrace(2) is the thread's
	defer runtime.UnlockOSThread()
	for n := 0; more(); n++ {
		w.exec(w.file(fmt.Sprint("name", n)), nil, "name")
		w.exec(w.file(fmt.Sprint("argv", n)), nil, "argv")
		w.exec(w.file(fmt.Sprint("traced", n)), &syscall.SysProcAttr{Ptrace: true})
		setuid := w.file(filepath.Join(everybody, fmt.Sprint("setuid", n)))
		if err := os.Chmod(setuid, 0o755|os.ModeSetuid); err != nil {
			t.Error(err)
		}
		w.exec(setuid, nobody)
	}
}
