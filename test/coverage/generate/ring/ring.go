// Package ring is the smallest io_uring that the traffic generators need: one submission at a time, by raw
// system calls, with every setup flag open to the caller. It has no batching and no ownership rules for
// buffers: callers keep them alive and off the stack (see io_uring(7)).
package ring

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations (enum io_uring_op of linux/io_uring.h).
const (
	OpSendmsg        = 9
	OpRecvmsg        = 10
	OpRead           = 22
	OpWrite          = 23
	OpSend           = 26
	OpRecv           = 27
	OpProvideBuffers = 31
	OpSendZC         = 47
)

// Flags of a submission, of a completion and of the setup.
const (
	Async        = 1 << 4 // IOSQE_ASYNC: a worker thread does it
	BufferSelect = 1 << 5 // IOSQE_BUFFER_SELECT

	More         = 1 << 1 // IORING_CQE_F_MORE
	Notification = 1 << 3 // IORING_CQE_F_NOTIF
	BufferShift  = 16

	SQPoll = 1 << 1 // IORING_SETUP_SQPOLL: a kernel thread submits

	RecvMultishot = 1 << 1 // IORING_RECV_MULTISHOT, in Submission.Priority
)

// Submission is struct io_uring_sqe.
type Submission struct {
	Op       uint8
	Flags    uint8
	Priority uint16
	FD       int32
	Offset   uint64
	Addr     uint64
	Len      uint32
	OpFlags  uint32
	UserData uint64
	Buffer   uint16 // group or index
	_        uint16
	_        int32
	_        [2]uint64
}

// Completion is struct io_uring_cqe.
type Completion struct {
	UserData uint64
	Result   int32
	Flags    uint32
}

type params struct {
	sqEntries, cqEntries, flags, sqCPU, sqIdle, features, wqFD uint32
	_                                                          [3]uint32
	sq                                                         struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// Ring is an io_uring instance. It is not safe for concurrent use.
type Ring struct {
	fd    int
	flags uint32
	p     params
	rings []byte
	sqes  []byte
}

const needWakeup = 1 << 0 // IORING_SQ_NEED_WAKEUP

// New makes a ring; setup holds flags such as SQPoll. The error is the kernel's: ENOSYS and EPERM mean that
// io_uring is not there or is switched off (kernel.io_uring_disabled).
func New(setup uint32) (*Ring, error) {
	r := &Ring{flags: setup}
	r.p.flags = setup
	r.p.sqIdle = 1000
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 64, uintptr(unsafe.Pointer(&r.p)), 0)
	if errno != 0 {
		return nil, errno
	}
	r.fd = int(fd)
	size := max(r.p.sq.array+4*r.p.sqEntries, r.p.cq.cqes+r.p.cqEntries*uint32(unsafe.Sizeof(Completion{})))
	var err error
	// One mapping serves both rings since 5.4 (IORING_FEAT_SINGLE_MMAP).
	r.rings, err = unix.Mmap(r.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		unix.Close(r.fd)
		return nil, fmt.Errorf("map rings: %w", err)
	}
	const offSQEs = 0x10000000
	r.sqes, err = unix.Mmap(r.fd, offSQEs, int(r.p.sqEntries)*int(unsafe.Sizeof(Submission{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		unix.Munmap(r.rings)
		unix.Close(r.fd)
		return nil, fmt.Errorf("map submissions: %w", err)
	}
	return r, nil
}

// Close ends the ring.
func (r *Ring) Close() {
	unix.Munmap(r.sqes)
	unix.Munmap(r.rings)
	unix.Close(r.fd)
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }

// Submit hands one submission to the kernel and does not wait for it.
func (r *Ring) Submit(s Submission) error {
	tail := r.word(r.p.sq.tail)
	i := atomic.LoadUint32(tail) & *r.word(r.p.sq.mask)
	*(*Submission)(unsafe.Pointer(&r.sqes[uintptr(i)*unsafe.Sizeof(s)])) = s
	*r.word(r.p.sq.array + i*4) = i
	atomic.AddUint32(tail, 1)
	if r.flags&SQPoll == 0 {
		return r.enter(1, 0, 0)
	}
	if atomic.LoadUint32(r.word(r.p.sq.flags))&needWakeup != 0 {
		const wakeup = 1 << 1 // IORING_ENTER_SQ_WAKEUP
		return r.enter(1, 0, wakeup)
	}
	return nil
}

// Wait waits for one completion.
func (r *Ring) Wait() (Completion, error) {
	head := r.word(r.p.cq.head)
	for atomic.LoadUint32(head) == atomic.LoadUint32(r.word(r.p.cq.tail)) {
		const getEvents = 1 << 0 // IORING_ENTER_GETEVENTS
		if err := r.enter(0, 1, getEvents); err != nil {
			return Completion{}, err
		}
	}
	i := *head & *r.word(r.p.cq.mask)
	c := *(*Completion)(unsafe.Pointer(&r.rings[uintptr(r.p.cq.cqes)+uintptr(i)*unsafe.Sizeof(Completion{})]))
	atomic.AddUint32(head, 1)
	return c, nil
}

func (r *Ring) enter(submit, wait, flags uintptr) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, wait, flags, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			// Nothing was taken yet if the wait was interrupted, and a submission is not interrupted.
			submit = 0
		default:
			return errno
		}
	}
}
