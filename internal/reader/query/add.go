package query

import (
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// adder adds up segments, a column at a time: a year of hours is ten million rows, and every branch in their way is seen.
type adder struct {
	p      *plan
	r      *result
	a      rollup.Actors
	b      rollup.Peers
	keys   []int32 // where the sums of an actor and port belong; -1: they do not pass
	groups []int32 // the same of every row
}

// segment adds up a segment of an interval. Of the two BLOBs, one that is not needed is nil.
func (d *adder) segment(interval int, actors, peers []byte) error {
	p := d.p
	some := actors == nil
	if actors != nil {
		if err := d.a.Read(actors); err != nil {
			return err
		}
		d.keys = d.keys[:0]
		for i, actor := range d.a.Actor {
			g := p.groupOfActor(actor, d.a.Port[i])
			if some = some || g >= 0; g >= 0 {
				g = d.r.place(g)
			}
			d.keys = append(d.keys, int32(g))
		}
	}
	if !some {
		return nil
	}
	sums := d.r.interval(interval, len(p.groups.values))
	if peers == nil {
		addUp(sums, d.keys, d.a.Conns, d.a.Sent, d.a.Received)
		return nil
	}
	n, err := d.b.Read(peers, len(d.keys), rollup.Want{Key: actors != nil, Remote: p.remote != nil, Domain: p.domain != nil})
	if err != nil {
		return err
	}
	d.groups = d.groups[:0]
	if actors == nil {
		d.groups = append(d.groups, make([]int32, n)...)
	} else {
		for _, k := range d.b.Key {
			d.groups = append(d.groups, d.keys[k])
		}
	}
	some = d.peers(p.remote, d.b.Remote, p.by == Address || p.by == Country)
	some = d.peers(p.domain, d.b.Domain, p.by == Domain) && some
	if !some {
		return nil
	}
	if err := d.b.ReadSums(); err != nil {
		return err
	}
	addUp(sums, d.groups, d.b.Conns, d.b.Sent, d.b.Received)
	return nil
}

// peers takes out of the groups what does not pass, and puts what passes into the groups of what is asked for. It reports whether there may
// be something left.
func (d *adder) peers(of slots, ids []int64, asked bool) bool {
	if of == nil {
		return true
	}
	groups := d.groups[:len(ids)]
	left := int32(0)
	if !asked {
		for i, id := range ids {
			// 0 where it passes, else -1: without a branch.
			miss := of.at(id) - 1
			groups[i] |= miss
			left |= ^groups[i]
		}
		return left < 0
	}
	for i, id := range ids {
		slot := of.at(id)
		if groups[i] < 0 || slot == 0 {
			groups[i] = -1
			continue
		}
		groups[i] = int32(d.r.place(int(slot) - 1))
		left = -1
	}
	return left < 0
}

// addUp adds the rows of which the group is not negative.
func addUp(sums []Sum, groups []int32, conns, sent, received []uint64) {
	n := len(groups)
	conns, sent, received = conns[:n], sent[:n], received[:n]
	for i, g := range groups {
		if g >= 0 {
			sums[g].Add(Sum{Conns: conns[i], Sent: sent[i], Received: received[i]})
		}
	}
}
