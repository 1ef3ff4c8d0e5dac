package kernel

import "time"

// A datagram flow has no opening of its own: its first datagram counts as its connection. For the first peer of a socket the
// kernel knows; for the others the table is emptied at every drain, so that the memory is here.

const (
	datagramsMax  = 16384           // flows remembered; beyond, a flow may count as opened again
	datagramsIdle = 3 * time.Minute // as conntrack's timeout of an assured UDP flow (nf_conntrack-sysctl: udp_timeout_stream, 120 s) with room
)

type datagrams struct {
	seen map[bpfFlowKey]time.Time
}

func newDatagrams() *datagrams { return &datagrams{seen: map[bpfFlowKey]time.Time{}} }

// first reports whether the flow was not seen lately. How its peer is known and who began do not make it another flow.
func (d *datagrams) first(k *bpfFlowKey, now time.Time) bool {
	flow := *k
	flow.Peer, flow.Direction = 0, 0
	last, known := d.seen[flow]
	if !known && len(d.seen) >= datagramsMax {
		for key, at := range d.seen {
			if now.Sub(at) > datagramsIdle {
				delete(d.seen, key)
			}
		}
		if len(d.seen) >= datagramsMax {
			clear(d.seen)
		}
	}
	d.seen[flow] = now
	return !known || now.Sub(last) > datagramsIdle
}

func isDatagram(k *bpfFlowKey) bool {
	const tcp, mptcp = 6, 262
	return k.Protocol != tcp && k.Protocol != mptcp
}
