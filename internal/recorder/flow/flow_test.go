package flow

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
	"pgregory.net/rapid"
)

func TestBounds(t *testing.T) {
	const s = 1e9
	for _, c := range []struct{ at, seconds, start, end int64 }{
		{100 * s, 10, 90, 100},
		{100*s + 1, 10, 100, 110},
		{101 * s, 10, 100, 110},
		{109*s + 999_999_999, 10, 100, 110},
		{100 * s, 1, 99, 100},
		{100*s + 1, 7, 98, 105},
		{0, 10, -10, 0},
		{1, 0, 0, 1},
	} {
		if start, end := Bounds(c.at, c.seconds); start != c.start || end != c.end {
			t.Errorf("Bounds(%d, %d) = %d, %d; want %d, %d", c.at, c.seconds, start, end, c.start, c.end)
		}
	}
}

// TestTableSums: whatever comes, in whatever parts it is taken, nothing is lost, nothing is counted twice, and
// flows are one record exactly if all but their counts is equal.
func TestTableSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable(rapid.IntRange(1, 50).Draw(t, "limit"), true)
		programs := []*Program{{Name: "a", Executable: &Executable{}}, {Name: "b", Executable: &Executable{}}}
		want, got := map[string]uint64{}, map[string]uint64{}
		text := func(p *Program, f string, l, r netip.AddrPort, d Domain, uid uint32) string {
			return fmt.Sprint(p.Name, f, l.Port(), r, d, uid)
		}
		take := func() {
			records, _, _ := table.Take(nil)
			seen := map[string]bool{}
			for _, r := range records {
				k := text(r.Program, r.Kind.Family, r.Local, r.Remote, *r.Domain, r.UID)
				if seen[k] {
					t.Fatalf("%s twice in one window", k)
				}
				seen[k] = true
				got[k] += r.Sent
			}
		}
		for range rapid.IntRange(0, 300).Draw(t, "flows") {
			if table.Full() || rapid.IntRange(0, 20).Draw(t, "take") == 0 {
				take()
			}
			p := programs[rapid.IntRange(0, 1).Draw(t, "program")]
			f := event.Flow{
				Family: rapid.SampledFrom([]string{"inet", "inet6"}).Draw(t, "family"), UID: uint32(rapid.IntRange(0, 1).Draw(t, "uid")),
				Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 2, 3, byte(rapid.IntRange(0, 10).Draw(t, "remote"))}), 1),
				Local:  netip.AddrPortFrom(netip.Addr{}, uint16(rapid.IntRange(0, 3).Draw(t, "port"))),
				Sent:   uint64(rapid.IntRange(0, 1000).Draw(t, "sent")),
			}
			d := Domain{Name: rapid.SampledFrom([]string{"", "x"}).Draw(t, "domain")}
			want[text(p, f.Family, f.Local, f.Remote, d, f.UID)] += f.Sent
			table.Add(&f, p, d)
		}
		take()
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
	})
}

func TestTakeDrops(t *testing.T) {
	table := NewTable(10, true)
	a, b, c := &Program{Name: "a", Executable: &Executable{}}, &Program{Name: "b", Executable: &Executable{}}, &Program{Name: "c", Executable: &Executable{}}
	table.Add(&event.Flow{Sent: 1}, a, Domain{})
	table.Add(&event.Flow{Sent: 1}, b, Domain{})
	table.Know(c)
	table.Know(a)
	records, programs, dropped := table.Take(func(p *Program) bool { return p == b })
	if len(records) != 1 || records[0].Program != a || dropped != (Left{1, event.Bytes{Sent: 1}}) || len(programs) != 2 {
		t.Errorf("records %v, programs %v, dropped %v", records, programs, dropped)
	}
	if records, programs, _ := table.Take(nil); len(records)+len(programs) > 0 {
		t.Error("something was left")
	}
}

func TestAddAllocates(t *testing.T) {
	table := NewTable(1000, true)
	p := &Program{Executable: &Executable{}}
	f := event.Flow{Family: "inet", Protocol: "tcp", Remote: netip.MustParseAddrPort("192.0.2.1:1"), Sent: 1}
	table.Add(&f, p, Domain{})
	if n := testing.AllocsPerRun(100, func() { table.Add(&f, p, Domain{}) }); n != 0 {
		t.Errorf("%v allocations for a known flow, want 0", n)
	}
}

func TestCmdline(t *testing.T) {
	for _, c := range []struct {
		argv []string
		cut  bool
		want string
	}{
		{nil, false, ""},
		{nil, true, " …"},
		{[]string{"ls", "-l", "/a/b", "x=1", "é"}, false, "ls -l /a/b x=1 é"},
		{[]string{"sh", "-c", "a b", ""}, false, "sh -c 'a b' ''"},
		{[]string{"it's", `a\\b`, "$HOME", "a\u00a0b"}, true, `'it'\''s' 'a\\b' '$HOME' 'a` + "\u00a0" + `b' …`},
	} {
		if got := Cmdline(c.argv, c.cut); got != c.want {
			t.Errorf("%q: got %q, want %q", c.argv, got, c.want)
		}
	}
	huge := Cmdline([]string{strings.Repeat("é", 10_000), "x"}, false)
	if len(huge) > maxText+5 || !strings.HasSuffix(huge, "…") || !utf8.ValidString(huge) {
		t.Errorf("%d bytes, ends in %q", len(huge), huge[len(huge)-10:])
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":               "",
		"plain é 世界":     "plain é 世界",
		`a\\b\x41`:       `a\\b\x41`,
		"\x1b[31m\n\x00": `\u{1b}[31m\u{a}\u{0}`,
		"a\u202eb\u2028": `a\u{202e}b\u{2028}`,
		"\xff":           "\ufffd",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestIgnore(t *testing.T) {
	hash := strings.Repeat("aB", 32)
	ig, err := NewIgnore([]string{hash}, []string{"Com.Example"}, []int{53, 0})
	if err != nil {
		t.Fatal(err)
	}
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }
	for _, c := range []struct {
		name string
		f    event.Flow
		d    string
		want bool
	}{
		{"domain", event.Flow{Remote: port(1)}, "com.example", true},
		{"below the domain", event.Flow{Remote: port(1)}, "com.example.www", true},
		{"the mission's prefix is one of text", event.Flow{Remote: port(1)}, "com.examples", true},
		{"other domain", event.Flow{Remote: port(1)}, "org.com.example", false},
		{"a hash is no domain", event.Flow{Remote: port(1)}, strings.ToLower(hash), false},
		{"remote port", event.Flow{Remote: port(53)}, "", true},
		{"other port", event.Flow{Remote: port(5353)}, "", false},
		{"no port", event.Flow{Remote: port(0)}, "", true},
		{"local port of an inbound flow", event.Flow{Direction: event.Inbound, Local: port(53), Remote: port(9)}, "", true},
		{"local port of an outbound flow", event.Flow{Direction: event.Outbound, Local: port(53), Remote: port(9)}, "", false},
	} {
		if got := ig.Flow(&c.f, Domain{Name: c.d}); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	p := &Program{Executable: &Executable{Digest: &Digest{}}}
	if ig.Program(p) {
		t.Error("a program without a hash is ignored")
	}
	if p.Executable.Digest.SHA256 = strings.ToLower(hash); !ig.Program(p) {
		t.Error("the hash is not ignored")
	}
}
