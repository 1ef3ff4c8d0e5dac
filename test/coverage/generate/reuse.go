package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Scenarios of one socket that has several lives: connect(2) with AF_UNSPEC ends a connection and keeps the socket.

// disconnect ends the connection of a socket. The peer of a stream is told by a reset.
func disconnect(fd int) {
	name := make([]byte, 16) // a struct sockaddr of AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
	if errno != 0 {
		check("disconnect", errno)
	}
}

// recvUntilReset receives until the end of the stream or a reset.
func recvUntilReset(fd, size int) uint64 {
	buf := make([]byte, size)
	var got uint64
	for {
		n, err := again(func() (int, error) { return recv(fd, buf, 0) })
		if err != nil && err != unix.ECONNRESET && err != unix.EPIPE {
			check("receive", err)
		}
		if n <= 0 || err != nil {
			return got
		}
		got += uint64(n)
	}
}

// exactServer serves Count connections one after the other: it sends Bytes, receives Expect, sends Size, and waits for
// the end or a reset.
func exactServer(r *role) {
	l, own := listen(r)
	r.ready(own.String())
	for range r.p.Count {
		fd := accept(l)
		at := endsOf(fd)
		sent := sendStream(fd, "send", r.p.Bytes)
		received := recvPart(fd, r.p.Expect)
		sent += sendStream(fd, "send", r.p.Size)
		received += recvUntilReset(fd, chunk)
		r.stream(at, "in", sent, received, 1)
		unix.Close(fd)
	}
	unix.Close(l)
}

// recvPart receives n bytes, or less when a reset comes before them.
func recvPart(fd, n int) uint64 {
	buf := make([]byte, chunk)
	var got uint64
	for got < uint64(n) {
		w, err := again(func() (int, error) { return recv(fd, buf[:min(uint64(n)-got, chunk)], 0) })
		if err == unix.ECONNRESET || err == nil && w == 0 {
			break
		}
		check("receive", err)
		got += uint64(w)
	}
	return got
}

// reconnect uses one socket for a connection to each of its peers in turn. It leaves Size bytes of each unread.
func reconnect(r *role) {
	fd := r.open(unix.SOCK_STREAM)
	for _, p := range r.p.Peers {
		check("connect", retry(func() error { return unix.Connect(fd, sockaddr(parse(p))) }))
		at := endsOf(fd)
		if r.p.Size > 0 {
			waitQueued(fd, r.p.Expect+r.p.Size)
		}
		takeExactly(fd, r.p.Expect)
		sent := sendStream(fd, r.p.Send, r.p.Bytes)
		r.stream(at, "out", sent, uint64(r.p.Expect), 1)
		disconnect(fd)
	}
	unix.Close(fd)
}

// oneByOne uses a socket for each of its peers and closes it before it opens the next, which may get its place in memory.
func oneByOne(r *role) {
	for _, p := range r.p.Peers {
		fd := r.open(unix.SOCK_STREAM)
		check("connect", retry(func() error { return unix.Connect(fd, sockaddr(parse(p))) }))
		at := endsOf(fd)
		takeExactly(fd, r.p.Expect)
		sent := sendStream(fd, r.p.Send, r.p.Bytes)
		r.stream(at, "out", sent, uint64(r.p.Expect), 1)
		unix.Close(fd)
	}
}

// listenAfterConnect listens on a socket that was a connection before. The children of a listener inherit from it.
func listenAfterConnect(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "send", r.p.Bytes)
	// The peer says that it has all: a disconnect throws away what is queued.
	takeExactly(fd, 1)
	r.stream(at, "out", sent, 1, 1)
	disconnect(fd)
	own := bindTo(fd, r.p.Family, "")
	check("listen", unix.Listen(fd, 16))
	r.ready(own.String())
	for range r.p.Count {
		c := accept(fd)
		at := endsOf(c)
		received := recvStream(c, "recv")
		r.stream(at, "in", 0, received, 1)
		unix.Close(c)
	}
	unix.Close(fd)
}

// reuse plays seven connections of one role to three servers, each of which sends what the role takes and more that it
// leaves unread.
func reuse(role string, p param, unread int) func(*stage) {
	return func(s *stage) {
		order := []int{0, 0, 1, 2, 0, 0, 1}
		counts := make([]int, 3)
		for _, i := range order {
			counts[i]++
		}
		p := p
		p.Bytes, p.Expect, p.Size = 300, 500, unread
		var servers []*actor
		var at []string
		for i, n := range counts {
			srv := s.start(fmt.Sprintf("gen-server-%d", i), "exact-server", param{Family: p.Family, Proto: p.Proto, Count: n, Bytes: p.Expect + unread, Expect: p.Bytes})
			servers, at = append(servers, srv), append(at, srv.ready())
		}
		for _, i := range order {
			p.Peers = append(p.Peers, at[i])
		}
		s.take(s.start("gen-client", role, p))
		s.take(servers...)
	}
}

func reuseScenarios() []scenario {
	var all []scenario
	for _, f := range families() {
		p := param{Family: f.family, Send: "send"}
		spliced, multipath := p, p
		spliced.Send, multipath.Proto = "splice", unix.IPPROTO_MPTCP
		all = append(all,
			scenario{"tcp" + f.suffix + "-one-by-one", reuse("one-by-one", p, 0)},
			scenario{"tcp" + f.suffix + "-reconnect", reuse("reconnect", p, 0)},
			scenario{"tcp" + f.suffix + "-reconnect-splice", reuse("reconnect", spliced, 0)},
			scenario{"tcp" + f.suffix + "-reconnect-unread", reuse("reconnect", p, 200)},
			scenario{"mptcp" + f.suffix + "-reconnect", reuse("reconnect", multipath, 0)},
			scenario{"tcp" + f.suffix + "-listen-after-connect", func(s *stage) {
				const before, count = 100_000, 10
				srv := s.start("gen-server", "exact-server", param{Family: f.family, Count: 1, Expect: before, Size: 1})
				both := s.start("gen-both", "listen-after-connect", param{Family: f.family, Addr: srv.ready(), Bytes: before, Count: count})
				s.take(s.start("gen-client", "stream-client", param{Family: f.family, Addr: both.ready(), Count: count, Bytes: 100}))
				s.take(both, srv)
			}})
	}
	return all
}
