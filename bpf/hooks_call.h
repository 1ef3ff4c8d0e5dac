/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Hooks around the calls of the socket layer: set "fexit" (trampolines), and set "kprobe" where there are none.
 *
 * inet_sendmsg, inet6_sendmsg, packet_sendmsg   every send; the msghdr holds the peer of an unconnected socket
 * inet_sendpage                                 sendfile and splice into a socket before 6.5
 * inet_recvmsg, inet6_recvmsg, sock_common_recvmsg, packet_recvmsg
 *                                               every receive that is not TCP's; TCP's too where there is no socket storage, with
 * skb_splice_bits, tcp_zerocopy_receive         what leaves TCP sockets past them: splice, of kernel TLS too, and mapped pages
 * skb_consume_udp, skb_recv_datagram            the datagram itself, for readers that do not ask where it came from
 * inet_accept, mptcp_stream_accept              without storage: who accepted a connection that nobody uses
 *
 * All run in the context of the caller. Argument counts differ between kernels; the loader takes them from the kernel's types.
 */
#pragma once

/* Arguments of functions whose number of arguments changed: the return value stands after the last one. */
const volatile __u32 args_recv_datagram = 3;
const volatile __u32 args_zerocopy = 3;

/* The inline assembly keeps clang from computing the address, which the verifier refuses. */
#define ARG(ctx, n)                                                                                                                        \
	({                                                                                                                                 \
		__u64 v;                                                                                                                   \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(v) : "r"(ctx), "i"((n) * 8));                                               \
		v;                                                                                                                         \
	})

static __always_inline __u64 returned(__u64 *ctx, __u32 args)
{
	switch (args) {
	case 2:
		return ARG(ctx, 2);
	case 3:
		return ARG(ctx, 3);
	case 4:
		return ARG(ctx, 4);
	}
	return 0;
}

/* The peer that the caller gave, or that the kernel filled in for a caller that asked. */
static __always_inline bool message_peer(struct msghdr *msg, __u16 socket_family, struct peer_address *p, bool port)
{
	void *name = BPF_CORE_READ(msg, msg_name);
	int len = BPF_CORE_READ(msg, msg_namelen);
	struct {
		__u16 family;
		__be16 port;
		__u32 address;
	} a = {};
	__u32 *remote = (__u32 *)p->remote;

	if (!name || len < (int)sizeof(a) || bpf_probe_read_kernel(&a, sizeof(a), name))
		return false;
	if (socket_family == AF_INET) {
		remote[0] = a.address; /* also when the family is AF_UNSPEC (udp_sendmsg()) */
	} else if (a.family == AF_INET) {
		remote[2] = 0xffff0000; /* little-endian ::ffff: */
		remote[3] = a.address;
	} else if (a.family != AF_INET6 || len < 24 || bpf_probe_read_kernel(remote, 16, name + 8)) {
		return false;
	}
	p->port = port ? a.port : 0;
	p->peer = PEER_MESSAGE;
	return true;
}

static __always_inline bool has_ports(struct sock *sk)
{
	__u16 protocol = BPF_CORE_READ(sk, sk_protocol);

	return BPF_CORE_READ(sk, sk_type) != SOCK_RAW && protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6;
}

static __always_inline void count_message(struct sock *sk, struct msghdr *msg, struct counts *n, int received, bool failed)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	bool connected = BPF_CORE_READ(sk, __sk_common.skc_dport) != 0;
	struct sock_state *st = state_of(sk, !failed);
	struct peer_address p = {};

	/* A connected socket's datagrams come from its peer, but it may send elsewhere. */
	if (!received)
		message_peer(msg, family, &p, has_ports(sk));
	else if (!connected && !take_message_peer(st, &p))
		message_peer(msg, family, &p, has_ports(sk));
	if (st && !received) {
		if (p.peer == PEER_NONE && !connected)
			cork_peer(st, &p);
		note_cork(sk, st, &p);
	}
	if (failed)
		return;
	if (storage && st) {
		struct task_struct *task = bpf_get_current_task_btf();

		if (p.peer == PEER_NONE ? owner_connected(sk, st, task) : owner_remote(st, task, &p)) {
			keep(st, n);
			return;
		}
	}
	count_slow(sk, st, p.peer == PEER_NONE ? NULL : &p, n);
}

/*
 * Inlined: the verifier of 7.2 loses track of what a function two calls up has on its stack ("slot poisoned by dead code
 * elimination") when counts are handed down from here as from a function of its own.
 */
static __always_inline int on_send(struct sock *sk, struct msghdr *msg, int ret)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u16 protocol = BPF_CORE_READ(sk, sk_protocol);
	struct counts n = {};

	if (!is_network(family))
		return 0;
	n.sent = ret > 0 ? ret : 0;
	if (!is_inet(family)) {
		if (ret >= 0)
			count_slow(sk, NULL, NULL, &n);
	} else if (!is_stream(protocol)) {
		count_message(sk, msg, &n, 0, ret < 0);
	} else if (ret > 0) {
		count_stream(sk, &n);
	}
	if (ret > 0)
		tally(TALLY_SENT, ret);
	return 0;
}

static __always_inline int on_receive(struct sock *sk, struct msghdr *msg, int flags, int ret)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u16 protocol = BPF_CORE_READ(sk, sk_protocol);
	struct counts n = {};
	bool skip;

	if (!is_network(family) || (is_inet(family) && protocol == IPPROTO_TCP && storage /* tcp_rcv_space_adjust */))
		return 0;
	/* A peeked byte is read again later; the error queue holds what we sent ourselves. */
	skip = ret < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE);
	n.received = ret > 0 ? ret : 0;
	if (!is_inet(family)) {
		if (!skip)
			count_slow(sk, NULL, NULL, &n);
	} else if (!is_stream(protocol)) {
		count_message(sk, msg, &n, 1, skip);
	} else if (!skip && ret) {
		count_stream(sk, &n);
	}
	if (!skip && ret > 0)
		tally(TALLY_RECEIVED, ret);
	return 0;
}

/* Received by a stream, past recvmsg. */
static __always_inline int on_stream(struct sock *sk, long ret)
{
	struct counts n = {};

	if (ret <= 0)
		return 0;
	n.received = ret;
	count_stream(sk, &n);
	tally(TALLY_RECEIVED, ret);
	return 0;
}

/*
 * Where both tcp_splice_read() and kernel TLS (a module, whose functions may not be there yet) hand bytes to a pipe. An int, in a register whose
 * upper half is not defined.
 */
static __always_inline int on_splice(struct sock *sk, int ret)
{
	if (!sk || ret <= 0 || !is_inet(BPF_CORE_READ(sk, __sk_common.skc_family)) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	return on_stream(sk, ret);
}

/* Where a protocol has no sendpage of its own, the kernel calls inet_sendmsg() from here: that one counts. */
static __always_inline int on_sendpage(struct sock *sk, int ret)
{
	if (!BPF_CORE_READ(sk, __sk_common.skc_prot, sendpage))
		return 0;
	return on_send(sk, NULL, ret);
}

static __always_inline int on_zerocopy(struct sock *sk, struct tcp_zerocopy_receive *zc)
{
	long n = BPF_CORE_READ(zc, length);
	int copied = 0;

	if (bpf_core_field_exists(zc->copybuf_len))
		copied = BPF_CORE_READ(zc, copybuf_len);
	return on_stream(sk, n + (copied > 0 ? copied : 0));
}

/* Where the datagram comes from that an unconnected socket's reader is about to get. */
static __always_inline int on_datagram(struct sock *sk, struct sk_buff *skb)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	unsigned char *at = BPF_CORE_READ(skb, head);
	unsigned char *header = at + BPF_CORE_READ(skb, network_header);
	struct sock_state *st = NULL;
	__u32 remote[4] = {};
	__be16 port = 0;
	__u8 first;

	if (!is_inet(family) || BPF_CORE_READ(sk, __sk_common.skc_dport) || bpf_probe_read_kernel(&first, 1, header))
		return 0;
	if (first >> 4 == 6) {
		if (family != AF_INET6 || bpf_probe_read_kernel(remote, 16, header + 8))
			return 0;
	} else if (family == AF_INET6) {
		remote[2] = 0xffff0000; /* little-endian ::ffff: */
		if (bpf_probe_read_kernel(&remote[3], 4, header + 12))
			return 0;
	} else if (bpf_probe_read_kernel(&remote[0], 4, header + 12)) {
		return 0;
	}
	if (has_ports(sk) && bpf_probe_read_kernel(&port, 2, at + BPF_CORE_READ(skb, transport_header)))
		return 0;
	if (storage)
		st = state_of(sk, true);
	note_peer(st, (__u8 *)remote, port);
	return 0;
}

/* As an accepted socket begins with its listener's state where there is storage (BPF_F_CLONE). */
static __always_inline int on_accept(struct socket *accepted)
{
	struct sock *sk = BPF_CORE_READ(accepted, sk); /* none when accept() failed */
	struct process_id id = {};
	struct sock_state *st;

	if (!sk || storage)
		return 0;
	st = find_state(sk, true);
	if (!st || st->claim != CLAIM_FREE || !claim(st))
		return 0;
	identify_current(&id);
	own(sk, st, &id, DIRECTION_IN);
	publish(st, CLAIM_LISTENER);
	return 0;
}

/*
 * Sets "fexit" and "kprobe", where the kernel has the two tracepoints: families that are neither IP nor packets (vsock, Bluetooth). Their functions are in
 * modules. The sensor looks at the skipped runs of these programs only when `others_used`: IP, which they pass over, is counted elsewhere.
 */
volatile bool others_used = false;

static __always_inline bool is_other(struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return !is_inet(family) && family != AF_PACKET && is_network(family);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(other_send_length, struct sock *sk, int ret, int flags)
{
	if (!is_other(sk))
		return 0;
	others_used = true;
	return on_send(sk, NULL, ret);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(other_recv_length, struct sock *sk, int ret, int flags)
{
	if (!is_other(sk))
		return 0;
	others_used = true;
	return on_receive(sk, NULL, flags, ret);
}

/* The set "fexit". */

#define SOCKET(ctx) (((struct socket *)ARG(ctx, 0))->sk)
#define FEXIT(function) SEC("fexit/" #function) int fexit_##function(__u64 *ctx)

FEXIT(inet_sendmsg) { return on_send(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3)); }
FEXIT(inet6_sendmsg) { return on_send(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3)); }
FEXIT(packet_sendmsg) { return on_send(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3)); }
FEXIT(packet_sendmsg_spkt) { return on_send(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3)); }
FEXIT(inet_sendpage) { return on_sendpage(SOCKET(ctx), ARG(ctx, 5)); }
FEXIT(inet_recvmsg) { return on_receive(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3), ARG(ctx, 4)); }
FEXIT(inet6_recvmsg) { return on_receive(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3), ARG(ctx, 4)); }
FEXIT(sock_common_recvmsg) { return on_receive(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3), ARG(ctx, 4)); }
FEXIT(packet_recvmsg) { return on_receive(SOCKET(ctx), (void *)ARG(ctx, 1), ARG(ctx, 3), ARG(ctx, 4)); }
FEXIT(skb_splice_bits) { return on_splice((void *)ARG(ctx, 1), ARG(ctx, 6)); }
FEXIT(mptcp_splice_read) { return on_stream(SOCKET(ctx), ARG(ctx, 5)); }
FEXIT(skb_recv_datagram)
{
	struct sk_buff *skb = (void *)returned(ctx, args_recv_datagram);

	return skb ? on_datagram((void *)ARG(ctx, 0), skb) : 0;
}
FEXIT(inet_accept) { return on_accept((void *)ARG(ctx, 1)); }
FEXIT(mptcp_stream_accept) { return on_accept((void *)ARG(ctx, 1)); }
FEXIT(tcp_zerocopy_receive)
{
	return returned(ctx, args_zerocopy) ? 0 : on_zerocopy((void *)ARG(ctx, 0), (void *)ARG(ctx, 1));
}

SEC("fentry/skb_consume_udp")
int fentry_skb_consume_udp(__u64 *ctx)
{
	return on_datagram((void *)ARG(ctx, 0), (void *)ARG(ctx, 1));
}

/*
 * The set "kprobe". What a call was given is kept until it returns. The kernel has a bounded number of return probes under way,
 * and skips a probe that interrupts another: a beginning without an end, or an end without a beginning, is counted as lost.
 */

enum call {
	CALL_SEND = 0,
	CALL_SENDPAGE,
	CALL_RECEIVE,
	CALL_SPLICE,
	CALL_PIECE,
	CALL_ZEROCOPY,
	CALL_ACCEPT,
	CALL_MAX,
};

static __always_inline void call_begins(__u32 which, void *sk, void *second, __u32 flags)
{
	struct call_key key = {.tid = bpf_get_current_pid_tgid(), .which = which};
	struct call_value v = {.sk = (__u64)sk, .second = (__u64)second, .flags = flags};

	if (!bpf_map_update_elem(&calls, &key, &v, BPF_NOEXIST))
		return;
	/* The end of this thread's last call was not seen, or the map is full and this one's end will have no beginning. */
	if (!bpf_map_update_elem(&calls, &key, &v, BPF_EXIST) && calls_on)
		tally(TALLY_LOST_CALL, 1);
}

static __always_inline bool call_ends(__u32 which, struct call_value *v)
{
	struct call_key key = {.tid = bpf_get_current_pid_tgid(), .which = which};
	struct call_value *have = bpf_map_lookup_elem(&calls, &key);

	if (!have) {
		if (calls_on)
			tally(TALLY_LOST_CALL, 1);
		return false;
	}
	*v = *have;
	bpf_map_delete_elem(&calls, &key);
	return true;
}

/* A thread ends: calls of it whose end was not seen. */
static __noinline int forget_calls(__u32 tid)
{
	struct call_key key = {.tid = tid};

#pragma unroll
	for (int i = 0; i < CALL_MAX; i++) {
		key.which = i;
		if (!bpf_map_delete_elem(&calls, &key))
			tally(TALLY_LOST_CALL, 1);
	}
	return 0;
}

#define REG_SOCKET(ctx) BPF_CORE_READ((struct socket *)REG_ARG0(ctx), sk)
#define KPROBE(name) SEC("kprobe/" #name) int kprobe_##name(struct pt_regs *ctx)
#define KRETPROBE(name) SEC("kretprobe/" #name) int kretprobe_##name(struct pt_regs *ctx)

KPROBE(send)
{
	call_begins(CALL_SEND, REG_SOCKET(ctx), (void *)REG_ARG1(ctx), 0);
	return 0;
}

KRETPROBE(send)
{
	struct call_value v;

	return call_ends(CALL_SEND, &v) ? on_send((void *)v.sk, (void *)v.second, REG_RETURN(ctx)) : 0;
}

KPROBE(sendpage)
{
	call_begins(CALL_SENDPAGE, REG_SOCKET(ctx), NULL, 0);
	return 0;
}

KRETPROBE(sendpage)
{
	struct call_value v;

	return call_ends(CALL_SENDPAGE, &v) ? on_sendpage((void *)v.sk, REG_RETURN(ctx)) : 0;
}

KPROBE(receive)
{
	call_begins(CALL_RECEIVE, REG_SOCKET(ctx), (void *)REG_ARG1(ctx), REG_ARG3(ctx));
	return 0;
}

KRETPROBE(receive)
{
	struct call_value v;

	return call_ends(CALL_RECEIVE, &v) ? on_receive((void *)v.sk, (void *)v.second, v.flags, REG_RETURN(ctx)) : 0;
}

KPROBE(splice)
{
	call_begins(CALL_SPLICE, REG_SOCKET(ctx), NULL, 0);
	return 0;
}

KRETPROBE(splice)
{
	struct call_value v;

	return call_ends(CALL_SPLICE, &v) ? on_stream((void *)v.sk, REG_RETURN(ctx)) : 0;
}

KPROBE(piece)
{
	call_begins(CALL_PIECE, (void *)REG_ARG1(ctx), NULL, 0);
	return 0;
}

KRETPROBE(piece)
{
	struct call_value v;

	return call_ends(CALL_PIECE, &v) ? on_splice((void *)v.sk, REG_RETURN(ctx)) : 0;
}

KPROBE(zerocopy)
{
	call_begins(CALL_ZEROCOPY, (void *)REG_ARG0(ctx), (void *)REG_ARG1(ctx), 0);
	return 0;
}

KRETPROBE(zerocopy)
{
	struct call_value v;

	return call_ends(CALL_ZEROCOPY, &v) && !(int)REG_RETURN(ctx) ? on_zerocopy((void *)v.sk, (void *)v.second) : 0;
}

KPROBE(skb_consume_udp)
{
	return on_datagram((void *)REG_ARG0(ctx), (void *)REG_ARG1(ctx));
}

KRETPROBE(skb_recv_datagram)
{
	struct sk_buff *skb = (void *)REG_RETURN(ctx);
	struct sock *sk;

	if (!skb)
		return 0;
	sk = BPF_CORE_READ(skb, sk); /* the socket that received it (skb_set_owner_r()) */
	return sk ? on_datagram(sk, skb) : 0;
}

KPROBE(accept)
{
	call_begins(CALL_ACCEPT, NULL, (void *)REG_ARG1(ctx), 0);
	return 0;
}

KRETPROBE(accept)
{
	struct call_value v;

	return call_ends(CALL_ACCEPT, &v) ? on_accept((void *)v.second) : 0;
}
