package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

var errNoRoute = errors.New("there is no route")

// ask asks the kernel for the route to an address: RTM_GETROUTE of rtnetlink(7). The kernel answers within the call that asks, so
// nothing is waited for.
func ask(a netip.Addr) (route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return route{}, fmt.Errorf("ask for a route: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, request(a), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return route{}, fmt.Errorf("ask for a route: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return route{}, fmt.Errorf("ask for a route: %w", err)
	}
	index, r, err := read(answer[:n])
	if err != nil {
		return route{}, err
	}
	// netdevice(7). Not net.InterfaceByIndex: it asks for all of them.
	name, err := unix.NewIfreq("")
	if err != nil {
		return route{}, fmt.Errorf("ask for the name of an interface: %w", err)
	}
	name.SetUint32(uint32(index))
	if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, name) == nil { // else it went, or there is none: the route is one that refuses
		r.link = name.Name()
	}
	return r, nil
}

// request is a struct nlmsghdr, a struct rtmsg and the attribute RTA_DST.
func request(a netip.Addr) []byte {
	dst := a.AsSlice()
	family := byte(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	size := unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + len(dst)
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, unix.RTM_GETROUTE)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, 1, 0, 0, 0, 0, 0, 0, 0) // sequence, port
	b = append(b, family, byte(len(dst)*8), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(dst)))
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_DST)
	return append(b, dst...)
}

// read reads the answer: the number of the interface, and the rest.
func read(b []byte) (index int, r route, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, route{}, errors.New("ask for a route: the answer is too short")
	}
	size, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
	b = b[unix.SizeofNlMsghdr:min(len(b), max(int(size), unix.SizeofNlMsghdr))]
	switch {
	case kind == unix.NLMSG_ERROR && len(b) >= 4:
		return 0, route{}, fmt.Errorf("%w: %w", errNoRoute, syscall.Errno(-int32(binary.NativeEndian.Uint32(b))))
	case kind != unix.RTM_NEWROUTE || len(b) < unix.SizeofRtMsg:
		return 0, route{}, fmt.Errorf("ask for a route: the answer is of type %d", kind)
	}
	r.here = b[7] == unix.RTN_LOCAL // struct rtmsg, rtm_type
	r.plain = true
	err = each(b[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.RTA_OIF && len(value) == 4:
			index = int(binary.NativeEndian.Uint32(value))
		case kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA:
			r.plain = false
		}
	})
	if err != nil {
		return 0, route{}, fmt.Errorf("ask for a route: %w", err)
	}
	return index, r, nil
}
