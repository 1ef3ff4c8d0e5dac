package main

import (
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// recvStream receives in the given way until the end of the stream and returns what the calls said.
func recvStream(fd int, way string) uint64 {
	buf := make([]byte, chunk)
	each := func(f func() (int, error)) uint64 {
		var got uint64
		for {
			n, err := again(f)
			check("receive by "+way, err)
			if n == 0 {
				return got
			}
			got += uint64(n)
		}
	}
	switch way {
	case "", "read":
		return each(func() (int, error) { return unix.Read(fd, buf) })
	case "readv":
		return each(func() (int, error) { return unix.Readv(fd, halves(buf)) })
	case "recv":
		return each(func() (int, error) { return recv(fd, buf, 0) })
	case "recv-1", "recv-1000":
		size, err := strconv.Atoi(strings.TrimPrefix(way, "recv-"))
		check("read length", err)
		return each(func() (int, error) { return recv(fd, buf[:size], 0) })
	case "recvfrom":
		return each(func() (int, error) { n, _, err := unix.Recvfrom(fd, buf, 0); return n, err })
	case "recvmsg":
		return each(func() (int, error) {
			n, _, _, _, err := unix.RecvmsgBuffers(fd, halves(buf), nil, 0)
			return n, err
		})
	case "recvmmsg":
		return each(func() (int, error) {
			n, _, err := recvmmsg(fd, halves(buf), unix.MSG_WAITFORONE, false)
			return n, err
		})
	case "waitall":
		return each(func() (int, error) { return recv(fd, buf, unix.MSG_WAITALL) })
	case "trunc":
		return each(func() (int, error) { return recv(fd, buf, unix.MSG_TRUNC) })
	case "peek":
		return each(func() (int, error) {
			if _, err := recv(fd, buf, unix.MSG_PEEK); err != nil {
				return 0, err
			}
			return recv(fd, buf[:1500], 0)
		})
	case "splice":
		to := newDrain()
		defer to.close()
		return each(func() (int, error) { return to.splice(fd) })
	case "mixed":
		to := newDrain()
		defer to.close()
		var turn int
		return each(func() (int, error) {
			turn++
			switch turn % 3 {
			case 0:
				return to.splice(fd)
			case 1:
				if _, err := recv(fd, buf[:777], unix.MSG_PEEK); err != nil {
					return 0, err
				}
			}
			return recv(fd, buf[:4000], 0)
		})
	case "zerocopy":
		return recvZerocopy(fd, buf)
	}
	if u, ok := uringWays()[way]; ok {
		return u.recv(fd)
	}
	fail("receive", fmt.Errorf("no way %q", way))
	return 0
}

// recv is recv(2), without an address.
func recv(fd int, b []byte, flags int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// recvmmsg receives a message into each part, optionally with the sender's address, and returns the sum and
// the number of messages.
func recvmmsg(fd int, parts [][]byte, flags int, named bool) (int, int, error) {
	m := make([]message, len(parts))
	iov := make([]unix.Iovec, len(parts))
	names := make([][128]byte, len(parts))
	for i, b := range parts {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
		m[i].header.Iov = &iov[i]
		m[i].header.SetIovlen(1)
		if named {
			m[i].header.Name = &names[i][0]
			m[i].header.Namelen = uint32(len(names[i]))
		}
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, 0, errno
	}
	var sum int
	for _, x := range m[:n] {
		sum += int(x.length)
	}
	return sum, int(n), nil
}

// drain is a pipe into nothing.
type drain struct {
	pipe [2]int
	null int
}

func newDrain() *drain {
	d := new(drain)
	check("make pipe", unix.Pipe2(d.pipe[:], unix.O_CLOEXEC))
	var err error
	d.null, err = unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	check("open /dev/null", err)
	return d
}

func (d *drain) splice(fd int) (int, error) {
	n, err := unix.Splice(fd, nil, d.pipe[1], nil, chunk, unix.SPLICE_F_MOVE)
	if err != nil {
		return 0, err
	}
	for left := n; left > 0; {
		out, err := unix.Splice(d.pipe[0], nil, d.null, nil, int(left), unix.SPLICE_F_MOVE)
		check("empty pipe", err)
		left -= out
	}
	return int(n), nil
}

func (d *drain) close() {
	unix.Close(d.pipe[0])
	unix.Close(d.pipe[1])
	unix.Close(d.null)
}

// zerocopyReceive is struct tcp_zerocopy_receive of linux/tcp.h.
type zerocopyReceive struct {
	address     uint64
	length      uint32
	hint        uint32
	inq         uint32
	err         int32
	copyAddress uint64
	copyLength  int32
	flags       uint32
	msgControl  uint64
	msgLen      uint64
	msgFlags    uint32
	reserved    uint32
}

// recvZerocopy takes what getsockopt(TCP_ZEROCOPY_RECEIVE) maps or copies, and by recv(2) what it leaves.
func recvZerocopy(fd int, buf []byte) uint64 {
	const window = 512 << 10
	area, err := unix.Mmap(fd, 0, window, unix.PROT_READ, unix.MAP_SHARED)
	check("map socket", err)
	defer unix.Munmap(area)
	var got uint64
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := again(func() (int, error) { return unix.Poll(poll, int(patience().Milliseconds())) })
		check("poll", err)
		z := zerocopyReceive{address: uint64(uintptr(unsafe.Pointer(&area[0]))), length: window}
		z.copyAddress, z.copyLength = uint64(uintptr(unsafe.Pointer(&buf[0]))), int32(len(buf))
		size := uint32(unsafe.Sizeof(z))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_ZEROCOPY_RECEIVE, uintptr(unsafe.Pointer(&z)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 && errno != unix.EIO {
			check("receive by zero-copy", errno)
		}
		moved := uint64(z.length) + uint64(max(z.copyLength, 0))
		if errno != 0 {
			moved = 0
		}
		got += moved
		if z.hint == 0 && moved > 0 {
			continue
		}
		n, err := again(func() (int, error) { return recv(fd, buf[:min(max(int(z.hint), 1), len(buf))], 0) })
		check("receive the rest", err)
		if n == 0 {
			return got
		}
		got += uint64(n)
	}
}
