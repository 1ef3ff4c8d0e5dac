package recorder

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/names"
)

// live prints a readable line per flow, made for a terminal of 120 columns.
type live struct {
	w     *bufio.Writer
	zone  *time.Location
	table *flow.Table // of the open batch
	more  int         // flow lines that found no place
}

func newLive(w io.Writer, zone *time.Location, addresses bool) *live {
	return &live{w: bufio.NewWriter(w), zone: zone, table: flow.NewTable(maxLive, addresses)}
}

func (l *live) add(f *event.Flow, p *flow.Program, d flow.Domain) {
	if l.table.Full() {
		l.more++
		return
	}
	l.table.Add(f, p, d)
}

// print prints the batch; at is the ledger's time in ns since 1970.
func (l *live) print(at int64) {
	records, _, _ := l.table.Take(nil)
	if len(records) == 0 && l.more == 0 {
		return
	}
	clock := time.Unix(0, at).In(l.zone).Format(time.TimeOnly)
	for i := range records {
		fmt.Fprintln(l.w, liveLine(clock, &records[i]))
	}
	if l.more > 0 {
		fmt.Fprintf(l.w, "%s … and %d more flows, in the log\n", clock, l.more)
		l.more = 0
	}
	l.w.Flush() // a terminal that went away is no reason to stop recording
}

// liveLine is: time, name, direction, remote, protocol, bytes both ways, connections, executable, hash.
func liveLine(clock string, r *flow.Record) string {
	p := r.Program
	name := p.Name
	if name == "" {
		name = "?"
	}
	arrow := "--"
	switch r.Kind.Direction {
	case event.Outbound:
		arrow = "->"
	case event.Inbound:
		arrow = "<-"
	}
	proto := r.Kind.Protocol
	if proto == "" {
		proto = r.Kind.Family
	}
	conns := ""
	if r.Conns > 0 {
		conns = strconv.FormatUint(r.Conns, 10) + " conn"
	}
	exe := p.Title()
	if p.Executable.Path == "" {
		exe = "(unknown program)"
	}
	sum := short(p.Executable.Digest.SHA256)
	if p.Script != nil && p.Script.Digest.SHA256 != "" {
		sum += " › " + short(p.Script.Digest.SHA256)
	}
	line := clock + " " + pad(cut(name, 15), 15) + " " + arrow + " " + pad(remoteName(r), remoteWidth) + " " + pad(proto, 6) +
		" ↑" + lead(amount(r.Sent), 8) + "  ↓" + lead(amount(r.Received), 8) + " " + lead(conns, 7) + "  " + exe
	if sum != "" {
		line += "  " + sum
	}
	if place := p.Place.Label(); place != "" {
		line += "  [" + place + "]"
	}
	if p.Preload != "" && p.Preload != "…" {
		line += "  preloaded"
	}
	if r.Sent >= 1000 || r.Received >= 1000 {
		line += "  (" + strconv.FormatUint(r.Sent, 10) + " / " + strconv.FormatUint(r.Received, 10) + " bytes)"
	}
	return line
}

// short is the beginning of a hash.
func short(sum string) string { return sum[:min(len(sum), 12)] }

// remoteWidth holds every IPv4 address; an IPv6 address that is longer is shown whole.
const remoteWidth = 28

// remoteName is name or address, and port. A long name loses its beginning: the end says whose it is.
func remoteName(r *flow.Record) string {
	a := r.Remote.Addr()
	port := ":" + strconv.Itoa(int(r.Remote.Port()))
	if r.Remote.Port() == 0 {
		port = ""
	}
	host := "-"
	switch {
	case r.Kind.Family == event.FamilyExec:
		return "(executed)"
	case r.Domain.Name != "":
		host = names.Reverse(r.Domain.Name)
		if n := utf8.RuneCountInString(host); n > remoteWidth-len(port) {
			runes := []rune(host)
			host = "…" + string(runes[n-(remoteWidth-1-len(port)):])
		}
	case a.IsValid() && port != "":
		return flow.Printable(netip.AddrPortFrom(a, r.Remote.Port()).String())
	case a.IsValid():
		host = flow.Printable(a.String())
	}
	return host + port
}

// amount is a number of bytes in three digits and its unit; below 1000 it is exact.
func amount(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, unit := float64(n)/1000, 0
	for v >= 999.5 && unit < 5 {
		v /= 1000
		unit++
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + "kMGTPE"[unit:unit+1] + "B"
}

// pad fills up to a width in characters.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-utf8.RuneCountInString(s), 0))
}

// cut shortens to a width in characters, with a sign.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

func lead(s string, width int) string {
	return strings.Repeat(" ", max(width-utf8.RuneCountInString(s), 0)) + s
}
