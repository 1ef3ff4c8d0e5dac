package main

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chunk is the length of one call on a stream, in bytes.
const chunk = 64 << 10

// sendStream sends n bytes in the given way and returns what the calls said was sent.
func sendStream(fd int, way string, n int) uint64 {
	if n == 0 {
		return 0
	}
	buf := make([]byte, chunk)
	each := func(f func(b []byte) (int, error)) uint64 {
		var sent uint64
		for left := n; left > 0; {
			w, err := again(func() (int, error) { return f(buf[:min(left, chunk)]) })
			check("send by "+way, err)
			left -= w
			sent += uint64(w)
		}
		return sent
	}
	switch way {
	case "", "write":
		return each(func(b []byte) (int, error) { return unix.Write(fd, b) })
	case "writev":
		return each(func(b []byte) (int, error) { return unix.Writev(fd, halves(b)) })
	case "send":
		return each(func(b []byte) (int, error) { return sendto(fd, b, unix.MSG_NOSIGNAL) })
	case "sendmsg":
		return each(func(b []byte) (int, error) {
			return unix.SendmsgBuffers(fd, halves(b), nil, nil, unix.MSG_NOSIGNAL)
		})
	case "sendmmsg":
		return each(func(b []byte) (int, error) { return sendmmsg(fd, halves(b), nil, 0) })
	case "more":
		var odd int
		sent := each(func(b []byte) (int, error) { odd++; return sendto(fd, b, unix.MSG_MORE*(odd&1)) })
		return sent
	case "drip":
		return each(func(b []byte) (int, error) { return unix.Write(fd, b[:min(len(b), 97)]) })
	case "paced":
		return each(func(b []byte) (int, error) {
			time.Sleep(100 * time.Millisecond)
			return unix.Write(fd, b[:min(len(b), 20_000)])
		})
	case "zerocopy":
		return sendZerocopy(fd, each)
	case "sendfile":
		f := fileOf(n)
		defer f.Close()
		return each(func(b []byte) (int, error) { return unix.Sendfile(fd, int(f.Fd()), nil, len(b)) })
	case "splice":
		f := fileOf(n)
		defer f.Close()
		return sendSplice(fd, n, func(pipe, want int) (int, error) {
			got, err := unix.Splice(int(f.Fd()), nil, pipe, nil, want, 0)
			return int(got), err
		})
	case "vmsplice":
		return sendSplice(fd, n, func(pipe, want int) (int, error) {
			iov := unix.Iovec{Base: &buf[0]}
			iov.SetLen(min(want, chunk))
			got, _, errno := unix.Syscall6(unix.SYS_VMSPLICE, uintptr(pipe), uintptr(unsafe.Pointer(&iov)), 1, 0, 0, 0)
			if errno != 0 {
				return 0, errno
			}
			return int(got), nil
		})
	}
	if u, ok := uringWays()[way]; ok {
		return u.send(fd, n)
	}
	fail("send", fmt.Errorf("no way %q", way))
	return 0
}

func halves(b []byte) [][]byte {
	if len(b) < 2 {
		return [][]byte{b}
	}
	return [][]byte{b[:len(b)/2], b[len(b)/2:]}
}

// sendto is send(2): x/sys has it only without a result.
func sendto(fd int, b []byte, flags int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// message is struct mmsghdr of sendmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
	_      uint32
}

// sendmmsg sends every part as a message of its own, all to the same name (nil: connected), and sums up. flags
// of the call are for MSG_NOSIGNAL and the like.
func sendmmsg(fd int, parts [][]byte, name []byte, flags int) (int, error) {
	m := make([]message, len(parts))
	iov := make([]unix.Iovec, len(parts))
	for i, b := range parts {
		iov[i].Base = unsafe.SliceData(b)
		iov[i].SetLen(len(b))
		m[i].header.Iov = &iov[i]
		m[i].header.SetIovlen(1)
		if name != nil {
			m[i].header.Name = &name[0]
			m[i].header.Namelen = uint32(len(name))
		}
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	var sum int
	for _, x := range m[:n] {
		sum += int(x.length)
	}
	return sum, nil
}

// fileOf is an anonymous file of n bytes.
func fileOf(n int) *os.File {
	fd, err := unix.MemfdCreate("traffic", unix.MFD_CLOEXEC)
	check("make file", err)
	check("size file", unix.Ftruncate(fd, int64(n)))
	return os.NewFile(uintptr(fd), "traffic")
}

// sendSplice fills a pipe by fill and empties it into fd.
func sendSplice(fd, n int, fill func(pipe, want int) (int, error)) uint64 {
	var p [2]int
	check("make pipe", unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	var sent uint64
	for left := n; left > 0; {
		in, err := again(func() (int, error) { return fill(p[1], min(left, chunk)) })
		check("fill pipe", err)
		for left -= in; in > 0; {
			out, err := again(func() (int, error) {
				w, err := unix.Splice(p[0], nil, fd, nil, in, unix.SPLICE_F_MOVE)
				return int(w), err
			})
			check("splice to socket", err)
			in -= out
			sent += uint64(out)
		}
	}
	return sent
}

// sendZerocopy sends with MSG_ZEROCOPY and reads the completions, which are no traffic.
func sendZerocopy(fd int, each func(func([]byte) (int, error)) uint64) uint64 {
	check("set zero-copy", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1))
	oob := make([]byte, 256)
	return each(func(b []byte) (int, error) {
		n, err := sendto(fd, b, unix.MSG_ZEROCOPY)
		if err == unix.ENOBUFS {
			err = unix.EINTR
		}
		for {
			if _, _, _, _, e := unix.Recvmsg(fd, nil, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); e != nil {
				return n, err
			}
		}
	})
}
