package store

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// jsonField is a Field with what stands before its value.
type jsonField struct {
	Field
	before string
}

func jsonFields() []jsonField {
	var all []jsonField
	before := "{"
	for _, f := range Fields() {
		all = append(all, jsonField{f, before + strconv.Quote(f.Name) + ":"})
		before = ","
	}
	return all
}

// appendJSON appends a record as an object. Nothing is cleaned away: JSON can hold what the comma-separated lines cannot.
func appendJSON(b []byte, fields []jsonField, w *flow.Window, r *flow.Record, zone *time.Location) []byte {
	for i := range fields {
		f := &fields[i]
		b = append(b, f.before...)
		switch f.Kind {
		case TextField:
			b = appendString(b, f.Text(w, r))
		case TimeField:
			b = append(b, '"')
			b = time.Unix(f.Number(w, r), 0).In(zone).AppendFormat(b, time.RFC3339)
			b = append(b, '"')
		case NumberField:
			b = strconv.AppendInt(b, f.Number(w, r), 10)
		}
	}
	return append(b, "}\n"...)
}

func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			j, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...) // json.Marshal has no error for a string
			}
			return append(b, j...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// address is an address as text; "" if it is not known.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return flow.Printable(a.String()) // an IPv6 zone is a name
}

func appendText(b []byte, r *flow.Record, at string) []byte {
	p := r.Program
	b = appendProgram(b, p)
	b = appendField(b, at)
	b = appendField(b, r.Domain.Name)
	if a := r.Remote.Addr(); a.IsValid() {
		b = appendField(b, flow.Printable(a.String()))
	} else {
		b = append(b, ',')
	}
	b = strconv.AppendInt(b, int64(r.Port()), 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, uint64(r.UID), 10)
	b = append(b, ',')
	b = appendProgram(b, p.Parent)
	b = strconv.AppendUint(b, r.Conns, 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, r.Sent, 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, r.Received, 10)
	return append(b, '\n')
}

// appendProgram appends path, name, cmdline and hash, each with its comma.
func appendProgram(b []byte, p *flow.Program) []byte {
	if p == nil {
		return append(b, ",,,,"...)
	}
	b = appendField(b, p.Executable.Path)
	b = appendField(b, p.Name)
	b = appendField(b, p.Cmdline)
	return appendField(b, p.Executable.Digest.SHA256)
}

// appendField appends a value without what would break the line, as the mission says, and the comma after it.
func appendField(b []byte, s string) []byte {
	if strings.ContainsAny(s, ",\n\r\x00") {
		for i := 0; i < len(s); i++ {
			switch s[i] {
			case ',', '\n', '\r', 0:
			default:
				b = append(b, s[i])
			}
		}
	} else {
		b = append(b, s...)
	}
	return append(b, ',')
}
