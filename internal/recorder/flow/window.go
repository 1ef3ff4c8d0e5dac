// Package flow turns the flow lines of the stream into the records of time windows. It belongs to the recorder's wing and is
// pure: it reads no clock, no file and no socket. It does not know addresses' names (a function gives
// them) and not where records go (recorder/store).
package flow

import (
	"cmp"
	"hash/maphash"
	"math"
	"net/netip"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Kind is the combination of words that describes a flow; see event.Flow. Kinds of one Table are shared.
type Kind struct {
	Family, Protocol, Direction, Layer, Peer string
}

// Domain is what an address was called, in reverse notation, and how that is known. The zero value: not known.
type Domain struct {
	Name, Source string
}

// Key is everything that makes two flows different records.
type Key struct {
	Program *Program
	Kind    *Kind
	Local   netip.AddrPort // the address is invalid if not known or not logged; the port stays
	Remote  netip.AddrPort
	Domain  *Domain // never nil
	UID     uint32
	NetNS   uint32
}

// Record is what one program moved over one pair of endpoints in one window.
type Record struct {
	Key
	Conns    uint64 // opened
	Sent     uint64 // bytes
	Received uint64 // bytes
}

// Port is the remote one; event.PortExec for a program that was executed.
func (r *Record) Port() int {
	if r.Kind.Family == event.FamilyExec {
		return event.PortExec
	}
	return int(r.Remote.Port())
}

// Position is a place in a stream: everything up to the end of Batch, and Flows flow lines of the batch after it.
type Position struct {
	Stream string
	Batch  uint64
	Flows  uint64
}

// Digested is a hash, or the reason for none, that became known.
type Digested struct {
	File   event.FileID
	Path   string
	SHA256 string
	Reason string
}

// Window is what goes to disk at once.
type Window struct {
	Hello        event.Hello // whose stream it is
	Start, End   int64       // unix seconds
	Records      []Record    // in the order of their first flow
	Programs     []*Program  // known by flows that are not logged
	Digests      []Digested  // news since the last window
	Losses       map[string]uint64
	Unattributed event.Bytes
	Position     Position // how far the stream is on disk when this window is
}

// Empty reports whether the window holds nothing that a reader could see.
func (w *Window) Empty() bool {
	return len(w.Records) == 0 && len(w.Programs) == 0 && len(w.Digests) == 0 && len(w.Losses) == 0 && w.Unattributed == event.Bytes{}
}

// Compare is -1, 0 or 1 when p is before, at or after q in the same stream.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Batch, q.Batch), cmp.Compare(p.Flows, q.Flows))
}

// After reports whether p is after q in the same stream.
func (p Position) After(q Position) bool { return p.Compare(q) > 0 }

// Bounds returns the window of the given length (seconds) that an instant (ns since 1970) belongs to: the start is
// exclusive, the end inclusive.
func Bounds(at int64, seconds int64) (start, end int64) {
	const second = 1e9
	seconds = max(seconds, 1)
	s := at / second
	if at%second > 0 {
		s++
	}
	end = (s + seconds - 1) / seconds * seconds
	return end - seconds, end
}

// Table adds flows up. It is not safe for concurrent use.
type Table struct {
	addresses bool
	limit     int
	sizes     Sizes // of the programs of records and programs
	bytes     int   // of sizes
	seed      maphash.Seed
	records   []Record
	index     []uint32 // open addressing; position+1 in records
	kinds     map[Kind]*Kind
	domains   map[Domain]*Domain
	programs  map[*Program]struct{}
}

// maxWords bounds the shared words of a Table: hostile streams may invent families.
const maxWords = 1 << 10

// maxTexts bounds the bytes of the texts that only the open window may keep alive: programs that have ended since.
const maxTexts = 8 << 20

// NewTable returns a table for at most limit records. Without addresses, addresses and domains are dropped, ports are kept.
func NewTable(limit int, addresses bool) *Table {
	size := 1
	for size < 2*limit {
		size *= 2
	}
	return &Table{
		addresses: addresses,
		limit:     limit,
		seed:      maphash.MakeSeed(),
		sizes:     make(Sizes),
		index:     make([]uint32, size),
		kinds:     make(map[Kind]*Kind),
		domains:   make(map[Domain]*Domain),
		programs:  make(map[*Program]struct{}),
	}
}

// Len is the number of records.
func (t *Table) Len() int { return len(t.records) }

// Full reports whether the next flow may find no place: Take first.
func (t *Table) Full() bool {
	return len(t.records) >= t.limit || len(t.programs) >= t.limit || t.bytes >= maxTexts
}

// Add adds a flow of a program to a domain.
func (t *Table) Add(f *event.Flow, p *Program, d Domain) {
	k := Key{Program: p, Kind: t.kind(f), Local: f.Local, Remote: f.Remote, UID: f.UID, NetNS: f.NetNS}
	if !t.addresses {
		k.Local = netip.AddrPortFrom(netip.Addr{}, f.Local.Port())
		k.Remote = netip.AddrPortFrom(netip.Addr{}, f.Remote.Port())
		d = Domain{}
	}
	k.Domain = t.domain(d)
	r := t.record(k)
	r.Conns = sum(r.Conns, uint64(f.Conns))
	r.Sent = sum(r.Sent, f.Sent)
	r.Received = sum(r.Received, f.Received)
}

// Know keeps a program whose flow is not logged.
func (t *Table) Know(p *Program) {
	if _, ok := t.programs[p]; !ok {
		t.programs[p] = struct{}{}
		t.bytes += t.sizes.Add(p)
	}
}

// sum adds, and stays at the greatest number that a database can hold instead of starting again at zero.
func sum(a, b uint64) uint64 {
	if a > math.MaxInt64-min(b, math.MaxInt64) {
		return math.MaxInt64
	}
	return a + b
}

func (t *Table) record(k Key) *Record {
	mask := uint64(len(t.index) - 1)
	for i := maphash.Comparable(t.seed, k) & mask; ; i = (i + 1) & mask {
		n := t.index[i]
		if n == 0 {
			t.records = append(t.records, Record{Key: k})
			t.bytes += t.sizes.Add(k.Program)
			t.index[i] = uint32(len(t.records))
			return &t.records[len(t.records)-1]
		}
		if r := &t.records[n-1]; r.Key == k {
			return r
		}
	}
}

func (t *Table) kind(f *event.Flow) *Kind {
	k := Kind{f.Family, f.Protocol, f.Direction, f.Layer, f.Peer}
	if max(len(k.Family), len(k.Protocol), len(k.Direction), len(k.Layer), len(k.Peer)) > maxWord {
		k = k.printable()
	}
	if p := t.kinds[k]; p != nil {
		return p
	}
	if len(t.kinds) >= maxWords {
		clear(t.kinds)
	}
	p := new(Kind)
	*p = k.printable()
	t.kinds[k] = p
	return p
}

func (k Kind) printable() Kind {
	return Kind{PrintableWord(k.Family), PrintableWord(k.Protocol), PrintableWord(k.Direction), PrintableWord(k.Layer), PrintableWord(k.Peer)}
}

func (t *Table) domain(d Domain) *Domain {
	if p := t.domains[d]; p != nil {
		return p
	}
	if len(t.domains) >= maxWords {
		clear(t.domains)
	}
	p := new(Domain) // not &d: that would put every d on the heap
	*p = d
	t.domains[d] = p
	return p
}

// Left is what Take left out.
type Left struct {
	Records int
	Bytes   event.Bytes
}

// Take returns the records, without those that drop names (it is asked now, when hashes had time to come), and
// the programs known besides. The table is empty afterwards; the slices are the caller's.
func (t *Table) Take(drop func(*Program) bool) (records []Record, programs []*Program, left Left) {
	records = t.records
	t.records = nil
	if len(records) < t.limit/8 {
		// Only the used part of a large index: a quiet machine should not pay for the bound.
		for i := range records {
			t.unindex(records[i].Key)
		}
	} else {
		clear(t.index)
	}
	if drop != nil {
		kept := records[:0]
		for _, r := range records {
			if drop(r.Program) {
				t.programs[r.Program] = struct{}{}
				left.Records++
				left.Bytes.Sent += r.Sent
				left.Bytes.Received += r.Received
				continue
			}
			kept = append(kept, r)
		}
		clear(records[len(kept):])
		records = kept
	}
	if len(t.programs) > 0 {
		logged := make(map[*Program]bool)
		for _, r := range records {
			logged[r.Program] = true
		}
		for p := range t.programs {
			if !logged[p] {
				programs = append(programs, p)
			}
		}
		clear(t.programs)
	}
	clear(t.domains)
	clear(t.sizes)
	t.bytes = 0
	return records, programs, left
}

// unindex empties the run of places that a key hashes into.
func (t *Table) unindex(k Key) {
	mask := uint64(len(t.index) - 1)
	for i := maphash.Comparable(t.seed, k) & mask; t.index[i] != 0; i = (i + 1) & mask {
		t.index[i] = 0
	}
}
