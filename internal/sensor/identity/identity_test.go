package identity

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/event"
)

const second = int64(time.Second)

// id is an exact id: pid started at a time that is not on a tick.
func id(pid uint32, exec uint32) event.ProcessID {
	return event.ProcessID{PID: pid, Start: uint64(pid)*1e9 + 1234567, Exec: exec}
}

func program(id event.ProcessID, path string) event.Process {
	return event.Process{
		ID: id, Path: path, Name: path, Argv: []string{path}, UID: 1000, Source: event.SourceExec, Started: int64(id.Start),
		File: event.FileID{Device: 1, Inode: uint64(len(path)), Ctime: 5, Size: 9},
	}
}

// known fails the test unless id is known with that path and parent.
func known(t *testing.T, table *Table, id event.ProcessID, path string, parent event.ProcessID) event.Process {
	t.Helper()
	p, ok := table.Resolve(id)
	if !ok || p.Path != path || p.Parent != parent || p.ID != id {
		t.Errorf("Resolve(%v) = %v %q, parent %v, %v; want path %q, parent %v", id, p.ID, p.Path, p.Parent, ok, path, parent)
	}
	return p
}

func unknown(t *testing.T, table *Table, id event.ProcessID) event.Process {
	t.Helper()
	p, ok := table.Resolve(id)
	if ok || p.Path != "" {
		t.Errorf("Resolve(%v) = %+v, want unknown", id, p)
	}
	return p
}

func chain(table *Table, id event.ProcessID) []string {
	var paths []string
	for _, p := range table.Ancestors(id, nil) {
		paths = append(paths, p.Path)
	}
	return paths
}

func ended(t *testing.T, table *Table, now int64, want ...event.ProcessID) {
	t.Helper()
	if diff := cmp.Diff(want, table.Sweep(now)); diff != "" {
		t.Errorf("Sweep(%d s) (-want +got):\n%s", now/second, diff)
	}
}

func TestPIDReuse(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	first, second := id(7, 1), id(7, 1)
	second.Start += 5e6 // within the same tick
	table.Exec(program(first, "/old"))
	table.Exit(first)
	table.Exec(program(second, "/new"))
	known(t, table, first, "/old", event.ProcessID{})
	known(t, table, second, "/new", event.ProcessID{})
}

func TestExecAfterConnect(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	table.Exec(program(id(7, 1), "/before"))
	table.Exec(program(id(7, 2), "/after"))
	known(t, table, id(7, 1), "/before", event.ProcessID{})
	known(t, table, id(7, 2), "/after", event.ProcessID{})
	ended(t, table, 0)
	ended(t, table, 9*second)
	known(t, table, id(7, 1), "/before", event.ProcessID{})
	ended(t, table, 11*second, id(7, 1))
	unknown(t, table, id(7, 1))
	known(t, table, id(7, 2), "/after", event.ProcessID{})
	table.Exit(id(7, 2))
	ended(t, table, 20*second)
	ended(t, table, 31*second, id(7, 2))
	if table.Len() != 0 || len(table.procs) != 0 {
		t.Errorf("%d images and %d processes left", table.Len(), len(table.procs))
	}
}

func TestForkWithoutExec(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	shell := program(id(1, 3), "/bin/sh")
	table.Exec(shell)
	table.Fork(id(2, 3), id(1, 3), 77)
	got := known(t, table, id(2, 3), "/bin/sh", id(1, 3))
	want := shell
	want.ID, want.Parent, want.Source, want.Started = id(2, 3), id(1, 3), event.SourceFork, 77
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("child (-want +got):\n%s", diff)
	}
	// The parent goes on to something else; the child is still the shell.
	table.Exec(program(id(1, 4), "/else"))
	known(t, table, id(2, 3), "/bin/sh", id(1, 3))
	table.Exec(program(id(2, 4), "/bin/curl"))
	known(t, table, id(2, 4), "/bin/curl", id(1, 3))
	known(t, table, id(2, 3), "/bin/sh", id(1, 3))
	known(t, table, id(1, 3), "/bin/sh", event.ProcessID{})
}

func TestDaemonStillNamesItsShell(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	table.Exec(program(id(1, 1), "/sbin/init"))
	table.Fork(id(2, 1), id(1, 1), 0)
	table.Exec(program(id(2, 2), "/bin/sh"))
	table.Fork(id(3, 2), id(2, 2), 0)
	table.Exec(program(id(3, 3), "/bin/daemon"))
	table.Fork(id(4, 3), id(3, 3), 0)
	table.Exit(id(3, 3))
	table.Fork(id(5, 3), id(4, 3), 0)
	table.Exit(id(4, 3))
	adopted := program(id(5, 4), "/bin/worker")
	adopted.Parent = id(1, 1) // what the kernel would call its parent now
	table.Exec(adopted)
	table.Exit(id(2, 2))
	for now := range int64(5) {
		table.Sweep(now * 100 * second)
	}
	known(t, table, id(5, 4), "/bin/worker", id(4, 3))
	want := []string{"/bin/daemon", "/bin/daemon", "/bin/sh", "/sbin/init"}
	if diff := cmp.Diff(want, chain(table, id(5, 4))); diff != "" {
		t.Errorf("ancestors (-want +got):\n%s", diff)
	}
	table.Exit(id(5, 4))
	table.Sweep(1000 * second)
	table.Sweep(2000 * second)
	if table.Len() != 1 {
		t.Errorf("%d images left, want init alone", table.Len())
	}
}

// TestAncestorsOfTheDeadStayForTheGrace: the flow of a short-lived daemon may be told after its death.
func TestAncestorsOfTheDeadStayForTheGrace(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	table.Exec(program(id(1, 1), "/bin/sh"))
	table.Fork(id(2, 1), id(1, 1), 0)
	table.Exit(id(1, 1))
	table.Sweep(0)
	table.Sweep(100 * second)
	table.Exit(id(2, 1))
	ended(t, table, 101*second)
	ended(t, table, 105*second)
	known(t, table, id(2, 1), "/bin/sh", id(1, 1))
	ended(t, table, 112*second, id(1, 1), id(2, 1))
}

// TestForkIsTheTruthAboutParents: neither another fork report nor an adopter changes it, and an exec with the number of
// the fork does not touch the facts of the parent.
func TestForkIsTheTruthAboutParents(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	table.Exec(program(id(1, 1), "/a"))
	table.Exec(program(id(9, 1), "/z"))
	table.Fork(id(2, 1), id(1, 1), 0)
	table.Fork(id(2, 1), id(9, 1), 0)
	known(t, table, id(2, 1), "/a", id(1, 1))
	table.Fork(id(2, 2), id(9, 2), 0)
	unknown(t, table, id(2, 2))
	table.Exec(program(id(2, 1), "/b"))
	known(t, table, id(2, 1), "/b", id(1, 1))
	known(t, table, id(1, 1), "/a", event.ProcessID{})
	table.Fork(id(1, 1), id(1, 0), 0)
	known(t, table, id(1, 1), "/a", event.ProcessID{})
	table.Fork(id(3, 2), id(1, 1), 0) // an exec lies between
	if p := unknown(t, table, id(3, 2)); p.Parent != id(1, 1) {
		t.Errorf("parent %v", p.Parent)
	}
}

func TestManyProcessesInOneTick(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	nth := func(i uint64) event.ProcessID { return event.ProcessID{PID: 7, Start: 100*tick + i, Exec: 1} }
	for i := range uint64(5) {
		table.Exec(program(nth(i), fmt.Sprint(i)))
	}
	table.Exit(nth(2))
	table.Sweep(0)
	ended(t, table, 11*second, nth(2))
	for _, i := range []uint64{0, 1, 3, 4} {
		known(t, table, nth(i), fmt.Sprint(i), event.ProcessID{})
	}
}

func TestEndlessForkingIsCutAtEight(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	table.Exec(program(id(1, 1), "/worm"))
	for i := uint32(1); i < 10000; i++ {
		table.Fork(id(i+1, 1), id(i, 1), 0)
		table.Exit(id(i, 1))
		table.Sweep(int64(i) * 100 * second)
	}
	table.Sweep(1e15)
	table.Sweep(1e15 + 11*second)
	if table.Len() != 1+MaxAncestors {
		t.Errorf("%d images, want %d", table.Len(), 1+MaxAncestors)
	}
	depth := 0
	for up := table.lookup(id(10000, 1)); up != nil; up = up.proc.parent {
		depth++
	}
	if depth > 2+MaxAncestors {
		t.Errorf("a chain of %d images is held in memory", depth)
	}
}

func TestMissingEvents(t *testing.T) {
	t.Parallel()
	t.Run("exec without fork", func(t *testing.T) {
		table := New(Options{})
		p := program(id(2, 1), "/a")
		p.Parent = id(1, 4)
		table.Exec(p)
		known(t, table, id(2, 1), "/a", id(1, 4))
		if up := table.Ancestors(id(2, 1), nil); len(up) != 1 || up[0].Source != event.SourceUnknown || up[0].ID != id(1, 4) {
			t.Errorf("ancestors %+v; want the number of one", up)
		}
		if table.Stats().UnknownParents != 1 {
			t.Error("not counted")
		}
		next := program(id(2, 2), "/b") // keeps the parent of the earlier image
		table.Exec(next)
		known(t, table, id(2, 2), "/b", id(1, 4))
	})
	t.Run("fork of an unknown parent that is found later", func(t *testing.T) {
		table := New(Options{})
		table.Fork(id(2, 1), id(1, 1), 5)
		table.Fork(id(3, 1), id(2, 1), 6)
		if p := unknown(t, table, id(3, 1)); p.Parent != id(2, 1) || p.Source != event.SourceUnknown || p.Started != 6 {
			t.Errorf("got %+v", p)
		}
		found := program(id(1, 1), "/old")
		found.Source = event.SourceIterator
		table.Found(found)
		known(t, table, id(2, 1), "/old", id(1, 1))
		if p := known(t, table, id(3, 1), "/old", id(2, 1)); p.Source != event.SourceFork {
			t.Errorf("source %q", p.Source)
		}
	})
	t.Run("forks out of order", func(t *testing.T) {
		table := New(Options{})
		table.Fork(id(3, 1), id(2, 1), 6)
		table.Fork(id(2, 1), id(1, 1), 5)
		table.Exec(program(id(1, 1), "/old"))
		known(t, table, id(3, 1), "/old", id(2, 1))
		known(t, table, id(2, 1), "/old", id(1, 1))
	})
	t.Run("exec before its fork", func(t *testing.T) {
		table := New(Options{})
		p := program(id(2, 2), "/b")
		p.Parent = id(9, 9)
		table.Exec(p)
		table.Exec(program(id(1, 1), "/a"))
		table.Fork(id(2, 1), id(1, 1), 5)
		known(t, table, id(2, 2), "/b", id(1, 1))
		known(t, table, id(2, 1), "/a", id(1, 1))
		if live := slices.Collect(table.Live()); slices.Contains(live, id(2, 1)) {
			t.Errorf("the older image runs: %v", live)
		}
	})
	t.Run("exit without anything, then the rest", func(t *testing.T) {
		table := New(Options{})
		table.Exit(id(2, 2))
		table.Exec(program(id(2, 2), "/b"))
		known(t, table, id(2, 2), "/b", event.ProcessID{})
		table.Sweep(0)
		ended(t, table, 11*second, id(2, 2))
	})
	t.Run("exec was lost", func(t *testing.T) {
		table := New(Options{})
		table.Exec(program(id(2, 2), "/b"))
		unknown(t, table, id(2, 3))
		table.Exit(id(2, 3))
		table.Sweep(0)
		ended(t, table, 11*second, id(2, 2))
	})
	t.Run("child forked after a lost exec", func(t *testing.T) {
		table := New(Options{})
		table.Exec(program(id(2, 2), "/b"))
		table.Fork(id(3, 3), id(2, 3), 0)
		unknown(t, table, id(3, 3))
		known(t, table, id(2, 2), "/b", event.ProcessID{})
	})
	t.Run("twice", func(t *testing.T) {
		table := New(Options{})
		table.Exec(program(id(1, 1), "/a"))
		for range 2 {
			table.Fork(id(2, 1), id(1, 1), 5)
			table.Exec(program(id(2, 2), "/b"))
			table.Exit(id(2, 2))
		}
		known(t, table, id(2, 2), "/b", id(1, 1))
		if table.Len() != 3 {
			t.Errorf("%d images", table.Len())
		}
	})
	t.Run("nonsense", func(t *testing.T) {
		table := New(Options{})
		zero := event.ProcessID{}
		table.Exec(event.Process{})
		table.Found(event.Process{})
		table.Fork(zero, id(1, 1), 0)
		table.Exit(zero)
		unknown(t, table, zero)
		table.Fork(id(1, 1), id(1, 1), 0)
		table.Fork(id(1, 1), zero, 0)
		table.Fork(id(2, 1), id(3, 1), 0) // a circle
		table.Fork(id(3, 1), id(2, 1), 0)
		if n := len(table.Ancestors(id(2, 1), nil)); n != MaxAncestors {
			t.Errorf("%d ancestors in a circle", n)
		}
		if n := len(slices.Collect(table.All())); n != table.Len() {
			t.Errorf("All gives %d of %d", n, table.Len())
		}
		table.Exit(id(2, 1))
		table.Exit(id(3, 1))
		table.Exit(id(1, 1))
		table.Sweep(0)
		if n := len(table.Sweep(11 * second)); n != 3 || table.Len() != 0 {
			t.Errorf("%d forgotten, %d left", n, table.Len())
		}
	})
}

func TestFoundNeverOverwrites(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	table.Exec(program(id(1, 1), "/true"))
	table.Fork(id(2, 1), id(1, 1), 0)
	for _, pid := range []uint32{1, 2} {
		wrong := program(id(pid, 1), "/wrong")
		wrong.Parent = id(9, 9)
		wrong.Source = event.SourceIterator
		table.Found(wrong)
		wrong.ID.Exec, wrong.ID.Start = 0, wrong.ID.Start/tick*tick
		wrong.Source = event.SourceProcfs
		table.Found(wrong)
	}
	if p := known(t, table, id(1, 1), "/true", id(9, 9)); p.Source != event.SourceExec { // the parent was not known
		t.Errorf("source %q", p.Source)
	}
	known(t, table, id(2, 1), "/true", id(1, 1))
	// Exec does overwrite what was found, for the forks as well.
	table = New(Options{})
	found := program(id(1, 1), "/found")
	found.Source = event.SourceIterator
	table.Found(found)
	table.Fork(id(2, 1), id(1, 1), 0)
	table.Exec(program(id(1, 1), "/told"))
	known(t, table, id(1, 1), "/told", event.ProcessID{})
	known(t, table, id(2, 1), "/told", id(1, 1))
}

// TestCoarse: what comes from /proc has a start time that is cut to 10 ms, and no exec count.
func TestCoarse(t *testing.T) {
	t.Parallel()
	exact := id(7, 5)
	coarse := event.ProcessID{PID: 7, Start: exact.Start / tick * tick}
	fromProc := func() (*Table, event.Process) {
		table := New(Options{})
		p := program(coarse, "/daemon")
		p.Source = event.SourceProcfs
		table.Found(p)
		return table, p
	}
	t.Run("resolve names the id of the lines", func(t *testing.T) {
		table, p := fromProc()
		for range 2 {
			if got, ok := table.Resolve(exact); !ok || got.ID != coarse || got.Path != "/daemon" {
				t.Errorf("got %+v, %v", got, ok)
			}
			known(t, table, coarse, "/daemon", event.ProcessID{})
		}
		table.Found(p) // again
		if table.Len() != 1 {
			t.Errorf("%d images", table.Len())
		}
		next := exact
		next.Exec++
		unknown(t, table, next)
		later := exact
		later.Start += 1e6 // same tick, but the start is known by now
		unknown(t, table, later)
	})
	t.Run("exec of another file", func(t *testing.T) {
		table, _ := fromProc()
		table.Exec(program(exact, "/next/program"))
		known(t, table, exact, "/next/program", event.ProcessID{})
		before := exact
		before.Exec--
		if got, ok := table.Resolve(before); !ok || got.ID != coarse || got.Path != "/daemon" {
			t.Errorf("got %+v, %v", got, ok)
		}
		before.Exec--
		unknown(t, table, before)
	})
	t.Run("proc was read after the exec", func(t *testing.T) {
		table, p := fromProc()
		p.File.Generation, p.File.Device = 4, 99 // which /proc does not tell alike
		p.ID, p.Source, p.Path = exact, event.SourceExec, "/daemon"
		table.Exec(p)
		before := exact
		before.Exec--
		unknown(t, table, before)
		if got, ok := table.Resolve(exact); !ok || got.ID != coarse || got.Source != event.SourceExec {
			t.Errorf("got %+v, %v", got, ok)
		}
	})
	t.Run("fork and exit", func(t *testing.T) {
		table, _ := fromProc()
		table.Fork(id(8, 5), exact, 0)
		known(t, table, id(8, 5), "/daemon", coarse)
		table.Exit(exact)
		if live := slices.Collect(table.Live()); !slices.Equal(live, []event.ProcessID{id(8, 5)}) {
			t.Errorf("live %v", live)
		}
	})
	t.Run("parent from proc of a process that is known exactly", func(t *testing.T) {
		table := New(Options{})
		table.Exec(program(exact, "/daemon"))
		p := program(event.ProcessID{PID: 9, Start: 5 * tick}, "/child")
		p.Source, p.Parent = event.SourceProcfs, coarse
		table.Found(p)
		known(t, table, p.ID, "/child", exact)
	})
}

func TestForkBombIsBounded(t *testing.T) {
	t.Parallel()
	const limit = 640
	table := New(Options{Limit: limit})
	table.Exec(program(id(1, 1), "/sbin/init"))
	table.Fork(id(2, 1), id(1, 1), 0)
	table.Exec(program(id(2, 2), "/bin/sh"))
	table.Fork(id(3, 2), id(2, 2), 0)
	table.Exec(program(id(3, 3), "/bin/daemon"))
	table.Exit(id(2, 2)) // an ancestor that must survive short-lived children
	for i := range uint32(10 * limit) {
		table.Fork(id(100+i, 3), id(3, 3), 0)
		table.Exit(id(100+i, 3))
	}
	if diff := cmp.Diff([]string{"/bin/sh", "/sbin/init"}, chain(table, id(3, 3))); diff != "" {
		t.Errorf("ancestors after a storm of dead children (-want +got):\n%s", diff)
	}
	s := table.Stats()
	if s.Images > limit || s.EvictedDead == 0 || s.EvictedLive != 0 {
		t.Errorf("stats %+v; want at most %d images, only dead ones evicted", s, limit)
	}
	for i := range uint32(10 * limit) {
		table.Fork(id(1e6+i, 3), id(3, 3), 0)
	}
	s = table.Stats()
	if s.Images > limit || s.EvictedLive == 0 {
		t.Errorf("stats %+v; want at most %d images, live ones evicted and counted", s, limit)
	}
	// Programs outlive copies, and what was evicted is reported.
	known(t, table, id(3, 3), "/bin/daemon", table.Ancestors(id(3, 3), nil)[0].ID)
	known(t, table, id(1e6+10*limit-1, 3), "/bin/daemon", id(3, 3))
	if n, want := uint64(len(table.Sweep(0))), s.EvictedDead+s.EvictedLive; n != want {
		t.Errorf("%d reported as forgotten, want %d", n, want)
	}
	if n := len(slices.Collect(table.All())); n != table.Len() {
		t.Errorf("All gives %d of %d", n, table.Len())
	}
}

func TestAllTellsAncestorsFirst(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	for i := uint32(50); i > 1; i-- { // youngest first
		table.Fork(id(i, 1), id(i-1, 1), 0)
	}
	table.Exec(program(id(1, 1), "/a"))
	seen := map[event.ProcessID]bool{{}: true}
	for p := range table.All() {
		if !seen[p.Parent] {
			t.Errorf("%v before its parent %v", p.ID, p.Parent)
		}
		seen[p.ID] = true
	}
	if len(seen) != 51 {
		t.Errorf("%d told, want 50", len(seen)-1)
	}
}

func TestLiveMayExit(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	for i := range uint32(100) {
		table.Exec(program(id(i+1, 1), "/a"))
		table.Exec(program(id(i+1, 2), "/b"))
	}
	n := 0
	for id := range table.Live() {
		if id.Exec != 2 {
			t.Errorf("%v is not the newest image", id)
		}
		table.Exit(id)
		n++
	}
	if s := table.Stats(); n != 100 || s.Live != 0 || s.Images != 200 {
		t.Errorf("%d seen, stats %+v", n, s)
	}
}

func TestResolveAllocatesNothing(t *testing.T) {
	table := New(Options{})
	table.Exec(program(id(1, 1), "/a"))
	table.Fork(id(2, 1), id(1, 1), 0)
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := table.Resolve(id(2, 1)); !ok {
			t.Error("not known")
		}
		table.Resolve(id(3, 1))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestForkChildrenAreSmall: the children of a fork bomb share the facts of their parent.
func TestForkChildrenAreSmall(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	table := New(Options{})
	table.Exec(program(id(1, 1), "/a"))
	before := heap()
	const n = 50000
	for i := range uint32(n) {
		table.Fork(id(2+i, 1), id(1, 1), 0)
	}
	each := (heap() - before) / n
	t.Logf("%d bytes per fork child", each)
	if each > 450 {
		t.Errorf("%d bytes per fork child", each)
	}
	runtime.KeepAlive(table)
}

func BenchmarkResolve(b *testing.B) {
	table := New(Options{})
	for i := range uint32(1000) {
		table.Exec(program(id(i+1, 1), "/a"))
	}
	for i := uint32(0); b.Loop(); i++ {
		table.Resolve(id(i%1000+1, 1))
	}
}

func BenchmarkForkExit(b *testing.B) {
	for _, sweep := range []int{1000, 10000} {
		b.Run(fmt.Sprint("sweep every ", sweep), func(b *testing.B) {
			table := New(Options{})
			table.Exec(program(id(1, 1), "/a"))
			for i := 0; b.Loop(); i++ {
				child := event.ProcessID{PID: uint32(2 + i%30000), Start: uint64(i) * 1000, Exec: 1}
				table.Fork(child, id(1, 1), 0)
				table.Exit(child)
				if i%sweep == 0 {
					table.Sweep(int64(i/sweep) * second)
				}
			}
		})
	}
}
