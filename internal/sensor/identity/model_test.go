package identity

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/picosnitch/picosnitch/internal/event"
)

// machine is the truth: processes that fork, exec and exit, as a kernel has them.
type machine struct {
	clock  uint64
	live   []event.ProcessID
	truth  map[event.ProcessID]event.Process // every image that ever was; Parent is the forker
	died   map[event.ProcessID]int64         // images that ended: the first sweep that could see it, -1 before
	events []func(*Table)                    // of the last step
}

func newMachine() *machine {
	m := &machine{truth: map[event.ProcessID]event.Process{}, died: map[event.ProcessID]int64{}}
	first := m.program(event.ProcessID{PID: 1, Start: m.tick(), Exec: 1}, event.ProcessID{})
	m.live = append(m.live, first.ID)
	return m
}

func (m *machine) tick() uint64 { m.clock += 3_000_001; return m.clock } // several within 10 ms

func (m *machine) program(id, parent event.ProcessID) event.Process {
	p := event.Process{
		ID: id, Parent: parent, Path: fmt.Sprintf("/bin/%d", len(m.truth)), Argv: []string{id.String()},
		Source: event.SourceExec, Started: int64(m.clock), File: event.FileID{Inode: uint64(len(m.truth) + 1)},
	}
	m.truth[id] = p
	m.events = append(m.events, func(t *Table) { told := p; told.Parent = event.ProcessID{}; t.Exec(told) })
	return p
}

// step makes something happen.
func (m *machine) step(t *rapid.T) {
	i := rapid.IntRange(0, len(m.live)-1).Draw(t, "process")
	id := m.live[i]
	switch rapid.IntRange(0, 3).Draw(t, "what") {
	case 0, 1:
		// Few pids, so that they are used again.
		pid := uint32(rapid.IntRange(1, 12).Draw(t, "pid"))
		if slices.ContainsFunc(m.live, func(id event.ProcessID) bool { return id.PID == pid }) {
			return
		}
		child := event.ProcessID{PID: pid, Start: m.tick(), Exec: id.Exec}
		p := m.truth[id]
		p.ID, p.Parent, p.Source, p.Started = child, id, event.SourceFork, int64(m.clock)
		m.truth[child] = p
		m.live = append(m.live, child)
		m.events = append(m.events, func(t *Table) { t.Fork(child, id, p.Started) })
	case 2:
		next := id
		next.Exec++
		m.program(next, m.truth[id].Parent)
		m.died[id] = -1
		m.live[i] = next
	case 3:
		if len(m.live) == 1 {
			return
		}
		m.died[id] = -1
		m.live = slices.Delete(m.live, i, i+1)
		m.events = append(m.events, func(t *Table) { t.Exit(id) })
	}
}

// ancestors is the fork chain.
func (m *machine) ancestors(id event.ProcessID) []event.Process {
	var up []event.Process
	for p := m.truth[id]; !p.Parent.IsZero() && len(up) < MaxAncestors; {
		p = m.truth[p.Parent]
		up = append(up, p)
	}
	return up
}

// sweep is which ids must be known after a sweep at now.
func (m *machine) sweep(now, grace int64) map[event.ProcessID]bool {
	keep := map[event.ProcessID]bool{}
	hold := func(id event.ProcessID) {
		keep[id] = true
		for _, p := range m.ancestors(id) {
			keep[p.ID] = true
		}
	}
	for id := range m.truth {
		since, dead := m.died[id]
		if dead && since < 0 {
			since = now
			m.died[id] = now
		}
		if !dead || now-since <= grace {
			hold(id)
		}
	}
	return keep
}

func (m *machine) deliver(t *Table) {
	for _, e := range m.events {
		e(t)
	}
	m.events = nil
}

// TestCompleteReportsGiveTheTruth: with every report, in order, the table is the truth, and forgets exactly what it may.
func TestCompleteReportsGiveTheTruth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		const grace = 10
		m, table := newMachine(), New(Options{Grace: grace})
		m.deliver(table)
		gone := map[event.ProcessID]bool{}
		now := int64(0)
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			m.step(rt)
			m.deliver(table)
			if rapid.IntRange(0, 5).Draw(rt, "sweep") == 0 {
				now += rapid.Int64Range(0, 12).Draw(rt, "pass")
				keep := m.sweep(now, grace)
				var want []event.ProcessID
				for id := range m.truth {
					if !gone[id] && !keep[id] {
						want = append(want, id)
					}
				}
				got := table.Sweep(now)
				order := func(a, b event.ProcessID) int {
					return slices.Compare([]uint64{uint64(a.PID), a.Start, uint64(a.Exec)}, []uint64{uint64(b.PID), b.Start, uint64(b.Exec)})
				}
				slices.SortFunc(want, order)
				slices.SortFunc(got, order)
				if !slices.Equal(want, got) {
					rt.Fatalf("forgot %v, want %v", got, want)
				}
				for _, id := range got {
					gone[id] = true
				}
			}
			check(rt, table)
		}
		for id, want := range m.truth {
			got, ok := table.Resolve(id)
			if ok == gone[id] {
				rt.Fatalf("%v: known %v, forgotten %v", id, ok, gone[id])
			}
			if !ok {
				continue
			}
			if gone[want.Parent] {
				want.Parent = event.ProcessID{}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				rt.Fatalf("%v (-want +got):\n%s", id, diff)
			}
		}
		for _, id := range m.live {
			if diff := cmp.Diff(m.ancestors(id), table.Ancestors(id, nil), cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Parent" }, cmp.Ignore())); diff != "" {
				rt.Fatalf("ancestors of %v (-want +got):\n%s", id, diff)
			}
		}
	})
}

// TestIncompleteReportsGiveNoLie: reports are lost, doubled and swapped, and the table is too small. It may not know; what it
// knows is true.
func TestIncompleteReportsGiveNoLie(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		m := newMachine()
		table := New(Options{Grace: 3, Limit: rapid.SampledFrom([]int{16, 20, 1000}).Draw(rt, "limit")})
		for i := range int64(rapid.IntRange(1, 150).Draw(rt, "steps")) {
			m.step(rt)
			switch rapid.IntRange(0, 9).Draw(rt, "fate") {
			case 0: // lost
				m.events = nil
			case 1: // doubled
				m.events = append(m.events, m.events...)
			case 2: // late: behind the next
				continue
			case 3: // swapped
				slices.Reverse(m.events)
			case 4: // the iterator meets it
				id := rapid.SampledFrom(m.live).Draw(rt, "found")
				p := m.truth[id]
				if p.Source == event.SourceExec {
					p.Source = event.SourceIterator
				}
				table.Found(p)
			}
			m.deliver(table)
			if i%7 == 0 {
				table.Sweep(i)
			}
			check(rt, table)
			for id, truth := range m.truth {
				got, ok := table.Resolve(id)
				if ok && (got.Path != truth.Path || got.ID != id || !cmp.Equal(got.Argv, truth.Argv)) {
					rt.Fatalf("%v is %+v, told %+v", id, truth, got)
				}
				if !got.Parent.IsZero() && got.Parent != truth.Parent {
					rt.Fatalf("%v has parent %v, told %v", id, truth.Parent, got.Parent)
				}
			}
		}
	})
}

// check looks at the table's own bookkeeping.
func check(t *rapid.T, table *Table) {
	if table.Len() > table.limit {
		t.Fatalf("%d images, at most %d", table.Len(), table.limit)
	}
	n := 0
	for _, pr := range table.procs {
		for ; pr != nil; pr = pr.next {
			if len(pr.images) == 0 {
				t.Fatalf("process %v without image", pr.key)
			}
			n += len(pr.images)
			for i, im := range pr.images {
				newest := i == len(pr.images)-1
				if im.gone || im.proc != pr || im.ended != (pr.dead || !newest) || i > 0 && pr.images[i-1].exec > im.exec {
					t.Fatalf("image %+v of %+v", im, pr)
				}
			}
		}
	}
	if n != table.Len() {
		t.Fatalf("%d images in processes, %d in lists", n, table.Len())
	}
	for ended, l := range map[bool]*list{false: &table.live, true: &table.dead} {
		n := 0
		for im := l.front; im != nil; im = im.next {
			if im.ended != ended {
				t.Fatalf("image %+v in the wrong list", im)
			}
			n++
		}
		if n != l.n {
			t.Fatalf("list counts %d, has %d", l.n, n)
		}
	}
}
