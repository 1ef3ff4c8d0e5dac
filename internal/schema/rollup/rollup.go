// Package rollup is the format of the sums that a database keeps longer than its raw rows: the BLOBs of segment_actors and
// segment_peers. It belongs to the database that wings share: recorder/store writes them, reader/query reads them. It holds no
// connection and no SQL, and does not know when something is summed up.
//
// A BLOB is a version, a number of rows and then one column after the other (column.go), each with its length before it, so that a reader
// passes over what it does not need. A year of hours of a busy machine is ten million rows: as BLOBs they take a quarter of the bytes of
// rows in a table, and are read two hundred times as fast.
package rollup

import (
	"cmp"
	"errors"
	"fmt"
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

// ErrFormat is returned for a BLOB that is not one of ours, or damaged.
var ErrFormat = errors.New("a roll-up is damaged")

// ErrRows is returned for more entries than a BLOB may have: no reader would take it.
var ErrRows = errors.New("too many entries for one roll-up")

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

// Encode writes entries that Merge returned: the sums by actor and port, and those by remote address and domain, too. It refuses more than
// Read takes (ErrRows): the rows that they are of may be gone when somebody reads it.
func Encode(entries []Entry) (actors, peers []byte, total Sum, err error) {
	if len(entries) > maxRows {
		return nil, nil, Sum{}, fmt.Errorf("%w: %d, at most %d", ErrRows, len(entries), maxRows)
	}
	var actor, port, conns, sent, received []uint64
	var key, remote, domain, pconns, psent, preceived []uint64
	keys, last := 0, 0
	var before int64
	for i := 0; i < len(entries); {
		first := &entries[i]
		var sum Sum
		for ; i < len(entries) && entries[i].Actor == first.Actor && entries[i].Port == first.Port; i++ {
			e := &entries[i]
			sum.Add(e.Sum)
			key = append(key, uint64(keys-last))
			last = keys
			remote = append(remote, uint64(e.Remote))
			domain = append(domain, uint64(e.Domain))
			pconns = append(pconns, e.Conns)
			psent = append(psent, e.Sent)
			preceived = append(preceived, e.Received)
		}
		actor = append(actor, uint64(first.Actor-before))
		before = first.Actor
		port = append(port, zigzag(first.Port))
		conns = append(conns, sum.Conns)
		sent = append(sent, sum.Sent)
		received = append(received, sum.Received)
		total.Add(sum)
		keys++
	}
	return pack(keys, actor, port, conns, sent, received), pack(len(entries), key, remote, domain, pconns, psent, preceived), total, nil
}

// Actors are the sums of a segment by actor and port, column by column.
type Actors struct {
	Actor, Port           []int64
	Conns, Sent, Received []uint64
	rest                  rows
}

// Read reads actors and ports of a BLOB of segment_actors; the sums stay empty until ReadSums. The slices are used again; the BLOB must stay as
// it is until ReadSums.
func (a *Actors) Read(b []byte) error {
	r := open(b)
	a.Conns, a.Sent, a.Received = a.Conns[:0], a.Sent[:0], a.Received[:0]
	a.Actor = read(&r, a.Actor, nil)
	a.Port = read(&r, a.Port, nil)
	a.rest = r
	if r.err != nil {
		return r.err
	}
	var actor int64
	for i, delta := range a.Actor {
		actor += delta
		a.Actor[i], a.Port[i] = actor, unzigzag(a.Port[i])
	}
	return nil
}

// ReadSums reads the sums of what Read read. groups may say of each row that it is not needed, by a 0; nil: all are.
func (a *Actors) ReadSums(groups []int32) error {
	a.Conns = read(&a.rest, a.Conns, groups)
	a.Sent = read(&a.rest, a.Sent, groups)
	a.Received = read(&a.rest, a.Received, groups)
	return a.rest.err
}

// Peers are the sums of a segment by actor, port, remote address and domain. Key is the place of actor and port in Actors.
type Peers struct {
	Key, Remote, Domain   []int64
	Conns, Sent, Received []uint64
	rest                  rows
}

// Want says which columns of Peers are read.
type Want struct{ Key, Remote, Domain bool }

// Read reads what is wanted of a BLOB of segment_peers; the other columns stay empty, and so do the sums until ReadSums. It returns how
// many rows there are. keys is the number of rows in Actors. The slices are used again; the BLOB must stay as it is until ReadSums.
func (p *Peers) Read(b []byte, keys int, want Want) (int, error) {
	r := open(b)
	p.Key, p.Remote, p.Domain = p.Key[:0], p.Remote[:0], p.Domain[:0]
	p.Conns, p.Sent, p.Received = p.Conns[:0], p.Sent[:0], p.Received[:0]
	for _, c := range []struct {
		want bool
		into *[]int64
	}{{want.Key, &p.Key}, {want.Remote, &p.Remote}, {want.Domain, &p.Domain}} {
		if c.want {
			*c.into = read(&r, *c.into, nil)
		} else {
			r.next()
		}
	}
	p.rest = r
	if r.err != nil {
		return 0, r.err
	}
	var key int64
	for i, delta := range p.Key {
		// Each of them is less than 2^63: the sum of two is negative if it is too great.
		if key += delta; key < 0 || key >= int64(keys) {
			return 0, ErrFormat
		}
		p.Key[i] = key
	}
	return r.n, nil
}

// ReadSums is that of Actors.
func (p *Peers) ReadSums(groups []int32) error {
	p.Conns = read(&p.rest, p.Conns, groups)
	p.Sent = read(&p.rest, p.Sent, groups)
	p.Received = read(&p.rest, p.Received, groups)
	return p.rest.err
}

// Entries are the rows of both BLOBs of a segment.
func Entries(actors, peers []byte) ([]Entry, error) {
	var a Actors
	if err := a.Read(actors); err != nil {
		return nil, err
	}
	var p Peers
	n, err := p.Read(peers, len(a.Actor), Want{Key: true, Remote: true, Domain: true})
	if err != nil {
		return nil, err
	}
	if err := p.ReadSums(nil); err != nil {
		return nil, err
	}
	all := make([]Entry, n)
	for i, k := range p.Key {
		all[i] = Entry{a.Actor[k], a.Port[k], p.Remote[i], p.Domain[i], Sum{p.Conns[i], p.Sent[i], p.Received[i]}}
	}
	return all, nil
}
