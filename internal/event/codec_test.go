package event

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// samples is one event of every kind, with every field set, and with none.
func samples() []Event {
	id := ProcessID{PID: 4194304, Start: 1 << 63, Exec: 4294967295}
	parent := ProcessID{PID: 1, Start: 1, Exec: 0}
	file := FileID{Device: 1 << 63, Inode: 1<<64 - 1, Generation: 1<<32 - 1, Ctime: -1, Size: 1 << 62}
	return []Event{
		{At: 1, Hello: &Hello{Version: Version, Stream: "s", Program: "1.0", Host: "h", Boot: "b", Started: 2, PID: 3, HookSet: "tracepoint", Hooks: []Hook{{Name: "a", Attached: true}, {Name: "b", Cost: "cost", Error: "why"}, {Name: "c", Waits: true}}, Bandwidth: true, SelfTest: "ok", Batch: 1<<64 - 1}},
		{At: -1, Process: &Process{ID: id, Parent: parent, Path: "/p", Argv: []string{"", "a b", "<&>\u2028"}, ArgvCut: true, Name: "n", Script: "/s", UID: 1<<32 - 1, File: file, Deleted: true, Cgroup: 1<<64 - 1, MountNS: 7, Kernel: true, Source: SourceExec, Started: 9}},
		{Process: &Process{ID: id, Source: SourceUnknown}},
		{Exit: &Exit{ID: id}},
		{Executable: &Executable{File: file, Path: "/p", SHA256: "00"}},
		{Executable: &Executable{Path: "/p", Reason: "why"}},
		{At: 1<<63 - 1, Flow: &Flow{Process: id, UID: 1, Family: "inet6", Protocol: "udp", Direction: Inbound, Layer: LayerPayload, Local: netip.MustParseAddrPort("[fe80::1%eth0]:1"), Remote: netip.MustParseAddrPort("1.2.3.4:65535"), Peer: PeerMessage, NetNS: 1, Conns: 2, Sent: 1<<64 - 1, Received: 1<<64 - 1}},
		{Flow: &Flow{}},
		{Name: &Name{Address: netip.MustParseAddr("::ffff:1.2.3.4"), Name: "www.example.com", Process: id, Source: "dns", Expires: 3}},
		{Ledger: &Ledger{Batch: 1, Seen: Bytes{1, 2}, Attributed: Bytes{3, 4}, Unattributed: Bytes{5, 6}, Events: 7, Lost: map[string]uint64{LostExec: 1}, Final: true}},
		{Notice: &Notice{Level: "error", Text: "t", Hint: "h"}},
	}
}

var equal = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}), cmpopts.EquateEmpty()}

func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	e := NewEncoder(&b)
	for _, want := range samples() {
		if err := e.Encode(&want); err != nil {
			t.Fatal(err)
		}
	}
	text := b.String()
	d := NewDecoder(iotest.OneByteReader(&b))
	for i, want := range samples() {
		var got Event
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Error(diff)
		}
		if line := strings.Split(text, "\n")[i]; line != string(d.Bytes()) {
			t.Errorf("Bytes is %q, want %q", d.Bytes(), line)
		}
	}
	var ev Event
	if err := d.Decode(&ev); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestBadLines: a bad line costs itself and nothing else.
func TestBadLines(t *testing.T) {
	const good = `{"at":7,"exit":{"id":"1:2:3"}}`
	for name, bad := range map[string]string{
		"empty":         "",
		"no JSON":       "x",
		"cut":           `{"at":1,"flow":{`,
		"nothing set":   `{"at":1}`,
		"null":          "null",
		"two":           `{"flow":{},"exit":{"id":"1:2:3"}}`,
		"wrong type":    `{"flow":{"sent":-1}}`,
		"bad id":        `{"exit":{"id":"1:2"}}`,
		"bad address":   `{"flow":{"local":"x"}}`,
		"not UTF-8":     "\xff\xfe",
		"too long":      `{"notice":{"text":"` + strings.Repeat("x", MaxLine) + `"}}`,
		"much too long": strings.Repeat("x", 3*MaxLine),
	} {
		t.Run(name, func(t *testing.T) {
			d := NewDecoder(strings.NewReader(good + "\n" + bad + "\n" + good))
			for line := 1; line <= 3; line++ {
				var ev Event
				err := d.Decode(&ev)
				var bad *LineError
				switch {
				case line == 2 && (!errors.As(err, &bad) || bad.Line != 2 || ev.count() != 0):
					t.Errorf("the bad line: %v, %+v", err, ev)
				case line != 2 && (err != nil || ev.Exit == nil || ev.At != 7):
					t.Errorf("line %d: %v", line, err)
				}
			}
			if err := d.Decode(new(Event)); err != io.EOF {
				t.Errorf("at the end: %v", err)
			}
		})
	}
}

func TestLongLines(t *testing.T) {
	// Around the sizes of the buffers, and the longest line that Append writes.
	for _, n := range []int{64<<10 - 40, 64<<10 - 24, 64<<10 - 23, 64 << 10, 64<<10 + 1, 128 << 10, MaxLine - 100} {
		want := Event{Notice: &Notice{Text: strings.Repeat("x", n)}}
		line, err := Append(nil, &want)
		if err != nil {
			t.Fatal(err)
		}
		d := NewDecoder(bytes.NewReader(append(line, line...)))
		for range 2 {
			var got Event
			if err := d.Decode(&got); err != nil || got.Notice == nil || got.Notice.Text != want.Notice.Text {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	}
	if _, err := Append(nil, &Event{Notice: &Notice{Text: strings.Repeat("x", MaxLine)}}); err == nil {
		t.Error("a line that no Decoder takes was written")
	}
}

func TestVersion(t *testing.T) {
	for v, want := range map[int]error{0: ErrVersion, Version: nil, Version + 1: ErrVersion, -1: ErrVersion} {
		err := NewDecoder(strings.NewReader(fmt.Sprintf(`{"hello":{"version":%d}}`, v))).Decode(new(Event))
		if !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

func TestReaderFails(t *testing.T) {
	d := NewDecoder(io.MultiReader(strings.NewReader("{\n"), iotest.ErrReader(io.ErrClosedPipe)))
	var bad *LineError
	if err := d.Decode(new(Event)); !errors.As(err, &bad) {
		t.Errorf("first line: %v", err)
	}
	if err := d.Decode(new(Event)); !errors.Is(err, io.ErrClosedPipe) || errors.As(err, &bad) {
		t.Errorf("the reader's error: %v", err)
	}
}

// FuzzDecode: never a panic; a value or an error; what was decoded can be written and comes back the same.
func FuzzDecode(f *testing.F) {
	for _, ev := range samples() {
		line, err := Append(nil, &ev)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	for _, s := range []string{
		"", "{}", "null", `{"at":1e3,"flow":{}}`, `{"at":1,"flow":{"process":"1:2:3","remote":"","sent":1}}`, `{"AT":1,"Flow":{"SENT":1}}`,
		`{"flow":{"process":""},"flow":null}`, `{"exit":{"id":"0:0:0"}}`, `{"at":1,"flow":{"family":"\ud800"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := NewDecoder(bytes.NewReader(text))
		for range bytes.Count(text, []byte("\n")) + 1 {
			var ev Event
			if err := d.Decode(&ev); err != nil {
				if ev.count() != 0 {
					t.Fatalf("an error and a value: %v", err)
				}
				continue
			}
			line, err := Append(nil, &ev)
			if err != nil {
				continue // too long
			}
			var again Event
			if err := NewDecoder(bytes.NewReader(line)).Decode(&again); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if diff := cmp.Diff(ev, again, equal); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func TestProcessID(t *testing.T) {
	for text, want := range map[string]ProcessID{
		"":      {},
		"1:2:3": {1, 2, 3},
		"4294967295:18446744073709551615:4294967295": {1<<32 - 1, 1<<64 - 1, 1<<32 - 1},
	} {
		var got ProcessID
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want || got.String() != text {
			t.Errorf("%q: got %v (%v)", text, got, err)
		}
	}
	for _, text := range []string{"1", "1:2", "1:2:3:4", "x:2:3", "1:-2:3", "1:2:4294967296", "4294967296:1:1", " 1:2:3", "1::3"} {
		got := ProcessID{9, 9, 9}
		if err := got.UnmarshalText([]byte(text)); err == nil || !got.IsZero() {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestLosses(t *testing.T) {
	seen := map[string]bool{}
	for _, l := range Losses() {
		if l.Key == "" || l.Text == "" || l.Hint == "" || seen[l.Key] {
			t.Errorf("%+v", l)
		}
		seen[l.Key] = true
	}
}

func BenchmarkDecodeFlow(b *testing.B) {
	line, err := Append(nil, &Event{At: 1767323040123456789, Flow: &Flow{
		Process: ProcessID{1234, 123456789012, 3}, UID: 1000, Family: "inet", Protocol: "tcp", Direction: Outbound, Layer: LayerPayload,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("192.0.2.1:443"), Peer: PeerSocket, NetNS: 4026531840, Conns: 1, Sent: 12345, Received: 1234567,
	}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	d := NewDecoder(&endless{line: line})
	var ev Event
	for b.Loop() {
		if err := d.Decode(&ev); err != nil {
			b.Fatal(err)
		}
	}
}

// endless repeats a line.
type endless struct{ line, rest []byte }

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		e.rest = e.line
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}
