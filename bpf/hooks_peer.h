/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Hooks of the cgroup hierarchy's root: they see every socket of the machine, in all network namespaces.
 *
 * sendmsg4,6     sender, before the datagram: its destination
 * recvmsg4,6     reader, when it asked for the address: the datagram's source
 * connect4,6     only when bytes are not counted: a connected UDP socket is a connection
 * sock_create    socket() of a process: a raw or ICMP socket will want the packet programs
 * sock_release   whoever closes the last descriptor: the socket's last report
 * skb            any context, current means nothing: the last packet's peer, for sockets that have no better source
 */
#pragma once

static __always_inline void note_message_peer(struct bpf_sock_addr *ctx, const __u8 *remote, __be16 port)
{
	if (ctx->sk)
		note_peer(bpf_sk_storage_get(&socks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE), remote, port);
}

/* The verifier forbids arithmetic on its own socket pointers; as a number that went through memory the address can be read from. */
static __always_inline struct sock *plain_address(struct sock_state *st, struct bpf_sock *sk)
{
	*(volatile __u64 *)&st->address = (__u64)sk;
	return (struct sock *)*(volatile __u64 *)&st->address;
}

/* Without byte counts there is no later hook: the flow is counted where its address shows. */
static __always_inline void note_connection(struct bpf_sock_addr *ctx, const __u8 *remote, __be16 port, __u8 direction)
{
	struct flow_key key = {};
	struct counts n = {};
	struct sock_state *st;
	struct sock *sk;

	if (!ctx->sk)
		return;
	st = bpf_sk_storage_get(&socks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st) {
		tally(TALLY_LOST_FLOW, 1);
		return;
	}
	sk = plain_address(st, ctx->sk);
	identify_current(&key.process);
	key.uid = current_uid();
	describe(sk, &key);
	key.direction = direction;
	__builtin_memcpy(key.remote, remote, 16);
	key.remote_port = port;
	key.peer = PEER_MESSAGE;
	/* The state keeps only who began. The sensor counts a datagram flow once. */
	if (claim(st)) {
		st->key = key;
		publish(st, CLAIM_OWNED);
	} else if (st->claim == CLAIM_OWNED) {
		key.direction = st->key.direction;
	}
	add_table(&key, &n);
}

static __always_inline void note(struct bpf_sock_addr *ctx, const __u8 *remote, __u8 direction)
{
	if (bandwidth)
		note_message_peer(ctx, remote, ctx->user_port);
	else
		note_connection(ctx, remote, ctx->user_port, direction);
}

static __always_inline int on_message4(struct bpf_sock_addr *ctx, __u8 direction)
{
	__u32 remote[4] = {};

	if (ctx->family == AF_INET6) { /* a dual-stack socket: its own addresses are IPv6, and so is the key's */
		remote[2] = 0xffff0000; /* little-endian ::ffff: */
		remote[3] = ctx->user_ip4;
	} else {
		remote[0] = ctx->user_ip4;
	}
	note(ctx, (__u8 *)remote, direction);
	return 1;
}

static __always_inline int on_message6(struct bpf_sock_addr *ctx, __u8 direction)
{
	__u32 remote[4];

	remote[0] = ctx->user_ip6[0];
	remote[1] = ctx->user_ip6[1];
	remote[2] = ctx->user_ip6[2];
	remote[3] = ctx->user_ip6[3];
	note(ctx, (__u8 *)remote, direction);
	return 1;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_message4(ctx, DIRECTION_OUT);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_message6(ctx, DIRECTION_OUT);
}

/* A connected socket's datagrams can only come from its peer: nothing to note. */
static __always_inline bool is_connected(struct bpf_sock_addr *ctx)
{
	return bandwidth && ctx->sk && ctx->sk->dst_port;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return is_connected(ctx) ? 1 : on_message4(ctx, DIRECTION_IN);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return is_connected(ctx) ? 1 : on_message6(ctx, DIRECTION_IN);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_UDP ? on_message4(ctx, DIRECTION_OUT) : 1;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_UDP ? on_message6(ctx, DIRECTION_OUT) : 1;
}

static __always_inline void report(struct flow_key *key, struct counts *n)
{
	struct flow_report r = {};

	r.kind = KIND_FLOW;
	r.size = sizeof(r);
	r.key = *key;
	r.counts = *n;
	if (bpf_ringbuf_output(&released, &r, sizeof(r), wake(&released, sizeof(r))))
		add_table(key, n);
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	if (ctx->type == SOCK_RAW || ctx->protocol == IPPROTO_ICMP || ctx->protocol == IPPROTO_ICMPV6)
		want_packets();
	return 1;
}

/* The last report of a socket's state. */
static __always_inline void on_release(struct sock *sk, struct sock_state *st)
{
	struct process_id id = {};
	struct counts n = {};
	struct flow_key key;
	__u32 owner;

	owner = st->claim;
	if (owner == CLAIM_LISTENER && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		return;
	if (owner == CLAIM_LISTENER || (owner == CLAIM_FREE && st->flags & FLAG_CONNECT)) {
		/* Opened, and closed before a byte moved. */
		if (!claim(st))
			return;
		identify_current(&id);
		own(sk, st, &id, owner == CLAIM_LISTENER ? DIRECTION_IN : DIRECTION_OUT);
		/* Without a peer it is the listening socket itself, after shutdown(). */
		if (connected_peer(sk, &st->key) && !(st->flags & FLAG_REPORTED))
			st->counts.conns = 1;
		publish(st, CLAIM_OWNED);
	}
	if (st->claim != CLAIM_OWNED || !take(st, &n))
		return;
	key = st->key;
	if (!key.local_port) /* given by the kernel after the connect was seen */
		local_address(sk, &key);
	report(&key, &n);
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	struct sock *sk = (struct sock *)ctx;
	__u64 address = (__u64)ctx;
	struct sock_state *st;

	if (storage)
		st = bpf_sk_storage_get(&socks, ctx, NULL, 0);
	else
		st = find_state(sk, false);
	if (st)
		on_release(sk, st);
	else if (stateless_used)
		bpf_map_delete_elem(&stateless, &address);
	if (!storage)
		bpf_map_delete_elem(&states, &address);
	return 1;
}

static __always_inline int on_packet(struct __sk_buff *skb, int received)
{
	struct bpf_sock *sk = skb->sk;
	__u32 remote[4] = {}, at_port;
	struct sock_state *st;
	__be16 port = 0;
	__u8 first;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol == IPPROTO_TCP || sk->dst_port)
		return 1;
	st = bpf_sk_storage_get(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st || bpf_skb_load_bytes(skb, 0, &first, 1))
		return 1;
	if (first >> 4 == 4) {
		at_port = (first & 15) * 4;
		if (sk->family == AF_INET6)
			remote[2] = 0xffff0000; /* little-endian ::ffff: */
		if (bpf_skb_load_bytes(skb, received ? 12 : 16, sk->family == AF_INET6 ? &remote[3] : &remote[0], 4))
			return 1;
	} else {
		at_port = 40;
		if (bpf_skb_load_bytes(skb, received ? 8 : 24, remote, 16))
			return 1;
	}
	if (sk->protocol == IPPROTO_UDP && sk->type != SOCK_RAW && bpf_skb_load_bytes(skb, at_port + (received ? 0 : 2), &port, 2))
		return 1;
	if (!lock_packets(st))
		return 1;
	__builtin_memcpy(st->packet_remote[received], remote, 16);
	st->packet_port[received] = port;
	st->packet_seen |= received ? 2 : 1;
	unlock_packets(st);
	return 1;
}

SEC("cgroup_skb/egress")
int packet_egress(struct __sk_buff *skb)
{
	return on_packet(skb, 0);
}

SEC("cgroup_skb/ingress")
int packet_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, 1);
}
