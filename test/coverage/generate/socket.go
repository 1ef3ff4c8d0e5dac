package main

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds one blocking call on a socket. Emulated machines need more, which GENERATE_PATIENCE says.
func patience() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("GENERATE_PATIENCE")); err == nil {
		return d
	}
	return 15 * time.Second
}

// open makes a socket whose calls cannot block for ever.
func open(family, kind, proto int) int {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err == unix.EPROTONOSUPPORT || err == unix.EAFNOSUPPORT || err == unix.ESOCKTNOSUPPORT {
		lack(fmt.Sprintf("socket(%d, %d, %d)", family, kind, proto), err.Error())
	}
	check("open socket", err)
	bound(fd)
	return fd
}

// open makes a socket as the role's parameters say.
func (r *role) open(kind int) int {
	proto := r.p.Proto
	if kind == unix.SOCK_DGRAM {
		proto = 0
	}
	fd := open(r.p.Family, kind, proto)
	if r.p.Full {
		fillOptions(fd)
	}
	return fd
}

func bound(fd int) {
	tv := unix.NsecToTimeval(int64(patience()))
	check("set receive timeout", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	check("set send timeout", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
}

// room makes the receive queue so large that loopback drops no datagram.
func room(fd int) {
	check("set receive buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func parse(addr string) netip.AddrPort {
	a, err := netip.ParseAddrPort(addr)
	check("parse address", err)
	return a
}

// mapped is the IPv6 address by which an IPv6 socket reaches an IPv4 one.
func mapped(addr string) string {
	a := parse(addr)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port()).String()
}

func localOf(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	check("get own address", err)
	return addrPort(sa)
}

// ends are the addresses of a connection, taken while it is one: the kernel forgets them at its end.
type ends struct{ local, remote netip.AddrPort }

func endsOf(fd int) ends { return ends{localOf(fd), remoteOf(fd)} }

func remoteOf(fd int) netip.AddrPort {
	sa, err := unix.Getpeername(fd)
	check("get peer's address", err)
	return addrPort(sa)
}

// bindTo binds to the wanted address, or to the loopback address and a free port.
func bindTo(fd, family int, addr string) netip.AddrPort {
	a := loopback(family, 0)
	if addr != "" {
		a = parse(addr)
	}
	check("set reuse", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	check("bind", unix.Bind(fd, sockaddr(a)))
	return localOf(fd)
}

// listen opens a listening stream socket.
func listen(r *role) (int, netip.AddrPort) {
	fd := r.open(unix.SOCK_STREAM)
	a := bindTo(fd, r.p.Family, r.p.Addr)
	check("listen", unix.Listen(fd, 1024))
	return fd, a
}

// dial opens a connected stream socket.
func dial(r *role) int {
	fd := r.open(unix.SOCK_STREAM)
	check("connect", retry(func() error { return unix.Connect(fd, sockaddr(parse(r.p.Addr))) }))
	return fd
}

func accept(fd int) int {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		check("accept", err)
		bound(c)
		return c
	}
}

// retry calls f again as long as a signal interrupts it: the Go runtime sends itself signals.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// again is retry for calls that return a length.
func again(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}
