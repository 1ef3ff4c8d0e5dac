package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// param tells a role what to do. It travels in the arguments.
type param struct {
	Name    string   // role name in the claims; "" is the role's own
	Family  int      // unix.AF_INET or AF_INET6
	Proto   int      // IPPROTO_TCP if 0
	Addr    string   // of the peer, or to listen on
	Peers   []string // of several peers
	Send    string   // way of sending
	Recv    string   // way of receiving
	Bytes   int      // to send
	Expect  int      // to receive, for datagrams
	Size    int      // of one datagram
	Count   int      // of connections, datagrams or threads
	Duplex  bool     // send and receive at once
	Connect bool     // connect the datagram socket
	Wait    bool     // wait for the stage between connecting and sending
	Full    bool     // use the option memory of the socket up before its first use
	Linger  bool     // live on for some seconds after the traffic
	Seconds int      // how long
	Gate    bool     // wait for the stage before anything else
	Next    string   // file of the next image
	Veth    string   // this end of a pair, made by the stage
	Local   string   // address of this end
	Port    int      // to listen on, 0 is a free one
	Short   bool     // end at once, whatever GENERATE_HOLD says
	Vague   bool     // the first packets may have no remote address in the records
	Device  string   // to send frames on, "" is lo

	Dir    string // folder of the scenario
	File   string // where the test reads the role's file
	Exe    string // path as the process sees it, "" is File
	Parent string // executable that started the role
}

func (p param) encode() string {
	b, err := json.Marshal(p)
	check("encode parameters", err)
	return string(b)
}

// role is one process that moves bytes.
type role struct {
	name   string
	p      param
	in     *bufio.Reader
	claims []claim.Claim
}

// runRole runs the role named by args[0] with the parameters in args[1].
func runRole(args []string) {
	if len(args) != 2 {
		fail("usage", fmt.Errorf("generate role NAME PARAMETERS"))
	}
	r := &role{name: args[0], in: bufio.NewReader(os.Stdin)}
	check("decode parameters", json.Unmarshal([]byte(args[1]), &r.p))
	roles := map[string]func(*role){
		"stream-client": streamClient, "stream-server": streamServer, "self": selfConnect, "refused": refused,
		"unread": unread, "urgent-server": urgentServer, "urgent-client": urgentClient,
		"tfo-client": tfoClient, "tfo-server": tfoServer,
		"udp-send": udpSend, "udp-fetch": udpFetch, "sctp-many": sctpMany, "sctp-many-server": sctpManyServer, "sctp-client": sctpClient, "sctp-server": sctpServer, "nbd": nbd, "nfs": nfs, "udp-recv": udpRecv, "udp-echo": udpEcho, "udp-ping": udpPing, "udp-errors": udpErrors, "udp-option": udpOption,
		"icmp": icmp, "ping": ping, "raw-send": rawSend, "raw-recv": rawRecv,
		"packet-send": packetSend, "packet-recv": packetRecv,
		"scm-client": scmClient, "scm-next": scmNext, "inherit-client": inheritClient, "inherit-next": inheritNext,
		"exec-first": execFirst, "start-and-leave": startAndLeave, "fork": forkRole, "double-fork": doubleFork, "threads": threads, "detach": detach,
		"shared-parent": sharedParent, "shared-child": sharedChild, "many-peers": manyPeers,
		"no-answer": noAnswer, "early": early, "udp-held": udpHeld, "tls-server": tlsServer, "tls-client": tlsClient, "vsock": vsock,
		"stop-listening": stopListening, "hammer-send": hammerSend, "hammer-recv": hammerRecv, "steady": steady, "storm-client": stormClient, "storm-server": stormServer,
		"storm-peers": stormPeers, "storm-sockets": stormSockets,
		"exact-server": exactServer, "reconnect": reconnect, "one-by-one": oneByOne, "listen-after-connect": listenAfterConnect,
		"reset-reader": resetReader, "reset-sender": resetSender, "closed-reader": closedReader, "late-sender": lateSender,
		"udp-between": udpBetween, "udp-paced": udpPaced,
		"container": container, "pair-server": pairServer, "xdp": xdp,
	}
	run, ok := roles[r.name]
	if !ok {
		fail("find role", fmt.Errorf("no role %q", r.name))
	}
	if r.p.Name != "" {
		r.name = r.p.Name
	}
	if r.p.Proto == 0 {
		r.p.Proto = unix.IPPROTO_TCP
	}
	if r.p.Family == 0 {
		r.p.Family = unix.AF_INET
	}
	if r.p.Gate {
		r.await()
	}
	run(r)
	r.flush()
	r.hold()
	if r.p.Linger {
		time.Sleep(3 * time.Second)
	}
}

// hold keeps the process and its sockets for as long as GENERATE_HOLD says: monitors that look into /proc now and then are given the
// time that they need.
func (r *role) hold() {
	if d, err := time.ParseDuration(os.Getenv("GENERATE_HOLD")); err == nil && !r.p.Short {
		time.Sleep(d)
	}
}

// ready tells the stage that the role can be reached.
func (r *role) ready(text string) { fmt.Println("ready " + text) }

// await waits for the stage.
func (r *role) await() {
	_, err := r.in.ReadString('\n')
	check("wait for the stage", err)
}

// flush prints the claims so far: before the end, or before another image takes over.
func (r *role) flush() {
	b, err := json.Marshal(r.claims)
	check("encode claims", err)
	fmt.Println("claims " + string(b))
	r.claims = nil
}

// add keeps a claim of this process.
func (r *role) add(c claim.Claim) {
	c.Role, c.PID, c.UID = r.name, os.Getpid(), uint32(os.Getuid())
	c.Unsure = c.Unsure || r.p.Full
	if c.Exe == "" {
		c.Exe, c.File, c.Parent = r.p.File, r.p.File, r.p.Parent
		if r.p.Exe != "" {
			c.Exe = r.p.Exe
		}
	}
	if c.Family == "" {
		c.Family = "inet"
		if r.p.Family == unix.AF_INET6 {
			c.Family = "inet6"
		}
	}
	// An IPv6 socket that speaks IPv4 is told as what is on the wire.
	if a, err := netip.ParseAddrPort(c.Remote); err == nil && a.Addr().Is4In6() {
		c.Family, c.Remote = "inet", netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
		if a, err := netip.ParseAddrPort(c.Local); err == nil {
			c.Local = netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
		}
	}
	r.claims = append(r.claims, c)
}

// stream adds the claim of a stream socket.
func (r *role) stream(e ends, direction string, sent, received uint64, conns int) {
	limit := ""
	if r.p.Proto == unix.IPPROTO_SCTP {
		direction, limit = "", "SCTP: the direction is that of the first message, not of the connection"
	}
	r.add(claim.Claim{
		Limit: limit, Protocol: protocol(r.p.Proto), Direction: direction, Local: e.local.String(), Remote: e.remote.String(),
		Sent: sent, Received: received, Conns: conns,
	})
}

// protocol names an IP protocol as the event vocabulary does.
func protocol(n int) string {
	names := map[int]string{
		unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6",
		unix.IPPROTO_MPTCP: "mptcp", unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_UDPLITE: "udplite",
	}
	if s := names[n]; s != "" {
		return s
	}
	return fmt.Sprintf("ip-%d", n)
}

// loopback is the loopback address of a family with a port.
func loopback(family int, port uint16) netip.AddrPort {
	if family == unix.AF_INET6 {
		return netip.AddrPortFrom(netip.IPv6Loopback(), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}
