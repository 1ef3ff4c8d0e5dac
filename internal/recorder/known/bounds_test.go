package known

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// TestFull: the disk is full for a while.
func TestFull(t *testing.T) {
	b := newBench(t)
	b.k.Close(b.at)
	if err := os.Symlink("/dev/full", filepath.Join(b.dir, "exe.log")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(b.dir, ".record.journal")); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.seen(program("/bin/a", "a", 1, nil))
	p := b.k.Problems()
	if len(p) != 2 || len(b.told) != 1 {
		t.Fatalf("%+v %s", p, b.kinds())
	}
	os.Remove(filepath.Join(b.dir, "exe.log"))
	os.Remove(filepath.Join(b.dir, ".record.journal"))
	b.at += 31 * second
	b.k.Tick(b.at)
	if n := strings.Count(b.log(), "\n"); n != 2 || !strings.Contains(b.read("record.json"), "/bin/a") {
		t.Errorf("%d lines:\n%s", n, b.log())
	}
}

func TestHostile(t *testing.T) {
	b := newBench(t)
	for i, raw := range []string{"<b>x</b>", "a\x1b[31m\nb", "\xff\xfe", "'; DROP TABLE x; --", strings.Repeat("x", 4000), "\u202eexe", "", " ", "\"", "日本\x00", `\`, `\x41`, "{", "/../../etc/passwd"} {
		text := event.Text([]byte(raw))
		b.seen(program("/tmp/"+text, text, i+1, program(text, text, i+100, nil)))
	}
	told := len(b.told)
	b.k.Close(b.at)
	data := b.read("record.json")
	if !json.Valid([]byte(data)) {
		t.Error("record.json is not JSON")
	}
	for _, s := range []string{data, b.log()} {
		if bytes.ContainsAny([]byte(strings.ReplaceAll(s, "\n", "")), "\x00\x1b\x07") || strings.Contains(s, "\u202e") {
			t.Errorf("control characters: %q", s)
		}
	}
	for _, line := range strings.Split(strings.TrimSuffix(b.log(), "\n"), "\n") {
		if !strings.HasPrefix(line, "2022-03-10 15:18:14 ") || !strings.HasSuffix(line, ")") {
			t.Errorf("line %q", line)
		}
	}
	b.open()
	for i, raw := range []string{"<b>x</b>", "a\x1b[31m\nb", "\xff\xfe", `\`} {
		text := event.Text([]byte(raw))
		b.seen(program("/tmp/"+text, text, []int{1, 2, 3, 11}[i], nil))
	}
	if len(b.told) != told {
		t.Errorf("known after a restart? %s", b.kinds())
	}
}

// TestBounded: a program that makes ever new programs does not fill the memory, and is told about.
func TestBounded(t *testing.T) {
	b := newBench(t)
	for i := range 20_000 {
		b.seen(program(fmt.Sprintf("/tmp/%d/%s", i, strings.Repeat("x", 100)), fmt.Sprint(i), i+1, nil))
		if i%5_000 == 0 {
			b.at += 31 * second
			b.k.Tick(b.at)
			b.k.Took(notify.State{}, b.seqs)
		}
	}
	if got := b.k.r.size(); got > maxBytes || got != b.k.bytes {
		t.Errorf("%d bytes, counted %d", got, b.k.bytes)
	}
	if p := b.k.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, "full") {
		t.Errorf("%+v", p)
	}
	if len(b.told) != 20_000 {
		t.Errorf("%d were told", len(b.told))
	}
	last := program(fmt.Sprintf("/tmp/19999/%s", strings.Repeat("x", 100)), "19999", 20_000, nil)
	if b.seen(last); len(b.told) != 20_000 {
		t.Error("one that the record does not hold is told again")
	}
	// One program that changes all the time, and one with ever new names.
	b = newBench(t)
	for i := range 3000 {
		b.seen(program("/tmp/a.out", fmt.Sprint(i), i+1, nil))
	}
	if n, m := len(b.k.r.SHA256["/tmp/a.out"]), len(b.k.r.Executables["/tmp/a.out"]); n > maxHashes || m > maxNames {
		t.Errorf("%d hashes, %d names", n, m)
	}
	if len(b.told) != 3000 || b.k.r.size() != b.k.bytes {
		t.Errorf("%d told; %d bytes, counted %d", len(b.told), b.k.r.size(), b.k.bytes)
	}
}

// TestTooManyAwaited: a hash that is not awaited, because too many are, is told.
func TestTooManyAwaited(t *testing.T) {
	b := newBench(t)
	for n := range maxWaiting + 3 {
		b.seen(program(fmt.Sprintf("/x/%d", n), "x", 0, nil))
	}
	b.k.Tick(b.at)
	found := 0
	for _, p := range b.k.Problems() {
		if strings.Contains(p.Text, "wait for their hash") && strings.Contains(p.Text, "3 times") {
			found++
		}
	}
	if found != 1 {
		t.Error("not told")
	}
	b.k.Tick(b.at)
	if p := b.k.Problems(); len(p) != 0 {
		t.Errorf("told again: %+v", p)
	}
}
