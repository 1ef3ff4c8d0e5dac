package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// echoRequest is an ICMP echo request of n bytes. The kernel sums ICMPv6 and ping sockets itself.
func echoRequest(family, n int, id, seq uint16) []byte {
	b := make([]byte, n)
	b[0] = 8
	if family == unix.AF_INET6 {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	if family == unix.AF_INET {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// onlyReplies lets a raw ICMP socket receive echo replies only: loopback shows it its own requests too.
func onlyReplies(fd, family int) {
	if family == unix.AF_INET {
		const icmpFilter = 1 // linux/icmp.h
		check("set filter", unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^(1<<0)))
		return
	}
	filter := unix.ICMPv6Filter{}
	for i := range filter.Data {
		filter.Data[i] = ^uint32(0)
	}
	filter.Data[129/32] &^= 1 << (129 % 32)
	check("set filter", unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter))
}

// icmp pings over a raw socket and receives the replies. Over IPv4 they come with the IP header.
func icmp(r *role) {
	r.p.Proto = unix.IPPROTO_ICMP
	if r.p.Family == unix.AF_INET6 {
		r.p.Proto = unix.IPPROTO_ICMPV6
	}
	fd := open(r.p.Family, unix.SOCK_RAW, r.p.Proto)
	onlyReplies(fd, r.p.Family)
	room(fd)
	pingOver(r, fd)
}

// ping does the same over a ping socket (SOCK_DGRAM), which needs no rights but the group range.
func ping(r *role) {
	r.p.Proto = unix.IPPROTO_ICMP
	if r.p.Family == unix.AF_INET6 {
		r.p.Proto = unix.IPPROTO_ICMPV6
	}
	pingOver(r, open(r.p.Family, unix.SOCK_DGRAM, r.p.Proto))
}

func pingOver(r *role, fd int) {
	to := loopback(r.p.Family, 0)
	if r.p.Addr != "" {
		to = netip.AddrPortFrom(parse(r.p.Addr).Addr(), 0)
	}
	id := uint16(os.Getpid())
	if r.p.Connect {
		check("connect", unix.Connect(fd, sockaddr(to)))
	}
	var sent, received uint64
	buf := make([]byte, 4096)
	for i := range r.p.Count {
		b := echoRequest(r.p.Family, r.p.Size, id, uint16(i))
		if r.p.Connect {
			n, err := sendto(fd, b, 0)
			check("send", err)
			sent += uint64(n)
		} else {
			check("send", unix.Sendto(fd, b, 0, sockaddr(to)))
			sent += uint64(len(b))
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		check("receive", err)
		received += uint64(n)
	}
	r.add(claim.Claim{Protocol: protocol(r.p.Proto), Remote: to.Addr().String(), Sent: sent, Received: received, Conns: claim.NotStated, Vague: r.p.Vague})
}

// rawSend sends payloads of an IP protocol of its own.
func rawSend(r *role) {
	fd := open(r.p.Family, unix.SOCK_RAW, r.p.Proto)
	to := netip.AddrPortFrom(parse(r.p.Addr).Addr(), 0)
	if r.p.Connect {
		check("connect", unix.Connect(fd, sockaddr(to)))
	}
	var sent uint64
	b := make([]byte, r.p.Size)
	for range r.p.Count {
		if r.p.Connect {
			n, err := sendto(fd, b, 0)
			check("send", err)
			sent += uint64(n)
			continue
		}
		check("send", unix.Sendto(fd, b, 0, sockaddr(to)))
		sent += uint64(len(b))
	}
	r.add(claim.Claim{Protocol: protocol(r.p.Proto), Remote: to.Addr().String(), Sent: sent, Conns: claim.NotStated, Vague: r.p.Vague})
}

// rawRecv receives Count packets. Over IPv4 each has its IP header (raw(7)).
func rawRecv(r *role) {
	fd := open(r.p.Family, unix.SOCK_RAW, r.p.Proto)
	room(fd)
	at := loopback(r.p.Family, 0).String()
	if r.p.Addr != "" {
		at = r.p.Addr
	}
	r.ready(at)
	buf := make([]byte, 64<<10)
	var received uint64
	var from netip.AddrPort
	for range r.p.Count {
		n, sa, err := unix.Recvfrom(fd, buf, 0)
		check("receive", err)
		received += uint64(n)
		from = addrPort(sa)
	}
	r.add(claim.Claim{Protocol: protocol(r.p.Proto), Remote: from.Addr().String(), Received: received, Conns: claim.NotStated, Vague: r.p.Vague})
}

func rawScenarios() []scenario {
	var all []scenario
	for _, f := range families() {
		// The hooks that see packets come on when such a socket shows up: its first packets may be without their address.
		p := param{Family: f.family, Count: 200, Size: 1000, Vague: true}
		connected := p
		connected.Connect = true
		for name, q := range map[string]param{"": p, "-connected": connected} {
			all = append(all,
				scenario{"icmp" + f.suffix + name, func(s *stage) { s.take(s.start("gen-client", "icmp", q)) }},
				scenario{"ping" + f.suffix + name, func(s *stage) {
					ownNamespace(nil)
					check("allow ping sockets", os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0))
					s.take(s.start("gen-client", "ping", q))
				}},
				scenario{fmt.Sprintf("raw%s-253%s", f.suffix, name), func(s *stage) {
					q := q
					q.Proto = 253
					srv := s.start("gen-server", "raw-recv", q)
					q.Addr = srv.ready()
					s.take(s.start("gen-client", "raw-send", q), srv)
				}})
		}
	}
	return all
}
