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

static __always_inline bool is_stream(__u16 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP;
}

static __always_inline bool is_inet(__u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

/* `task` is a pointer that the verifier knows. */
static __always_inline void identify(struct process_id *id, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;

	id->pid = task->tgid;
	id->exec = task->self_exec_id;
	id->start = leader->start_boottime;
}

static __always_inline void identify_current(struct process_id *id)
{
	struct task_struct *task;

	if (atomics) {
		identify(id, bpf_get_current_task_btf());
		return;
	}
	task = (void *)bpf_get_current_task();
	id->pid = BPF_CORE_READ(task, tgid);
	id->exec = BPF_CORE_READ(task, self_exec_id);
	id->start = BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline bool current_is_kernel(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return (BPF_CORE_READ(task, flags) & PF_KTHREAD) != 0;
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
	if (!atomics) {
		/* Only openings are there (see keep_counts), and only connect() and its answer come here. */
		*n = st->counts;
		__builtin_memset(&st->counts, 0, sizeof(st->counts));
		return n->sent || n->received || n->conns;
	}
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

/* The right to fill in the key of a state that is free: to be followed by publish(). */
static __always_inline bool claim(struct sock_state *st)
{
	__u64 address = (__u64)st;
	__u8 one = 1;

	if (atomics)
		return __sync_val_compare_and_swap(&st->claim, CLAIM_FREE, CLAIM_BUSY) == CLAIM_FREE ||
		       __sync_val_compare_and_swap(&st->claim, CLAIM_LISTENER, CLAIM_BUSY) == CLAIM_LISTENER;
	if (st->claim != CLAIM_FREE && st->claim != CLAIM_LISTENER)
		return false;
	if (bpf_map_update_elem(&claims, &address, &one, BPF_NOEXIST))
		return false;
	if (st->claim == CLAIM_FREE || st->claim == CLAIM_LISTENER) {
		*(volatile __u32 *)&st->claim = CLAIM_BUSY;
		return true;
	}
	bpf_map_delete_elem(&claims, &address); /* somebody published between the two looks */
	return false;
}

static __always_inline void publish(struct sock_state *st, __u32 as)
{
	__u64 address = (__u64)st;

	if (atomics) {
		__sync_lock_test_and_set(&st->claim, as); /* a full barrier: the key is written before */
		return;
	}
	*(volatile __u32 *)&st->claim = as;
	bpf_map_delete_elem(&claims, &address);
}

static __always_inline void set_claim(struct sock_state *st, __u32 to)
{
	if (atomics)
		__sync_lock_test_and_set(&st->claim, to);
	else
		*(volatile __u32 *)&st->claim = to;
}

/* The state of a socket that has no storage, by its address. */
static __noinline struct sock_state *find_state(struct sock *sk, bool create)
{
	__u64 address = (__u64)sk;
	struct sock_state *st;

	if (!use_states)
		return NULL;
	st = bpf_map_lookup_elem(&states, &address);
	if (st || !create || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock)) /* nothing would tell us its release */
		return st;
	bpf_map_update_elem(&states, &address, (void *)&no_state, BPF_NOEXIST);
	st = bpf_map_lookup_elem(&states, &address);
	if (!st)
		tally(TALLY_LOST_STATE, 1);
	return st;
}

/* A socket's state. With storage, `sk` is a pointer that the verifier knows. */
static __always_inline struct sock_state *state_of(struct sock *sk, bool create)
{
	if (storage)
		return bpf_sk_storage_get(&socks, sk, NULL, create ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	return find_state(sk, create);
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
	struct flow_key key = {};
	bool sending;

	if (!sk || !n)
		return 0;
	sending = n->sent || !n->received;
	identify_current(&key.process);
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
	if (st->claim == CLAIM_OWNED && current_is_kernel()) {
		/* The kernel works on behalf of the socket's owner (closing an io_uring, a work queue). */
		keep(st, n);
		return 0;
	}
	if (claim(st)) {
		st->key = key;
		if (!(st->flags & (FLAG_PREEXISTING | FLAG_REPORTED)))
			n->conns = 1;
		publish(st, CLAIM_OWNED);
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

/* Whether the owner of st's key is the caller, on the address that the socket is connected to. */
static __always_inline bool owner_connected(struct sock *sk, struct sock_state *st, struct task_struct *task)
{
	struct flow_key *key = &st->key;

	if (st->claim != CLAIM_OWNED || key->process.pid != task->tgid || key->process.exec != (__u32)task->self_exec_id ||
	    key->process.start != task->group_leader->start_boottime || key->remote_port != sk->__sk_common.skc_dport)
		return false;
	if (key->family == AF_INET)
		return *(__u32 *)key->remote == sk->__sk_common.skc_daddr;
	return *(__u32 *)(key->remote + 0) == sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0] &&
	       *(__u32 *)(key->remote + 4) == sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1] &&
	       *(__u32 *)(key->remote + 8) == sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2] &&
	       *(__u32 *)(key->remote + 12) == sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
}

static __always_inline bool owner_remote(struct sock_state *st, struct task_struct *task, const struct peer_address *p)
{
	struct flow_key *key = &st->key;

	return st->claim == CLAIM_OWNED && key->process.pid == task->tgid && key->process.exec == (__u32)task->self_exec_id &&
	       key->process.start == task->group_leader->start_boottime && same_remote(key, p);
}

/*
 * The address of the datagram that this call moved, when the socket is not connected to it. The cgroup hooks left it
 * in the socket's slot just before, in this very thread, or in the map when the slot was taken or there is no state. It
 * is taken even when the call failed.
 */
static __always_inline bool take_message_peer(struct sock_state *st, struct peer_address *p)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct pending *other;

	if (storage && st && st->slot_tid == tid) {
		__builtin_memcpy(p->remote, st->slot_remote, 16);
		p->port = st->slot_port;
		p->peer = PEER_MESSAGE;
		__sync_lock_test_and_set(&st->slot_tid, 0);
		return true;
	}
	if (storage && st && !st->pendings)
		return false;
	other = bpf_map_lookup_elem(&pendings, &tid);
	if (!other)
		return false;
	__builtin_memcpy(p->remote, other->remote, 16);
	p->port = other->port;
	p->peer = PEER_MESSAGE;
	bpf_map_delete_elem(&pendings, &tid);
	if (storage && st)
		__sync_fetch_and_add(&st->pendings, -1);
	return true;
}

/* Keeps the address of a datagram for the count that this thread makes next. */
static __always_inline void note_peer(struct sock_state *st, const __u8 *remote, __be16 port)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct pending other = {};
	__u32 was;

	if (storage && st) {
		was = __sync_val_compare_and_swap(&st->slot_tid, 0, tid);
		if (was == 0 || was == tid) {
			__builtin_memcpy(st->slot_remote, remote, 16);
			st->slot_port = port;
			return;
		}
	}
	/* No state, or another thread is between its address and its datagram on this socket. */
	__builtin_memcpy(other.remote, remote, 16);
	other.port = port;
	if (!bpf_map_update_elem(&pendings, &tid, &other, BPF_ANY) && storage && st)
		__sync_fetch_and_add(&st->pendings, 1);
}

/* Remembers whether a send left the datagram open, and where it goes. */
static __always_inline void note_cork(struct sock *sk, struct sock_state *st, const struct peer_address *p)
{
	__u16 protocol = storage ? sk->sk_protocol : BPF_CORE_READ(sk, sk_protocol);

	if (protocol == IPPROTO_UDP && BPF_CORE_READ((struct udp_sock *)sk, pending)) {
		__builtin_memcpy(st->cork_remote, p->remote, 16);
		st->cork_port = p->port;
		set_flag(st, FLAG_CORKED);
	} else if (st->flags & FLAG_CORKED) {
		clear_flag(st, FLAG_CORKED);
	}
}

/* Later parts of a datagram go where its first part went. */
static __always_inline bool cork_peer(struct sock_state *st, struct peer_address *p)
{
	if (!(st->flags & FLAG_CORKED))
		return false;
	__builtin_memcpy(p->remote, st->cork_remote, 16);
	p->port = st->cork_port;
	p->peer = PEER_MESSAGE;
	return true;
}

static __always_inline void count_stream(struct sock *sk, struct counts *n)
{
	struct sock_state *st = state_of(sk, true);

	if (storage && st && owner_connected(sk, st, bpf_get_current_task_btf()))
		keep(st, n);
	else
		count_slow(sk, st, NULL, n);
}
