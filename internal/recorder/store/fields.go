package store

import (
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// Field is one column of a flat row: conn.log's JSON objects and the tables of SQL servers have them by these names.
type Field struct {
	Name string
	Kind FieldKind
	// Text is set for TextField, Number for NumberField and (unix seconds) for TimeField.
	Text   func(*flow.Window, *flow.Record) string
	Number func(*flow.Window, *flow.Record) int64
}

// FieldKind is what a Field holds.
type FieldKind int

// Kinds of fields.
const (
	TextField FieldKind = iota
	NumberField
	TimeField
)

// MissionFields is how many of Fields are the ones of conn.log's documentation: they come first, in its order.
const MissionFields = 16

// Fields is a flat row: the mission's 16 fields, then what we know besides.
func Fields() []Field {
	type (
		w = *flow.Window
		r = *flow.Record
	)
	text := func(name string, f func(w, r) string) Field { return Field{Name: name, Text: f} }
	number := func(name string, f func(w, r) int64) Field { return Field{Name: name, Kind: NumberField, Number: f} }
	time := func(name string, f func(w, r) int64) Field { return Field{Name: name, Kind: TimeField, Number: f} }
	program := func(prefix string, of func(r) *flow.Program) []Field {
		get := func(name string, f func(*flow.Program) string) Field {
			return text(prefix+name, func(_ w, x r) string {
				if p := of(x); p != nil {
					return f(p)
				}
				return ""
			})
		}
		return []Field{
			get("exe", func(p *flow.Program) string { return p.Executable.Path }),
			get("name", func(p *flow.Program) string { return p.Name }),
			get("cmdline", func(p *flow.Program) string { return p.Cmdline }),
			get("sha256", func(p *flow.Program) string { return p.Executable.Digest.SHA256 }),
		}
	}
	f := program("", func(x r) *flow.Program { return x.Program })
	f = append(f,
		time("contime", func(x w, _ r) int64 { return max(x.End, 0) }),
		text("domain", func(_ w, x r) string { return x.Domain.Name }),
		text("ip", func(_ w, x r) string { return address(x.Remote.Addr()) }),
		number("port", func(_ w, x r) int64 { return int64(x.Port()) }),
		number("uid", func(_ w, x r) int64 { return int64(x.UID) }),
	)
	f = append(f, program("p", func(x r) *flow.Program { return x.Program.Parent })...)
	f = append(f,
		number("conns", func(_ w, x r) int64 { return clamp(x.Conns) }),
		number("send", func(_ w, x r) int64 { return clamp(x.Sent) }),
		number("recv", func(_ w, x r) int64 { return clamp(x.Received) }),

		text("host", func(x w, _ r) string { return x.Hello.Host }),
		time("start", func(x w, _ r) int64 { return max(x.Start, 0) }),
		text("family", func(_ w, x r) string { return x.Kind.Family }),
		text("protocol", func(_ w, x r) string { return x.Kind.Protocol }),
		text("direction", func(_ w, x r) string { return x.Kind.Direction }),
		text("layer", func(_ w, x r) string { return x.Kind.Layer }),
		text("peer", func(_ w, x r) string { return x.Kind.Peer }),
		text("local_ip", func(_ w, x r) string { return address(x.Local.Addr()) }),
		number("local_port", func(_ w, x r) int64 { return int64(x.Local.Port()) }),
		text("domain_source", func(_ w, x r) string { return x.Domain.Source }),
		number("net_ns", func(_ w, x r) int64 { return int64(x.NetNS) }),
		text("reason", func(_ w, x r) string { return x.Program.Executable.Digest.Reason }),
		text("script", func(_ w, x r) string {
			if s := x.Program.Script; s != nil {
				return s.Path
			}
			return ""
		}),
		text("script_kind", func(_ w, x r) string { return x.Program.ScriptKind }),
		text("script_sha256", func(_ w, x r) string {
			if s := x.Program.Script; s != nil {
				return s.Digest.SHA256
			}
			return ""
		}),
		text("preload", func(_ w, x r) string { return x.Program.Preload }),
	)
	place := func(name string, get func(*event.Place) string) {
		f = append(f, text(name, func(_ w, x r) string {
			if p := x.Program.Place; p != nil {
				return get(p)
			}
			return ""
		}))
	}
	place("place", (*event.Place).Label)
	place("place_path", func(p *event.Place) string { return p.Path })
	place("unit", func(p *event.Place) string { return p.Unit })
	place("user_unit", func(p *event.Place) string { return p.UserUnit })
	place("session", func(p *event.Place) string { return p.Session })
	place("container", func(p *event.Place) string { return p.Container })
	place("pod", func(p *event.Place) string { return p.Pod })
	place("app", func(p *event.Place) string { return p.App })
	return append(f, program("g", func(x r) *flow.Program {
		if p := x.Program.Parent; p != nil {
			return p.Parent
		}
		return nil
	})...)
}
