package kernel

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/picosnitch/picosnitch/internal/event"
)

func TestMain(m *testing.M) {
	if os.Getenv("KERNEL_TEST_EXIT") != "" {
		return // the program that TestExecIdentity watches
	}
	os.Exit(m.Run())
}

// ends is the environment in which the test's own program ends at once, also with the race detector in it, which else waits a second.
func ends() []string { return []string{"KERNEL_TEST_EXIT=1", "GORACE=atexit_sleep_ms=0"} }

// eachSet runs a test with every hook set that works on this kernel. KERNEL_TEST_SETS names sets that must.
func eachSet(t *testing.T, test func(t *testing.T, set string)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	must := strings.Fields(os.Getenv("KERNEL_TEST_SETS"))
	works := 0
	for _, set := range Sets() {
		if !slices.Contains(must, set) {
			if len(must) > 0 {
				continue
			}
			if err := tryOut(set); err != nil {
				t.Logf("this kernel has no set %s: %v", set, err)
				continue
			}
		}
		works++
		t.Run(set, func(t *testing.T) { test(t, set) })
	}
	if works == 0 {
		t.Error("no hook set works")
	}
}

// tried keeps what came of trying a set out: a kernel that refuses one does so every time, after seconds.
var tried sync.Map

// tryOut reports why a set does not work on this kernel.
func tryOut(set string) error {
	result, _ := tried.LoadOrStore(set, sync.OnceValue(func() error {
		h, err := Load(Options{HookSet: set, Bandwidth: true})
		if err != nil {
			return err
		}
		return errors.Join(h.Attach(), h.Close())
	}))
	return result.(func() error)()
}

// load loads and attaches the hooks. Root can do that everywhere this test runs, so a failure is a failure.
func load(t *testing.T, o Options) *Hooks {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	h, err := Load(o)
	if err != nil {
		var v *ebpf.VerifierError
		if errors.As(err, &v) {
			t.Fatalf("%+v", v)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := h.Attach(); err != nil {
		t.Fatal(err)
	}
	return h
}

// collector keeps what the kernel tells of processes.
type collector struct {
	execs  []event.Process
	parent map[event.ProcessID]event.ProcessID
	exits  map[event.ProcessID]bool
	wanted bool
}

func newCollector() *collector {
	return &collector{parent: map[event.ProcessID]event.ProcessID{}, exits: map[event.ProcessID]bool{}}
}

func (c *collector) Exec(p event.Process)                        { c.execs = append(c.execs, p) }
func (c *collector) Fork(child, parent event.ProcessID, _ int64) { c.parent[child] = parent }
func (c *collector) Exit(id event.ProcessID)                     { c.exits[id] = true }
func (c *collector) WantPacket()                                 { c.wanted = true }

// totals sums the flows of this process.
type totals struct {
	bytes event.Bytes
	conns uint32
	flows int
	bare  int // without a remote address
}

func (s *totals) add(f *event.Flow) {
	if int(f.Process.PID) != os.Getpid() {
		return
	}
	s.bytes.Sent += f.Sent
	s.bytes.Received += f.Received
	s.conns += f.Conns
	s.flows++
	if !f.Remote.IsValid() {
		s.bare++
	}
}
