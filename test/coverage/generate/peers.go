package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// The 24 scenarios by which monitors of this kind are compared, by number. All but the one that is about loopback cross a
// pair of devices to a peer in a network namespace of its own.

// udpFeed waits for one datagram and sends Count datagrams back to where it came from.
func udpFeed(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	fd := r.open(unix.SOCK_DGRAM)
	at := bindTo(fd, r.p.Family, r.p.Addr)
	r.ready(at.String())
	buf := make([]byte, 2048)
	var received, sent uint64
	var from unix.Sockaddr
	n, err := again(func() (n int, err error) {
		n, from, err = unix.Recvfrom(fd, buf, 0)
		return n, err
	})
	check("receive", err)
	received += uint64(n)
	each := sendDatagram(fd, r.p, marked(at, r.p.Size), addrPort(from))
	for range r.p.Count {
		n, err := again(each)
		check("send", err)
		sent += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Direction: "in", Local: at.String(), Remote: addrPort(from).String(), Sent: sent, Received: received, Conns: 1})
}

// udpFetch asks a udpFeed for its datagrams.
func udpFetch(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	fd := r.open(unix.SOCK_DGRAM)
	room(fd)
	at := bindTo(fd, r.p.Family, r.p.Local)
	to := parse(r.p.Addr)
	const question = 24
	check("ask", unix.Sendto(fd, make([]byte, question), 0, sockaddr(to)))
	var received uint64
	next := recvDatagram(fd, r.p)
	for received < uint64(r.p.Expect) {
		n, _, err := next()
		if err == unix.EINTR {
			continue
		}
		check("receive", err)
		received += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: at.String(), Remote: to.String(), Sent: question, Received: received, Conns: 1})
}

// fetch plays a UDP download.
func fetch(family int, recv string) func(*stage) {
	return func(s *stage) {
		srv, addr := pair(s, param{Family: family, Next: "udp-feed", Count: 1000, Size: 1200})
		s.take(s.start("gen-client", "udp-fetch", param{Family: family, Addr: addr, Local: here(family), Recv: recv, Expect: 1000 * 1200}), srv)
	}
}

// datagrams plays a UDP upload to a port.
func datagrams(port, count, size int, way string) func(*stage) {
	parts := 1
	if way == "sendmmsg" {
		parts = 3
	}
	return overVeth(param{Count: count, Size: size, Send: way}, param{Port: port, Expect: count * size * parts}, true)
}

// manyPrograms plays processes that each open a connection, send a little and end.
func manyPrograms(s *stage) {
	const programs = 20
	srv, addr := pair(s, param{Count: programs})
	for range programs {
		s.take(s.start("gen-client", "stream-client", param{Addr: addr, Bytes: 64 << 10, Short: true}))
	}
	s.take(srv)
}

func peerScenarios() []scenario {
	up := func(way string) func(*stage) {
		return overVeth(param{Send: way, Bytes: 8 * mega}, param{}, false)
	}
	down := func(way string) func(*stage) {
		return overVeth(param{Recv: way}, param{Bytes: 8 * mega}, false)
	}
	both := param{Bytes: 6 * mega, Duplex: true}
	const v6 = unix.AF_INET6
	return []scenario{
		{"s01-tcp-down", down("")},
		{"s02-tcp-up", up("")},
		{"s03-tcp-duplex", overVeth(both, both, false)},
		{"s04-udp-both-ways", func(s *stage) {
			srv, addr := pair(s, param{Next: "udp-echo", Expect: 1000 * 1200})
			s.take(s.start("gen-client", "udp-ping", param{Peers: []string{addr}, Local: here(unix.AF_INET), Count: 1000, Size: 1200}), srv)
		}},
		{"s05-icmp-echo", func(s *stage) {
			srv, addr := pair(s, param{Next: "host"})
			s.take(s.start("gen-client", "icmp", param{Vague: true, Addr: addr, Count: 500, Size: 1000}))
			srv.release()
			s.take(srv)
		}},
		{"s06-udp-443", datagrams(443, 1000, 1200, "")},
		{"s07-tcp6", overVeth(param{Family: v6}, param{Family: v6, Bytes: 8 * mega}, false)},
		{"s08-sctp", func(s *stage) {
			srv, addr := pair(s, param{Next: "sctp", Bytes: 2 * mega, Expect: 2 * mega})
			s.take(s.start("gen-client", "sctp-client", param{Addr: addr, Bytes: 2 * mega, Expect: 2 * mega}), srv)
		}},
		{"s09-udp-53-small", datagrams(53, 2000, 64, "")},
		{"s10-raw-253", func(s *stage) {
			srv, addr := pair(s, param{Next: "raw", Vague: true, Proto: 253, Count: 500})
			s.take(s.start("gen-client", "raw-send", param{Vague: true, Proto: 253, Addr: addr, Count: 500, Size: 1000}), srv)
		}},
		{"s11-short-lived", manyPrograms},
		{"s12-af-packet", func(s *stage) {
			srv, _ := pair(s, param{Next: "packet", Recv: "raw", Count: 500})
			s.take(s.start("gen-client", "packet-send", param{Device: "here0", Send: "raw", Count: 500, Size: 1000}), srv)
		}},
		{"s13-io-uring-up", up("uring-send")},
		{"s14-sendfile", up("sendfile")},
		{"s15-sendmmsg", datagrams(0, 400, 1200, "sendmmsg")},
		{"s16-loopback", func(s *stage) {
			ownNamespace(nil)
			streamPair(param{Bytes: 8 * mega}, param{Bytes: 8 * mega})(s)
		}},
		{"s17-container", func(s *stage) {
			srv, addr := pair(s, param{})
			exe := fmt.Sprintf("/bin/contained-%d", os.Getpid())
			prepareContainer(s, exe)
			s.take(s.start("gen-engine", "container", param{Addr: addr, Bytes: 8 * mega, Exe: exe, Linger: true}, containerFlags()), srv)
		}},
		{"s18-drip", overVeth(param{Send: "drip", Bytes: 64 << 10}, param{}, false)},
		{"s19-many-connections", overVeth(param{Count: 60, Bytes: 64 << 10}, param{Count: 60}, false)},
		{"s20-parallel", overVeth(param{Count: 30, Duplex: true, Bytes: 256 << 10}, param{Count: 30}, false)},
		{"s21-io-uring-down", down("uring-recv")},
		{"s22-splice-down", down("splice")},
		{"s23-recvmmsg", fetch(unix.AF_INET, "recvmmsg-named")},
		{"s24-udp6", fetch(v6, "recvfrom")},
		{"tcp-paced", overVeth(param{Send: "paced", Bytes: 1_000_000}, param{}, false)}, // not one of the 24: for tools that need their time
	}
}

// containerFlags are the namespaces of a container, but for the network's, which is the stage's.
func containerFlags() option {
	return withFlags(syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | unix.CLONE_NEWCGROUP)
}
