package main

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// udpErrors sends to a closed port over a connected socket and reads the error queue, whose echoes of its own
// datagrams are no traffic.
func udpErrors(r *role) {
	probe := open(r.p.Family, unix.SOCK_DGRAM, 0)
	to := bindTo(probe, r.p.Family, "")
	check("close probe", unix.Close(probe))
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	from := bindTo(fd, r.p.Family, "")
	check("connect", unix.Connect(fd, sockaddr(to)))
	check("ask for errors", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	var sent uint64
	buf, oob := marked(from, 500), make([]byte, 512)
	for range r.p.Count {
		if n, err := again(func() (int, error) { return sendto(fd, buf, 0) }); err == nil {
			sent += uint64(n)
		}
		for until := time.Now().Add(50 * time.Millisecond); time.Now().Before(until); {
			if _, _, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err == nil {
				break
			}
		}
	}
	r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: from.String(), Remote: to.String(), Sent: sent, Conns: 1})
}

// segment is the length of the datagrams that the kernel cuts a large one into.
const segment = 1200

// udpOption sends with an option of the socket or of the call: the bytes are those that the calls return.
func udpOption(r *role) {
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	from := bindTo(fd, r.p.Family, "")
	to := parse(r.p.Peers[0])
	if r.p.Connect {
		check("connect", unix.Connect(fd, sockaddr(to)))
	}
	b := marked(from, r.p.Size)
	if r.p.Send == "gso" {
		b = bytes.Repeat(marked(from, segment), r.p.Size/segment)
	}
	var sent uint64
	count := func(n int, err error) {
		check("send by "+r.p.Send, err)
		sent += uint64(n)
	}
	to1 := param{Send: "sendto", Connect: r.p.Connect}
	switch r.p.Send {
	case "gso":
		check("set GSO", unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment))
		for range r.p.Count {
			count(sendDatagram(fd, to1, b, to)())
		}
	case "more":
		for i := range r.p.Count {
			flags := unix.MSG_MORE
			if i%4 == 3 {
				flags = 0
			}
			if r.p.Connect {
				count(sendto(fd, b, flags))
			} else {
				count(unix.SendmsgN(fd, b, nil, sockaddr(to), flags))
			}
		}
	case "cork":
		for range r.p.Count / 4 {
			check("cork", unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_CORK, 1))
			for range 4 {
				count(sendDatagram(fd, to1, b, to)())
			}
			check("uncork", unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_CORK, 0))
		}
	case "sendfile":
		f := fileOf(len(b) * r.p.Count)
		for i := range r.p.Count {
			_, err := f.WriteAt(b, int64(i*len(b)))
			check("fill file", err)
		}
		for range r.p.Count {
			count(unix.Sendfile(fd, int(f.Fd()), nil, len(b)))
		}
	}
	r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: from.String(), Remote: to.String(), Sent: sent, Conns: 1})
}

// udpBetween begins a datagram to its peer, receives one from somebody else on the same socket, and ends its own without
// an address, or (Connect) with the other's, which the kernel ignores: a datagram has one address, its first.
func udpBetween(r *role) {
	const begin, rest = 1, 5000
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	from := bindTo(fd, r.p.Family, "")
	r.ready(from.String())
	to := parse(r.p.Peers[0])
	b := make([]byte, rest)
	copy(b, marked(from, 64))
	var sent, received uint64
	var other netip.AddrPort
	for range r.p.Count {
		n, err := unix.SendmsgN(fd, b[:begin], nil, sockaddr(to), unix.MSG_MORE)
		check("begin datagram", err)
		sent += uint64(n)
		r.ready("begun")
		buf := make([]byte, 2048)
		n, sa, err := unix.Recvfrom(fd, buf, 0)
		check("receive", err)
		received, other = received+uint64(n), addrPort(sa)
		var end unix.Sockaddr
		if r.p.Connect {
			end = sockaddr(other)
		}
		n, err = unix.SendmsgN(fd, b, nil, end, 0)
		check("end datagram", err)
		sent += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Local: from.String(), Remote: to.String(), Sent: sent, Conns: 1})
	r.add(claim.Claim{Protocol: "udp", Local: from.String(), Remote: other.String(), Received: received, Conns: 1})
}

// between plays udpBetween, a receiver, and one who sends in between.
func between(p param) func(*stage) {
	return func(s *stage) {
		const rounds = 4
		srv := s.start("gen-server", "udp-recv", param{Family: p.Family, Expect: rounds * 5001})
		p := p
		p.Peers, p.Count = []string{srv.ready()}, rounds
		cl := s.start("gen-client", "udp-between", p)
		at := cl.ready()
		other := s.start("gen-other", "udp-paced", param{Family: p.Family, Peers: []string{at}, Size: 700, Count: rounds})
		for range rounds {
			cl.ready()
			other.release()
		}
		s.take(cl, other, srv)
	}
}

// udpPaced sends a datagram each time the stage says so.
func udpPaced(r *role) {
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	from := bindTo(fd, r.p.Family, "")
	to := parse(r.p.Peers[0])
	each := sendDatagram(fd, r.p, marked(from, r.p.Size), to)
	var sent uint64
	for range r.p.Count {
		r.await()
		n, err := again(each)
		check("send", err)
		sent += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: from.String(), Remote: to.String(), Sent: sent, Conns: 1})
}

func udpOptionScenarios() []scenario {
	pair := func(send, recv param) func(*stage) {
		return func(s *stage) {
			recv := recv
			if recv.Expect == 0 {
				recv.Expect = send.Count * send.Size
			}
			srv := s.start("gen-server", "udp-recv", recv)
			send := send
			send.Peers = []string{srv.ready()}
			s.take(s.start("gen-client", "udp-option", send), srv)
		}
	}
	v6 := func(p param) param { p.Family = unix.AF_INET6; return p }
	gso := param{Send: "gso", Count: 50, Size: 48_000}
	more := param{Send: "more", Count: 200, Size: 300}
	cork := param{Send: "cork", Count: 200, Size: 300}
	connected := func(p param) param { p.Connect = true; return p }
	return []scenario{
		{"udp-gso", pair(gso, param{})},
		{"udp-gso-connected", pair(connected(gso), param{Recv: "recv"})},
		{"udp6-gso-gro", pair(v6(gso), v6(param{Recv: "gro"}))},
		{"udp-gro", pair(gso, param{Recv: "gro"})},
		{"udp-more", pair(more, param{})},
		{"udp6-more", pair(v6(more), v6(param{}))},
		{"udp-more-connected", pair(connected(more), param{Recv: "recv"})},
		{"udp-cork", pair(cork, param{})},
		{"udp-sendfile", pair(connected(param{Send: "sendfile", Count: 20, Size: 1000}), param{Recv: "recv"})},
		{"udp6-sendfile", pair(v6(connected(param{Send: "sendfile", Count: 20, Size: 1000})), v6(param{Recv: "recv"}))},
		{"udp-cork-between", between(param{})},
		{"udp6-cork-between", between(v6(param{}))},
		{"udp-cork-between-named", between(param{Connect: true})},
		{"udp6-cork-between-named", between(v6(param{Connect: true}))},
		{"udp-truncated", pair(param{Send: "more", Count: 400, Size: 300}, param{Recv: "small", Size: 80, Expect: 100 * 80})},
		{"udp-error-queue", func(s *stage) { s.take(s.start("gen-client", "udp-errors", param{Count: 50})) }},
		{"udp-no-address-batch", func(s *stage) {
			const count = 100
			srv := s.start("gen-server", "udp-recv", param{Recv: "recv", Wait: true, Expect: count * (100 + 200 + 300)})
			at := srv.ready()
			for i := range 3 {
				s.take(s.start("gen-client", "udp-send", param{Peers: []string{at}, Count: count, Size: 100 * (i + 1)}))
			}
			srv.release()
			sum := claim.Claim{}
			for _, c := range srv.wait() {
				received := sum.Received + c.Received
				sum = c
				sum.Received = received
			}
			// Three peers queued before the first recv(2) without an address: the sum is right, the split is not.
			sum.Remote, sum.Conns = "", claim.NotStated
			sum.Limit = "recv without an address, several peers queued: right in total, not by peer"
			sum.Expect = &claim.Bytes{Received: sum.Received}
			s.claims = append(s.claims, sum)
		}},
	}
}
