// Package rollup is the format of the sums that a database keeps longer than its raw rows: the BLOBs of segment_actors and
// segment_peers. It belongs to the database that wings share: recorder/store writes them, reader/query reads them. It holds no
// connection and no SQL, and does not know when something is summed up.
//
// A BLOB is a version, a number of rows and then one column after the other, each with its length before it, so that a reader passes over
// what it does not need. All numbers are varints (encoding/binary). A year of hours of a busy machine is ten million rows: as
// BLOBs they take a third of the bytes of rows in a table, and are read fifty times as fast.
package rollup

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// Entry is the sum of some raw rows. The numbers are those of the rows in the tables; 0 stands for NULL.
type Entry struct {
	Actor  int64
	Port   int64 // of the service, see ServicePort
	Remote int64 // address
	Domain int64
	Sum
}

// Sum is what was moved.
type Sum struct {
	Conns    uint64 // opened
	Sent     uint64 // bytes
	Received uint64 // bytes
}

// Add adds, and stays at the greatest number that a database can hold.
func (s *Sum) Add(o Sum) {
	s.Conns = plus(s.Conns, o.Conns)
	s.Sent = plus(s.Sent, o.Sent)
	s.Received = plus(s.Received, o.Received)
}

// plus adds two numbers that a database can hold: their sum has a bit to spare.
func plus(a, b uint64) uint64 { return min(a+b, math.MaxInt64) }

// ServicePort is the port by which a service is known: the remote one of what was opened from here, the local one of what was opened
// from there; where that is not known, the smaller of the two, because those that are given out for one connection are great. A
// negative port is no port of the network and stays.
func ServicePort(direction string, local, remote int64) int64 {
	switch {
	case remote < 0, direction == "out":
		return remote
	case direction == "in":
		return local
	case remote == 0:
		return local
	case local == 0:
		return remote
	}
	return min(local, remote)
}

const version = 1

// ErrFormat is returned for a BLOB that is not one of ours, or damaged.
var ErrFormat = errors.New("a roll-up is damaged")

func compare(a, b *Entry) int {
	return cmp.Or(cmp.Compare(a.Actor, b.Actor), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Remote, b.Remote), cmp.Compare(a.Domain, b.Domain))
}

// Merge sorts the entries and adds up those that differ in their sums only. It returns a part of the slice.
func Merge(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int { return compare(&a, &b) })
	n := 0
	for i := range entries {
		if n > 0 && compare(&entries[n-1], &entries[i]) == 0 {
			entries[n-1].Add(entries[i].Sum)
			continue
		}
		entries[n] = entries[i]
		n++
	}
	return entries[:n]
}

// column is the numbers of one column, as they are written.
type column struct{ b []byte }

func (c *column) add(v uint64)      { c.b = binary.AppendUvarint(c.b, v) }
func (c *column) addSigned(v int64) { c.b = binary.AppendVarint(c.b, v) }

func pack(rows int, columns ...*column) []byte {
	n := 1 + 2*binary.MaxVarintLen64
	for _, c := range columns {
		n += len(c.b) + binary.MaxVarintLen32
	}
	b := append(make([]byte, 0, n), version)
	b = binary.AppendUvarint(b, uint64(rows))
	for _, c := range columns {
		b = binary.AppendUvarint(b, uint64(len(c.b)))
		b = append(b, c.b...)
	}
	return b
}

// Encode writes entries that Merge returned: the sums by actor and port, and those by remote address and domain, too.
func Encode(entries []Entry) (actors, peers []byte, total Sum) {
	var actor, port, conns, sent, received column
	var key, remote, domain, pconns, psent, preceived column
	keys, last := 0, 0
	var before int64
	for i := 0; i < len(entries); {
		first := &entries[i]
		var sum Sum
		for ; i < len(entries) && entries[i].Actor == first.Actor && entries[i].Port == first.Port; i++ {
			e := &entries[i]
			sum.Add(e.Sum)
			key.add(uint64(keys - last))
			last = keys
			remote.add(uint64(e.Remote))
			domain.add(uint64(e.Domain))
			pconns.add(e.Conns)
			psent.add(e.Sent)
			preceived.add(e.Received)
		}
		actor.add(uint64(first.Actor - before))
		before = first.Actor
		port.addSigned(first.Port)
		conns.add(sum.Conns)
		sent.add(sum.Sent)
		received.add(sum.Received)
		total.Add(sum)
		keys++
	}
	return pack(keys, &actor, &port, &conns, &sent, &received), pack(len(entries), &key, &remote, &domain, &pconns, &psent, &preceived), total
}

// Actors are the sums of a segment by actor and port, column by column.
type Actors struct {
	Actor, Port           []int64
	Conns, Sent, Received []uint64
}

// Peers are the sums of a segment by actor, port, remote address and domain. Key is the place of actor and port in Actors.
type Peers struct {
	Key                   []int
	Remote, Domain        []int64
	Conns, Sent, Received []uint64
}

// rows are what is left to read of a BLOB.
type rows struct {
	b   []byte
	n   int
	err error
}

func open(b []byte, columns int) rows {
	if len(b) == 0 || b[0] != version {
		return rows{err: ErrFormat}
	}
	n, k := binary.Uvarint(b[1:])
	// Every number takes a byte: a BLOB cannot make a reader reserve more than a few times its own size.
	if k <= 0 || n > uint64(len(b)/columns) {
		return rows{err: ErrFormat}
	}
	return rows{b: b[1+k:], n: int(n)}
}

func (r *rows) next() []byte {
	n, k := binary.Uvarint(r.b)
	if r.err != nil || k <= 0 || n > uint64(len(r.b)-k) {
		r.err = ErrFormat
		return nil
	}
	c := r.b[k : k+int(n)]
	r.b = r.b[k+int(n):]
	return c
}

// number is what a column is read into.
type number interface{ ~int | ~int64 | ~uint64 }

// read reads a column into a slice that is used again.
func read[T number](r *rows, into []T) []T {
	c := r.next()
	if r.err != nil {
		return into[:0]
	}
	into = slices.Grow(into[:0], r.n)[:r.n]
	i, k := 0, 0
	// Three bytes are enough for most numbers, and this loop is where the time of a question goes.
	for ; k < len(into) && i+3 <= len(c); k++ {
		b := c[i : i+3 : i+3]
		switch {
		case b[0] < 0x80:
			into[k] = T(b[0])
			i++
			continue
		case b[1] < 0x80:
			into[k] = T(b[0]&0x7f) | T(b[1])<<7
			i += 2
			continue
		case b[2] < 0x80:
			into[k] = T(b[0]&0x7f) | T(b[1]&0x7f)<<7 | T(b[2])<<14
			i += 3
			continue
		}
		v, n := binary.Uvarint(c[i:])
		if n <= 0 || v > math.MaxInt64 {
			r.err = ErrFormat
			return into[:0]
		}
		into[k] = T(v)
		i += n
	}
	for ; k < len(into); k++ {
		v, n := binary.Uvarint(c[i:])
		if n <= 0 || v > math.MaxInt64 {
			r.err = ErrFormat
			return into[:0]
		}
		into[k] = T(v)
		i += n
	}
	if i != len(c) {
		r.err = ErrFormat
	}
	return into
}

// Read reads a BLOB of segment_actors. The slices are used again.
func (a *Actors) Read(b []byte) error {
	r := open(b, 5)
	a.Actor = read(&r, a.Actor)
	c := r.next()
	a.Port = slices.Grow(a.Port[:0], r.n)[:r.n]
	for k := range a.Port {
		v, n := binary.Varint(c)
		if n <= 0 {
			return ErrFormat
		}
		a.Port[k] = v
		c = c[n:]
	}
	a.Conns = read(&r, a.Conns)
	a.Sent = read(&r, a.Sent)
	a.Received = read(&r, a.Received)
	for i := 1; i < len(a.Actor); i++ {
		a.Actor[i] += a.Actor[i-1]
	}
	return r.err
}

// Read reads a BLOB of segment_peers; what is not wanted stays empty. keys is the number of rows in Actors. The slices are used again.
func (p *Peers) Read(b []byte, keys int, wantKey, wantRemote, wantDomain bool) error {
	r := open(b, 6)
	p.Key, p.Remote, p.Domain = p.Key[:0], p.Remote[:0], p.Domain[:0]
	if wantKey {
		p.Key = read(&r, p.Key)
		for i, k := 0, 0; i < len(p.Key); i++ {
			k += p.Key[i]
			if k >= keys {
				return ErrFormat
			}
			p.Key[i] = k
		}
	} else {
		r.next()
	}
	if wantRemote {
		p.Remote = read(&r, p.Remote)
	} else {
		r.next()
	}
	if wantDomain {
		p.Domain = read(&r, p.Domain)
	} else {
		r.next()
	}
	p.Conns = read(&r, p.Conns)
	p.Sent = read(&r, p.Sent)
	p.Received = read(&r, p.Received)
	return r.err
}

// Entries are the rows of both BLOBs of a segment.
func Entries(actors, peers []byte) ([]Entry, error) {
	var a Actors
	if err := a.Read(actors); err != nil {
		return nil, err
	}
	var p Peers
	if err := p.Read(peers, len(a.Actor), true, true, true); err != nil {
		return nil, err
	}
	all := make([]Entry, len(p.Key))
	for i, k := range p.Key {
		all[i] = Entry{a.Actor[k], a.Port[k], p.Remote[i], p.Domain[i], Sum{p.Conns[i], p.Sent[i], p.Received[i]}}
	}
	return all, nil
}
