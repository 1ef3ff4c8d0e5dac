package sensor

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// summary is "ok", or what is wrong.
func summary(checks []Check) string {
	var bad []string
	for _, c := range checks {
		if c.Detail == interrupted {
			return interrupted
		}
		if !c.OK {
			bad = append(bad, c.Name+": "+c.Detail)
		}
	}
	if len(bad) == 0 {
		return "ok"
	}
	return strings.Join(bad, "; ")
}

// interrupted is what is known of a self-test that was left because picosnitch is to stop: neither that it counts nor that it does not.
const interrupted = "interrupted"

// selfTest compares known traffic of our own with what is counted for us. The sensor has no other traffic: it opens no
// network connection.
type selfTest struct {
	pid       uint32
	bandwidth bool
	counted   map[string]counted // by protocol and family
}

type counted struct {
	bytes event.Bytes
	conns uint32
}

func newSelfTest(pid uint32, bandwidth bool) *selfTest {
	return &selfTest{pid: pid, bandwidth: bandwidth, counted: map[string]counted{}}
}

func (s *selfTest) add(f *event.Flow) {
	key := f.Protocol + " over " + f.Family
	c := s.counted[key]
	c.bytes.Sent += f.Sent
	c.bytes.Received += f.Received
	c.conns += f.Conns
	s.counted[key] = c
}

// selfTest sends known bytes through TCP and UDP, IPv4 and IPv6, both ways, in a network namespace of its own, and
// compares. It is run at every start, so that a hook that attached but does not fire is not taken for silence.
func (l *loop) selfTest(ctx context.Context) []Check {
	type outcome struct {
		moved map[string]event.Bytes
		errs  map[string]error
	}
	done := make(chan outcome, 1)
	go func() {
		moved, errs := loopTraffic()
		done <- outcome{moved, errs}
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		return []Check{{Name: "self-test", Detail: interrupted}}
	case <-time.After(5 * time.Second):
		return []Check{{Name: "self-test", Detail: "the loopback traffic did not end within 5 s", Hint: "is the machine overloaded?"}}
	}
	l.take(l.hooks.Processes(l))
	l.take(0, l.hooks.Drain(l, l.flow))
	var checks []Check
	for _, name := range loopNames() {
		moved := o.moved[name]
		got := l.self.counted[name]
		c := Check{Name: name}
		switch {
		case o.errs[name] != nil:
			c.OK = true // nothing was moved, so nothing is wrong with the counting
			c.Detail = "not tried: " + o.errs[name].Error()
		case !l.self.bandwidth:
			c.OK = got.conns > 0
			c.Detail = fmt.Sprintf("%d connections counted (bytes are switched off)", got.conns)
		default:
			c.OK = got.bytes == moved && got.conns > 0
			c.Detail = fmt.Sprintf("sent %d of %d bytes, received %d of %d", got.bytes.Sent, moved.Sent, got.bytes.Received, moved.Received)
		}
		if !c.OK {
			c.Hint = "a hook is attached but does not see everything on this kernel; please report this with the output of `picosnitch doctor`"
		}
		checks = append(checks, c)
	}
	return checks
}

func loopNames() []string {
	return []string{"tcp over inet", "udp over inet", "tcp over inet6", "udp over inet6"}
}

// loopTraffic moves bytes between two sockets of this process for each of loopNames and returns what the system calls
// said. The thread is thrown away with its namespace.
func loopTraffic() (map[string]event.Bytes, map[string]error) {
	moved, errs := map[string]event.Bytes{}, map[string]error{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends here, and its namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err == nil {
			if err := loopbackUp(); err != nil {
				errs["loopback"] = err
			}
		} // else: no right to make one; the machine's own loopback does as well
		for i, name := range loopNames() {
			family, kind := unix.AF_INET, unix.SOCK_STREAM
			if i >= 2 {
				family = unix.AF_INET6
			}
			if i%2 == 1 {
				kind = unix.SOCK_DGRAM
			}
			b, err := pingPong(family, kind, 3+i, 1000+i)
			moved[name] = b
			if err != nil {
				errs[name] = err
			}
		}
	}()
	<-done
	return moved, errs
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// pingPong sends `rounds` messages of `size` bytes from one socket to another and back.
func pingPong(family, kind, rounds, size int) (event.Bytes, error) {
	var moved event.Bytes
	a, b, err := pair(family, kind)
	if err != nil {
		return moved, err
	}
	defer unix.Close(a)
	defer unix.Close(b)
	buf := make([]byte, size)
	for range rounds {
		for _, way := range [][2]int{{a, b}, {b, a}} {
			n, err := unix.Write(way[0], buf)
			if err != nil {
				return moved, fmt.Errorf("write: %w", err)
			}
			moved.Sent += uint64(n)
			for got := 0; got < n; {
				m, err := unix.Read(way[1], buf[:n-got])
				if err != nil || m == 0 {
					return moved, fmt.Errorf("read: %w", err)
				}
				moved.Received += uint64(m)
				got += m
			}
		}
	}
	return moved, nil
}

// pair returns two sockets of this process that are connected to each other over loopback.
func pair(family, kind int) (a, b int, err error) {
	var loopback unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_INET6 {
		loopback = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	}
	timeout := unix.Timeval{Sec: 2}
	open := func() (int, unix.Sockaddr, error) {
		s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, nil, fmt.Errorf("socket: %w", err)
		}
		if err = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err == nil {
			if err = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err == nil {
				err = unix.Bind(s, loopback)
			}
		}
		if err != nil {
			unix.Close(s)
			return -1, nil, fmt.Errorf("bind: %w", err)
		}
		at, err := unix.Getsockname(s)
		return s, at, err
	}
	first, at, err := open()
	if err != nil {
		return -1, -1, err
	}
	second, back, err := open()
	if err != nil {
		unix.Close(first)
		return -1, -1, err
	}
	fail := func(err error) (int, int, error) {
		unix.Close(first)
		unix.Close(second)
		return -1, -1, err
	}
	if kind == unix.SOCK_DGRAM {
		if err := unix.Connect(first, back); err != nil {
			return fail(fmt.Errorf("connect: %w", err))
		}
		if err := unix.Connect(second, at); err != nil {
			return fail(fmt.Errorf("connect: %w", err))
		}
		return first, second, nil
	}
	if err := unix.Listen(first, 1); err != nil {
		return fail(fmt.Errorf("listen: %w", err))
	}
	if err := unix.Connect(second, at); err != nil {
		return fail(fmt.Errorf("connect: %w", err))
	}
	accepted, _, err := unix.Accept4(first, unix.SOCK_CLOEXEC)
	if err != nil {
		return fail(fmt.Errorf("accept: %w", err))
	}
	unix.Close(first)
	return second, accepted, nil
}
