// Package windows makes windows for tests and benchmarks of sinks, and says what rows they must become. It knows no sink.
package windows

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// Stream is the stream of all of them.
const Stream = "5f0c7a1e"

// Begin is the start of window 0, in unix seconds.
const Begin = 1_700_000_000

// Shape says how varied windows are.
type Shape struct {
	Programs, Names, Addresses int
}

// Maker makes windows that share their programs, as the recorder's do.
type Maker struct {
	shape    Shape
	programs []*flow.Program
	domains  []*flow.Domain
	kinds    []*flow.Kind
}

// New returns a maker; the zero shape is that of a busy desktop: 300 programs, 5,000 names, 20,000 addresses.
func New(s Shape) *Maker {
	if s == (Shape{}) { // what the benchmarks use
		s = Shape{Programs: 300, Names: 5000, Addresses: 20000}
	}
	m := &Maker{shape: s, kinds: []*flow.Kind{
		{Family: "inet", Protocol: "tcp", Direction: "out", Layer: "payload", Peer: "socket"},
		{Family: "inet", Protocol: "udp", Direction: "in", Layer: "payload", Peer: "message"},
	}}
	first := executable("/usr/lib/systemd/systemd", 1)
	systemd := &flow.Program{Executable: first, Name: "systemd", Cmdline: "/sbin/init splash"}
	shell := &flow.Program{Executable: executable("/usr/bin/bash", 2), Name: "bash", Cmdline: "-bash", Parent: systemd}
	where := &event.Place{Kind: event.PlaceService, Path: "/system.slice/ssh.service", Unit: "ssh.service"}
	for i := range s.Programs {
		name := fmt.Sprintf("program-%d", i)
		p := &flow.Program{Executable: executable("/usr/bin/"+name, uint64(i+3)), Name: name, Cmdline: "/usr/bin/" + name + " --config /etc/" + name + ".conf --verbose", Parent: shell, Place: where}
		if i%10 == 0 {
			p.Script, p.ScriptKind = executable("/usr/local/lib/"+name+"/main.py", uint64(1e6+i)), event.ScriptArgument
		}
		m.programs = append(m.programs, p)
	}
	for i := range s.Names {
		m.domains = append(m.domains, &flow.Domain{Name: fmt.Sprintf("com.example-%d.www", i), Source: "dns"})
	}
	return m
}

func executable(path string, n uint64) *flow.Executable {
	sum := fmt.Sprintf("%064x", n*0x9e3779b97f4a7c15)
	return &flow.Executable{Path: path, File: event.FileID{Device: 8, Inode: n, Ctime: int64(n), Size: 1000}, Digest: &flow.Digest{SHA256: sum[len(sum)-64:]}}
}

// Window returns the n-th window, of batch n, with some records. Each record is told from all others by its net_ns (n) and
// local_port.
func (m *Maker) Window(n, records int) *flow.Window {
	w := &flow.Window{
		Hello: event.Hello{Stream: Stream, Program: "test", Host: "host-a", Boot: "boot"}, Start: Begin + int64(n)*10, End: Begin + int64(n)*10 + 10,
		Position: flow.Position{Stream: Stream, Batch: uint64(n)},
		Losses:   map[string]uint64{event.LostExec: 1}, Unattributed: event.Bytes{Sent: 1, Received: 2},
	}
	for i := range records {
		x := n*31 + i*7919
		a := x % m.shape.Addresses
		w.Records = append(w.Records, flow.Record{Key: flow.Key{
			Program: m.programs[x%len(m.programs)], Kind: m.kinds[x%len(m.kinds)], Domain: m.domains[x%len(m.domains)],
			Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(i)),
			Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{93, byte(a >> 16), byte(a >> 8), byte(a)}), 443),
			UID:    1000, NetNS: uint32(n),
		}, Conns: 1, Sent: uint64(x%100000 + 1), Received: uint64(x % 777777)})
	}
	return w
}

// Hostile returns a window of texts and numbers that strangers could choose, as they come out of the recorder's edge: printable, long,
// full of what other languages take for their own.
func Hostile(n int) *flow.Window {
	texts := []string{
		"", "plain", `back\slash`, `\N`, `\.`, "quote ' \" ` $$", "'; DROP TABLE connections; --", `\x00\u{1b}[2J`, "<script>alert(1)</script>", "a,b", "tab\\u{9}here",
		"émoji 🐧 漢字", strings.Repeat("x", 8<<10), "%s %d ? $1 :name {}", "NULL", "=1+1", strings.Repeat("é🐧", 1000), "trailing ", " leading",
	}
	w := New(Shape{1, 1, 1}).Window(n, 0)
	for i, s := range texts {
		x := executable("/"+s, uint64(i+1))
		parent := &flow.Program{Executable: &flow.Executable{Path: s, Digest: &flow.Digest{Reason: "why " + s[:min(len(s), 10)]}}, Name: s, Cmdline: s}
		if !strings.HasPrefix(parent.Executable.Digest.Reason, "why x") {
			parent.Executable.Digest.Reason = "why"
		}
		p := &flow.Program{Executable: x, Name: s, Cmdline: s, Parent: parent, Preload: s, Place: &event.Place{Kind: event.PlaceApp, App: s, Unit: s}}
		r := flow.Record{Key: flow.Key{Program: p, Kind: &flow.Kind{Family: "inet6", Protocol: "tcp", Layer: "payload"}, Domain: &flow.Domain{Name: s}, UID: 1000, NetNS: uint32(n)}, Conns: 1, Sent: 2, Received: 3}
		r.Local = netip.AddrPortFrom(netip.Addr{}, uint16(i))
		switch i {
		case 0:
			r.Sent, r.Received, r.UID = 1<<63-1, 1<<40, 4294967294
		case 1:
			r.Remote = netip.MustParseAddrPort("[2001:db8::1]:65535")
		case 2:
			r.Program = &flow.Program{Executable: &flow.Executable{Path: flow.KernelPath, Digest: &flow.Digest{Reason: "a kernel thread has no file"}}, Name: "kworker"}
		}
		w.Records = append(w.Records, r)
	}
	return w
}

// Rows are what windows must become: the values of store.Fields, by name; times are RFC 3339 in UTC.
func Rows(all ...*flow.Window) (rows []map[string]string) {
	fields := store.Fields()
	for _, w := range all {
		for i := range w.Records {
			row := make(map[string]string)
			for _, f := range fields {
				switch f.Kind {
				case store.TextField:
					row[f.Name] = f.Text(w, &w.Records[i])
				case store.NumberField:
					row[f.Name] = strconv.FormatInt(f.Number(w, &w.Records[i]), 10)
				case store.TimeField:
					row[f.Name] = time.Unix(f.Number(w, &w.Records[i]), 0).UTC().Format(time.RFC3339)
				}
			}
			rows = append(rows, row)
		}
	}
	return rows
}
