package remote

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/test/windows"
)

func nothing(event.FileID, string) (flow.Digest, bool) { return flow.Digest{}, false }

// TestCodec: a window comes out of the spool as it went in, whatever its texts are.
func TestCodec(t *testing.T) {
	m := windows.New(windows.Shape{})
	for _, w := range []*flow.Window{windows.Hostile(1), m.Window(2, 1000), m.Window(3, 0), {}} {
		payload, pending := encode(w)
		got, still, err := decode(payload, nothing)
		if err != nil || pending || still {
			t.Fatal(err, pending, still)
		}
		if d := cmp.Diff(windows.Rows(w), windows.Rows(got)); d != "" {
			t.Error(d)
		}
		if got.Unattributed != w.Unattributed || len(got.Losses) != len(w.Losses) || got.Losses[event.LostExec] != w.Losses[event.LostExec] {
			t.Errorf("%+v, want %+v", got.Losses, w.Losses)
		}
		// Every end that comes too early is an error and no panic.
		for n := range min(len(payload), 3000) {
			if _, _, err := decode(payload[:n], nothing); err == nil {
				t.Fatalf("the first %d of %d bytes were understood", n, len(payload))
			}
		}
	}
}

// TestPending: a hash that is not known yet is looked up when the row is sent, by the file or, where that is not known, by the path.
func TestPending(t *testing.T) {
	w := windows.New(windows.Shape{Programs: 1, Names: 1, Addresses: 1}).Window(1, 1)
	x := w.Records[0].Program.Executable
	x.Digest = &flow.Digest{}
	for _, file := range []event.FileID{x.File, {}} {
		x.File = file
		payload, pending := encode(w)
		var l late
		if _, still, err := decode(payload, l.find); !pending || !still || err != nil {
			t.Fatal(pending, still, err)
		}
		l.learn([]flow.Digested{{File: event.FileID{Inode: 999}, Path: x.Path, SHA256: "other"}})
		for _, news := range []flow.Digested{{File: file, Path: x.Path, Reason: "not readable"}, {File: file, Path: x.Path, SHA256: "sum"}} {
			l.learn([]flow.Digested{news})
			got, still, err := decode(payload, l.find)
			if d := got.Records[0].Program.Executable.Digest; still || err != nil || d.SHA256 != news.SHA256 || d.Reason != news.Reason {
				t.Errorf("%+v: %+v %v %v", news, d, still, err)
			}
		}
		for n := range 3 * maxLate {
			l.learn([]flow.Digested{{File: event.FileID{Inode: uint64(1000 + n)}, SHA256: "x"}})
		}
		if len(l.now)+len(l.old) > 2*maxLate {
			t.Errorf("%d hashes are kept", len(l.now)+len(l.old))
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, w := range []*flow.Window{windows.Hostile(1), windows.New(windows.Shape{Programs: 3, Names: 3, Addresses: 3}).Window(2, 5)} {
		payload, _ := encode(w)
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		w, _, err := decode(payload, nothing)
		if (w == nil) == (err == nil) && err == nil {
			t.Fatal("neither a window nor an error")
		}
		if err == nil {
			encode(w)
			summarize(&delivery{windows: []*flow.Window{w}})
		}
	})
}

// TestColumns: the table that we make has a column for every field that we have, by its name, and for nothing else.
func TestColumns(t *testing.T) {
	var want, got []string
	for _, f := range store.Fields() {
		want = append(want, f.Name)
	}
	for _, c := range schema.RemoteColumns() {
		got = append(got, c.Name)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
