package flow

import (
	"fmt"
	"strings"
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

// TestExecImages: the images of one process are apart, and the end of one is not the end of another.
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
	p.End(pid(1))
	if _, ok := p.Program(second); !ok || p.Len() != 1 {
		t.Error("the image that runs was forgotten with the one that it replaced")
	}
	p.End(second)
	if _, ok := p.Program(second); ok || p.Len() != 0 || p.bytes != 0 {
		t.Errorf("%d images with %d bytes are kept", p.Len(), p.bytes)
	}
}

// TestToldAgain: what is introduced again after its end lives again, and a better source's parent is taken.
func TestToldAgain(t *testing.T) {
	p := NewProcesses(true)
	p.Start(&event.Process{ID: pid(1), Path: "/parent"})
	p.Start(&event.Process{ID: pid(2), Path: "/a"})
	p.Start(&event.Process{ID: pid(3), Parent: pid(2), Path: "/child"})
	p.End(pid(2)) // kept for its child
	p.Start(&event.Process{ID: pid(2), Parent: pid(1), Path: "/b"})
	p.End(pid(3))
	g, ok := p.Program(pid(2))
	if !ok || g.Executable.Path != "/b" {
		t.Fatal("a process that was introduced again ended with its child")
	}
	if g.Parent == nil || g.Parent.Executable.Path != "/parent" {
		t.Errorf("parent %+v, want /parent", g.Parent)
	}
	// A ring of parents is no way to stay for ever.
	p.Start(&event.Process{ID: pid(1), Parent: pid(2), Path: "/parent"})
	p.End(pid(1))
	p.End(pid(2))
	if p.Len() != 0 || p.bytes != 0 {
		t.Errorf("%d images with %d bytes are kept", p.Len(), p.bytes)
	}
}

// TestLongTexts: command lines are shortened before processes are forgotten, and both are counted.
func TestLongTexts(t *testing.T) {
	p := NewProcesses(true)
	long := []string{strings.Repeat("x", 4096)}
	for n := range 30_000 {
		p.Start(&event.Process{ID: pid(n + 1), Path: "/a", Argv: long})
	}
	if p.Forgotten() != 0 || p.Shortened() < 20_000 || p.Len() != 30_000 {
		t.Errorf("%d forgotten, %d shortened, %d known; want 0, most, all", p.Forgotten(), p.Shortened(), p.Len())
	}
	for n := range 2000 {
		p.Start(&event.Process{ID: pid(n + 100_000), Path: strings.Repeat("p", maxPath)})
	}
	sum := 0
	for _, images := range p.tasks {
		for _, im := range images {
			sum += im.program.size()
		}
	}
	if p.bytes > maxBytes+maxPath+programOverhead || p.bytes != sum || p.Forgotten() == 0 || p.Len()+int(p.Forgotten()) != 32_000 {
		t.Errorf("%d bytes (%d really), %d forgotten, %d known", p.bytes, sum, p.Forgotten(), p.Len())
	}
}
