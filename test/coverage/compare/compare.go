// Package compare holds what a monitor recorded against what the generators counted themselves. It is pure: rows and
// claims in, differences out. Rows of programs that no claim names are other people's traffic and are ignored;
// every row of a claimed program must be claimed.
package compare

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// Difference is one thing that is not equal.
type Difference struct {
	Scenario, Source string // which scenario, and where the row was read
	Program          string // its executable
	What             string // the flow and the column
	Want, Got        string
	Ratio            string // of the two, if they are numbers
	Limit            string
}

// Source is a place where records are read.
type Source struct {
	Name string
	Rows []monitor.Row
	Flat bool // holds no protocol, direction and local address
	// LateHash says that a row may have no hash because it was written for good before the hash was known.
	LateHash bool
}

// flow is what claims and rows are grouped by; an empty field stands for any.
type flow struct{ exe, parent, family, protocol, direction, remote string }

func flowOf(c claim.Claim, flat bool) flow {
	f := flow{c.Exe, c.Parent, c.Family, c.Protocol, c.Direction, c.Remote}
	if flat {
		f.family, f.protocol, f.direction = "", "", ""
	}
	return f
}

func (f flow) String() string {
	return strings.Join(slices.DeleteFunc([]string{f.family, f.protocol, f.direction, f.remote}, func(s string) bool { return s == "" }), " ")
}

// holds reports whether a row belongs to the flow. A remote without a port is any port: raw sockets have none.
func (g *group) holds(r row) bool {
	f := g.flow
	match := func(want, got string) bool { return want == "" || want == got }
	if g.vague && r.nameless() {
		f.remote = ""
	}
	if g.portless && r.portless() && strings.TrimSuffix(r.Remote, "0") == f.remote[:strings.LastIndexByte(f.remote, ':')+1] {
		f.remote = ""
	}
	if g.unsure && r.Direction == "" {
		f.direction = ""
	}
	return f.exe == r.Exe && match(f.family, r.Family) && match(f.protocol, r.Protocol) && match(f.direction, r.Direction) &&
		(match(f.remote, r.Remote) || strings.TrimSuffix(strings.Trim(r.Remote, "["), "]:0") == f.remote || strings.TrimSuffix(r.Remote, ":0") == f.remote)
}

// group is all claims of one flow and the rows that belong to it.
type group struct {
	vague    bool
	portless bool
	unsure   bool
	flow     flow
	want     claim.Bytes
	moved    claim.Bytes // differs from want only for known limits
	either   bool        // both are right
	conns    int
	claims   []claim.Claim
	got      claim.Bytes
	gotConns int
	rows     []row
	limit    string
}

// row is one record.
type row struct{ *monitor.Row }

// nameless reports whether the record has no remote address.
func (r row) nameless() bool { return r.Remote == ":0" && r.Peer == "" }

// portless reports whether the record's remote address has no port.
func (r row) portless() bool { return strings.HasSuffix(r.Remote, ":0") }

func (g *group) take(r row, sent, received uint64, conns int) {
	g.rows = append(g.rows, r)
	g.got.Sent += sent
	g.got.Received += received
	g.gotConns += conns
}

// share gives a nameless record to the vague groups that lack what it holds; what nobody lacks goes to the last, where it
// is a difference.
func share(groups []*group, r row) {
	sent, received, conns := r.Sent, r.Received, int(r.Conns)
	lacks := func(want, got, left uint64) uint64 { return min(left, want-min(want, got)) }
	var last *group
	for _, g := range groups {
		if !g.holds(r) {
			continue
		}
		s, v := lacks(g.want.Sent, g.got.Sent, sent), lacks(g.want.Received, g.got.Received, received)
		c := max(0, min(conns, g.conns-g.gotConns))
		g.take(r, s, v, c)
		sent, received, conns = sent-s, received-v, conns-c
		last = g
	}
	last.got.Sent += sent
	last.got.Received += received
	last.gotConns += conns
}

// Comparer compares. It keeps the hashes of the files that it read.
type Comparer struct{ hashes map[string]string }

// New returns a Comparer.
func New() *Comparer { return &Comparer{hashes: make(map[string]string)} }

// Compare returns what differs between the claims of one scenario and a source.
func (h *Comparer) Compare(scenario string, claims []claim.Claim, s Source) []Difference {
	c := &comparison{scenario: scenario, source: s, hashes: h.hashes}
	groups := c.groups(claims)
	programs := make(map[string]bool)
	for _, x := range claims {
		programs[x.Exe] = true
	}
	var nameless []row
	for i := range s.Rows {
		r := row{&s.Rows[i]}
		if !programs[r.Exe] || r.Sent == 0 && r.Received == 0 && r.Conns == 0 {
			continue
		}
		// A program that another parent started is another one: process-fork has both. Where no claim names the
		// row's parent, the difference is told as such.
		at := slices.IndexFunc(groups, func(g *group) bool { return g.holds(r) && g.flow.parent == r.PExe })
		if at < 0 {
			at = slices.IndexFunc(groups, func(g *group) bool { return g.holds(r) })
		}
		if at < 0 {
			c.add(r.Exe, fmt.Sprintf("unexpected record %s %s %s %s", r.Family, r.Protocol, r.Direction, r.Remote), "",
				"none", fmt.Sprintf("sent %d received %d conns %d (peer %q)", r.Sent, r.Received, r.Conns, r.Peer))
			continue
		}
		if r.nameless() || groups[at].portless && r.portless() {
			nameless = append(nameless, r) // after the others: it is what they lack
			continue
		}
		groups[at].take(r, r.Sent, r.Received, int(r.Conns))
	}
	for _, r := range nameless {
		share(groups, r)
	}
	for _, g := range groups {
		if !g.either || g.got.Sent != g.moved.Sent {
			c.number(g, "sent", g.want.Sent, g.got.Sent)
		}
		if !g.either || g.got.Received != g.moved.Received {
			c.number(g, "received", g.want.Received, g.got.Received)
		}
		if g.conns != claim.NotStated {
			c.number(g, "conns", uint64(g.conns), uint64(g.gotConns))
		}
		c.identity(g)
	}
	return c.found
}

type comparison struct {
	scenario string
	source   Source
	hashes   map[string]string
	found    []Difference
}

// groups sums up the claims by flow. More exact flows come first, so that a row finds its own.
func (c *comparison) groups(claims []claim.Claim) []*group {
	byFlow := make(map[flow]*group)
	for _, x := range claims {
		f := flowOf(x, c.source.Flat)
		g := byFlow[f]
		if g == nil {
			g = &group{flow: f}
			byFlow[f] = g
		}
		e := x.Expected()
		g.want.Sent += e.Sent
		g.want.Received += e.Received
		g.moved.Sent += x.Sent
		g.moved.Received += x.Received
		if x.Conns == claim.NotStated || g.conns == claim.NotStated {
			g.conns = claim.NotStated
		} else {
			g.conns += x.Conns
		}
		g.limit = cmp.Or(g.limit, x.Limit)
		g.vague = g.vague || x.Vague
		g.either = g.either || x.Either
		g.portless = g.portless || x.Portless
		g.unsure = g.unsure || x.Unsure
		g.claims = append(g.claims, x)
	}
	empty := func(f flow) int {
		n := 0
		for _, s := range []string{f.family, f.protocol, f.direction, f.remote} {
			if s == "" {
				n++
			}
		}
		return n
	}
	return slices.SortedFunc(maps.Values(byFlow), func(a, b *group) int {
		return cmp.Or(cmp.Compare(empty(a.flow), empty(b.flow)), cmp.Compare(a.flow.exe, b.flow.exe), cmp.Compare(a.flow.parent, b.flow.parent), cmp.Compare(a.flow.remote, b.flow.remote))
	})
}

func (c *comparison) add(exe, what, limit, want, got string) {
	c.found = append(c.found, Difference{Scenario: c.scenario, Source: c.source.Name, Program: filepath.Base(exe), What: what, Want: want, Got: got, Limit: limit})
}

func (c *comparison) number(g *group, what string, want, got uint64) {
	if want == got {
		return
	}
	c.add(g.flow.exe, g.flow.String()+" "+what, g.limit, fmt.Sprint(want), fmt.Sprint(got))
	if want > 0 {
		c.found[len(c.found)-1].Ratio = fmt.Sprintf("%.6f", float64(got)/float64(want))
	}
}

// identity checks who it was.
func (c *comparison) identity(g *group) {
	x := g.claims[0]
	if x.Kernel {
		return
	}
	text := func(what, want string, get func(row) string) {
		for _, r := range g.rows {
			if got := get(r); got != want {
				c.add(x.Exe, g.flow.String()+" "+what, g.limit, want, got)
				return
			}
		}
	}
	hash := c.hash(x.File)
	text("sha256", hash, func(r row) string {
		if r.SHA256 == "" && (x.Unproved || c.source.LateHash) {
			return hash
		}
		return r.SHA256
	})
	name := filepath.Base(x.Exe)
	text("name", name[:min(len(name), 15)], func(r row) string { return r.Name })
	text("uid", fmt.Sprint(x.UID), func(r row) string { return fmt.Sprint(r.UID) })
	if x.Parent != "" {
		text("parent", x.Parent, func(r row) string { return r.PExe })
		text("parent's sha256", c.hash(x.Parent), func(r row) string {
			if r.PSHA256 == "" && c.source.LateHash {
				return c.hash(x.Parent)
			}
			return r.PSHA256
		})
	}
	if c.source.Flat {
		return
	}
	local := make(map[string]bool)
	for _, x := range g.claims {
		local[x.Local] = true
	}
	if !local[""] {
		text("local", strings.Join(slices.Sorted(maps.Keys(local)), " or "), func(r row) string {
			if local[r.Local] || g.unsure && portless(r.Local, local) {
				return strings.Join(slices.Sorted(maps.Keys(local)), " or ")
			}
			return r.Local
		})
	}
}

// portless reports whether an address without a port is one of those.
func portless(at string, of map[string]bool) bool {
	for x := range of {
		if at == x[:strings.LastIndexByte(x, ':')]+":0" {
			return true
		}
	}
	return false
}

// hash is the SHA-256 of a file, or why there is none.
func (c *comparison) hash(path string) string {
	if h, ok := c.hashes[path]; ok {
		return h
	}
	b, err := os.ReadFile(path)
	h := fmt.Sprintf("%x", sha256.Sum256(b))
	if err != nil {
		h = err.Error()
	}
	c.hashes[path] = h
	return h
}

// Table writes differences for people.
func Table(w io.Writer, found []Difference) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "scenario\tsource\tprogram\twhat\texpected\tgot\tratio\tlimit")
	seen := make(map[string]int)
	for _, d := range found {
		// One program that is wrong in one column is told three times, not once for each of its flows.
		key := d.Scenario + d.Source + d.Program + d.What[strings.LastIndexByte(d.What, ' ')+1:]
		if seen[key]++; seen[key] > 3 {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Scenario, d.Source, d.Program, d.What, d.Want, d.Got, d.Ratio, d.Limit)
	}
	t.Flush()
	for key, n := range seen {
		if n > 3 {
			fmt.Fprintf(w, "and %d more like %s\n", n-3, key)
		}
	}
}
