package main

import (
	"fmt"
	"unsafe"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// experimental is the EtherType that IEEE 802 gives to local experiments: nobody else's traffic has it.
const experimental = 0x88b5

func networkOrder(n uint16) uint16 { return n<<8 | n>>8 }

// loopbackIndex is the number of lo in every network namespace.
const loopbackIndex = 1

func packetAddress(device string) *unix.SockaddrLinklayer {
	a := &unix.SockaddrLinklayer{Protocol: networkOrder(experimental), Ifindex: loopbackIndex, Halen: 6}
	if device != "" {
		a.Ifindex = indexOf(device)
	}
	return a
}

func packetKind(way string) int {
	if way == "dgram" {
		return unix.SOCK_DGRAM
	}
	return unix.SOCK_RAW
}

// packetSend sends frames on lo. The count is what the calls return: frames, but for SOCK_DGRAM, which hands
// over the payload.
func packetSend(r *role) {
	fd := open(unix.AF_PACKET, packetKind(r.p.Send), 0)
	b := make([]byte, r.p.Size)
	to := packetAddress(r.p.Device)
	copy(b, "\xff\xff\xff\xff\xff\xff") // to everybody: another device would drop what is not for it
	b[12], b[13] = experimental>>8, experimental&0xff
	var sent uint64
	switch r.p.Send {
	case "ring":
		sent = packetRing(fd, b, r.p.Count)
	case "bypass", "raw", "dgram":
		if r.p.Send == "bypass" {
			check("bypass queue", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
		}
		for range r.p.Count {
			check("send", unix.Sendto(fd, b, 0, to))
			sent += uint64(len(b))
		}
	case "bound":
		check("bind", unix.Bind(fd, to))
		for range r.p.Count {
			n, err := unix.Write(fd, b)
			check("write", err)
			sent += uint64(n)
		}
	default:
		fail("send", fmt.Errorf("no way %q", r.p.Send))
	}
	r.add(claim.Claim{Family: "packet", Sent: sent, Conns: claim.NotStated})
	unix.Close(fd)
}

// packetRing sends count frames through a mapped ring; one call with no data sends what is in it.
func packetRing(fd int, frame []byte, count int) uint64 {
	const size, header = 4096, 32 // TPACKET_ALIGN(sizeof(struct tpacket_hdr))
	check("set version", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V1))
	frames := 64
	req := unix.TpacketReq{Block_size: size * 16, Block_nr: uint32(frames / 16), Frame_size: size, Frame_nr: uint32(frames)}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_PACKET, unix.PACKET_TX_RING, uintptr(unsafe.Pointer(&req)), unsafe.Sizeof(req), 0)
	if errno != 0 {
		check("make ring", errno)
	}
	check("bind", unix.Bind(fd, packetAddress("")))
	ring, err := unix.Mmap(fd, 0, size*frames, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check("map ring", err)
	var sent uint64
	for done := 0; done < count; {
		batch := min(frames, count-done)
		for i := range batch {
			slot := ring[i*size:]
			h := (*unix.TpacketHdr)(unsafe.Pointer(&slot[0]))
			h.Len = uint32(len(frame))
			copy(slot[header:], frame)
			h.Status = unix.TP_STATUS_SEND_REQUEST
		}
		n, err := again(func() (int, error) { return sendto(fd, nil, 0) })
		check("kick ring", err)
		sent += uint64(n)
		done += batch
	}
	return sent
}

// packetRecv receives Count frames of the experimental type from lo.
func packetRecv(r *role) {
	fd := open(unix.AF_PACKET, packetKind(r.p.Recv), 0)
	room(fd)
	check("bind", unix.Bind(fd, packetAddress(r.p.Veth)))
	r.ready("bound")
	buf := make([]byte, 64<<10)
	var received uint64
	for range r.p.Count {
		n, err := again(func() (int, error) { return recv(fd, buf, 0) })
		check("receive", err)
		received += uint64(n)
	}
	r.add(claim.Claim{Family: "packet", Received: received, Conns: claim.NotStated})
}

func packetScenarios() []scenario {
	var all []scenario
	for _, way := range []string{"raw", "dgram", "bound", "ring", "bypass"} {
		all = append(all, scenario{"packet-" + way, func(s *stage) {
			ownNamespace(nil)
			recv := "raw"
			if way == "dgram" {
				recv = "dgram"
			}
			srv := s.start("gen-server", "packet-recv", param{Recv: recv, Count: 500})
			srv.ready()
			s.take(s.start("gen-client", "packet-send", param{Send: way, Count: 500, Size: 1000}), srv)
		}})
	}
	return all
}
