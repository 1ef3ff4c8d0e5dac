package flow

import (
	"fmt"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
	"pgregory.net/rapid"
)

func pid(n int) event.ProcessID { return event.ProcessID{PID: uint32(n), Start: 1, Exec: 1} }

// TestMemory: processes that end are forgotten, whatever the order of starts and ends, and what they led to keeps its ancestors.
func TestMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := NewProcesses(true)
		var alive []int
		next := 1
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			if len(alive) == 0 || rapid.Bool().Draw(t, "start") {
				e := event.Process{ID: pid(next), Path: fmt.Sprint("/", next)}
				if len(alive) > 0 {
					e.Parent = pid(rapid.SampledFrom(alive).Draw(t, "parent"))
				}
				p.Start(&e)
				alive = append(alive, next)
				next++
			} else {
				i := rapid.IntRange(0, len(alive)-1).Draw(t, "end")
				p.End(pid(alive[i]))
				alive = append(alive[:i], alive[i+1:]...)
			}
			for _, n := range alive {
				if g, ok := p.Program(pid(n)); !ok || g.Executable.Path != fmt.Sprint("/", n) {
					t.Fatalf("process %d is not known", n)
				}
			}
		}
		for _, n := range alive {
			p.End(pid(n))
		}
		if p.Len() != 0 || len(p.tasks) != 0 {
			t.Fatalf("%d processes are kept", p.Len())
		}
	})
}

// TestLongLineage: parents that end at once, a million generations: the chain that is kept has MaxAncestors links.
func TestLongLineage(t *testing.T) {
	p := NewProcesses(true)
	for n := 1; n <= 1000; n++ {
		p.Start(&event.Process{ID: pid(n), Parent: pid(n - 1), Path: fmt.Sprint("/", n)})
	}
	g, _ := p.Program(pid(1000))
	n := 0
	for g = g.Parent; g != nil; g = g.Parent {
		n++
		if want := fmt.Sprint("/", 1000-n); g.Executable.Path != want {
			t.Errorf("ancestor %d is %s, want %s", n, g.Executable.Path, want)
		}
	}
	if n != MaxAncestors {
		t.Errorf("%d ancestors, want %d", n, MaxAncestors)
	}
}

func TestDigests(t *testing.T) {
	p := NewProcesses(true)
	f := event.FileID{Inode: 1, Ctime: 2}
	p.Start(&event.Process{ID: pid(1), Path: "/a", File: f})
	p.Start(&event.Process{ID: pid(2), Path: "/b", File: f})
	p.Start(&event.Process{ID: pid(3), Path: "/c"})
	sum := func(n int) string { g, _ := p.Program(pid(n)); return g.Executable.Digest.SHA256 }
	for _, c := range []struct {
		name string
		e    event.Executable
		news bool
		want string
	}{
		{"a reason", event.Executable{File: f, Path: "/a", Reason: "later"}, true, "||"},
		{"one file, two paths", event.Executable{File: f, Path: "/a", SHA256: "1"}, true, "1|1|"},
		{"again", event.Executable{File: f, Path: "/b", SHA256: "1"}, false, "1|1|"},
		{"a hash does not become none", event.Executable{File: f, Path: "/b", Reason: "x"}, false, "1|1|"},
		{"by path where there is no identity", event.Executable{Path: "/c", SHA256: "2"}, true, "1|1|2"},
		{"nothing known of the file", event.Executable{SHA256: "3"}, false, "1|1|2"},
		{"other bytes under the same identity", event.Executable{File: f, Path: "/a", SHA256: "4"}, true, "4|4|2"},
	} {
		old, _ := p.Program(pid(1))
		before := old.Executable.Digest.SHA256
		if news := p.Executable(&c.e); news != c.news {
			t.Errorf("%s: news %v", c.name, news)
		}
		if got := sum(1) + "|" + sum(2) + "|" + sum(3); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
		if before != "" && old.Executable.Digest.SHA256 != before {
			t.Errorf("%s: the hash of what was seen before changed", c.name)
		}
	}
}

func TestBounded(t *testing.T) {
	p := NewProcesses(true)
	for n := range 3 * maxDigests {
		e := event.Process{ID: pid(n + 1), Path: fmt.Sprint("/", n)}
		p.Start(&e)
		p.End(e.ID)
	}
	if len(p.digests) > maxDigests {
		t.Errorf("%d digests are kept", len(p.digests))
	}
	for n := range maxProcesses + 10 {
		p.Start(&event.Process{ID: pid(n + 1), Path: "/a"})
	}
	if p.Len() > maxProcesses || p.Forgotten() == 0 {
		t.Errorf("%d processes are kept, %d forgotten", p.Len(), p.Forgotten())
	}
}

// TestExecImages: the images of one process are apart, and all end with it.
func TestExecImages(t *testing.T) {
	p := NewProcesses(true)
	second := event.ProcessID{PID: 1, Start: 1, Exec: 2}
	p.Start(&event.Process{ID: pid(1), Path: "/a"})
	p.Start(&event.Process{ID: second, Path: "/b"})
	a, _ := p.Program(pid(1))
	b, _ := p.Program(second)
	if a.Executable.Path != "/a" || b.Executable.Path != "/b" {
		t.Errorf("%s, %s", a.Executable.Path, b.Executable.Path)
	}
	p.End(second)
	if _, ok := p.Program(pid(1)); ok || p.Len() != 0 {
		t.Error("an image outlived its process")
	}
}
