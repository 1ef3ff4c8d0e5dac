package kernel

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Names of the hook sets.
const (
	SetTracepoint = "tracepoint"
	SetFexit      = "fexit"
	SetKprobe     = "kprobe"
)

// Sets names the hook sets that this program has, best first for most kernels.
func Sets() []string { return []string{SetTracepoint, SetFexit, SetKprobe} }

// hook is one attach point of a set.
type hook struct {
	name     string          // as the user sees it
	program  string          // in the BPF object
	cgroup   ebpf.AttachType // of programs that attach to the cgroup root; noCgroup for the others
	required bool
	when     when
	cost     string // what is not seen without it

	function string // of the kernel, whose call the program watches; "" for tracepoints and cgroup hooks
	args     int    // how many arguments the program takes the function to have; 0: any number, and it is told in variable if there is one
	variable string
	absent   bool   // a kernel without this function has nothing to see there
	event    string // a tracepoint that this kernel may not have; then there is no such hook
	end      string // kprobe: the program for the function's return
	only     only
}

// noCgroup marks programs that do not attach to a cgroup; zero is a cgroup attach type.
const noCgroup = ^ebpf.AttachType(0)

const (
	releaseProgram = "sock_release"
	drainProgram   = "drain_sockets"
	otherSent      = "other_send_length"
	otherReceived  = "other_recv_length"
)

// when a hook is attached.
type when int

const (
	always     when = iota
	noBytes         // only when they are not
	onDemand        // when a socket shows up that needs it
	afterAdopt      // only when bytes are counted, and the sockets that were open before must have their starting point first
)

// only says where a hook is of use.
type only int

const (
	everywhere only = iota
	withStorage
	withoutStorage
)

func hooksOf(set string) ([]hook, error) {
	switch set {
	case SetTracepoint:
		return tracepointSet(), nil
	case SetFexit:
		return callSet(fexit), nil
	case SetKprobe:
		return callSet(kprobe), nil
	}
	return nil, fmt.Errorf("hook set %q: there is %q", set, Sets())
}

func tracing(name string, required bool, when when, cost string) hook {
	return hook{name: name, program: name, cgroup: noCgroup, required: required, when: when, cost: cost}
}

func cgroup(name, program string, at ebpf.AttachType, when when, cost string) hook {
	return hook{name: "cgroup" + name, program: program, cgroup: at, when: when, cost: cost}
}

// commonHooks tell who processes are, and what opens and closes sockets.
func commonHooks() []hook {
	return []hook{
		tracing("sched_process_exec", true, always, "which program it is"),
		tracing("sched_process_fork", true, always, "who started a program"),
		tracing("sched_process_exit", false, always, "the end of processes: memory is kept longer"),
		tracing("inet_sock_set_state", true, always, "TCP connection attempts, and who opened a connection"),
		cgroup("/sock_release", releaseProgram, ebpf.AttachCgroupInetSockRelease, always, "accepted connections that move no byte; every count takes the slower way through a table"),
	}
}

func connectHooks() []hook {
	return []hook{
		cgroup("/connect4", "connect4", ebpf.AttachCGroupInet4Connect, noBytes, "connected IPv4 UDP sockets"),
		cgroup("/connect6", "connect6", ebpf.AttachCGroupInet6Connect, noBytes, "connected IPv6 UDP sockets"),
	}
}

// tracepointSet works where fentry and kprobes are refused; kernel 6.3 and later.
func tracepointSet() []hook {
	mptcp := fexit(call{function: "mptcp_splice_read", args: 5, kind: "splice", absent: true, cost: "what splice takes out of MPTCP sockets"})
	return join(commonHooks(), []hook{
		cgroup("/sock_create", "sock_create", ebpf.AttachCGroupInetSockCreate, afterAdopt, "the remote address of the first packets of raw and ICMP sockets"),
	}, messageHooks(), connectHooks(), []hook{
		tracing("sock_send_length", true, afterAdopt, "all sent bytes"),
		tracing("sock_recv_length", true, afterAdopt, "received bytes of all but TCP"),
		tracing("tcp_rcv_space_adjust", true, afterAdopt, "received bytes of TCP"),
		mptcp,
		cgroup("_skb/egress", "packet_egress", ebpf.AttachCGroupInetEgress, onDemand, "where raw and ICMP sockets send to"),
		cgroup("_skb/ingress", "packet_ingress", ebpf.AttachCGroupInetIngress, onDemand, "the source of datagrams whose reader does not ask for it"),
	})
}

// messageHooks tell the addresses of datagrams on unconnected sockets.
func messageHooks() []hook {
	return []hook{
		cgroup("/sendmsg4", "sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, always, "where datagrams of unconnected IPv4 sockets go"),
		cgroup("/sendmsg6", "sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, always, "where datagrams of unconnected IPv6 sockets go"),
		cgroup("/recvmsg4", "recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, always, "where datagrams of unconnected IPv4 sockets come from"),
		cgroup("/recvmsg6", "recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, always, "where datagrams of unconnected IPv6 sockets come from"),
	}
}

// call is a function of the kernel whose calls are watched.
type call struct {
	function string
	args     int
	variable string
	kind     string // what the kprobe programs for it are called
	required bool
	absent   bool
	only     only
	cost     string
}

// callSet watches the calls of the socket layer, by trampolines (fexit; x86 from 5.5, arm64 from 6.0) or by kprobes.
func callSet(by func(call) hook) []hook {
	hooks := join(commonHooks(), without(messageHooks()), connectHooks(), []hook{
		{name: "tcp_rcv_space_adjust", program: "tcp_rcv_space_adjust", cgroup: noCgroup, required: true, when: afterAdopt, only: withStorage, cost: "received bytes of TCP"},
		{name: "sock_send_length", program: otherSent, event: "sock_send_length", cgroup: noCgroup, when: afterAdopt, cost: "bytes sent by sockets that are neither IP nor packet sockets (vsock, Bluetooth)"},
		{name: "sock_recv_length", program: otherReceived, event: "sock_recv_length", cgroup: noCgroup, when: afterAdopt, cost: "bytes received by sockets that are neither IP nor packet sockets (vsock, Bluetooth)"},
	})
	for _, c := range []call{
		{function: "inet_sendmsg", args: 3, kind: "send", required: true, cost: "all bytes sent over IPv4"},
		{function: "inet6_sendmsg", args: 3, kind: "send", cost: "all bytes sent over IPv6"},
		{function: "inet_sendpage", args: 5, kind: "sendpage", absent: true, cost: "bytes sent by sendfile and splice"},
		{function: "packet_sendmsg", args: 3, kind: "send", cost: "frames sent by packet sockets"},
		{function: "packet_sendmsg_spkt", args: 3, kind: "send", absent: true, cost: "frames sent by packet sockets of the old kind"},
		{function: "skb_consume_udp", args: 3, kind: "skb_consume_udp", cost: "the source of UDP datagrams whose reader does not ask for it"},
		{function: "skb_recv_datagram", variable: "args_recv_datagram", kind: "skb_recv_datagram", cost: "the source of raw and ICMP packets whose reader does not ask for it"},
		{function: "inet_recvmsg", args: 4, kind: "receive", required: true, cost: "bytes received over IPv4"},
		{function: "inet6_recvmsg", args: 4, kind: "receive", cost: "bytes received over IPv6"},
		{function: "sock_common_recvmsg", args: 4, kind: "receive", cost: "bytes received by raw IPv6 sockets"},
		{function: "packet_recvmsg", args: 4, kind: "receive", cost: "frames received by packet sockets"},
		{function: "mptcp_splice_read", args: 5, kind: "splice", absent: true, cost: "what splice takes out of MPTCP sockets"},
		{function: "skb_splice_bits", args: 6, kind: "piece", only: withoutStorage, cost: "what splice takes out of TCP sockets"},
		{function: "tcp_zerocopy_receive", variable: "args_zerocopy", kind: "zerocopy", absent: true, only: withoutStorage, cost: "TCP_ZEROCOPY_RECEIVE"},
		{function: "inet_accept", kind: "accept", only: withoutStorage, cost: "accepted connections that move no byte"},
		{function: "mptcp_stream_accept", kind: "accept", absent: true, only: withoutStorage, cost: "accepted connections of MPTCP listeners that move no byte"},
	} {
		h := by(c)
		if c.kind == "accept" {
			h.when = always
		}
		hooks = append(hooks, h)
	}
	return hooks
}

// without keeps hooks for when bytes are not counted: otherwise the calls themselves tell the addresses.
func without(hooks []hook) []hook {
	for i := range hooks {
		hooks[i].when = noBytes
	}
	return hooks
}

func fexit(c call) hook {
	h := hook{
		name: "fexit/" + c.function, program: "fexit_" + c.function, cgroup: noCgroup, required: c.required, when: afterAdopt, cost: c.cost,
		function: c.function, args: c.args, variable: c.variable, absent: c.absent, only: c.only,
	}
	if c.function == "skb_consume_udp" { // frees it, so before
		h.name, h.program = "fentry/"+c.function, "fentry_"+c.function
	}
	return h
}

func kprobe(c call) hook {
	h := hook{
		name: "kprobe/" + c.function, program: "kprobe_" + c.kind, end: "kretprobe_" + c.kind, cgroup: noCgroup, required: c.required,
		when: afterAdopt, cost: c.cost, function: c.function, absent: c.absent, only: c.only,
	}
	switch c.function {
	case "skb_consume_udp":
		h.end = ""
	case "skb_recv_datagram":
		h.name, h.program, h.end = "kretprobe/"+c.function, h.end, ""
	}
	return h
}

func join(parts ...[]hook) []hook {
	var all []hook
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
