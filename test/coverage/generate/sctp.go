package main

import (
	"fmt"
	"syscall"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// sctpExact receives n bytes: SCTP has no half-closed connections that would tell the end.
func sctpExact(fd, n int) uint64 {
	buf := make([]byte, chunk)
	var received uint64
	for received < uint64(n) {
		got, err := again(func() (int, error) { return recv(fd, buf, 0) })
		check("receive", err)
		if got == 0 {
			fail("receive", fmt.Errorf("the end after %d of %d bytes", received, n))
		}
		received += uint64(got)
	}
	return received
}

func sctpClient(r *role) {
	r.p.Proto = unix.IPPROTO_SCTP
	fd := dial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "send", r.p.Bytes)
	r.stream(at, "out", sent, sctpExact(fd, r.p.Expect), 1)
	unix.Close(fd)
}

func sctpServer(r *role) {
	r.p.Proto = unix.IPPROTO_SCTP
	l, own := listen(r)
	r.ready(own.String())
	fd := accept(l)
	at := endsOf(fd)
	received := sctpExact(fd, r.p.Expect)
	sent := sendStream(fd, "send", r.p.Bytes)
	r.stream(at, "in", sent, received, 1)
	unix.Close(fd)
}

const manyLimit = "SCTP one-to-many: the address comes from the packets, so it may come without the port, and the first messages may have none"

// SCTP's other style (RFC 6458, 3.1): one socket, many peers, messages with a name.

// sctpManyServer receives until it has Expect bytes.
func sctpManyServer(r *role) {
	r.p.Proto = unix.IPPROTO_SCTP
	fd := open(r.p.Family, unix.SOCK_SEQPACKET, r.p.Proto)
	at := bindTo(fd, r.p.Family, r.p.Addr)
	check("listen", unix.Listen(fd, 16))
	r.ready(at.String())
	buf := make([]byte, 64<<10)
	total, remote := uint64(0), ""
	for total < uint64(r.p.Expect) {
		n, sa, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		check("receive", err)
		total += uint64(n)
		remote = addrPort(sa).String()
	}
	r.add(claim.Claim{Protocol: "sctp", Local: at.String(), Remote: remote, Received: total, Conns: claim.NotStated, Vague: true, Portless: true, Limit: manyLimit})
}

// sctpMany sends Count messages to each peer over one socket.
func sctpMany(r *role) {
	r.p.Proto = unix.IPPROTO_SCTP
	fd := open(r.p.Family, unix.SOCK_SEQPACKET, r.p.Proto)
	from := bindTo(fd, r.p.Family, "")
	b := make([]byte, r.p.Size)
	sent := make([]uint64, len(r.p.Peers))
	for range r.p.Count {
		for i, p := range r.p.Peers {
			for {
				err := unix.Sendto(fd, b, 0, sockaddr(parse(p)))
				if err == syscall.EINTR {
					continue
				}
				check("send", err)
				break
			}
			sent[i] += uint64(len(b))
		}
	}
	for i, p := range r.p.Peers {
		r.add(claim.Claim{Protocol: "sctp", Local: from.String(), Remote: p, Sent: sent[i], Conns: claim.NotStated, Vague: true, Portless: true, Limit: manyLimit})
	}
	r.ready("sent")
	r.await()
}

func sctpScenarios() []scenario {
	var all []scenario
	for _, f := range families() {
		for name, bytes := range map[string][2]int{"up": {mega, 0}, "down": {0, mega}, "both": {mega, mega}} {
			all = append(all, scenario{"sctp" + f.suffix + "-" + name, func(s *stage) {
				srv := s.start("gen-server", "sctp-server", param{Family: f.family, Expect: bytes[0], Bytes: bytes[1]})
				s.take(s.start("gen-client", "sctp-client", param{Family: f.family, Addr: srv.ready(), Bytes: bytes[0], Expect: bytes[1]}), srv)
			}})
		}
		all = append(all,
			scenario{"sctp" + f.suffix + "-one-to-many", func(s *stage) {
				const peers, count, size = 3, 50, 1000
				var servers []*actor
				client := param{Family: f.family, Count: count, Size: size}
				for range peers {
					srv := s.start("gen-server", "sctp-many-server", param{Family: f.family, Expect: count * size})
					client.Peers = append(client.Peers, srv.ready())
					servers = append(servers, srv)
				}
				cl := s.start("gen-client", "sctp-many", client)
				cl.ready()
				s.take(servers...)
				cl.release()
				s.take(cl)
			}})
	}
	return all
}
