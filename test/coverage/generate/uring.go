package main

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/picosnitch/picosnitch/test/coverage/generate/ring"
	"golang.org/x/sys/unix"
)

// uringWay is one way of using io_uring on a stream.
type uringWay struct {
	setup     uint32
	op        uint8
	flags     uint8
	multishot bool
}

func uringWays() map[string]uringWay {
	return map[string]uringWay{
		"uring-send":        {op: ring.OpSend},
		"uring-send-async":  {op: ring.OpSend, flags: ring.Async},
		"uring-send-sqpoll": {op: ring.OpSend, setup: ring.SQPoll},
		"uring-write":       {op: ring.OpWrite},
		"uring-sendmsg":     {op: ring.OpSendmsg},
		"uring-send-zc":     {op: ring.OpSendZC},
		"uring-recv":        {op: ring.OpRecv},
		"uring-recv-async":  {op: ring.OpRecv, flags: ring.Async},
		"uring-recv-sqpoll": {op: ring.OpRecv, setup: ring.SQPoll},
		"uring-read":        {op: ring.OpRead},
		"uring-recvmsg":     {op: ring.OpRecvmsg},
		"uring-multishot":   {op: ring.OpRecv, multishot: true},
	}
}

func newRing(setup uint32) *ring.Ring {
	r, err := ring.New(setup)
	if err == unix.ENOSYS || err == unix.EPERM || err == unix.ENOMEM {
		lack("io_uring", err.Error())
	}
	check("make ring", err)
	return r
}

// area is memory that the kernel may use while Go does not look: not on a stack.
func area(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	check("map memory", err)
	return b
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

func (u uringWay) submission(fd int, buf []byte, n int, hdr *unix.Msghdr, iov *unix.Iovec) ring.Submission {
	s := ring.Submission{Op: u.op, Flags: u.flags, FD: int32(fd), Addr: address(buf), Len: uint32(n)}
	switch u.op {
	case ring.OpRead, ring.OpWrite:
		s.Offset = ^uint64(0) // the current position: a socket has no other
	case ring.OpSendmsg, ring.OpRecvmsg:
		iov.Base = &buf[0]
		iov.SetLen(n)
		hdr.Iov = iov
		hdr.SetIovlen(1)
		s.Addr, s.Len = uint64(uintptr(unsafe.Pointer(hdr))), 1
	}
	return s
}

func (u uringWay) send(fd, n int) uint64 {
	r := newRing(u.setup)
	defer r.Close()
	buf := area(chunk)
	hdr, iov := new(unix.Msghdr), new(unix.Iovec)
	var sent uint64
	for left := n; left > 0; {
		check("submit", r.Submit(u.submission(fd, buf, min(left, chunk), hdr, iov)))
		c := finished(r)
		left -= int(c.Result)
		sent += uint64(c.Result)
		// A zero-copy send completes twice; the second says that the buffer is free and carries no bytes.
		for more := c.Flags&ring.More != 0; more; {
			c, err := r.Wait()
			check("wait for notification", err)
			more = c.Flags&ring.Notification == 0
		}
	}
	runtime.KeepAlive(hdr)
	runtime.KeepAlive(iov)
	return sent
}

func finished(r *ring.Ring) ring.Completion {
	c, err := r.Wait()
	check("wait for completion", err)
	if c.Result == -int32(unix.EINVAL) {
		lack("io_uring operation", unix.EINVAL.Error())
	}
	if c.Result < 0 {
		fail("completion", syscall.Errno(-c.Result))
	}
	return c
}

func (u uringWay) recv(fd int) uint64 {
	r := newRing(u.setup)
	defer r.Close()
	if u.multishot {
		return recvMultishot(r, fd)
	}
	buf := area(chunk)
	hdr, iov := new(unix.Msghdr), new(unix.Iovec)
	var got uint64
	for {
		check("submit", r.Submit(u.submission(fd, buf, chunk, hdr, iov)))
		c := finished(r)
		if c.Result == 0 {
			runtime.KeepAlive(hdr)
			runtime.KeepAlive(iov)
			return got
		}
		got += uint64(c.Result)
	}
}

// recvMultishot receives with one submission for many completions, out of provided buffers.
func recvMultishot(r *ring.Ring, fd int) uint64 {
	const (
		group  = 7
		number = 32
		size   = 8 << 10
		giving = 1
		taking = 2
	)
	buf := area(number * size)
	give := func(id, n int) {
		check("provide buffers", r.Submit(ring.Submission{
			Op: ring.OpProvideBuffers, FD: int32(n), Addr: address(buf[id*size:]), Len: size, Offset: uint64(id), Buffer: group, UserData: giving,
		}))
	}
	take := func() {
		check("submit multishot", r.Submit(ring.Submission{
			Op: ring.OpRecv, Flags: ring.BufferSelect, Priority: ring.RecvMultishot, FD: int32(fd), Buffer: group, UserData: taking,
		}))
	}
	give(0, number)
	take()
	var got uint64
	for {
		c, err := r.Wait()
		check("wait for multishot", err)
		if c.UserData == giving {
			if c.Result < 0 {
				fail("provide buffers", syscall.Errno(-c.Result))
			}
			continue
		}
		switch {
		case c.Result == 0:
			return got
		case c.Result == -int32(unix.ENOBUFS):
		case c.Result < 0:
			fail("multishot", fmt.Errorf("%w", syscall.Errno(-c.Result)))
		default:
			got += uint64(c.Result)
			give(int(c.Flags>>ring.BufferShift), 1)
		}
		if c.Flags&ring.More == 0 {
			take()
		}
	}
}
