package main

import (
	"fmt"
	"os"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// refused connects to ports where nobody listens.
func refused(r *role) {
	for range max(r.p.Count, 1) {
		probe, at := listen(r)
		check("close probe", unix.Close(probe))
		fd := open(r.p.Family, unix.SOCK_STREAM, r.p.Proto)
		if err := retry(func() error { return unix.Connect(fd, sockaddr(at)) }); err != unix.ECONNREFUSED {
			fail("connect", fmt.Errorf("got %v, not a refusal", err))
		}
		unix.Close(fd)
		r.add(claim.Claim{Protocol: protocol(r.p.Proto), Direction: "out", Remote: at.String(), Conns: 1})
	}
}

// unread accepts and closes without reading.
func unread(r *role) {
	l, at := listen(r)
	r.ready(at.String())
	fd := accept(l)
	peer := remoteOf(fd)
	r.await()
	r.add(claim.Claim{Protocol: "tcp", Direction: "in", Local: at.String(), Remote: peer.String(), Conns: 1})
	unix.Close(fd)
	unix.Close(l)
}

// selfConnect connects a socket to itself (simultaneous open): it receives what it sends.
func selfConnect(r *role) {
	fd := open(r.p.Family, unix.SOCK_STREAM, r.p.Proto)
	at := bindTo(fd, r.p.Family, "")
	check("connect", retry(func() error { return unix.Connect(fd, sockaddr(at)) }))
	sent, received := exchange(fd, param{Bytes: 100_000, Duplex: true})
	r.add(claim.Claim{Protocol: "tcp", Local: at.String(), Remote: at.String(), Sent: sent, Received: received, Conns: claim.NotStated})
	unix.Close(fd)
}

// tfoClient sends its bytes with the SYN, when it has the cookie.
func tfoClient(r *role) {
	buf := make([]byte, 500)
	for range r.p.Count {
		fd := open(r.p.Family, unix.SOCK_STREAM, r.p.Proto)
		to := parse(r.p.Addr)
		n, err := again(func() (int, error) {
			return unix.SendmsgN(fd, buf, nil, sockaddr(to), unix.MSG_FASTOPEN)
		})
		check("send with SYN", err)
		at := endsOf(fd)
		check("shut down", unix.Shutdown(fd, unix.SHUT_WR))
		received := recvStream(fd, "recv")
		r.stream(at, "out", uint64(n), received, 1)
		unix.Close(fd)
	}
}

func tfoServer(r *role) {
	// Both ends: 1 is the client's, 2 the server's right. The setting is the network namespace's own.
	check("allow fast open", os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("3"), 0))
	fd := open(r.p.Family, unix.SOCK_STREAM, r.p.Proto)
	at := bindTo(fd, r.p.Family, "")
	check("set fast open", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16))
	check("listen", unix.Listen(fd, 16))
	r.ready(at.String())
	for range r.p.Count {
		c := accept(fd)
		at := endsOf(c)
		got := recvStream(c, "recv")
		sent := sendStream(c, "send", r.p.Bytes)
		r.stream(at, "in", sent, got, 1)
		unix.Close(c)
	}
}

// urgentServer reads a stream with urgent bytes in it. The urgent byte is not in the normal stream; it is read
// with MSG_OOB.
func urgentServer(r *role) {
	l, at := listen(r)
	r.ready(at.String())
	fd := accept(l)
	peer := remoteOf(fd)
	var normal, urgent, pending uint64
	buf := make([]byte, 4096)
	for round := 0; round < r.p.Count; round++ {
		for got := 0; got < r.p.Size; {
			n, err := again(func() (int, error) { return recv(fd, buf[:r.p.Size-got], 0) })
			check("receive", err)
			got += n
			normal += uint64(n)
		}
		for until := time.Now().Add(patience()); ; {
			n, err := recv(fd, buf[:1], unix.MSG_OOB)
			if err == nil {
				urgent += uint64(n)
				break
			}
			if time.Now().After(until) {
				check("receive urgent byte", err)
			}
		}
		fmt.Println("ready round")
		r.await()
	}
	pending = 1 // the last urgent byte: the stream's position steps over it with the next normal byte
	c := claim.Claim{Protocol: "tcp", Direction: "in", Local: at.String(), Remote: peer.String(), Received: normal + urgent, Conns: 1}
	c.Limit = "MSG_OOB: the last urgent byte counts with the next normal one"
	c.Expect = &claim.Bytes{Received: c.Received - pending}
	r.add(c)
	unix.Close(fd)
}

func urgentClient(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	r.ready("connected")
	var sent uint64
	for range r.p.Count {
		sent += sendStream(fd, "send", r.p.Size)
		n, err := sendto(fd, []byte{1}, unix.MSG_OOB)
		check("send urgent byte", err)
		sent += uint64(n)
		r.await()
	}
	r.stream(at, "out", sent, 0, 1)
	r.await()
}

func connectionScenarios() []scenario {
	const small = 60
	return []scenario{
		{"tcp-60-connections", streamPair(param{Count: small, Bytes: 65_560}, param{Count: small, Bytes: 10})},
		{"tcp-30-parallel", streamPair(param{Count: 30, Bytes: 262_168, Duplex: true}, param{Count: 30, Bytes: 77, Duplex: true})},
		{"tcp6-60-connections", streamPair(param{Family: unix.AF_INET6, Count: small, Bytes: 600}, param{Family: unix.AF_INET6, Count: small, Bytes: 300})},
		{"tcp-no-byte", streamPair(param{Count: 5}, param{Count: 5})},
		{"tcp6-no-byte", streamPair(param{Family: unix.AF_INET6, Count: 5}, param{Family: unix.AF_INET6, Count: 5})},
		{"tcp-listener-shut-down", func(s *stage) {
			srv := s.start("gen-server", "stop-listening", param{Bytes: 500})
			s.take(s.start("gen-client", "stream-client", param{Addr: srv.ready(), Bytes: 700}), srv)
		}},
		{"tcp-mapped", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{Family: unix.AF_INET6, Addr: "[::]:0", Bytes: 50_000})
			at := loopback(unix.AF_INET, parse(srv.ready()).Port()).String()
			s.take(s.start("gen-client", "stream-client", param{Addr: at, Bytes: 60_000}), srv)
		}},
		{"tcp-mapped-client", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{Bytes: 50_000})
			s.take(s.start("gen-client", "stream-client", param{Family: unix.AF_INET6, Addr: mapped(srv.ready()), Bytes: 60_000}), srv)
		}},
		{"tcp-refused", func(s *stage) { s.take(s.start("gen-client", "refused", param{Count: 3})) }},
		{"tcp6-refused", func(s *stage) { s.take(s.start("gen-client", "refused", param{Family: unix.AF_INET6, Count: 3})) }},
		{"tcp-self", func(s *stage) { s.take(s.start("gen-client", "self", param{})) }},
		{"tcp-unread", func(s *stage) {
			srv := s.start("gen-server", "unread", param{})
			cl := s.start("gen-client", "detach", param{Addr: srv.ready(), Bytes: 30_000})
			cl.ready()
			s.take(cl)
			srv.release()
			s.take(srv)
		}},
		{"tcp-exit-with-queue", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{Wait: true})
			cl := s.start("gen-client", "detach", param{Addr: srv.ready(), Bytes: 2_621_440})
			cl.ready()
			srv.ready()
			s.take(cl)
			srv.release()
			s.take(srv)
		}},
		{"tcp-as-other-user", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{Bytes: 4000}, withUser(65534))
			cl := s.start("gen-client", "stream-client", param{Addr: srv.ready(), Bytes: 3000}, withUser(12345))
			s.take(cl, srv)
		}},
		{"tcp-fast-open", func(s *stage) {
			ownNamespace(nil)
			srv := s.start("gen-server", "tfo-server", param{Count: 3, Bytes: 700})
			cl := s.start("gen-client", "tfo-client", param{Addr: srv.ready(), Count: 3})
			s.take(cl, srv)
		}},
		{"tcp-urgent", func(s *stage) {
			const rounds = 10
			srv := s.start("gen-server", "urgent-server", param{Count: rounds, Size: 100})
			cl := s.start("gen-client", "urgent-client", param{Addr: srv.ready(), Count: rounds, Size: 100})
			cl.ready()
			for range rounds {
				srv.ready()
				cl.release()
				srv.release()
			}
			s.take(srv)
			cl.release()
			s.take(cl)
		}},
	}
}

// detach connects, sends all into a large queue and ends without waiting for anything.
func detach(r *role) {
	fd := open(r.p.Family, unix.SOCK_STREAM, r.p.Proto)
	check("set send buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20))
	check("connect", retry(func() error { return unix.Connect(fd, sockaddr(parse(r.p.Addr))) }))
	at := endsOf(fd)
	sent := sendStream(fd, "", r.p.Bytes)
	r.stream(at, "out", sent, 0, 1)
	r.ready("sent")
}

// stopListening serves one connection and shuts its listening socket down, which is not a connection.
func stopListening(r *role) {
	l, own := listen(r)
	r.ready(own.String())
	fd := accept(l)
	at := endsOf(fd)
	received := recvStream(fd, "")
	sent := sendStream(fd, "", r.p.Bytes)
	unix.Close(fd)
	check("shut down listener", unix.Shutdown(l, unix.SHUT_RDWR))
	unix.Close(l)
	r.stream(at, "in", sent, received, 1)
}
