package main

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// streamClient connects, sends its bytes and receives until the end.
func streamClient(r *role) {
	var wait sync.WaitGroup
	type result struct{ sent, received uint64 }
	n := max(r.p.Count, 1)
	fds := make([]int, n)
	results := make([]result, n)
	at := make([]ends, n)
	for i := range fds {
		fds[i] = dial(r)
		at[i] = endsOf(fds[i])
		if r.p.Wait {
			r.ready("connected")
			r.await()
		}
		run := func() {
			results[i].sent, results[i].received = exchange(fds[i], r.p)
		}
		if r.p.Duplex && n > 1 {
			wait.Go(run)
		} else {
			run()
		}
	}
	wait.Wait()
	r.hold()
	for i, fd := range fds {
		r.stream(at[i], "out", results[i].sent, results[i].received, 1)
		unix.Close(fd)
	}
}

// exchange sends and receives over one connection: at once if Duplex, else sends first.
func exchange(fd int, p param) (sent, received uint64) {
	send := func() {
		sent = sendStream(fd, p.Send, p.Bytes)
		check("shut down", unix.Shutdown(fd, unix.SHUT_WR))
	}
	if p.Duplex {
		var wait sync.WaitGroup
		wait.Go(send)
		received = recvStream(fd, p.Recv)
		wait.Wait()
		return sent, received
	}
	send()
	received = recvStream(fd, p.Recv)
	return sent, received
}

// streamServer accepts connections, receives until the end of each and sends its bytes.
func streamServer(r *role) {
	l, own := listen(r)
	r.ready(own.String())
	n := max(r.p.Count, 1)
	fds := make([]int, n)
	sent, received := make([]uint64, n), make([]uint64, n)
	at := make([]ends, n)
	var wait sync.WaitGroup
	for i := range fds {
		fds[i] = accept(l)
		at[i] = endsOf(fds[i])
		if r.p.Wait {
			r.ready("accepted")
			r.await()
		}
		wait.Go(func() {
			if r.p.Duplex {
				sent[i], received[i] = exchange(fds[i], r.p)
				return
			}
			received[i] = recvStream(fds[i], r.p.Recv)
			sent[i] = sendStream(fds[i], r.p.Send, r.p.Bytes)
			check("shut down", unix.Shutdown(fds[i], unix.SHUT_WR))
		})
	}
	wait.Wait()
	for i, fd := range fds {
		r.stream(at[i], "in", sent[i], received[i], 1)
		unix.Close(fd)
	}
	unix.Close(l)
}

const mega = 1 << 20

// streamPair plays a client and a server against each other.
func streamPair(client, server param) func(*stage) {
	return func(s *stage) {
		srv := s.start("gen-server", "stream-server", server)
		client := client
		client.Addr = srv.ready()
		cl := s.start("gen-client", "stream-client", client)
		s.take(cl, srv)
	}
}

func tcpScenarios() []scenario {
	var all []scenario
	for _, f := range families() {
		for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
			name := protocol(proto) + f.suffix
			p := param{Family: f.family, Proto: proto}
			up, down, duplex, idle := p, p, p, p
			up.Bytes, down.Bytes = 8*mega, 8*mega
			duplex.Bytes, duplex.Duplex = 6*mega, true
			all = append(all,
				scenario{name + "-up", streamPair(up, idle)},
				scenario{name + "-down", streamPair(idle, down)},
				scenario{name + "-duplex", streamPair(duplex, duplex)})
		}
	}
	sends := "writev send sendmsg sendmmsg more zerocopy sendfile splice vmsplice " +
		"uring-send uring-send-async uring-send-sqpoll uring-write uring-sendmsg uring-send-zc"
	for way := range strings.FieldsSeq(sends) {
		all = append(all, scenario{"tcp-by-" + way, streamPair(param{Send: way, Bytes: 4*mega + 123}, param{})})
	}
	all = append(all, scenario{"tcp-by-drip", streamPair(param{Send: "drip", Bytes: 64 << 10}, param{})})
	recvs := "readv recv recvfrom recvmsg recvmmsg waitall trunc peek splice mixed zerocopy " +
		"uring-recv uring-recv-async uring-recv-sqpoll uring-read uring-recvmsg uring-multishot"
	for way := range strings.FieldsSeq(recvs) {
		all = append(all, scenario{"tcp-to-" + way, streamPair(param{Recv: way}, param{Bytes: 4*mega + 321})})
	}
	for _, way := range []string{"sendfile", "splice", "vmsplice"} {
		all = append(all, scenario{"tcp6-by-" + way, streamPair(param{Family: unix.AF_INET6, Send: way, Bytes: mega + 123}, param{Family: unix.AF_INET6})})
	}
	for _, way := range []string{"splice", "mixed"} {
		all = append(all, scenario{"tcp6-to-" + way, streamPair(param{Family: unix.AF_INET6, Recv: way}, param{Family: unix.AF_INET6, Bytes: mega + 321})})
	}
	for _, way := range []string{"sendfile", "splice", "sendmsg"} {
		all = append(all, scenario{"mptcp-by-" + way, streamPair(param{Proto: unix.IPPROTO_MPTCP, Send: way, Bytes: mega}, param{Proto: unix.IPPROTO_MPTCP})})
	}
	for _, way := range []string{"splice", "recvmsg", "peek"} {
		all = append(all, scenario{"mptcp-to-" + way, streamPair(param{Proto: unix.IPPROTO_MPTCP, Recv: way}, param{Proto: unix.IPPROTO_MPTCP, Bytes: mega})})
	}
	return all
}

// family is an address family and how scenarios call it.
type family struct {
	family int
	suffix string
}

func families() []family {
	return []family{{unix.AF_INET, ""}, {unix.AF_INET6, "6"}}
}
