package main

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// workload is one kind of operation.
type workload struct {
	name   string
	target string
	// open makes the sockets and returns what runs n operations, and what closes the sockets.
	open func() (op func(n int) error, end func(), err error)
}

func workloads() []workload {
	return []workload{
		{"UDP 64 B connected, send + recv", "≤ 1.12", udpConnected},
		{"UDP 64 B sendto + recvfrom", "", udpUnconnected},
		{"TCP 64 B ping-pong", "≤ 1.06", func() (func(int) error, func(), error) { return tcpPingPong(64) }},
		{"TCP 64 KiB, send + recv", "≤ 1.04", func() (func(int) error, func(), error) { return tcpOneWay(64 << 10) }},
		{"TCP connect + accept + close", "≤ 1.15", connectClose},
	}
}

// The calls below are raw: nothing blocks on loopback in one thread, and the Go scheduler's part would make the
// ratio look better than it is.

func send(fd int, b []byte) error {
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
		if errno != 0 {
			return fmt.Errorf("send: %w", errno)
		}
		b = b[n:]
	}
	return nil
}

func receive(fd int, b []byte) error {
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
		if errno != 0 {
			return fmt.Errorf("receive: %w", errno)
		}
		if n == 0 {
			return fmt.Errorf("receive: end")
		}
		b = b[n:]
	}
	return nil
}

func loopback(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}
}

func bound(kind int) (int, int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(fd, loopback(0)); err != nil {
		return fd, 0, fmt.Errorf("bind: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, fmt.Errorf("get own address: %w", err)
	}
	return fd, sa.(*unix.SockaddrInet4).Port, nil
}

func udpPair() (a, b, portA, portB int, err error) {
	if a, portA, err = bound(unix.SOCK_DGRAM); err != nil {
		return
	}
	b, portB, err = bound(unix.SOCK_DGRAM)
	return
}

func udpConnected() (func(int) error, func(), error) {
	a, b, portA, portB, err := udpPair()
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Connect(a, loopback(portB)); err != nil {
		return nil, nil, err
	}
	if err := unix.Connect(b, loopback(portA)); err != nil {
		return nil, nil, err
	}
	buf := make([]byte, 64)
	return func(n int) error {
		for range n {
			if err := send(a, buf); err != nil {
				return err
			}
			if err := receive(b, buf); err != nil {
				return err
			}
		}
		return nil
	}, closeAll(a, b), nil
}

func udpUnconnected() (func(int) error, func(), error) {
	a, b, _, portB, err := udpPair()
	if err != nil {
		return nil, nil, err
	}
	buf, to, from := make([]byte, 64), rawAddress([4]byte{127, 0, 0, 1}, portB), make([]byte, 16)
	length := uint32(len(from))
	return func(n int) error {
		for range n {
			_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(a), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, uintptr(unsafe.Pointer(&to[0])), uintptr(len(to)))
			if errno != 0 {
				return fmt.Errorf("send: %w", errno)
			}
			length = uint32(len(from))
			_, _, errno = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(b), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, uintptr(unsafe.Pointer(&from[0])), uintptr(unsafe.Pointer(&length)))
			if errno != 0 {
				return fmt.Errorf("receive: %w", errno)
			}
		}
		return nil
	}, closeAll(a, b), nil
}

// rawAddress is struct sockaddr_in.
func rawAddress(ip [4]byte, port int) []byte {
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
	b = binary.BigEndian.AppendUint16(b, uint16(port))
	return append(append(b, ip[:]...), make([]byte, 8)...)
}

func tcpPair() (a, b int, err error) {
	l, port, err := bound(unix.SOCK_STREAM)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(l)
	if err := unix.Listen(l, 1); err != nil {
		return 0, 0, fmt.Errorf("listen: %w", err)
	}
	if a, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Connect(a, loopback(port)); err != nil {
		return 0, 0, fmt.Errorf("connect: %w", err)
	}
	if b, _, err = unix.Accept(l); err != nil {
		return 0, 0, fmt.Errorf("accept: %w", err)
	}
	for _, fd := range []int{a, b} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return 0, 0, fmt.Errorf("set no delay: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20); err != nil {
			return 0, 0, fmt.Errorf("set buffer: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
			return 0, 0, fmt.Errorf("set buffer: %w", err)
		}
	}
	return a, b, nil
}

func tcpPingPong(size int) (func(int) error, func(), error) {
	a, b, err := tcpPair()
	if err != nil {
		return nil, nil, err
	}
	buf := make([]byte, size)
	return func(n int) error {
		for range n {
			for _, way := range [2][2]int{{a, b}, {b, a}} {
				if err := send(way[0], buf); err != nil {
					return err
				}
				if err := receive(way[1], buf); err != nil {
					return err
				}
			}
		}
		return nil
	}, closeAll(a, b), nil
}

func tcpOneWay(size int) (func(int) error, func(), error) {
	a, b, err := tcpPair()
	if err != nil {
		return nil, nil, err
	}
	buf := make([]byte, size)
	return func(n int) error {
		for range n {
			if err := send(a, buf); err != nil {
				return err
			}
			if err := receive(b, buf); err != nil {
				return err
			}
		}
		return nil
	}, closeAll(a, b), nil
}

// connectClose spreads its connections over many loopback addresses: each has its own ports to leave in TIME_WAIT.
func connectClose() (func(int) error, func(), error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{}); err != nil {
		return nil, nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(l, 16); err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	sa, err := unix.Getsockname(l)
	if err != nil {
		return nil, nil, fmt.Errorf("get own address: %w", err)
	}
	to := rawAddress([4]byte{127, 2, 0, 1}, sa.(*unix.SockaddrInet4).Port)
	i := 0
	return func(n int) error {
		for range n {
			i++
			to[6], to[7] = byte(i>>8&15), byte(i)
			c, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
			if errno != 0 {
				return fmt.Errorf("open socket: %w", errno)
			}
			if _, _, errno = unix.RawSyscall(unix.SYS_CONNECT, c, uintptr(unsafe.Pointer(&to[0])), uintptr(len(to))); errno != 0 {
				return fmt.Errorf("connect: %w", errno)
			}
			s, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l), 0, 0, 0, 0, 0)
			if errno != 0 {
				return fmt.Errorf("accept: %w", errno)
			}
			unix.RawSyscall(unix.SYS_CLOSE, c, 0, 0)
			unix.RawSyscall(unix.SYS_CLOSE, s, 0, 0)
		}
		return nil
	}, closeAll(l), nil
}

func closeAll(fds ...int) func() {
	return func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
