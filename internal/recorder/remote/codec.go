package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// The payload of a frame is a window: its facts, tables of what its records share, and the records. Texts are length and bytes,
// numbers are varints. It is only read by the program that wrote it, or a later one, but it lies on a disk: every length is
// checked.

const codecVersion = 1

var errFrame = errors.New("a window of the spool cannot be understood")

// encoder writes a payload.
type encoder struct {
	b        []byte
	programs map[*flow.Program]uint64
	places   map[*event.Place]uint64
	kinds    map[*flow.Kind]uint64
	domains  map[*flow.Domain]uint64
	pending  bool // a hash is still to come
}

// encode returns the payload, and whether a hash of it is still to come.
func encode(w *flow.Window) (payload []byte, pending bool) {
	e := &encoder{
		programs: make(map[*flow.Program]uint64), places: make(map[*event.Place]uint64),
		kinds: make(map[*flow.Kind]uint64), domains: make(map[*flow.Domain]uint64),
	}
	for i := range w.Records {
		r := &w.Records[i]
		e.program(r.Program)
		if _, ok := e.kinds[r.Kind]; !ok {
			e.kinds[r.Kind] = uint64(len(e.kinds))
			e.text(kindEntry, r.Kind.Family, r.Kind.Protocol, r.Kind.Direction, r.Kind.Layer, r.Kind.Peer)
		}
		if _, ok := e.domains[r.Domain]; !ok {
			e.domains[r.Domain] = uint64(len(e.domains))
			e.text(domainEntry, r.Domain.Name, r.Domain.Source)
		}
	}
	tables := e.b
	e.b = make([]byte, 0, len(tables)+64*len(w.Records)+256)
	e.b = append(e.b, codecVersion)
	e.texts(w.Hello.Stream, w.Hello.Program, w.Hello.Host, w.Hello.Boot)
	e.int(w.Start)
	e.int(w.End)
	e.uint(w.Unattributed.Sent)
	e.uint(w.Unattributed.Received)
	e.uint(uint64(len(w.Losses)))
	for _, reason := range slices.Sorted(maps.Keys(w.Losses)) {
		e.texts(reason)
		e.uint(w.Losses[reason])
	}
	e.b = append(e.b, tables...)
	e.b = append(e.b, recordsEntry)
	e.uint(uint64(len(w.Records)))
	for i := range w.Records {
		r := &w.Records[i]
		e.uint(e.programs[r.Program])
		e.uint(e.kinds[r.Kind])
		e.uint(e.domains[r.Domain])
		e.address(r.Local)
		e.address(r.Remote)
		e.uint(uint64(r.UID))
		e.uint(uint64(r.NetNS))
		e.uint(r.Conns)
		e.uint(r.Sent)
		e.uint(r.Received)
	}
	return e.b, e.pending
}

// What an entry of the tables is.
const (
	programEntry byte = iota
	placeEntry
	kindEntry
	domainEntry
	recordsEntry
)

func (e *encoder) uint(n uint64) { e.b = binary.AppendUvarint(e.b, n) }
func (e *encoder) int(n int64)   { e.b = binary.AppendVarint(e.b, n) }

func (e *encoder) texts(s ...string) {
	for _, s := range s {
		e.uint(uint64(len(s)))
		e.b = append(e.b, s...)
	}
}

func (e *encoder) text(what byte, s ...string) {
	e.b = append(e.b, what)
	e.texts(s...)
}

func (e *encoder) address(a netip.AddrPort) {
	b, _ := a.Addr().MarshalBinary() // has no error
	e.uint(uint64(len(b)))
	e.b = append(e.b, b...)
	e.uint(uint64(a.Port()))
}

// program writes a program behind its ancestors and returns its number + 1.
func (e *encoder) program(p *flow.Program) uint64 {
	if p == nil {
		return 0
	}
	if n, ok := e.programs[p]; ok {
		return n + 1
	}
	parent := e.program(p.Parent)
	where := uint64(0)
	if p.Place != nil {
		n, ok := e.places[p.Place]
		if !ok {
			n = uint64(len(e.places))
			e.places[p.Place] = n
			l := p.Place
			e.text(placeEntry, l.Kind, l.Path, l.Unit, l.Owner, l.UserUnit, l.Session, l.Runtime, l.Container, l.Name, l.Pod, l.App)
		}
		where = n + 1
	}
	n := uint64(len(e.programs))
	e.programs[p] = n
	e.text(programEntry, p.Name, p.Cmdline, p.ScriptKind, p.Preload)
	e.uint(parent)
	e.uint(where)
	e.executable(p.Executable)
	if p.Script == nil {
		e.uint(0)
	} else {
		e.uint(1)
		e.executable(p.Script)
	}
	return n + 1
}

func (e *encoder) executable(x *flow.Executable) {
	f := x.File
	e.texts(x.Path, x.Digest.SHA256, x.Digest.Reason)
	e.uint(f.Device)
	e.uint(f.Inode)
	e.uint(uint64(f.Generation))
	e.int(f.Ctime)
	e.int(f.Size)
	if x.Digest.SHA256 == "" && x.Digest.Reason == "" {
		e.pending = true
	}
}

// decoder reads a payload.
type decoder struct {
	b    []byte
	err  error
	late func(event.FileID, string) (flow.Digest, bool)

	programs []*flow.Program
	places   []*event.Place
	kinds    []*flow.Kind
	domains  []*flow.Domain
	pending  bool
}

// decode returns the window of a payload. late gives the hashes that became known since; pending is true when one is still
// to come.
func decode(payload []byte, late func(event.FileID, string) (flow.Digest, bool)) (w *flow.Window, pending bool, err error) {
	d := &decoder{b: payload, late: late}
	if v := d.byte(); d.err == nil && v != codecVersion {
		return nil, false, fmt.Errorf("%w: its version is %d, this picosnitch knows %d", errFrame, v, codecVersion)
	}
	w = &flow.Window{Losses: make(map[string]uint64)}
	w.Hello = event.Hello{Stream: d.text(), Program: d.text(), Host: d.text(), Boot: d.text()}
	w.Start, w.End = d.int(), d.int()
	w.Unattributed = event.Bytes{Sent: d.uint(), Received: d.uint()}
	for range d.count(2) {
		reason := d.text()
		w.Losses[reason] += d.uint()
	}
	for d.err == nil {
		switch d.byte() {
		case programEntry:
			d.program()
		case placeEntry:
			p := &event.Place{}
			for _, s := range [...]*string{&p.Kind, &p.Path, &p.Unit, &p.Owner, &p.UserUnit, &p.Session, &p.Runtime, &p.Container, &p.Name, &p.Pod, &p.App} {
				*s = d.text()
			}
			d.places = append(d.places, p)
		case kindEntry:
			d.kinds = append(d.kinds, &flow.Kind{Family: d.text(), Protocol: d.text(), Direction: d.text(), Layer: d.text(), Peer: d.text()})
		case domainEntry:
			d.domains = append(d.domains, &flow.Domain{Name: d.text(), Source: d.text()})
		case recordsEntry:
			d.records(w)
			if d.err == nil && len(d.b) > 0 {
				d.fail()
			}
			return w, d.pending, d.err
		default:
			d.fail()
		}
	}
	return nil, false, d.err
}

func (d *decoder) records(w *flow.Window) {
	n := d.count(10)
	w.Records = make([]flow.Record, 0, n)
	for range n {
		r := flow.Record{}
		r.Program, r.Kind, r.Domain = pick(d, d.programs), pick(d, d.kinds), pick(d, d.domains)
		r.Local, r.Remote = d.address(), d.address()
		r.UID, r.NetNS = uint32(d.uint()), uint32(d.uint())
		r.Conns, r.Sent, r.Received = d.uint(), d.uint(), d.uint()
		if d.err != nil {
			return
		}
		w.Records = append(w.Records, r)
	}
}

func (d *decoder) fail() {
	d.err, d.b = errFrame, nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

// count reads how many entries of at least size bytes follow.
func (d *decoder) count(size uint64) uint64 {
	n := d.uint()
	if n > uint64(len(d.b))/size {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) bytes() []byte {
	n := d.count(1)
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) address() netip.AddrPort {
	var a netip.Addr
	if err := a.UnmarshalBinary(d.bytes()); err != nil {
		d.fail()
	}
	return netip.AddrPortFrom(a, uint16(d.uint()))
}

func pick[T any](d *decoder, from []*T) *T {
	n := d.uint()
	if n >= uint64(len(from)) {
		d.fail()
		return nil
	}
	return from[n]
}

func (d *decoder) program() {
	p := &flow.Program{Name: d.text(), Cmdline: d.text(), ScriptKind: d.text(), Preload: d.text()}
	if n := d.uint(); n > uint64(len(d.programs)) {
		d.fail()
	} else if n > 0 {
		p.Parent = d.programs[n-1]
	}
	if n := d.uint(); n > uint64(len(d.places)) {
		d.fail()
	} else if n > 0 {
		p.Place = d.places[n-1]
	}
	p.Executable = d.executable()
	if d.uint() == 1 {
		p.Script = d.executable()
	}
	d.programs = append(d.programs, p)
}

func (d *decoder) executable() *flow.Executable {
	x := &flow.Executable{Path: d.text(), Digest: &flow.Digest{SHA256: d.text(), Reason: d.text()}}
	x.File = event.FileID{Device: d.uint(), Inode: d.uint(), Generation: uint32(d.uint()), Ctime: d.int(), Size: d.int()}
	if d.err == nil && x.Digest.SHA256 == "" {
		if now, ok := d.late(x.File, x.Path); ok {
			*x.Digest = now
		}
		if x.Digest.SHA256 == "" && x.Digest.Reason == "" {
			d.pending = true
		}
	}
	return x
}
