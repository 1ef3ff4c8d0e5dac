package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/generate/ring"
	"golang.org/x/sys/unix"
)

// marked is a datagram that begins with its sender's address, for receivers that do not ask for it.
func marked(from netip.AddrPort, size int) []byte {
	b := make([]byte, max(size, 64))
	copy(b, from.String())
	return b
}

func markOf(b []byte) netip.AddrPort {
	return parse(string(b[:bytes.IndexByte(b, 0)]))
}

// rawName is the struct sockaddr of an address.
func rawName(a netip.AddrPort) []byte {
	var b []byte
	if a.Addr().Is4() {
		b = binary.NativeEndian.AppendUint16(b, unix.AF_INET)
		b = binary.BigEndian.AppendUint16(b, a.Port())
		return append(append(b, a.Addr().AsSlice()...), make([]byte, 8)...)
	}
	b = binary.NativeEndian.AppendUint16(b, unix.AF_INET6)
	b = binary.BigEndian.AppendUint16(b, a.Port())
	b = append(b, 0, 0, 0, 0)
	return append(append(b, a.Addr().AsSlice()...), make([]byte, 4)...)
}

// udpSend sends Count datagrams of Size bytes to each peer in the given way.
func udpSend(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	fd := r.open(unix.SOCK_DGRAM)
	from := bindTo(fd, r.p.Family, r.p.Local)
	for _, p := range r.p.Peers {
		to := parse(p)
		if r.p.Connect {
			check("connect", unix.Connect(fd, sockaddr(to)))
		}
		var sent uint64
		each := sendDatagram(fd, r.p, marked(from, r.p.Size), to)
		for range r.p.Count {
			n, err := again(each)
			check("send by "+r.p.Send, err)
			sent += uint64(n)
		}
		r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: from.String(), Remote: p, Sent: sent, Conns: 1})
	}
	r.hold()
	unix.Close(fd)
}

// sendDatagram returns the call that sends b once.
func sendDatagram(fd int, p param, b []byte, to netip.AddrPort) func() (int, error) {
	name := rawName(to)
	if p.Connect {
		name = nil
	}
	switch p.Send {
	case "", "sendto":
		return func() (int, error) {
			n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, uintptr(unsafe.Pointer(unsafe.SliceData(name))), uintptr(len(name)))
			if errno != 0 {
				return 0, errno
			}
			return int(n), nil
		}
	case "write":
		return func() (int, error) { return unix.Write(fd, b) }
	case "writev":
		return func() (int, error) { return unix.Writev(fd, halves(b)) }
	case "sendmsg":
		if p.Connect {
			return func() (int, error) { return unix.SendmsgN(fd, b, nil, nil, 0) }
		}
		return func() (int, error) { return unix.SendmsgN(fd, b, nil, sockaddr(to), 0) }
	case "sendmmsg":
		return func() (int, error) { return sendmmsg(fd, [][]byte{b, b, b}, name, 0) }
	case "uring":
		r := newRing(0)
		hdr, iov, buf := new(unix.Msghdr), new(unix.Iovec), area(len(b)+len(name)+1)
		copy(buf, b)
		iov.Base = &buf[0]
		iov.SetLen(len(b))
		hdr.Iov = iov
		hdr.SetIovlen(1)
		if name != nil {
			copy(buf[len(b):], name)
			hdr.Name, hdr.Namelen = &buf[len(b)], uint32(len(name))
		}
		return func() (int, error) {
			s := ring.Submission{Op: ring.OpSendmsg, Flags: ring.Async, FD: int32(fd), Addr: uint64(uintptr(unsafe.Pointer(hdr))), Len: 1}
			if err := r.Submit(s); err != nil {
				return 0, err
			}
			c := finished(r)
			runtime.KeepAlive(hdr)
			return int(c.Result), nil
		}
	}
	fail("send", fmt.Errorf("no way %q", p.Send))
	return nil
}

// udpRecv receives until it has Expect bytes, and counts by sender.
func udpRecv(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	fd := r.open(unix.SOCK_DGRAM)
	room(fd)
	at := bindTo(fd, r.p.Family, r.p.Addr)
	if r.p.Recv == "gro" {
		check("set GRO", unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1))
	}
	r.ready(at.String())
	if r.p.Wait {
		r.await()
	}
	total := make(map[netip.AddrPort]uint64)
	var order []netip.AddrPort
	next := recvDatagram(fd, r.p)
	for got := 0; got < r.p.Expect; {
		n, from, err := next()
		if err == unix.EINTR {
			continue
		}
		check("receive by "+r.p.Recv, err)
		if _, ok := total[from]; !ok {
			order = append(order, from)
		}
		total[from] += uint64(n)
		got += n
	}
	for _, from := range order {
		c := claim.Claim{Protocol: "udp", Direction: "in", Local: at.String(), Remote: from.String(), Received: total[from], Conns: 1}
		switch r.p.Recv {
		case "", "recvfrom", "recvmsg", "recvmmsg-named", "gro", "uring-recvmsg":
		default:
			// Without an address the peer comes from packets, which the monitor watches only when it has met such a reader.
			c.Vague, c.Conns = true, claim.NotStated
			c.Limit = "recv without an address: the first datagrams may have none"
		}
		r.add(c)
	}
	unix.Close(fd)
}

// recvDatagram returns the call that receives once and says from whom.
func recvDatagram(fd int, p param) func() (int, netip.AddrPort, error) {
	buf := make([]byte, 64<<10)
	plain := func(f func() (int, error)) func() (int, netip.AddrPort, error) {
		return func() (int, netip.AddrPort, error) {
			n, err := f()
			if err != nil {
				return n, netip.AddrPort{}, err
			}
			return n, markOf(buf), nil
		}
	}
	switch p.Recv {
	case "", "recvfrom":
		return func() (int, netip.AddrPort, error) {
			n, sa, err := unix.Recvfrom(fd, buf, 0)
			return n, addrPort(sa), err
		}
	case "recv":
		return plain(func() (int, error) { return recv(fd, buf, 0) })
	case "read":
		return plain(func() (int, error) { return unix.Read(fd, buf) })
	case "readv":
		return plain(func() (int, error) { return unix.Readv(fd, halves(buf)) })
	case "recvmsg", "gro":
		oob := make([]byte, 128)
		return func() (int, netip.AddrPort, error) {
			n, _, _, sa, err := unix.Recvmsg(fd, buf, oob, 0)
			return n, addrPort(sa), err
		}
	case "peek":
		return plain(func() (int, error) {
			if _, err := recv(fd, buf, unix.MSG_PEEK); err != nil {
				return 0, err
			}
			return recv(fd, buf, 0)
		})
	case "small":
		return plain(func() (int, error) { return recv(fd, buf[:p.Size], 0) })
	case "recvmmsg", "recvmmsg-named":
		parts := slices.Collect(slices.Chunk(buf, 2048))
		return plain(func() (int, error) {
			n, _, err := recvmmsg(fd, parts, unix.MSG_WAITFORONE, p.Recv == "recvmmsg-named")
			return n, err
		})
	case "uring-recv", "uring-recvmsg":
		r := newRing(0)
		mem := area(64 << 10)
		u, hdr, iov := uringWays()[p.Recv], new(unix.Msghdr), new(unix.Iovec)
		return func() (int, netip.AddrPort, error) {
			if err := r.Submit(u.submission(fd, mem, len(mem), hdr, iov)); err != nil {
				return 0, netip.AddrPort{}, err
			}
			c := finished(r)
			runtime.KeepAlive(iov)
			return int(c.Result), markOf(mem), nil
		}
	}
	fail("receive", fmt.Errorf("no way %q", p.Recv))
	return nil
}

// udpEcho sends every datagram back to where it came from.
func udpEcho(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	room(fd)
	at := bindTo(fd, r.p.Family, r.p.Addr)
	r.ready(at.String())
	total := make(map[netip.AddrPort]*claim.Claim)
	buf := make([]byte, 64<<10)
	for got := 0; got < r.p.Expect; {
		n, sa, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		check("receive", err)
		check("send back", unix.Sendto(fd, buf[:n], 0, sa))
		from := addrPort(sa)
		if total[from] == nil {
			total[from] = &claim.Claim{Protocol: "udp", Direction: "in", Local: at.String(), Remote: from.String(), Conns: 1}
		}
		total[from].Received += uint64(n)
		total[from].Sent += uint64(n)
		got += n
	}
	for _, c := range total {
		r.add(*c)
	}
}

// udpPing exchanges datagrams with each of its peers in turn, the i-th i times as large.
func udpPing(r *role) {
	fd := r.open(unix.SOCK_DGRAM)
	from := bindTo(fd, r.p.Family, r.p.Local)
	sent, received := make([]uint64, len(r.p.Peers)), make([]uint64, len(r.p.Peers))
	next := recvDatagram(fd, r.p)
	for range r.p.Count {
		for i, p := range r.p.Peers {
			b := marked(parse(p), r.p.Size*(i+1))
			check("send", unix.Sendto(fd, b, 0, sockaddr(parse(p))))
			sent[i] += uint64(len(b))
			n, _, err := next()
			check("receive", err)
			received[i] += uint64(n)
		}
	}
	for i, p := range r.p.Peers {
		r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: from.String(), Remote: p, Sent: sent[i], Received: received[i], Conns: 1, Vague: r.p.Recv == "recv"})
	}
}

// manyPeers sends over one socket from many threads, each to a peer of its own.
func manyPeers(r *role) {
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	from := bindTo(fd, r.p.Family, "")
	sent := make([]uint64, len(r.p.Peers))
	var wait sync.WaitGroup
	for i, p := range r.p.Peers {
		wait.Go(func() {
			runtime.LockOSThread()
			each := sendDatagram(fd, r.p, marked(from, r.p.Size*(i+1)), parse(p))
			for range r.p.Count {
				n, err := again(each)
				check("send", err)
				sent[i] += uint64(n)
			}
		})
	}
	wait.Wait()
	for i, p := range r.p.Peers {
		r.add(claim.Claim{Protocol: "udp", Direction: "out", Local: from.String(), Remote: p, Sent: sent[i], Conns: 1})
	}
}

// udpPair plays one sender and one receiver.
func udpPair(send, recv param) func(*stage) {
	return func(s *stage) {
		parts := 1
		if send.Send == "sendmmsg" {
			parts = 3
		}
		recv := recv
		if recv.Expect == 0 {
			recv.Expect = send.Count * send.Size * parts
		}
		srv := s.start("gen-server", "udp-recv", recv)
		send := send
		send.Peers = []string{srv.ready()}
		s.take(s.start("gen-client", "udp-send", send), srv)
	}
}

// closedPorts are addresses on loopback where nobody listens. Unconnected senders do not care.
func closedPorts(n int) []string {
	var all []string
	for i := range n {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 9, 0, 1}), uint16(20_000+i)).String())
	}
	return all
}

func udpScenarios() []scenario {
	var all []scenario
	for _, f := range families() {
		p := param{Family: f.family, Count: 300, Size: 1000}
		r := param{Family: f.family}
		for way := range strings.FieldsSeq("sendto sendmsg sendmmsg uring") {
			q := p
			q.Send = way
			all = append(all, scenario{"udp" + f.suffix + "-by-" + way, udpPair(q, r)})
		}
		for way := range strings.FieldsSeq("sendto write writev sendmsg sendmmsg uring") {
			q := p
			q.Send, q.Connect = way, true
			all = append(all, scenario{"udp" + f.suffix + "-connected-by-" + way, udpPair(q, r)})
		}
		for way := range strings.FieldsSeq("recv read readv recvmsg recvmmsg recvmmsg-named peek uring-recv uring-recvmsg") {
			q := r
			q.Recv = way
			all = append(all, scenario{"udp" + f.suffix + "-to-" + way, udpPair(p, q)})
		}
		for _, way := range []string{"recvfrom", "recv"} {
			all = append(all, scenario{"udp" + f.suffix + "-three-peers-" + way, func(s *stage) {
				var echoes []*actor
				ping := param{Family: f.family, Count: 100, Size: 100, Recv: way}
				for i := range 3 {
					e := s.start("gen-server", "udp-echo", param{Family: f.family, Expect: 100 * 100 * (i + 1)})
					echoes = append(echoes, e)
					ping.Peers = append(ping.Peers, e.ready())
				}
				s.take(s.start("gen-client", "udp-ping", ping))
				s.take(echoes...)
			}})
		}
	}
	return append(all,
		scenario{"udp-mapped", func(s *stage) {
			const count, size = 100, 700
			srv := s.start("gen-server", "udp-recv", param{Expect: count * size})
			to := mapped(srv.ready())
			s.take(s.start("gen-client", "udp-send", param{Family: unix.AF_INET6, Local: "[::ffff:127.0.0.1]:0", Peers: []string{to}, Count: count, Size: size}), srv)
		}},
		scenario{"udp-300-peers", func(s *stage) {
			s.take(s.start("gen-client", "udp-send", param{Count: 3, Size: 200, Peers: closedPorts(300)}))
		}},
		scenario{"udp-threads-one-socket", func(s *stage) {
			s.take(s.start("gen-client", "many-peers", param{Count: 2000, Size: 100, Peers: closedPorts(6)}))
		}},
		scenario{"udp-64-bytes", udpPair(param{Count: 20_000, Size: 64, Connect: true}, param{Recv: "recv"})})
}
