/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Counting: who moves bytes on which socket, and where the count goes.
 *
 * The first process and peer of a socket own the socket's state for its whole life; a change of owner would put
 * bytes of one process on another when both are at it. Everybody else counts in the flow table. What finds
 * no room there counts in the process's total, and what finds no room even there is counted as lost.
 */
#pragma once

static __always_inline bool is_network(__u16 family)
{
	return family != AF_UNIX && family != AF_NETLINK && family != AF_KEY && family != AF_ALG;
}

static __always_inline bool is_inet(__u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline void identify(struct process_id *id, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;

	id->pid = task->tgid;
	id->exec = task->self_exec_id;
	id->start = leader->start_boottime;
}

static __always_inline bool same_process(const struct process_id *a, const struct process_id *b)
{
	return a->start == b->start && a->pid == b->pid && a->exec == b->exec;
}

/* The address that the socket is connected to, if any. */
static __always_inline bool connected_peer(struct sock *sk, struct flow_key *key)
{
	key->remote_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	if (key->family == AF_INET6) {
		__u64 *r = (__u64 *)key->remote;

		BPF_CORE_READ_INTO(&key->remote, sk, __sk_common.skc_v6_daddr);
		if (r[0] | r[1]) {
			key->peer = PEER_SOCKET;
			return true;
		}
	} else {
		__u32 a = BPF_CORE_READ(sk, __sk_common.skc_daddr);

		*(__u32 *)key->remote = a;
		if (a) {
			key->peer = PEER_SOCKET;
			return true;
		}
	}
	key->remote_port = 0;
	key->peer = PEER_NONE;
	return false;
}

static __always_inline void local_address(struct sock *sk, struct flow_key *key)
{
	if (key->family == AF_INET6)
		BPF_CORE_READ_INTO(&key->local, sk, __sk_common.skc_v6_rcv_saddr);
	else if (key->family == AF_INET)
		*(__u32 *)key->local = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	/* inet_sport, not skc_num: a reset socket has already given its number back. */
	if (key->type != SOCK_RAW)
		key->local_port = BPF_CORE_READ((struct inet_sock *)sk, inet_sport);
}

/* Everything of a key but the process, the peer and the direction. `sk` is read by address: any hook may call this. */
static __always_inline void describe(struct sock *sk, struct flow_key *key)
{
	key->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	key->protocol = BPF_CORE_READ(sk, sk_protocol);
	key->type = BPF_CORE_READ(sk, sk_type);
	key->net_ns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (is_inet(key->family))
		local_address(sk, key);
	else
		key->protocol = 0;
}

static __always_inline __u32 current_uid(void)
{
	return bpf_get_current_uid_gid();
}

static __always_inline void add(struct counts *c, const struct counts *n)
{
	if (n->sent)
		__sync_fetch_and_add(&c->sent, n->sent);
	if (n->received)
		__sync_fetch_and_add(&c->received, n->received);
	if (n->conns)
		__sync_fetch_and_add(&c->conns, n->conns);
}

static __noinline int add_total(const struct flow_key *key, const struct counts *n)
{
	struct total_key total = {};
	struct counts *have;
	__u32 zero = 0;
	void *inner;

	if (!key || !n)
		return 0;
	total.process = key->process;
	total.uid = key->uid;
	total.family = key->family;
	total.protocol = key->protocol;
	tally(TALLY_LOST_DETAIL, 1);
	inner = bpf_map_lookup_elem(&totals, &zero);
	if (inner) {
		have = bpf_map_lookup_elem(inner, &total);
		if (have) {
			add(have, n);
			return 0;
		}
		if (!bpf_map_update_elem(inner, &total, n, BPF_NOEXIST))
			return 0;
		have = bpf_map_lookup_elem(inner, &total); /* another CPU was first */
		if (have) {
			add(have, n);
			return 0;
		}
	}
	tally(TALLY_LOST_FLOW, 1);
	tally(TALLY_LOST_SENT, n->sent);
	tally(TALLY_LOST_RECEIVED, n->received);
	return 0;
}

static __noinline int add_table(const struct flow_key *key, const struct counts *n)
{
	struct counts *have;
	__u32 zero = 0;
	void *inner;

	if (!key || !n)
		return 0;
	inner = bpf_map_lookup_elem(&flows, &zero);
	if (inner) {
		have = bpf_map_lookup_elem(inner, key);
		if (!have && bpf_map_update_elem(inner, key, n, BPF_NOEXIST)) {
			have = bpf_map_lookup_elem(inner, key); /* another CPU was first */
			if (!have)
				inner = NULL; /* full */
		}
		if (have)
			add(have, n);
	}
	if (!inner)
		add_total(key, n);
	tally(TALLY_TABLE, 1); /* after the count: the sensor drains when it sees this change */
	return 0;
}

/* Counts for the owner of a socket's state. */
static __always_inline void keep(struct sock_state *st, const struct counts *n)
{
	if (keep_counts)
		add(&st->counts, n);
	else
		add_table(&st->key, n);
}

/* Takes what a socket's state has counted since the last report. */
static __always_inline bool take(struct sock_state *st, struct counts *n)
{
	n->sent = __sync_lock_test_and_set(&st->counts.sent, 0);
	n->received = __sync_lock_test_and_set(&st->counts.received, 0);
	n->conns = __sync_lock_test_and_set(&st->counts.conns, 0);
	n->continued = 0;
	return n->sent || n->received || n->conns;
}

/* Fills in the owner of a free socket state. Only one CPU gets here for a socket (see claim()). */
static __always_inline void own(struct sock *sk, struct sock_state *st, const struct process_id *id, __u8 direction)
{
	struct flow_key *key = &st->key;

	__builtin_memset(key, 0, sizeof(*key));
	key->process = *id;
	key->uid = current_uid();
	key->direction = direction;
	describe(sk, key);
}

static __always_inline bool claim(struct sock_state *st)
{
	return __sync_val_compare_and_swap(&st->claim, CLAIM_FREE, CLAIM_BUSY) == CLAIM_FREE ||
	       __sync_val_compare_and_swap(&st->claim, CLAIM_LISTENER, CLAIM_BUSY) == CLAIM_LISTENER;
}

static __always_inline void publish(struct sock_state *st)
{
	__sync_lock_test_and_set(&st->claim, CLAIM_OWNED); /* a full barrier: the key is written before */
}

/* Direction of a flow whose first use is a send or a receive. TCP connects are claimed at SYN_SENT, so the rest was accepted. */
static __always_inline __u8 first_direction(__u16 protocol, const struct sock_state *st, bool sending)
{
	if (!st || st->flags & FLAG_PREEXISTING)
		return DIRECTION_UNKNOWN;
	if (st->flags & FLAG_CONNECT)
		return DIRECTION_OUT;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
		return DIRECTION_IN;
	return sending ? DIRECTION_OUT : DIRECTION_IN;
}

/* Asks the sensor, once, to attach the packet programs. */
static __noinline int want_packets(void)
{
	struct {
		__u32 kind;
		__u32 size;
	} r = {KIND_WANT_PACKET, sizeof(r)};

	if (packets_asked)
		return 0;
	packets_asked = true;
	bpf_ringbuf_output(&processes, &r, sizeof(r), BPF_RB_FORCE_WAKEUP);
	return 0;
}

struct peer_address {
	__u8 remote[16];
	__be16 port;
	__u8 peer; /* enum peer */
};

static __always_inline bool same_remote(const struct flow_key *key, const struct peer_address *p)
{
	const __u64 *a = (const __u64 *)key->remote, *b = (const __u64 *)p->remote;

	return key->remote_port == p->port && a[0] == b[0] && a[1] == b[1];
}

/* The slow way: claims the socket for its first user, or counts in the table. `p` is NULL for a connected socket. */
static __noinline int count_slow(struct sock *sk, struct sock_state *st, const struct peer_address *p, struct counts *n)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct flow_key key = {};
	bool sending;

	if (!sk || !n)
		return 0;
	sending = n->sent || !n->received;
	identify(&key.process, task);
	key.uid = current_uid();
	describe(sk, &key);
	key.direction = first_direction(key.protocol, st, sending);
	if (p) {
		__builtin_memcpy(key.remote, p->remote, 16);
		key.remote_port = p->port;
		key.peer = p->peer;
	} else if (is_inet(key.family)) {
		connected_peer(sk, &key);
	}
	if (key.peer == PEER_NONE && is_inet(key.family))
		tally(TALLY_LOST_PEER, 1);
	/* The state of a socket is reported when it is released, and only inet sockets that a process made tell that. */
	if (!st || !is_inet(key.family) || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock)) {
		add_table(&key, n);
		return 0;
	}
	if (task->flags & PF_KTHREAD && st->claim == CLAIM_OWNED) {
		/* The kernel works on behalf of the socket's owner (closing an io_uring, a work queue). */
		keep(st, n);
		return 0;
	}
	if (claim(st)) {
		st->key = key;
		if (!(st->flags & (FLAG_PREEXISTING | FLAG_REPORTED)))
			n->conns = 1;
		publish(st);
		keep(st, n);
		return 0;
	}
	if (st->claim == CLAIM_OWNED)
		key.direction = st->key.direction;
	if (key.peer == PEER_NONE) {
		n->continued = 1; /* of a peer that is known otherwise */
	} else if (key.peer == PEER_PACKET && st->key.peer == PEER_NONE && !(st->flags & FLAG_NAMED)) {
		set_flag(st, FLAG_NAMED);
		n->continued = 1;
	}
	add_table(&key, n);
	return 0;
}
