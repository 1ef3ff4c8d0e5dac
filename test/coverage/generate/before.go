package main

import (
	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// Scenarios whose sockets are open before the monitor starts: the stage holds in between. Their names begin
// with "before-": the test starts them first. Only what moves after the hold is claimed.

// early moves its bytes over a connection that was used before.
func early(r *role) {
	var fd int
	direction := "out"
	if r.p.Addr == "" {
		l, at := listen(r)
		r.ready(at.String())
		fd, direction = accept(l), "in"
	} else {
		fd = dial(r)
	}
	// Both ends have sent and received, and the client leaves bytes of the server's in its queue.
	const before, queued = 100_000, 5000
	if direction == "out" {
		sendStream(fd, "", before)
		takeExactly(fd, before)
	} else {
		takeExactly(fd, before)
		sendStream(fd, "", before+queued)
	}
	at := endsOf(fd)
	r.ready("used")
	r.await()
	sent, received := exchange(fd, r.p)
	// Who opened the connection cannot be seen any more, and it was not opened while the monitor ran.
	r.add(claim.Claim{Protocol: "tcp", Local: at.local.String(), Remote: at.remote.String(), Sent: sent, Received: received, Conns: claim.NotStated})
}

// takeExactly receives n bytes and leaves the rest.
func takeExactly(fd, n int) {
	buf := make([]byte, chunk)
	for n > 0 {
		got, err := again(func() (int, error) { return recv(fd, buf[:min(n, chunk)], 0) })
		check("receive", err)
		n -= got
	}
}

func beforeScenarios() []scenario {
	connection := func(p param) func(*stage) {
		return func(s *stage) {
			srv := s.start("gen-server", "early", p)
			q := p
			q.Addr = srv.ready()
			cl := s.start("gen-client", "early", q)
			cl.ready()
			srv.ready()
			s.hold()
			cl.release()
			srv.release()
			s.take(cl, srv)
		}
	}
	return []scenario{
		{"before-tcp", connection(param{Bytes: 3 * mega, Duplex: true})},
		{"before-tcp6", connection(param{Family: unix.AF_INET6, Bytes: mega, Duplex: true})},
		{"before-tcp-splice", connection(param{Bytes: mega, Duplex: true, Recv: "splice"})},
		{"before-listener", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{Bytes: 2 * mega})
			at := srv.ready()
			s.hold()
			s.take(s.start("gen-client", "stream-client", param{Addr: at, Bytes: mega}), srv)
		}},
		{"before-udp", func(s *stage) {
			const count, size = 400, 500
			srv := s.start("gen-server", "udp-recv", param{Expect: count * size})
			cl := s.start("gen-client", "udp-held", param{Count: count, Size: size, Peers: []string{srv.ready()}})
			cl.ready()
			s.hold()
			cl.release()
			for _, c := range append(cl.wait(), srv.wait()...) {
				c.Direction, c.Conns = "", claim.NotStated
				s.claims = append(s.claims, c)
			}
		}},
		{"before-exec", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{})
			cl := s.start("gen-client", "exec-first", param{Addr: srv.ready(), Next: s.copy("gen-next"), Gate: true})
			s.hold()
			cl.release()
			s.take(cl, srv)
		}},
	}
}

// udpHeld opens and connects its socket before the hold.
func udpHeld(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	check("connect", unix.Connect(fd, sockaddr(parse(r.p.Peers[0]))))
	b := marked(localOf(fd), r.p.Size)
	r.ready("open")
	r.await()
	var sent uint64
	for range r.p.Count {
		n, err := again(func() (int, error) { return sendto(fd, b, 0) })
		check("send", err)
		sent += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Remote: r.p.Peers[0], Sent: sent, Conns: claim.NotStated})
}
