package query

import (
	"context"
	"errors"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// part is a segment to be added to the sums of an interval. Of the two BLOBs, one that is not needed is nil.
type part struct {
	interval      int
	actors, peers []byte
}

// Several processors add up what one reads, when there is so much of it that it is worth it.
const (
	maxAdders    = 4
	manySegments = 200
)

// addAll adds up n segments that a function reads.
func (p *plan) addAll(ctx context.Context, r *result, n int, read func(ctx context.Context, add func(part) error) error) error {
	adders := min(maxAdders, runtime.GOMAXPROCS(0))
	if adders < 2 || n < manySegments {
		d := adder{p: p, r: r}
		return read(ctx, d.add)
	}
	all := make([]result, adders)
	parts := make(chan part, 4*adders) // the reader's; adders take from it until it is closed
	work, ctx := errgroup.WithContext(ctx)
	for i := range all {
		all[i] = result{width: r.width, series: r.series, rest: r.rest, apart: r.apart}
		work.Go(func() error {
			d := adder{p: p, r: &all[i]}
			for x := range parts {
				if err := d.add(x); err != nil {
					return err
				}
			}
			return nil
		})
	}
	work.Go(func() error {
		defer close(parts)
		return read(ctx, func(x part) error {
			select {
			case parts <- x:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	if err := work.Wait(); err != nil {
		return err
	}
	for i := range all {
		r.merge(&all[i])
	}
	return nil
}

// adder adds up segments, a column at a time: a year of hours is ten million rows, and every branch in their way is seen.
type adder struct {
	p      *plan
	r      *result
	a      rollup.Actors
	b      rollup.Peers
	keys   []int32 // where the sums of an actor and port belong; -1: they do not pass
	groups []int32 // the same of every row
	ports  []int32 // group of a port + 2; 0: not known yet
}

func (d *adder) add(x part) error {
	if err := d.segment(x.interval, x.actors, x.peers); err != nil {
		return errors.Join(errDamaged, err)
	}
	return nil
}

func (d *adder) segment(interval int, actors, peers []byte) error {
	p := d.p
	ofPeers := p.by == Address || p.by == Country || p.by == Domain
	some := actors == nil
	if actors != nil {
		if err := d.a.Read(actors); err != nil {
			return err
		}
		d.keys = d.keys[:0]
		for i, actor := range d.a.Actor {
			g := p.groupOfActor(actor, d.a.Port[i], d.groupOfPort)
			if g >= 0 && !ofPeers {
				g = d.r.place(g)
			}
			some = some || g >= 0
			d.keys = append(d.keys, int32(g))
		}
	}
	if !some {
		return nil
	}
	sums, total := d.r.interval(interval, p.size())
	if peers == nil {
		if err := d.a.ReadSums(d.keys); err != nil {
			return err
		}
		addUp(sums, total, d.keys, d.a.Conns, d.a.Sent, d.a.Received)
		return nil
	}
	n, err := d.b.Read(peers, len(d.keys), rollup.Want{Key: actors != nil, Remote: p.remote != nil, Domain: p.domain != nil})
	if err != nil {
		return err
	}
	d.groups = slices.Grow(d.groups[:0], n)[:n]
	clear(d.groups)
	for i, k := range d.b.Key {
		d.groups[i] = d.keys[k]
	}
	some = d.peers(p.remote, d.b.Remote, p.by == Address || p.by == Country)
	some = d.peers(p.domain, d.b.Domain, p.by == Domain) && some
	if !some {
		return nil
	}
	if err := d.b.ReadSums(d.groups); err != nil {
		return err
	}
	addUp(sums, total, d.groups, d.b.Conns, d.b.Sent, d.b.Received)
	return nil
}

// groupOfPort is the plan's, without waiting for the others.
func (d *adder) groupOfPort(port int64) int {
	if port < 0 || port > math.MaxUint16 {
		return d.p.groupOfPort(port)
	}
	if d.ports == nil {
		d.ports = make([]int32, math.MaxUint16+1)
	}
	known := &d.ports[port]
	if *known == 0 {
		*known = int32(d.p.groupOfPort(port)) + 2
	}
	return int(*known) - 2
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
		left |= ^groups[i]
	}
	return left < 0
}

// addUp adds the rows of which the group is not negative, and all of them together to the total if there is one.
func addUp(sums []Sum, total *Sum, groups []int32, conns, sent, received []uint64) {
	n := len(groups)
	conns, sent, received = conns[:n], sent[:n], received[:n]
	if total == nil {
		total = new(Sum)
	}
	for i, g := range groups {
		if g >= 0 {
			sum := Sum{Conns: conns[i], Sent: sent[i], Received: received[i]}
			sums[g].Add(sum)
			total.Add(sum)
		}
	}
}
