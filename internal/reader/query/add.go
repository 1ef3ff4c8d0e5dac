package query

import (
	"errors"
	"math"
	"slices"

	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// adder adds up segments, a column at a time: a year of hours is ten million rows, and every branch in their way is seen.
type adder struct {
	p      *plan
	r      *result
	a      rollup.Actors
	b      rollup.Peers
	keys   []int32 // slot of an actor and port; 0: they do not pass
	slots  []int32 // the same of every row
	places []int32
	ports  []int32 // slot of a port + 1; 0: not known yet
}

// add adds a segment to an interval. Of the two BLOBs, one that is not needed is nil.
func (d *adder) add(interval int, actors, peers []byte) error {
	if err := d.segment(interval, actors, peers); err != nil {
		return errors.Join(errDamaged, err)
	}
	return nil
}

func (d *adder) segment(interval int, actors, peers []byte) error {
	if actors != nil {
		if err := d.a.Read(actors); err != nil {
			return err
		}
		if d.keysOf(); !slices.ContainsFunc(d.keys, func(slot int32) bool { return slot != 0 }) {
			return nil
		}
	}
	if peers == nil {
		d.slots = append(d.slots[:0], d.keys...)
		d.choose()
		if err := d.a.ReadSums(d.slots); err != nil {
			return err
		}
		d.sums(interval, d.a.Conns, d.a.Sent, d.a.Received)
		return nil
	}
	n, err := d.b.Read(peers, len(d.keys), rollup.Want{Key: actors != nil, Remote: d.p.remote != nil, Domain: d.p.domain != nil})
	if err != nil {
		return err
	}
	d.slots = slices.Grow(d.slots[:0], n)[:n]
	if actors == nil {
		for i := range d.slots {
			d.slots[i] = 1
		}
	} else {
		for i, k := range d.b.Key[:n] {
			d.slots[i] = d.keys[k]
		}
	}
	// What passes a filter first, so that what is asked for is looked up of the rest only.
	some := d.peers(d.p.remote, d.b.Remote)
	if some = d.peers(d.p.domain, d.b.Domain) && some; !some {
		return nil
	}
	d.choose()
	if err := d.b.ReadSums(d.slots); err != nil {
		return err
	}
	d.sums(interval, d.b.Conns, d.b.Sent, d.b.Received)
	return nil
}

// keysOf looks up actors and ports.
func (d *adder) keysOf() {
	p := d.p
	d.keys = slices.Grow(d.keys[:0], len(d.a.Actor))[:len(d.a.Actor)]
	for i, actor := range d.a.Actor {
		slot := int32(1)
		if p.actor != nil {
			slot = p.actor.at(actor)
		}
		d.keys[i] = slot
	}
	if !p.needPorts() {
		return
	}
	for i, port := range d.a.Port[:len(d.keys)] {
		if slot := d.slotOfPort(port); slot == 0 || (p.by == Port && d.keys[i] != 0) {
			d.keys[i] = slot
		}
	}
}

// slotOfPort is the plan's, without waiting for the others.
func (d *adder) slotOfPort(port int64) int32 {
	if port < 0 || port > math.MaxUint16 {
		return d.p.slotOfPort(port)
	}
	if d.ports == nil {
		d.ports = make([]int32, math.MaxUint16+1)
	}
	known := &d.ports[port]
	if *known == 0 {
		*known = d.p.slotOfPort(port) + 1
	}
	return *known - 1
}

// peers takes out of the slots what does not pass, and puts what passes into the slots of what is asked for, both without a branch. It reports
// whether there is something left.
func (d *adder) peers(of slots, ids []int64) bool {
	if of == nil {
		return true
	}
	all := d.slots[:len(ids)]
	left := int32(0)
	if d.p.asks(of) {
		for i, id := range ids {
			all[i] = of.at(id) & some(all[i])
			left |= all[i]
		}
	} else {
		for i, id := range ids {
			all[i] &= some(of.at(id))
			left |= all[i]
		}
	}
	return left != 0
}

// some is -1 for a slot and 0 for none.
func some(slot int32) int32 { return -slot >> 31 }

// choose turns slots into places where the sums of only some are wanted: then those of the others are not read.
func (d *adder) choose() {
	if d.r.width > 0 && !d.r.ranks && d.r.series != nil {
		for i, slot := range d.slots {
			d.slots[i] = d.r.place(slot)
		}
	}
}

// sums adds rows to what their slots, or their places, and an interval say.
func (d *adder) sums(interval int, conns, sent, received []uint64) {
	if !d.r.ranks {
		addUp(d.r.interval(interval), d.slots, conns, sent, received)
		return
	}
	addUp(d.r.bySlot(d.p.size()), d.slots, conns, sent, received)
	if d.r.width == 0 {
		return
	}
	d.places = slices.Grow(d.places[:0], len(d.slots))[:len(d.slots)]
	for i, slot := range d.slots {
		d.places[i] = d.r.place(slot)
	}
	addUp(d.r.interval(interval), d.places, conns, sent, received)
	for i, place := range d.places {
		if place != d.r.rest {
			continue
		}
		if !d.r.follows() {
			return
		}
		d.r.other(interval, d.slots[i], Sum{Conns: conns[i], Sent: sent[i], Received: received[i]}, false)
	}
}

// addUp adds rows. Of those of slot 0, anything may have been read: it is added to what nobody looks at, unless they are so many that a branch
// is foreseen.
func addUp(sums []Sum, slots []int32, conns, sent, received []uint64) {
	n := len(slots)
	conns, sent, received = conns[:n], sent[:n], received[:n]
	none := 0
	for _, g := range slots {
		none += int(1 + some(g))
	}
	if none > n-n/8 {
		for i, g := range slots {
			if g != 0 {
				sums[g].Add(Sum{Conns: conns[i], Sent: sent[i], Received: received[i]})
			}
		}
		return
	}
	for i, g := range slots {
		sums[g].Add(Sum{Conns: conns[i], Sent: sent[i], Received: received[i]})
	}
}
