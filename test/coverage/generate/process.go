package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// half is what each of two programs sends over one socket.
const half = mega

// scmClient connects, sends its half and passes the descriptor to another program, which sends the rest.
func scmClient(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "", half)
	r.stream(at, "out", sent, 0, 1)
	u := unixSocket()
	check("connect to next", unix.Connect(u, &unix.SockaddrUnix{Name: r.p.Next}))
	check("pass descriptor", unix.Sendmsg(u, []byte{0}, unix.UnixRights(fd), nil, 0))
	// The end of the other program: the connection must not be closed by this one before.
	_, err := unix.Read(u, make([]byte, 1))
	check("wait for next", err)
}

func unixSocket() int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check("open local socket", err)
	return fd
}

// scmNext takes a descriptor and sends its half over it.
func scmNext(r *role) {
	u := unixSocket()
	check("bind", unix.Bind(u, &unix.SockaddrUnix{Name: r.p.Next}))
	check("listen", unix.Listen(u, 1))
	r.ready("listening")
	c := accept(u)
	oob := make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(c, make([]byte, 1), oob, 0)
	check("take descriptor", err)
	m, err := unix.ParseSocketControlMessage(oob[:n])
	check("parse rights", err)
	fds, err := unix.ParseUnixRights(&m[0])
	check("parse rights", err)
	at := endsOf(fds[0])
	sent := sendStream(fds[0], "", half)
	r.stream(at, "out", sent, 0, 0)
}

// inheritClient connects, sends its half and starts another program that inherits the connection.
func inheritClient(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "", half)
	r.stream(at, "out", sent, 0, 1)
	runNext(r, "inherit-next", os.NewFile(uintptr(fd), "connection"))
}

// runNext runs the next program, which prints its claims to the same pipe.
func runNext(r *role, next string, files ...*os.File) {
	r.flush()
	p := param{Proto: r.p.Proto, Family: r.p.Family, File: r.p.Next, Parent: r.p.File, Peers: r.p.Peers, Size: r.p.Size, Count: r.p.Count}
	cmd := exec.Command(r.p.Next, "role", next, p.encode())
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, files
	check("run next", cmd.Run())
}

// inherited is the first descriptor that a program got from the one that started it.
const inherited = 3

func inheritNext(r *role) {
	at := endsOf(inherited)
	sent := sendStream(inherited, "", half)
	r.stream(at, "out", sent, 0, 0)
}

// execFirst connects, sends its half and becomes another program, with the same number and the same socket.
func execFirst(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "", half)
	r.stream(at, "out", sent, 0, 1)
	r.flush()
	check("move descriptor", unix.Dup3(fd, inherited, 0))
	p := param{Proto: r.p.Proto, Family: r.p.Family, File: r.p.Next}
	check("exec", syscall.Exec(r.p.Next, []string{r.p.Next, "role", "inherit-next", p.encode()}, os.Environ()))
}

// threads sends from several threads with names of their own.
func threads(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	var wait sync.WaitGroup
	var mu sync.Mutex
	var sent uint64
	for i := range r.p.Count {
		wait.Go(func() {
			runtime.LockOSThread()
			name, err := unix.BytePtrFromString("disguise-" + strconv.Itoa(i))
			check("make name", err)
			check("name thread", unix.Prctl(unix.PR_SET_NAME, uintptrOf(name), 0, 0, 0))
			n := sendStream(fd, "send", half)
			mu.Lock()
			defer mu.Unlock()
			sent += n
		})
	}
	wait.Wait()
	r.stream(at, "out", sent, 0, 1)
}

// sharedParent opens one UDP socket over which two other programs send at once.
func sharedParent(r *role) {
	fd := open(r.p.Family, unix.SOCK_DGRAM, 0)
	bindTo(fd, r.p.Family, "")
	check("connect", unix.Connect(fd, sockaddr(parse(r.p.Peers[0]))))
	f := os.NewFile(uintptr(fd), "socket")
	var wait sync.WaitGroup
	for i := range 2 {
		child := *r
		child.p.Next = filepath.Join(r.p.Dir, "gen-child-"+strconv.Itoa(i))
		child.p.Size = r.p.Size * (i + 1)
		child.claims = nil
		wait.Go(func() { runNext(&child, "shared-child", f) })
	}
	wait.Wait()
}

func sharedChild(r *role) {
	r.p.Proto = unix.IPPROTO_UDP
	b := marked(localOf(inherited), r.p.Size)
	var sent uint64
	for range r.p.Count {
		n, err := again(func() (int, error) { return sendto(inherited, b, 0) })
		check("send", err)
		sent += uint64(n)
	}
	r.add(claim.Claim{Protocol: "udp", Remote: r.p.Peers[0], Sent: sent, Conns: claim.NotStated})
}

func processScenarios() []scenario {
	// next plays a server, and a client that hands its connection to a second program.
	next := func(role string) func(*stage) {
		return func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{})
			s.take(s.start("gen-client", role, param{Addr: srv.ready(), Next: s.copy("gen-next")}), srv)
		}
	}
	return []scenario{
		{"process-passed-descriptor", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{})
			path := filepath.Join(s.dir, "passed")
			last := s.start("gen-next", "scm-next", param{Next: path})
			last.ready()
			s.take(s.start("gen-client", "scm-client", param{Addr: srv.ready(), Next: path}), last, srv)
		}},
		{"process-inherited-descriptor", next("inherit-client")},
		{"process-exec-after-connect", next("exec-first")},
		{"process-threads", func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{})
			s.take(s.start("gen-client", "threads", param{Addr: srv.ready(), Count: 4}), srv)
		}},
		{"process-two-on-one-socket", func(s *stage) {
			srv := s.start("gen-server", "udp-recv", param{Expect: 20_000*64 + 20_000*128})
			s.copy("gen-child-0")
			s.copy("gen-child-1")
			s.take(s.start("gen-client", "shared-parent", param{Peers: []string{srv.ready()}, Size: 64, Count: 20_000}), srv)
		}},
	}
}
