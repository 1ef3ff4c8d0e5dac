// Package links says which network interface of this machine a flow goes over, and whether it leaves the machine and its local network. It
// belongs to the recorder's wing. It asks the kernel for interfaces, addresses and routes (rtnetlink(7)), which needs no right, and sends
// nothing. What it cannot see: a socket bound to a device (SO_BINDTODEVICE) or routed by a mark, if it has no local address of
// its own, counts for the interface that the plain route to the remote address names.
package links

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"syscall"
	"time"
)

const (
	refreshEvery = 10 * time.Second
	missEvery    = time.Second // between two refreshes because of an address that is not known
	keepFor      = 5 * time.Minute
	restFor      = 50 // times what a refresh took: it holds the stream up
	maxRoutes    = 1 << 12
	maxAddresses = 1 << 12
	maxApart     = 1 << 12
)

// Place is where a flow goes.
type Place struct {
	Interface string // "": not known
	Machine   bool   // it does not leave this machine
	Local     bool   // it does not leave the local network: private, link-local and multicast addresses, and the IPv6 network of an interface
	// Carried is true for a socket in another network namespace whose network is a program of this machine (slirp4netns, pasta): what
	// it moves is moved once more, by that program.
	Carried bool
}

// Links knows the interfaces. It is not safe for concurrent use.
type Links struct {
	netns     uint32
	addresses map[netip.Addr]own // kept for keepFor when they go: what went over them may still be on its way here
	networks  []netip.Prefix     // of IPv6, that an interface is on
	routes    map[netip.Addr]route
	apart     map[uint32]bool // other network namespaces: carried
	refreshed time.Time
	rest      time.Duration // after it
	now       func() time.Time
	ask       func(netip.Addr) (route, error)
	list      func() (map[netip.Addr]string, []netip.Prefix, error)
	err       error
}

// own is an address of this machine.
type own struct {
	link string
	seen time.Time
}

// route is how this machine would send to an address.
type route struct {
	link  string
	here  bool // it is an address of this machine
	plain bool // without a gateway: the neighbour itself
}

// Open looks at the interfaces of the network namespace that it runs in.
func Open() (*Links, error) {
	st, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("find out the network namespace: %w", err)
	}
	l := newLinks(uint32(st.Sys().(*syscall.Stat_t).Ino))
	l.list, l.ask = list, ask
	l.refresh()
	return l, l.Err()
}

func newLinks(netns uint32) *Links {
	return &Links{netns: netns, addresses: make(map[netip.Addr]own), routes: make(map[netip.Addr]route), apart: make(map[uint32]bool), now: time.Now}
}

// Err is what went wrong since it was last asked.
func (l *Links) Err() error {
	err := l.err
	l.err = nil
	return err
}

// Special reports whether an address is one of this machine itself, or one that no router of the Internet passes on.
func Special(a netip.Addr) (machine, local bool) {
	a = a.Unmap()
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10) // RFC 6598: also overlay networks
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsLoopback(), a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a == broadcast || a.Is4() && shared.Contains(a)
}

// Of says where a flow between two addresses goes, whose socket is in a network namespace (0: not known). An address that is not
// valid or not specified is not known.
func (l *Links) Of(netns uint32, local, remote netip.Addr) Place {
	if now := l.now(); now.Sub(l.refreshed) >= max(refreshEvery, l.rest) || now.Before(l.refreshed) {
		l.refresh()
	}
	local, remote = clean(local), clean(remote)
	apart := netns != 0 && netns != l.netns
	var p Place
	if remote.IsValid() {
		p.Machine, p.Local = Special(remote)
		p.Machine = p.Machine || remote == local || l.here(remote)
		for _, n := range l.networks {
			p.Local = p.Local || n.Contains(remote)
		}
	}
	if p.Machine {
		return Place{Machine: true}
	}
	if local.IsValid() && !apart {
		if p.Interface = l.link(local); p.Interface != "" {
			return p
		}
	}
	if remote.IsValid() {
		p.Interface = l.route(remote).link
	}
	if apart {
		p.Carried = l.carried(netns, local)
	}
	return p
}

// carried reports whether a program carries what a network namespace moves. The address of a container is a neighbour of this machine, if
// the kernel itself passes its packets on. A socket without an address is like the others of its namespace; before there was one, it is not
// carried: rather twice than not at all.
func (l *Links) carried(netns uint32, local netip.Addr) bool {
	if !local.IsValid() {
		return l.apart[netns]
	}
	r := l.route(local)
	if len(l.apart) >= maxApart {
		clear(l.apart)
	}
	l.apart[netns] = r.here || !r.plain
	return l.apart[netns]
}

// clean makes what is no address of a host invalid.
func clean(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.IsValid() && a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// here reports whether it is an address of this machine.
func (l *Links) here(a netip.Addr) bool {
	_, ok := l.addresses[a]
	return ok
}

// link is the interface with an address; it may be newer than what is known.
func (l *Links) link(a netip.Addr) string {
	if o, ok := l.addresses[a]; ok {
		return o.link
	}
	if l.now().Sub(l.refreshed) >= max(missEvery, l.rest) {
		l.refresh()
	}
	return l.addresses[a].link
}

func (l *Links) route(a netip.Addr) route {
	if r, ok := l.routes[a]; ok {
		return r
	}
	if len(l.routes) >= maxRoutes {
		clear(l.routes)
	}
	r, err := l.ask(a)
	if err != nil && !errors.Is(err, errNoRoute) {
		l.err = err
	}
	l.routes[a] = r
	return r
}

func (l *Links) refresh() {
	begin := l.now()
	clear(l.routes)
	addresses, networks, err := l.list()
	l.refreshed = l.now()
	l.rest = restFor * l.refreshed.Sub(begin)
	if err != nil {
		l.err = fmt.Errorf("list the network interfaces: %w", err)
		return
	}
	if len(l.addresses) > maxAddresses {
		clear(l.addresses)
	}
	// An address that is long gone may be another machine's.
	maps.DeleteFunc(l.addresses, func(_ netip.Addr, o own) bool { return l.refreshed.Sub(o.seen) > keepFor })
	for a, name := range addresses {
		l.addresses[a] = own{name, l.refreshed}
	}
	l.networks = networks
}
