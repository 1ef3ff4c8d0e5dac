package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// ownNamespace moves this thread, and with it every actor that it starts later, into a new network namespace
// with lo up. The namespace goes when the last process in it does. peer, if not nil, is an actor in another new
// namespace, to which a veth pair is laid: 10.99.0.1 and fd99::1 here, 10.99.0.2 and fd99::2 there.
func ownNamespace(peer *actor) {
	if peerNamespace() != "" {
		return
	}
	check("make network namespace", unix.Unshare(unix.CLONE_NEWNET))
	raise("lo")
	if peer == nil {
		return
	}
	addPair("here0", "there0", peer.cmd.Process.Pid)
	furnish("here0", 1)
}

// furnish gives an end of a pair its addresses.
func furnish(device string, n int) {
	addAddress(device, netip.MustParsePrefix(fmt.Sprintf("10.99.0.%d/24", n)))
	addAddress(device, netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", n)))
	raise(device)
}

// pairServer waits for its end of the pair and plays a role there: Next names it, "" is a stream server.
func pairServer(r *role) {
	r.ready("in namespace")
	r.await()
	if peerNamespace() == "" {
		raise("lo")
		furnish(r.p.Veth, 2)
	}
	host := "10.99.0.2"
	if r.p.Family == unix.AF_INET6 {
		host = "fd99::2"
	}
	r.p.Addr = netip.AddrPortFrom(netip.MustParseAddr(host), uint16(r.p.Port)).String()
	switch r.p.Next {
	case "":
		streamServer(r)
	case "udp":
		udpRecv(r)
	case "udp-echo":
		udpEcho(r)
	case "udp-feed":
		udpFeed(r)
	case "raw":
		rawRecv(r)
	case "sctp":
		sctpServer(r)
	case "packet":
		packetRecv(r)
	case "host": // its kernel answers, no program does
		r.ready(r.p.Addr)
		r.await()
	default:
		fail("play in namespace", fmt.Errorf("no role %q", r.p.Next))
	}
}

// pair starts a server in a network namespace of its own, lays a pair of devices to the client's, and returns the server and
// its address. Every actor that is started later is in the client's.
func pair(s *stage, server param) (*actor, string) {
	server.Veth = "there0"
	var srv *actor
	if at := peerNamespace(); at != "" {
		inNamespace(at, func() { srv = s.start("gen-server", "pair-server", server) })
	} else {
		srv = s.start("gen-server", "pair-server", server, withFlags(syscall.CLONE_NEWNET))
	}
	srv.ready()
	ownNamespace(srv)
	srv.release()
	addr := srv.ready()
	if a, err := netip.ParseAddrPort(addr); err == nil {
		settle(a.String())
	} else {
		settle(netip.AddrPortFrom(netip.MustParseAddr("10.99.0.2"), 0).String())
	}
	return srv, addr
}

// peerNamespace is the file of a network namespace that the servers play in, if the caller has made one and laid the pair of devices
// (lay) to it: then the clients are in the caller's own, where tools that watch one namespace see them.
func peerNamespace() string { return os.Getenv("GENERATE_PEER") }

// inNamespace does something in another network namespace.
func inNamespace(path string, do func()) {
	own, err := os.Open("/proc/thread-self/ns/net")
	check("open own namespace", err)
	defer own.Close()
	other, err := os.Open(path)
	check("open namespace", err)
	defer other.Close()
	check("enter namespace", unix.Setns(int(other.Fd()), unix.CLONE_NEWNET))
	do()
	check("leave namespace", unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
}

// lay lays a pair of devices from this network namespace to that of process pid, for GENERATE_PEER.
func lay(pid string) {
	n, err := strconv.Atoi(pid)
	check("read process id", err)
	raise("lo")
	addPair("here0", "there0", n)
	furnish("here0", 1)
	inNamespace("/proc/"+pid+"/ns/net", func() {
		raise("lo")
		furnish("there0", 2)
	})
}

// overVeth plays a client and a server in two namespaces.
func overVeth(client, server param, udp bool) func(*stage) {
	return func(s *stage) {
		server := server
		if udp {
			server.Next = "udp"
		}
		srv, addr := pair(s, server)
		client := client
		client.Addr, client.Peers = addr, []string{addr}
		client.Local = here(client.Family)
		role := "stream-client"
		if udp {
			role = "udp-send"
		}
		s.take(s.start("gen-client", role, client), srv)
	}
}

// here is this end of the pair.
func here(family int) string {
	if family == unix.AF_INET6 {
		return "[fd99::1]:0"
	}
	return "10.99.0.1:0"
}

// settle waits until the peer's neighbour entry is there: until then the kernel keeps few datagrams and drops the
// rest. A refused connection proves it. This program's own traffic is not compared.
func settle(addr string) {
	to := netip.AddrPortFrom(parse(addr).Addr(), 1)
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	for until := time.Now().Add(patience()); ; time.Sleep(5 * time.Millisecond) {
		fd := open(family, unix.SOCK_STREAM, 0)
		err := unix.Connect(fd, sockaddr(to))
		unix.Close(fd)
		if err == unix.ECONNREFUSED {
			return
		}
		if time.Now().After(until) {
			fail("reach peer", fmt.Errorf("%v", err))
		}
	}
}

// dropped connects to an address that never answers.
func dropped(s *stage) {
	ownNamespace(nil)
	// A veth end without a peer's answer: no ARP, and nobody has the address.
	addPair("here0", "there0", 0)
	addAddress("here0", netip.MustParsePrefix("10.98.0.1/24"))
	raise("here0", unix.IFF_NOARP)
	raise("there0")
	s.take(s.start("gen-client", "no-answer", param{Addr: "10.98.0.2:443"}))
}

func noAnswer(r *role) {
	fd := open(r.p.Family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, r.p.Proto)
	if err := unix.Connect(fd, sockaddr(parse(r.p.Addr))); err != unix.EINPROGRESS {
		fail("connect", fmt.Errorf("got %v, not in progress", err))
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(poll, 300)
	check("poll", err)
	if n != 0 {
		fail("connect", fmt.Errorf("somebody answered"))
	}
	unix.Close(fd)
	r.add(claim.Claim{Protocol: "tcp", Direction: "out", Remote: r.p.Addr, Conns: 1})
}

// container makes a root of its own out of an overlay, as container engines do, and becomes the client in it.
func container(r *role) {
	root := filepath.Join(r.p.Dir, "root")
	lower, upper, work := filepath.Join(root, "lower"), filepath.Join(root, "upper"), filepath.Join(root, "work")
	merged := filepath.Join(root, "merged")
	for _, d := range []string{upper, work, merged} {
		check("make folder", os.MkdirAll(d, 0o755))
	}
	check("make mounts private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	// The upper layer of an overlay cannot be on every file system: a tmpfs always can.
	check("mount upper", unix.Mount("upper", upper, "tmpfs", 0, ""))
	for _, d := range []string{"u", "w"} {
		check("make folder", os.Mkdir(filepath.Join(upper, d), 0o755))
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/u,workdir=%s/w", lower, upper, upper)); err == unix.ENODEV {
		lack("overlayfs", err.Error())
	} else {
		check("mount overlay", err)
	}
	check("set host name", unix.Sethostname([]byte("coverage")))
	check("change root", unix.Chroot(merged))
	check("change folder", os.Chdir("/"))
	p := param{Addr: r.p.Addr, Bytes: r.p.Bytes, Linger: r.p.Linger, Exe: r.p.Exe, File: filepath.Join(lower, r.p.Exe)}
	check("exec", syscall.Exec(r.p.Exe, []string{r.p.Exe, "role", "stream-client", p.encode()}, nil))
}

// inContainer plays a client in a container of its own. One that ends at once takes its root along, so that its file may
// be out of reach for a hash.
func inContainer(linger bool) func(*stage) {
	return func(s *stage) { inContainerAs(s, fmt.Sprintf("/bin/contained-%d", os.Getpid()), linger) }
}

// prepareContainer puts a copy of this program into the container's root.
func prepareContainer(s *stage, exe string) {
	check("make folder", os.MkdirAll(filepath.Join(s.dir, "root/lower/bin"), 0o755))
	s.copyTo(filepath.Join(s.dir, "root/lower", exe))
	age()
}

func inContainerAs(s *stage, exe string, linger bool) {
	prepareContainer(s, exe)
	srv := s.start("gen-server", "stream-server", param{})
	s.take(s.start("gen-engine", "container", param{Addr: srv.ready(), Bytes: 4 * mega, Exe: exe, Linger: linger}, containerFlags()), srv)
	for i := range s.claims {
		if s.claims[i].Exe == exe {
			s.claims[i].Unproved = !linger
		}
	}
}

func namespaceScenarios() []scenario {
	var all []scenario
	for _, f := range families() {
		p := param{Family: f.family}
		up, down := p, p
		up.Bytes, down.Bytes = 4*mega, 4*mega
		dgram := param{Family: f.family, Count: 500, Size: 1200}
		all = append(all,
			scenario{"netns-tcp" + f.suffix + "-up", overVeth(up, p, false)},
			scenario{"netns-tcp" + f.suffix + "-down", overVeth(p, down, false)},
			scenario{"netns-udp" + f.suffix, overVeth(dgram, param{Family: f.family, Expect: 500 * 1200}, true)})
	}
	return append(all,
		scenario{"netns-loopback", func(s *stage) {
			ownNamespace(nil)
			streamPair(param{Bytes: mega}, param{Bytes: mega})(s)
		}},
		scenario{"tcp-dropped", dropped},
		scenario{"container", inContainer(true)},
		scenario{"container-short-lived", inContainer(false)})
}
