package names

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
	"pgregory.net/rapid"
)

func TestReverse(t *testing.T) {
	for in, want := range map[string]string{
		"www.Example.com": "com.example.www", "www.example.com.": "com.example.www", "localhost": "localhost", "": "", ".": "", "a..b": "b..a",
	} {
		if got := Reverse(in); got != want {
			t.Errorf("Reverse(%q) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z0-9-]{1,5}(\.[a-z0-9-]{1,5}){0,4}`).Draw(t, "name")
		if got := Reverse(Reverse(name)); got != name {
			t.Fatalf("%q becomes %q", name, got)
		}
	})
}

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

func TestCache(t *testing.T) {
	c := New(100, os.DevNull)
	c.Learn(&event.Name{Address: addr(1), Name: "one.example", Source: "dns", Expires: 1000})
	c.Learn(&event.Name{Address: netip.MustParseAddr("::ffff:10.0.0.2"), Name: "two.example", Source: "dns"})
	c.Learn(&event.Name{Address: addr(3), Name: strings.Repeat("x", maxName+1)})
	c.Learn(&event.Name{Name: "no.address"})
	want := Name{"example.one", "dns"}
	if got := c.Lookup(addr(1), 999); got != want {
		t.Errorf("got %v", got)
	}
	if got := c.Lookup(addr(1), linger); got != want {
		t.Errorf("an expired name is forgotten at once")
	}
	if got := c.Lookup(addr(1), 1000+linger); got != (Name{}) {
		t.Errorf("an expired name is kept: %v", got)
	}
	if got := c.Lookup(addr(2), 1<<62); got.Name != "example.two" {
		t.Errorf("got %v", got)
	}
	if got := c.Lookup(netip.Addr{}, 0); got != (Name{}) || c.Lookup(addr(3), 0) != (Name{}) {
		t.Errorf("got %v", got)
	}
	// Bounded, and what is used stays.
	for n := range 10_000 {
		c.Learn(&event.Name{Address: addr(n + 10), Name: fmt.Sprint("n", n), Source: "dns"})
		if got := c.Lookup(addr(2), 0); got.Name != "example.two" {
			t.Fatalf("a name in use was forgotten after %d others", n)
		}
	}
	if c.Len() > 101 {
		t.Errorf("%d names are kept", c.Len())
	}
}

func TestHosts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	c := New(10, path)
	if err := c.Refresh(); err != nil {
		t.Errorf("a missing file: %v", err)
	}
	text := "# comment\n127.0.0.1\tlocalhost other # x\n127.0.0.1 second\n::1 ip6\n0.0.0.0 ads\nbad line\n10.0.0.1\n10.0.0.2 \x1b]0;\xff.evil\n10.0.0.3 last"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]Name{
		netip.MustParseAddr("127.0.0.1"): {"localhost", "hosts"}, netip.MustParseAddr("::1"): {"ip6", "hosts"},
		netip.MustParseAddr("10.0.0.2"): {`evil.\u{1b}]0;\xff`, "hosts"}, netip.MustParseAddr("10.0.0.3"): {"last", "hosts"},
	}
	if d := cmp.Diff(want, c.hosts, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	// The stream knows better.
	c.Learn(&event.Name{Address: netip.MustParseAddr("10.0.0.3"), Name: "told", Source: "dns"})
	if got := c.Lookup(netip.MustParseAddr("10.0.0.3"), 0); got.Name != "told" {
		t.Errorf("got %v", got)
	}
	// Read again only when it changed.
	c.hosts = nil
	c.Refresh()
	if c.hosts != nil {
		t.Error("an unchanged file was read again")
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	c.Refresh()
	if len(c.hosts) != 4 {
		t.Error("a changed file was not read again")
	}
	os.Remove(path)
	if c.Refresh(); c.hosts != nil {
		t.Error("names of a file that is gone")
	}
}

func TestHostsBounded(t *testing.T) {
	var b strings.Builder
	for n := range 3 * maxHostsNames {
		fmt.Fprintf(&b, "%v name%d\n", netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), n)
	}
	if n := len(parseHosts([]byte(b.String()))); n != maxHostsNames {
		t.Errorf("%d names, want %d", n, maxHostsNames)
	}
}
