package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Scenarios of sockets whose option memory (net.core.optmem_max) is used up before their first use: what a monitor
// would like to attach to such a socket finds no room.

// fillOptions uses all option memory of an IPv6 socket up, by memberships in groups on loopback. One membership with a
// source takes some 240 bytes; what is left then takes memberships without.
func fillOptions(fd int) {
	const most = 1 << 20 // far beyond any optmem_max that this is run with
	joined := 0
	for i := range most {
		err := joinSource(fd, i)
		switch err {
		case 0:
			joined++
		case unix.ENOBUFS: // the group found room, its list of sources did not
		case unix.ENOMEM:
			if joined == 0 {
				lack("option memory has no room for one membership")
			}
			return
		case unix.ENODEV, unix.EADDRNOTAVAIL, unix.ENOPROTOOPT:
			lack("IPv6 multicast on loopback", err.Error())
		default:
			check("join group", err)
		}
	}
	fail("fill option memory", fmt.Errorf("still room after %d memberships", most))
}

// joinSource joins the i-th group, with one source.
func joinSource(fd, i int) syscall.Errno {
	// struct group_source_req of linux/in.h: the interface, and two addresses at a multiple of 8.
	const storage = 128
	b := make([]byte, 8+2*storage)
	binary.NativeEndian.PutUint32(b, loopbackIndex)
	group := [16]byte{0: 0xff, 1: 0x3e, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}
	copy(b[8:], rawName(netip.AddrPortFrom(netip.AddrFrom16(group), 0)))
	copy(b[8+storage:], rawName(loopback(unix.AF_INET6, 0)))
	const joinSourceGroup = 46 // MCAST_JOIN_SOURCE_GROUP
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_IPV6, joinSourceGroup, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
	return errno
}

func fullScenarios() []scenario {
	const v6 = unix.AF_INET6
	var all []scenario
	for _, way := range []string{"recv-1000", "splice", "mixed"} {
		all = append(all,
			scenario{"tcp6-no-storage-" + way, streamPair(
				param{Family: v6, Full: true, Recv: way, Bytes: 5000}, param{Family: v6, Bytes: 100 * 1000})},
			scenario{"tcp6-no-storage-listener-" + way, streamPair(
				param{Family: v6, Count: 3, Bytes: 100 * 1000}, param{Family: v6, Full: true, Count: 3, Recv: way, Bytes: 5000})})
	}
	return append(all,
		scenario{"tcp6-no-storage-one-by-one", reuse("one-by-one", param{Family: v6, Full: true, Send: "send"}, 0)},
		scenario{"tcp6-no-storage-reconnect", reuse("reconnect", param{Family: v6, Full: true, Send: "send"}, 0)},
		scenario{"tcp6-no-storage-reset-behind-data", func(s *stage) {
			// The reader is the client here: a listener's children have option memory of their own.
			srv := s.start("gen-server", "reset-sender", param{Family: v6, Bytes: 1000})
			cl := s.start("gen-client", "reset-reader", param{Family: v6, Full: true, Addr: srv.ready(), Bytes: 1000, Size: 300})
			cl.ready()
			srv.release()
			s.take(cl, srv)
		}},
		scenario{"tcp6-no-storage-no-byte", streamPair(param{Family: v6, Full: true, Count: 3}, param{Family: v6, Count: 3})},
		scenario{"udp6-no-storage", func(s *stage) {
			var echoes []*actor
			ping := param{Family: v6, Full: true, Count: 100, Size: 100}
			for i := range 2 {
				e := s.start("gen-server", "udp-echo", param{Family: v6, Expect: 100 * 100 * (i + 1)})
				echoes = append(echoes, e)
				ping.Peers = append(ping.Peers, e.ready())
			}
			s.take(s.start("gen-client", "udp-ping", ping))
			s.take(echoes...)
		}},
		scenario{"udp6-no-storage-send", func(s *stage) {
			a := s.start("gen-server", "udp-recv", param{Family: v6, Expect: 100 * 1000})
			b := s.start("gen-server", "udp-recv", param{Family: v6, Expect: 100 * 1000})
			s.take(s.start("gen-client", "udp-send", param{Family: v6, Full: true, Count: 100, Size: 1000, Peers: []string{a.ready(), b.ready()}}), a, b)
		}},
		scenario{"udp6-no-storage-connected", udpPair(
			param{Family: v6, Full: true, Connect: true, Count: 100, Size: 1000}, param{Family: v6, Full: true})})
}
