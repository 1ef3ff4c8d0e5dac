package main

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// Scenarios for the stress tests: many bytes, many connections, many flows, for a bounded time. Their claims are sums
// over all flows of a program. `generate list` leaves them out.

// hammerSend sends small datagrams as fast as it can over a few connected sockets, inherited or its own, with many
// threads on each.
func hammerSend(r *role) {
	var sent [4]atomic.Uint64
	var wait sync.WaitGroup
	end := time.Now().Add(time.Duration(r.p.Seconds) * time.Second)
	for i := range sent {
		to := parse(r.p.Peers[i%len(r.p.Peers)])
		fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
		check("connect", unix.Connect(fd, sockaddr(to)))
		for range max(r.p.Count, 1) {
			wait.Go(func() {
				b := make([]byte, r.p.Size)
				for n := 0; n%64 != 0 || time.Now().Before(end); n++ {
					w, err := again(func() (int, error) { return sendto(fd, b, 0) })
					check("send", err)
					sent[i].Add(uint64(w))
				}
			})
		}
	}
	wait.Wait()
	c := claim.Claim{Protocol: "udp", Conns: claim.NotStated}
	for i := range sent {
		c.Sent += sent[i].Load()
	}
	r.add(c)
}

// hammerRecv receives from all until the stage says that nobody sends any more, and what is queued then. What the queue
// had no room for was never received and is not claimed.
func hammerRecv(r *role) {
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	room(fd)
	r.ready(bindTo(fd, r.p.Family, "").String())
	var over atomic.Bool
	go func() {
		r.await()
		over.Store(true)
	}()
	tv := unix.NsecToTimeval(int64(100 * time.Millisecond))
	check("set timeout", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	buf := make([]byte, 2048)
	var received uint64
	for {
		last := over.Load()
		n, err := again(func() (int, error) { return recv(fd, buf, 0) })
		if err == unix.EAGAIN {
			if last {
				break
			}
			continue
		}
		check("receive", err)
		received += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Received: received, Conns: claim.NotStated})
}

// steady sends over one connection at a steady pace and tells its progress on standard error, as "progress TIME BYTES"
// with the time in ns since 1970.
func steady(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	b := make([]byte, 4096)
	var sent uint64
	end := time.Now().Add(time.Duration(r.p.Seconds) * time.Second)
	for n := 0; time.Now().Before(end); n++ {
		w, err := again(func() (int, error) { return sendto(fd, b, 0) })
		check("send", err)
		sent += uint64(w)
		if n%16 == 0 {
			fmt.Fprintf(os.Stderr, "progress %d %d\n", time.Now().UnixNano(), sent)
		}
		time.Sleep(2 * time.Millisecond)
	}
	check("shut down", unix.Shutdown(fd, unix.SHUT_WR))
	recvStream(fd, "")
	r.stream(at, "out", sent, 0, 1)
}

// stormAddress spreads connections over many loopback addresses, each of which has its own ports to give away.
func stormAddress(port uint16, i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8 & 63), byte(i)}), port)
}

// stormClient makes connections at a pace, or as fast as it can if that is less, for a bounded number and time.
func stormClient(r *role) {
	const threads, pace = 8, 10 * time.Millisecond
	port := parse(r.p.Addr).Port()
	var sent, received atomic.Uint64
	var taken, made atomic.Int64
	start := time.Now()
	var wait sync.WaitGroup
	for range threads {
		wait.Go(func() {
			request, answer := make([]byte, 100), make([]byte, 256)
			for {
				i := int(taken.Add(1)) - 1
				if i >= r.p.Count {
					return
				}
				if r.p.Seconds > 0 {
					all := time.Duration(r.p.Seconds) * time.Second
					due := start.Add(all * time.Duration(i) / time.Duration(r.p.Count)).Truncate(pace)
					if time.Since(start) > all {
						return // behind the pace: the reached rate is told
					}
					time.Sleep(time.Until(due))
				}
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				check("open socket", err)
				check("connect", retry(func() error { return unix.Connect(fd, sockaddr(stormAddress(port, i))) }))
				n, err := again(func() (int, error) { return sendto(fd, request, 0) })
				check("send", err)
				sent.Add(uint64(n))
				for got := 0; got < r.p.Size; {
					n, err := again(func() (int, error) { return recv(fd, answer, 0) })
					check("receive", err)
					if n == 0 {
						fail("receive", fmt.Errorf("early end"))
					}
					got += n
					received.Add(uint64(n))
				}
				unix.Close(fd)
				made.Add(1)
			}
		})
	}
	wait.Wait()
	took := time.Since(start)
	fmt.Fprintf(os.Stderr, "rate %d connections in %v, %.0f a second\n", made.Load(), took.Round(time.Millisecond), float64(made.Load())/took.Seconds())
	r.add(claim.Claim{Protocol: "tcp", Direction: "out", Sent: sent.Load(), Received: received.Load(), Conns: int(made.Load())})
}

// stormServer answers until the stage stops it.
func stormServer(r *role) {
	r.p.Addr = "0.0.0.0:0"
	l, at := listen(r)
	check("listen", unix.Listen(l, 4096))
	forever := unix.Timeval{}
	check("set timeout", unix.SetsockoptTimeval(l, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &forever))
	r.ready(at.String())
	go func() {
		r.await()
		if r.p.Size == 0 {
			time.Sleep(time.Second) // clients that want no answer are done before they are accepted
		}
		check("stop listening", unix.Shutdown(l, unix.SHUT_RD))
	}()
	var sent, received atomic.Uint64
	var conns atomic.Int64
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			request, answer := make([]byte, 256), make([]byte, r.p.Size)
			for {
				fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
				if err == unix.EINTR {
					continue
				}
				if err == unix.EINVAL {
					return
				}
				check("accept", err)
				conns.Add(1)
				for got := 0; got < 100; {
					n, err := again(func() (int, error) { return recv(fd, request, 0) })
					check("receive", err)
					if n == 0 {
						break
					}
					got += n
					received.Add(uint64(n))
				}
				if len(answer) > 0 {
					n, err := again(func() (int, error) { return sendto(fd, answer, unix.MSG_NOSIGNAL) })
					check("send", err)
					sent.Add(uint64(n))
				}
				unix.Close(fd)
			}
		})
	}
	wait.Wait()
	r.add(claim.Claim{Protocol: "tcp", Direction: "in", Sent: sent.Load(), Received: received.Load(), Conns: int(conns.Load())})
}

// peerAddress numbers closed ports on loopback.
func peerAddress(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 9, byte(i >> 8), byte(i)}), uint16(20_000+i>>16))
}

// stormPeers sends one datagram to each of Count peers over one socket.
func stormPeers(r *role) {
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	b := make([]byte, r.p.Size)
	start := time.Now()
	var sent uint64
	for i := range r.p.Count {
		n, err := again(sendDatagram(fd, param{}, b, peerAddress(i)))
		check("send", err)
		sent += uint64(n)
	}
	fmt.Fprintf(os.Stderr, "rate %d flows in %v\n", r.p.Count, time.Since(start).Round(time.Millisecond))
	r.add(claim.Claim{Protocol: "udp", Sent: sent, Conns: claim.NotStated})
}

// stormSockets sends one datagram over each of Count sockets to a peer of its own.
func stormSockets(r *role) {
	b := make([]byte, r.p.Size)
	start := time.Now()
	var sent uint64
	for i := range r.p.Count {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		check("open socket", err)
		check("connect", unix.Connect(fd, sockaddr(peerAddress(i))))
		n, err := again(func() (int, error) { return sendto(fd, b, 0) })
		check("send", err)
		sent += uint64(n)
		unix.Close(fd)
	}
	fmt.Fprintf(os.Stderr, "rate %d flows in %v\n", r.p.Count, time.Since(start).Round(time.Millisecond))
	r.add(claim.Claim{Protocol: "udp", Sent: sent, Conns: claim.NotStated})
}

func stressScenarios() []scenario {
	storm := func(number, seconds, answer int) func(*stage) {
		return func(s *stage) {
			srv := s.start("gen-server", "storm-server", param{Size: answer})
			s.take(s.start("gen-client", "storm-client", param{Addr: srv.ready(), Count: number, Seconds: seconds, Size: answer}))
			srv.release()
			s.take(srv)
			if made, met := s.claims[0].Conns, s.claims[1].Conns; made != met {
				fail("storm", fmt.Errorf("%d connections made, %d accepted", made, met))
			}
		}
	}
	// The first descriptor of a sender's own sockets is shared by its threads; the shared socket of two programs is
	// process-two-on-one-socket of the coverage suite, many times over.
	hammer := func(s *stage) {
		var servers, senders []*actor
		var peers []string
		for i := range 2 {
			srv := s.start("gen-server-"+strconv.Itoa(i), "hammer-recv", param{})
			servers = append(servers, srv)
			peers = append(peers, srv.ready())
		}
		for i := range 3 {
			senders = append(senders, s.start("gen-client-"+strconv.Itoa(i), "hammer-send", param{Peers: peers, Size: 64, Count: 2, Seconds: 6}))
		}
		for i := range 2 {
			s.copy("gen-child-" + strconv.Itoa(i))
		}
		for range 3 {
			s.take(s.start("gen-parent", "shared-parent", param{Peers: peers, Size: 64, Count: 150_000}))
		}
		s.take(senders...)
		for _, srv := range servers {
			srv.release()
		}
		s.take(servers...)
		// The children claim their peer; a sum over all is compared here.
		for i := range s.claims {
			s.claims[i].Remote = ""
		}
	}
	return []scenario{
		{"stress-hammer", hammer},
		{"stress-steady", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{})
			s.take(s.start("gen-client", "steady", param{Addr: srv.ready(), Seconds: 12}), srv)
		}},
		{"stress-200000-connections", storm(200_000, 10, 0)},
		{"stress-30000-exchanges", storm(30_000, 6, 200)},
		{"stress-2000-connections", storm(2000, 0, 200)},
		{"stress-250000-peers", func(s *stage) {
			s.take(s.start("gen-client", "storm-peers", param{Count: 250_000, Size: 64}))
		}},
		{"stress-250000-sockets", func(s *stage) {
			var all []*actor
			for i := range 2 {
				all = append(all, s.start("gen-client-"+strconv.Itoa(i), "storm-sockets", param{Count: 125_000, Size: 64 + i}))
			}
			s.take(all...)
		}},
	}
}
