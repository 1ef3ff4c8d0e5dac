package known

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

const (
	t0     = int64(1646925494_000000000) // 2022-03-10 15:18:14 UTC
	second = int64(time.Second)
)

// bench is a Known in a folder of its own, and what it told.
type bench struct {
	t    *testing.T
	dir  string
	k    *Known
	at   int64
	told []notify.Notice
	seqs []uint64
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir(), at: t0}
	b.open()
	return b
}

func (b *bench) open() {
	b.k = Open(Options{Dir: b.dir, Zone: time.UTC, Tell: func(seq uint64, n notify.Notice) {
		b.told = append(b.told, n)
		b.seqs = append(b.seqs, seq)
	}}, b.at)
}

// kill is what kill -9 leaves: nothing is written any more.
func (b *bench) kill() {
	b.k.journal.close()
	b.k.log.Close()
	b.open()
}

func (b *bench) read(name string) string {
	data, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	return string(data)
}

func (b *bench) log() string { return b.read("exe.log") }

func sum(n int) string {
	return fmt.Sprintf("%02x", n%256) + strings.Repeat("0", 58) + fmt.Sprintf("%04x", n)
}

// program makes a program; hash 0 is one that is not known yet.
func program(path, name string, hash int, parent *flow.Program) *flow.Program {
	d := &flow.Digest{}
	if hash != 0 {
		d.SHA256 = sum(hash)
	}
	return &flow.Program{Executable: &flow.Executable{Path: path, Digest: d}, Name: name, Parent: parent}
}

func (b *bench) seen(p *flow.Program) {
	b.k.Seen(p, b.at, func() string { return "192.0.2.1:443" })
}

func (b *bench) kinds() string {
	var s []string
	for _, n := range b.told {
		s = append(s, string(n.Kind)+" "+n.Path+" "+n.Script)
	}
	return strings.Join(s, "\n")
}

func TestLines(t *testing.T) {
	b := newBench(t)
	bash := program("/usr/bin/bash", "bash", 1, nil)
	b.seen(program("/usr/bin/curl", "curl", 2, bash))
	b.seen(program("/usr/bin/curl", "curl", 2, bash))
	b.seen(program("/usr/bin/curl", "other", 2, bash))
	b.seen(program("/tmp/curl", "curl", 3, bash))
	b.seen(program("/usr/bin/curl", "curl", 4, bash))
	script := program("/usr/bin/python3", "a-name-that-is-much-longer", 5, bash)
	script.Script, script.ScriptKind = &flow.Executable{Path: "/home/u/x.py", Digest: &flow.Digest{SHA256: sum(6)}}, "file"
	b.seen(script)
	again := *script
	again.Script = &flow.Executable{Path: "/home/u/x.py", Digest: &flow.Digest{SHA256: sum(7)}}
	b.seen(&again)
	b.k.Result("/tmp/curl", sum(3), "{'malicious': 3}", Suspicious, b.at)
	b.k.Result("/tmp/curl", sum(3), "{'malicious': 3}", Suspicious, b.at) // once
	b.k.Result("/usr/bin/curl", sum(2), "{'malicious': 0}", Clean, b.at)
	at := "2022-03-10 15:18:14 "
	want := at + "curl             /usr/bin/curl (new name, exe)\n" +
		at + "bash             /usr/bin/bash (new name, exe) (parent)\n" +
		at + sum(2)[:16] + " /usr/bin/curl (new hash)\n" +
		at + sum(1)[:16] + " /usr/bin/bash (new hash)\n" +
		at + "other            /usr/bin/curl (new name)\n" +
		at + "curl             /tmp/curl (new exe)\n" +
		at + sum(3)[:16] + " /tmp/curl (new hash)\n" +
		at + sum(4)[:16] + " /usr/bin/curl (new hash)\n" +
		at + "a-name-that-is-m /usr/bin/python3 (new name, exe)\n" +
		at + "a-name-that-is-m /home/u/x.py (new script)\n" +
		at + sum(5)[:16] + " /usr/bin/python3 (new hash)\n" +
		at + sum(6)[:16] + " /home/u/x.py (new hash)\n" +
		at + sum(7)[:16] + " /home/u/x.py (new hash)\n" +
		at + sum(3)[:16] + " /tmp/curl (suspicious)\n" +
		at + sum(2)[:16] + " /usr/bin/curl (clean)\n"
	if d := cmp.Diff(want, b.log()); d != "" {
		t.Errorf("exe.log (-want +got):\n%s", d)
	}
	wantKinds := "new-program /usr/bin/curl \nnew-program /tmp/curl \nchanged /usr/bin/curl \nnew-script /usr/bin/python3 /home/u/x.py\nchanged-script /usr/bin/python3 /home/u/x.py\nsuspicious /tmp/curl "
	if d := cmp.Diff(wantKinds, b.kinds()); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
	if n := b.told[1]; n.Detail != "so far, curl was /usr/bin/curl" || n.Parent != "/usr/bin/bash" || n.Remote != "192.0.2.1:443" || n.SHA256 != sum(3) {
		t.Errorf("%+v", n)
	}
	if n := b.told[2]; n.Before != sum(2) || n.SHA256 != sum(4) {
		t.Errorf("%+v", n)
	}
}

func TestLateHash(t *testing.T) {
	b := newBench(t)
	bash := program("/usr/bin/bash", "bash", 0, nil)
	curl := program("/usr/bin/curl", "curl", 0, bash)
	b.seen(curl)
	b.seen(curl)
	if len(b.told) != 0 {
		t.Fatalf("told before the hash: %s", b.kinds())
	}
	b.at += second
	curl.Executable.Digest.SHA256 = sum(1)
	b.k.Digested(b.at)
	bash.Executable.Digest.Reason = "it is gone"
	b.k.Digested(b.at)
	b.seen(curl)
	if len(b.told) != 1 || b.told[0].SHA256 != sum(1) || b.told[0].At != t0 {
		t.Errorf("%+v", b.told)
	}
	// One that cannot be hashed, one whose hash does not come, and then one that comes late after all.
	gone := program("/tmp/gone", "gone", 0, nil)
	slow := program("/tmp/slow", "slow", 0, nil)
	b.seen(gone)
	b.seen(slow)
	gone.Executable.Digest.Reason = "no such file"
	b.k.Digested(b.at)
	for range 31 {
		b.at += second
		b.k.Tick(b.at)
	}
	if len(b.told) != 3 || !strings.Contains(b.told[1].Detail, "no such file") || !strings.Contains(b.told[2].Detail, "not known yet") {
		t.Errorf("%+v", b.told)
	}
	slow.Executable.Digest.SHA256 = sum(2)
	b.k.Digested(b.at)
	if len(b.told) != 3 || !strings.Contains(b.log(), sum(2)[:16]+" /tmp/slow (new hash)") {
		t.Errorf("the late hash: %s\n%s", b.kinds(), b.log())
	}
}

// TestParent: what is new behind a known program is told, unless it is known to use the network itself.
func TestParent(t *testing.T) {
	b := newBench(t)
	b.seen(program("/usr/bin/curl", "curl", 1, program("/usr/bin/bash", "bash", 2, nil)))
	b.seen(program("/usr/bin/wget", "wget", 3, nil))
	b.seen(program("/usr/bin/curl", "curl", 1, program("/usr/bin/wget", "wget", 3, nil)))
	b.seen(program("/usr/bin/curl", "curl", 1, program("/tmp/evil", "evil", 4, nil)))
	b.seen(program("/usr/bin/curl", "curl", 1, program("/usr/bin/bash", "bash", 5, nil)))
	want := "new-program /usr/bin/curl \nnew-program /usr/bin/wget \nnew-parent /tmp/evil \nchanged /usr/bin/bash "
	if d := cmp.Diff(want, b.kinds()); d != "" {
		t.Error(d)
	}
}

// TestExecuted: with every program recorded, one that only ran is new once, and not again when it uses the network.
func TestExecuted(t *testing.T) {
	b := newBench(t)
	ls := program("/usr/bin/ls", "ls", 1, program("/usr/bin/bash", "bash", 2, nil))
	b.k.Seen(ls, b.at, nil)
	b.k.Forget()
	b.seen(ls)
	if d := cmp.Diff("new-executed /usr/bin/ls ", b.kinds()); d != "" {
		t.Error(d)
	}
}

// TestTakeOver: a record that picosnitch 0.11 wrote is known, and is written back in its shape.
func TestTakeOver(t *testing.T) {
	old, err := os.ReadFile("testdata/record-0.11.json")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: t.TempDir(), at: t0}
	if err := os.WriteFile(filepath.Join(b.dir, "record.json"), old, 0o644); err != nil {
		t.Fatal(err)
	}
	b.open()
	if b.k.First() {
		t.Error("a record that is there counts as a first run")
	}
	text := func(s string) string { return event.Text([]byte(s)) }
	ab, cd := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	known := func(path, name, sum string) {
		p := program(text(path), text(name), 0, nil)
		p.Executable.Digest.SHA256, p.Executable.Digest.Reason = sum, "none"
		b.seen(p)
	}
	known("/usr/bin/curl", "curl", ab)
	known("/home/u/Ünï/a b", "日本", "")
	known("/opt/x\xff", "x\xff", strings.Repeat("01", 32))
	known(`/opt/back\slash`, `b\q`, "")
	known(`/opt/"quote"`, `<b>&'`, "")
	if len(b.told) != 0 || b.log() != "" {
		t.Errorf("what was known is new: %s\n%s", b.kinds(), b.log())
	}
	b.k.Close(b.at)
	if got := b.read("record.json"); got != string(old) {
		t.Error("the record was written although nothing changed")
	}
	b.open()
	known("/usr/bin/curl", "curl", cd)
	if len(b.told) != 1 || b.told[0].Kind != notify.Changed || b.told[0].Before != ab {
		t.Errorf("%+v", b.told)
	}
	b.k.Close(b.at)
	// The same bytes but for the new hash, and for texts that are not printable as they stand.
	want := strings.Replace(string(old), "undetected': 70}\"\n", "undetected': 70}\",\n      \""+cd+"\": \"File not analyzed (no api key)\"\n", 1)
	want = strings.ReplaceAll(want, "x\xff", `x\\xff`)
	want = strings.ReplaceAll(want, `back\\slash`, `back\\\\slash`)
	want = strings.ReplaceAll(want, `b\\q`, `b\\\\q`)
	want = strings.Replace(want, "null", `""`, 1)
	if d := cmp.Diff(want, b.read("record.json")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// And again: our own escapes are not escaped a second time.
	b.open()
	known("/opt/x\xff", "x\xff", strings.Repeat("01", 32))
	known(`/opt/back\slash`, `b\q`, "")
	if len(b.told) != 1 {
		t.Errorf("after a restart: %s", b.kinds())
	}
}

// TestModified: once, also when the recorder is killed and the batch comes again.
func TestModified(t *testing.T) {
	b := newBench(t)
	b.seen(program("/usr/bin/curl", "curl", 1, program("/usr/bin/bash", "bash", 2, nil)))
	b.told = nil
	for range 3 {
		b.k.Modified("/usr/bin/curl", "/usr/bin/vi", b.at)
		b.k.Modified("/usr/bin/bash", "", b.at)
		b.k.Modified("/usr/bin/never-on-the-network", "", b.at)
		b.k.Tick(b.at + 60*second)
		b.kill()
	}
	if d := cmp.Diff("modified /usr/bin/curl \nmodified /usr/bin/bash ", b.kinds()); d != "" {
		t.Error(d)
	}
	if n := strings.Count(b.log(), "curl             /usr/bin/curl (modified)\n"); n != 1 || b.told[0].Detail != "written to by /usr/bin/vi" {
		t.Errorf("%d lines, %+v", n, b.told[0])
	}
	b.k.Modified("/usr/bin/curl", "/usr/bin/vi", b.at+1)
	if len(b.told) != 3 {
		t.Error("a second time is not told")
	}
}

func TestDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"empty":       "",
		"cut":         `{"Executables": {"/usr/bin/curl": ["cu`,
		"binary":      "\x00\x01\x02\xff",
		"list":        "[]",
		"other shape": `{"Executables": ["/usr/bin/curl"]}`,
		"other file":  `{"Bandwidth monitor": true}`,
		"deep":        strings.Repeat("[", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{t: t, dir: t.TempDir(), at: t0}
			if err := os.WriteFile(filepath.Join(b.dir, "record.json"), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			b.open()
			p := b.k.Problems()
			if len(p) != 1 || !strings.Contains(p[0].Text, "record.json is damaged") || !strings.Contains(p[0].Text, "record.json.damaged-20220310-151814") || !b.k.First() {
				t.Errorf("%+v", p)
			}
			if got := b.read("record.json.damaged-20220310-151814"); got != content {
				t.Error("what was set aside is not what was there")
			}
			b.seen(program("/usr/bin/curl", "curl", 1, nil))
			b.k.Close(b.at)
			if r, err := parseRecord([]byte(b.read("record.json"))); err != nil || len(r.Executables) != 1 {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	b := &bench{t: t, dir: t.TempDir(), at: t0}
	os.WriteFile(filepath.Join(b.dir, "record.json"), []byte("{}"), 0o644)
	if b.open(); len(b.k.Problems()) != 0 || b.k.First() {
		t.Error("an empty record is damaged, or none")
	}
	// Bigger than what is read.
	b = &bench{t: t, dir: t.TempDir(), at: t0}
	f, err := os.Create(filepath.Join(b.dir, "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(maxFile + 1)
	f.Close()
	if b.open(); len(b.k.Problems()) != 1 {
		t.Error("a file that is too big is read")
	}
}

// TestFailedHashes: what picosnitch 0.11 wrote where it could not hash is no hash.
func TestFailedHashes(t *testing.T) {
	b := &bench{t: t, dir: t.TempDir(), at: t0}
	if err := os.WriteFile(filepath.Join(b.dir, "record.json"), []byte(`{"Executables": {"/bin/a": ["a"]}, "Names": {"a": ["/bin/a"]}, "SHA256": {"/bin/a": {"!!! FD Read Error": "VT Pending"}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.seen(program("/bin/a", "a", 1, nil))
	if open := b.k.Unasked(); len(b.told) != 0 || len(open) != 1 || open[0] != [2]string{"/bin/a", sum(1)} {
		t.Errorf("told %s, to be asked %v", b.kinds(), open)
	}
}

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

func FuzzParseRecord(f *testing.F) {
	old, err := os.ReadFile("testdata/record-0.11.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(old)
	for _, s := range []string{"{}", "", "null", `{"SHA256":{"a":{"b":1}}}`, `{"Names":{"\\x4":["\\u{1"]}}`, "{\"Names\":{\"\xff\":[\"\\\\\"]}}", `{"Names":{"\udbff\udffe":null}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if (err == nil) != (r != nil) {
			t.Fatal("a value xor an error")
		}
		if err != nil {
			return
		}
		out, err := r.bytes()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRecord(out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v: %s", err, out)
		}
		if d := cmp.Diff(r, again, cmp.AllowUnexported(record{})); d != "" {
			t.Fatal(d)
		}
	})
}

// BenchmarkSeen is what every flow costs once its program is known.
func BenchmarkSeen(b *testing.B) {
	k := Open(Options{Dir: b.TempDir(), Zone: time.UTC, Tell: func(uint64, notify.Notice) {}}, t0)
	p := program("/usr/bin/curl", "curl", 1, program("/usr/bin/bash", "bash", 2, nil))
	remote := func() string { return "" }
	b.ReportAllocs()
	for b.Loop() {
		k.Seen(p, t0, remote)
	}
}

// BenchmarkLook is what a program costs when it is met again: once per window.
func BenchmarkLook(b *testing.B) {
	k := Open(Options{Dir: b.TempDir(), Zone: time.UTC, Tell: func(uint64, notify.Notice) {}}, t0)
	p := program("/usr/bin/curl", "curl", 1, program("/usr/bin/bash", "bash", 2, nil))
	remote := func() string { return "" }
	b.ReportAllocs()
	for b.Loop() {
		k.Seen(p, t0, remote)
		k.Forget()
	}
}
