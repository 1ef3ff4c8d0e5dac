package known

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

func TestWrittenSeldom(t *testing.T) {
	b := newBench(t)
	writes, before := 0, ""
	for i := range 300 {
		if i%3 == 0 && i < 200 {
			b.seen(program(fmt.Sprint("/bin/", i), "x", i+1, nil))
		}
		b.at += second
		b.k.Tick(b.at)
		if now := b.read("record.json"); now != before {
			writes, before = writes+1, now
		}
	}
	if writes < 5 || writes > 8 {
		t.Errorf("record.json was written %d times in 300 seconds", writes)
	}
	if entries, err := os.ReadDir(b.dir); err != nil || len(entries) != 3 {
		t.Errorf("files: %v %v", entries, err)
	}
}

// TestKill: a recorder that is killed at any moment repeats no line, forgets none, and gives every notice that was not taken again.
func TestKill(t *testing.T) {
	b := newBench(t)
	want := newBench(t)
	for i := range 100 {
		p := func() *flow.Program {
			return program(fmt.Sprint("/bin/", i/3), "x", 1+i%2, program("/bin/p", "p", 200+i/20, nil))
		}
		b.seen(p())
		b.kill()
		b.seen(p()) // the batch comes again
		b.at += second
		want.seen(p())
		want.at += second
		if i == 50 {
			b.k.Tick(b.at + 100*second)
		}
	}
	if d := cmp.Diff(want.log(), b.log()); d != "" {
		t.Errorf("exe.log (-without +with kills):\n%s", d)
	}
	if d := cmp.Diff(want.kinds(), b.kinds()); d != "" {
		t.Errorf("told (-without +with kills):\n%s", d)
	}
	open := b.k.Restore(&notify.State{})
	if len(open) != len(want.told) {
		t.Errorf("%d notices are open, %d were told", len(open), len(want.told))
	}
	b.k.Took(notify.State{Ignored: 7}, b.seqs)
	b.kill()
	var s notify.State
	if open := b.k.Restore(&s); len(open) != 0 || s.Ignored != 7 {
		t.Errorf("after they were taken: %d open, %+v", len(open), s)
	}
	b.k.Close(b.at)
	want.k.Close(want.at)
	if d := cmp.Diff(want.read("record.json"), b.read("record.json")); d != "" {
		t.Errorf("record.json:\n%s", d)
	}
}

// TestKillBetween: the journal has it, the log does not.
func TestKillBetween(t *testing.T) {
	b := newBench(t)
	b.seen(program("/bin/a", "a", 1, nil))
	b.seen(program("/bin/b", "b", 2, nil))
	whole := b.log()
	last := whole[strings.LastIndexByte(whole[:len(whole)-1], '\n')+1:]
	if err := os.WriteFile(filepath.Join(b.dir, "exe.log"), []byte(strings.TrimSuffix(whole, last)), 0o644); err != nil {
		t.Fatal(err)
	}
	b.kill()
	if b.log() != whole {
		t.Errorf("exe.log:\n%s", b.log())
	}
	// A line of the journal that was cut is one that nothing followed from.
	b.seen(program("/bin/c", "c", 3, nil))
	j := b.read(".record.journal")
	os.WriteFile(filepath.Join(b.dir, ".record.journal"), []byte(j[:len(j)-20]), 0o644)
	b.kill()
	b.seen(program("/bin/d", "d", 4, nil))
	b.kill()
	if p := b.k.Problems(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	// A damaged one is told.
	b.seen(program("/bin/e", "e", 5, nil))
	os.WriteFile(filepath.Join(b.dir, ".record.journal"), []byte("{}\nno line\n{}\n"), 0o644)
	b.kill()
	if p := b.k.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, "journal") {
		t.Errorf("%+v", p)
	}
}

// TestSaySynced: what is said is brought to the disk before Say returns. A pipe cannot be (EINVAL), so that it is told.
func TestSaySynced(t *testing.T) {
	b := newBench(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b.k.journal.close()
	b.k.journal.f = w
	b.k.Say("limit", notify.Notice{Kind: notify.DataLimit, At: b.at})
	line := make([]byte, 4096)
	n, err := r.Read(line)
	if err != nil || !strings.Contains(string(line[:n]), `"path":"limit"`) {
		t.Errorf("the journal got %q, %v", line[:n], err)
	}
	if all := fmt.Sprint(b.k.problems); !strings.Contains(all, "bring the journal of record.json to the disk") {
		t.Errorf("it was not synced: %s", all)
	}
}
