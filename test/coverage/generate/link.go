package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Network devices by rtnetlink(7): a guest has no ip(8) that knows veth pairs.

// attribute is one struct rtattr with its value, padded.
func attribute(kind uint16, value ...[]byte) []byte {
	var all []byte
	for _, v := range value {
		all = append(all, v...)
	}
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(all)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), all...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func zeroEnded(s string) []byte { return append([]byte(s), 0) }

func native32(n int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }

// request sends one request and waits for the kernel's answer.
func request(what string, kind uint16, flags uint16, body ...[]byte) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	check("open netlink", err)
	defer unix.Close(fd)
	var all []byte
	for _, b := range body {
		all = append(all, b...)
	}
	const header = 16
	m := native32(header + len(all))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	m = append(append(m, native32(1)...), native32(0)...)
	check(what, unix.Sendto(fd, append(m, all...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	check(what, err)
	if n < header+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		fail(what, fmt.Errorf("netlink answers %x", answer[:n]))
	}
	if code := int32(binary.NativeEndian.Uint32(answer[header:])); code != 0 {
		err := unix.Errno(-code)
		if err == unix.EOPNOTSUPP {
			lack(what, err.Error())
		}
		fail(what, err)
	}
}

// linkInfo is struct ifinfomsg of a device that is to be made.
func linkInfo() []byte { return make([]byte, 16) }

// addPair makes a pair of devices; the peer is in the network namespace of process pid, or here if that is 0.
func addPair(name, peer string, pid int) {
	other := attribute(unix.IFLA_IFNAME, zeroEnded(peer))
	if pid != 0 {
		other = append(other, attribute(unix.IFLA_NET_NS_PID, native32(pid))...)
	}
	const infoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	request("make veth pair", unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkInfo(), attribute(unix.IFLA_IFNAME, zeroEnded(name)),
		attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, []byte("veth")),
			attribute(unix.IFLA_INFO_DATA, attribute(infoPeer, linkInfo(), other))))
}

// addAddress gives a device an address.
func addAddress(device string, p netip.Prefix) {
	family, flags := byte(unix.AF_INET), byte(0)
	if p.Addr().Is6() {
		family, flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	a := p.Addr().AsSlice()
	request("add address "+p.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		[]byte{family, byte(p.Bits()), flags, 0}, native32(indexOf(device)), attribute(unix.IFA_LOCAL, a), attribute(unix.IFA_ADDRESS, a))
}

// indexOf is the number of a device in this network namespace.
func indexOf(device string) int {
	fd, req := deviceRequest(device)
	defer unix.Close(fd)
	check("find "+device, unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req))
	return int(req.Uint32())
}

// raise sets a device up, with more flags.
func raise(device string, more ...uint16) {
	fd, req := deviceRequest(device)
	defer unix.Close(fd)
	check("get flags", unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req))
	flags := req.Uint16() | unix.IFF_UP | unix.IFF_RUNNING
	for _, f := range more {
		flags |= f
	}
	req.SetUint16(flags)
	check("set flags", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}

func deviceRequest(device string) (int, *unix.Ifreq) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check("open socket", err)
	req, err := unix.NewIfreq(device)
	check("name device", err)
	return fd, req
}
