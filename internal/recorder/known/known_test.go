package known

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
