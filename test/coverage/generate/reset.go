package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Scenarios of readers whose stream has ended in another way than by an orderly end behind the last byte.

// waitQueued waits until n bytes can be read.
func waitQueued(fd, n int) {
	for end := time.Now().Add(patience()); ; time.Sleep(time.Millisecond) {
		have, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		check("ask for queued bytes", err)
		if have >= n {
			return
		}
		if time.Now().After(end) {
			fail("wait for bytes", fmt.Errorf("%d of %d came", have, n))
		}
	}
}

// waitReset waits until the connection is over.
func waitReset(fd int) {
	poll := []unix.PollFd{{Fd: int32(fd)}}
	n, err := again(func() (int, error) { return unix.Poll(poll, int(patience().Milliseconds())) })
	check("wait for reset", err)
	if n == 0 {
		fail("wait for reset", fmt.Errorf("none came"))
	}
}

// resetReader reads Expect bytes, lets the reset come, and reads what the kernel still gives by calls of Size. It
// accepts the connection, or opens it if it has an address to connect to.
func resetReader(r *role) {
	fd, direction := acceptOrDial(r)
	at := endsOf(fd)
	waitQueued(fd, r.p.Bytes)
	received := recvPart(fd, r.p.Expect)
	r.ready("connected")
	waitReset(fd)
	var late uint64
	if r.p.Recv == "splice" {
		late = spliceUntilReset(fd)
	} else {
		late = recvUntilReset(fd, r.p.Size)
	}
	if late == 0 {
		lack("this kernel gives nothing of what came before a reset")
	}
	r.stream(at, direction, 0, received+late, 1)
	unix.Close(fd)
}

// acceptOrDial opens a connection to the role's peer, or waits for one if it has none.
func acceptOrDial(r *role) (int, string) {
	if r.p.Addr != "" {
		return dial(r), "out"
	}
	l, own := listen(r)
	r.ready(own.String())
	fd := accept(l)
	unix.Close(l)
	return fd, "in"
}

func spliceUntilReset(fd int) uint64 {
	to := newDrain()
	defer to.close()
	var got uint64
	for {
		n, err := again(func() (int, error) { return to.splice(fd) })
		if err != nil && err != unix.ECONNRESET && err != unix.EPIPE {
			check("splice", err)
		}
		if n <= 0 || err != nil {
			return got
		}
		got += uint64(n)
	}
}

// resetSender sends its bytes and, when the stage says so, resets the connection.
func resetSender(r *role) {
	fd, direction := acceptOrDial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "send", r.p.Bytes)
	r.stream(at, direction, sent, 0, 1)
	r.await()
	check("set linger", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	check("close", unix.Close(fd))
}

// closedReader shuts its reading side down before the bytes come. The kernel gives them nevertheless.
func closedReader(r *role) {
	l, own := listen(r)
	r.ready(own.String())
	fd := accept(l)
	at := endsOf(fd)
	check("shut down", unix.Shutdown(fd, unix.SHUT_RD))
	r.ready("shut down")
	waitQueued(fd, r.p.Expect)
	received := recvUntilReset(fd, r.p.Size)
	if received == 0 {
		lack("this kernel gives nothing behind a shutdown of the reading side")
	}
	r.stream(at, "in", 0, received, 1)
	unix.Close(fd)
	unix.Close(l)
}

func resetScenarios() []scenario {
	var all []scenario
	const bytes = 1000
	for _, f := range families() {
		// early is what is read before the reset, size the length of one read.
		behind := func(early, size int, way string) func(*stage) {
			return func(s *stage) {
				srv := s.start("gen-server", "reset-reader", param{Family: f.family, Bytes: bytes, Expect: early, Size: size, Recv: way})
				cl := s.start("gen-client", "reset-sender", param{Family: f.family, Addr: srv.ready(), Bytes: bytes})
				srv.ready()
				cl.release()
				s.take(cl, srv)
			}
		}
		shut := func(size int) func(*stage) {
			return func(s *stage) {
				srv := s.start("gen-server", "closed-reader", param{Family: f.family, Expect: bytes, Size: size})
				cl := s.start("gen-client", "late-sender", param{Family: f.family, Addr: srv.ready(), Bytes: bytes})
				srv.ready()
				cl.release()
				s.take(srv)
				cl.release()
				s.take(cl)
			}
		}
		name := "tcp" + f.suffix
		all = append(all,
			scenario{name + "-reset-behind-data", behind(0, 4096, "")},
			scenario{name + "-reset-behind-data-partly", behind(400, 4096, "")},
			scenario{name + "-reset-behind-data-1", behind(0, 1, "")},
			scenario{name + "-reset-behind-data-splice", behind(0, 4096, "splice")},
			scenario{name + "-shut-before-data", shut(4096)},
			scenario{name + "-shut-before-data-1", shut(1)},
			scenario{name + "-to-recv-1", streamPair(param{Family: f.family, Recv: "recv-1"}, param{Family: f.family, Bytes: 5000})})
	}
	return all
}

// lateSender sends when the stage says so, and stays until it says so again.
func lateSender(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	r.await()
	sent := sendStream(fd, "send", r.p.Bytes)
	r.stream(at, "out", sent, 0, 1)
	r.await()
	unix.Close(fd)
}
