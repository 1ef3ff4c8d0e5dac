package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

var errCut = errors.New("the answer is cut")

// list asks the kernel for all addresses and the names of their interfaces: one RTM_GETADDR and one RTM_GETLINK of rtnetlink(7). Not
// net.Interface.Addrs, which asks for the addresses of all interfaces to find those of one.
func list() (map[netip.Addr]string, []netip.Prefix, error) {
	names := make(map[uint32]string)
	err := dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, unix.SizeofIfInfomsg, func(head, attributes []byte) error {
		return each(attributes, func(kind uint16, value []byte) {
			if kind == unix.IFLA_IFNAME {
				names[binary.NativeEndian.Uint32(head[4:])] = unix.ByteSliceToString(value)
			}
		})
	})
	if err != nil {
		return nil, nil, err
	}
	addresses := make(map[netip.Addr]string)
	var networks []netip.Prefix
	err = dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, func(head, attributes []byte) error {
		var a, peer netip.Addr // of a point-to-point interface, IFA_ADDRESS is the other end
		err := each(attributes, func(kind uint16, value []byte) {
			switch kind {
			case unix.IFA_LOCAL:
				a, _ = netip.AddrFromSlice(value)
			case unix.IFA_ADDRESS:
				peer, _ = netip.AddrFromSlice(value)
			}
		})
		if !a.IsValid() {
			a = peer
		}
		name := names[binary.NativeEndian.Uint32(head[4:])]
		if err != nil || !a.IsValid() || name == "" { // it came between the two questions
			return err
		}
		a = a.Unmap()
		addresses[a] = name
		if bits := int(head[1]); a.Is6() && bits >= 64 && bits < 128 && a.IsGlobalUnicast() {
			networks = append(networks, netip.PrefixFrom(a, bits).Masked())
		}
		return nil
	})
	return addresses, networks, err
}

// dump calls a function for each message of the wanted kind, with its head of a size and the attributes behind it.
func dump(question int, kind uint16, size int, each func(head, attributes []byte) error) error {
	b, err := syscall.NetlinkRIB(question, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	for len(b) >= unix.SizeofNlMsghdr {
		n, what := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return errCut
		}
		message := b[unix.SizeofNlMsghdr:n]
		switch {
		case what == unix.NLMSG_DONE:
			return nil
		case what == unix.NLMSG_ERROR && len(message) >= 4:
			return syscall.Errno(-int32(binary.NativeEndian.Uint32(message)))
		case what != kind || len(message) < size:
			return fmt.Errorf("the answer is of type %d, with %d bytes", what, n)
		}
		if err := each(message[:size], message[size:]); err != nil {
			return err
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return errCut
}

// each calls a function for each attribute. Not syscall.ParseNetlinkRouteAttr: it panics when the last one lacks its padding.
func each(b []byte, f func(kind uint16, value []byte)) error {
	for len(b) >= unix.SizeofRtAttr {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofRtAttr || n > len(b) {
			return errCut
		}
		f(kind, b[unix.SizeofRtAttr:n])
		b = b[min(len(b), (n+3)&^3):]
	}
	return nil
}
