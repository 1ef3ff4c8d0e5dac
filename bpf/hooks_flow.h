/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Hooks that count, set "tracepoint" (needs sock_send_length and sock_recv_length: kernel 6.3 and later).
 *
 * sock_send_length     caller of sock_sendmsg(); current is the sender, or an io_uring worker or kernel thread for it
 * sock_recv_length     caller of sock_recvmsg(); everything but TCP
 * tcp_rcv_space_adjust reader of a TCP socket, lock held; its copied_seq also covers splice and zero-copy
 * inet_sock_set_state  connect() and listen() in the caller's context; other changes in any context, not used
 */
#pragma once

/* One writer or reader at a time: a packet in an interrupt or on another CPU must not mix with what is read. */
static __always_inline bool lock_packets(struct sock_state *st)
{
	for (int i = 0; i < 16; i++)
		if (!__sync_val_compare_and_swap(&st->packet_lock, 0, 1))
			return true;
	return false;
}

static __always_inline void unlock_packets(struct sock_state *st)
{
	__sync_lock_test_and_set(&st->packet_lock, 0);
}

/* The peer of an unconnected socket whose caller neither gave nor asked for an address. */
static __always_inline void last_peer(struct sock_state *st, struct peer_address *p, int received)
{
	if (!received && cork_peer(st, p))
		return;
	if (!(st->packet_seen & (received ? 2 : 1)) || !lock_packets(st))
		return;
	__builtin_memcpy(p->remote, st->packet_remote[received], 16);
	p->port = st->packet_port[received];
	p->peer = PEER_PACKET;
	unlock_packets(st);
	tally(TALLY_PACKET_USED, 1);
}

static __always_inline void count_datagram(struct sock *sk, struct counts *n, int received, bool failed)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct sock_state *st = bpf_sk_storage_get(&socks, sk, NULL, 0);
	struct peer_address p = {};

	if (!st && !failed)
		st = bpf_sk_storage_get(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st) {
		if (take_message_peer(NULL, &p) && !failed)
			count_slow(sk, NULL, &p, n);
		else if (!failed)
			count_slow(sk, NULL, NULL, n);
		return;
	}
	if (!st->slot_tid && !st->pendings && sk->__sk_common.skc_dport) {
		if (failed)
			return;
		if (owner_connected(sk, st, task)) {
			keep(st, n);
			return;
		}
		count_slow(sk, st, NULL, n);
		return;
	}
	if (!take_message_peer(st, &p)) {
		if (sk->__sk_common.skc_dport) {
			if (!failed)
				count_slow(sk, st, NULL, n);
			return;
		}
		last_peer(st, &p, received);
		if (p.peer == PEER_NONE)
			want_packets();
	}
	if (!received)
		note_cork(sk, st, &p);
	if (failed)
		return;
	if (owner_remote(st, task, &p)) {
		keep(st, n);
		return;
	}
	count_slow(sk, st, &p, n);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sock_send_length, struct sock *sk, int ret, int flags)
{
	struct counts n = {};
	__u16 family = sk->__sk_common.skc_family;
	__u16 protocol;

	if (!is_network(family))
		return 0;
	protocol = sk->sk_protocol;
	n.sent = ret > 0 ? ret : 0;
	if (is_inet(family) && is_stream(protocol)) {
		if (ret <= 0)
			return 0;
		count_stream(sk, &n);
	} else if (is_inet(family)) {
		count_datagram(sk, &n, 0, ret < 0);
	} else if (ret >= 0) {
		count_slow(sk, NULL, NULL, &n);
	}
	if (ret > 0)
		tally(TALLY_SENT, ret);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(sock_recv_length, struct sock *sk, int ret, int flags)
{
	__u16 family = sk->__sk_common.skc_family;
	struct counts n = {};
	__u16 protocol;
	bool skip;

	if (!is_network(family))
		return 0;
	protocol = sk->sk_protocol;
	if (is_inet(family) && protocol == IPPROTO_TCP)
		return 0; /* tcp_rcv_space_adjust */
	/* A peeked byte is read again later; the error queue holds what we sent ourselves. */
	skip = ret < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE);
	n.received = ret > 0 ? ret : 0;
	if (is_inet(family) && protocol == IPPROTO_MPTCP) {
		if (skip || !ret)
			return 0;
		count_stream(sk, &n);
	} else if (is_inet(family)) {
		count_datagram(sk, &n, 1, skip);
	} else if (!skip) {
		count_slow(sk, NULL, NULL, &n);
	}
	if (!skip && ret > 0)
		tally(TALLY_RECEIVED, ret);
	return 0;
}

/*
 * How far the reader moved since the last time, and the new point. tcp_read_sock() (splice) steps over the FIN, which is
 * no byte; that it came stands in SOCK_DONE, not in sk_shutdown, which shutdown() and a reset set as well.
 */
static __always_inline __u32 moved(struct sock *sk, struct tcp_sock *tp, __u32 from, bool fin_done, bool *fin)
{
	__u32 seq = tp->copied_seq, delta = seq - from;

	*fin = !fin_done && seq == tp->rcv_nxt && sk->__sk_common.skc_flags & (1ul << SOCK_DONE);
	if (*fin)
		delta--;
	if (delta > tp->bytes_received) { /* more than ever came: whatever it is, it is no count */
		tally(TALLY_LOST_BASELINE, 1);
		return 0;
	}
	return delta;
}

/*
 * The first sequence number of a connection: bytes_received counts what rcv_nxt has moved over since the handshake
 * (tcp_rcv_nxt_update() in net/ipv4/tcp_input.c). Sockets that were open before us got theirs from the iterator.
 */
static __always_inline __u32 first_byte(struct tcp_sock *tp)
{
	return tp->rcv_nxt - (__u32)tp->bytes_received;
}

/* The kernel would not give this socket a state, which a program can bring about by filling its option memory. */
static __noinline int read_stateless(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 id = (__u64)sk;
	struct counts n = {};
	__u32 *from, seq;
	bool fin;

	if (!tp)
		return 0;
	seq = tp->copied_seq;
	from = bpf_map_lookup_elem(&stateless, &id);
	n.received = moved(sk, tp, from ? *from : first_byte(tp), false, &fin);
	stateless_used = 1;
	if (bpf_map_update_elem(&stateless, &id, &seq, BPF_ANY))
		tally(TALLY_LOST_BASELINE, 1);
	if (n.received) {
		count_slow(sk, NULL, NULL, &n);
		tally(TALLY_RECEIVED, n.received);
	}
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tcp_rcv_space_adjust, struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct sock_state *st;
	struct tcp_sock *tp;
	struct counts n = {};
	bool fin;

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	st = bpf_sk_storage_get(&socks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st)
		return read_stateless(sk);
	if (!(st->flags & FLAG_BASELINE)) {
		st->copied_seq = first_byte(tp);
		set_flag(st, FLAG_BASELINE);
	}
	n.received = moved(sk, tp, st->copied_seq, st->flags & FLAG_FIN, &fin);
	st->copied_seq = tp->copied_seq; /* the reader holds the socket's lock: nobody else is here */
	if (fin)
		set_flag(st, FLAG_FIN);
	if (!n.received)
		return 0;
	/* Not owned by a process: a softirq reads (strparser), and current is whoever was interrupted. */
	if (owner_connected(sk, st, task) || (st->claim == CLAIM_OWNED && !sk->sk_lock.owned))
		keep(st, &n);
	else
		count_slow(sk, st, NULL, &n);
	tally(TALLY_RECEIVED, n.received);
	return 0;
}

/* A socket that is connected again (connect() to AF_UNSPEC ended its connection) starts anew. */
static __always_inline void forget_connection(struct sock *sk, struct sock_state *st)
{
	struct flow_key key;
	struct counts n;
	__u64 id = (__u64)sk;

	if (!st) {
		if (stateless_used)
			bpf_map_delete_elem(&stateless, &id);
		return;
	}
	if (st->claim == CLAIM_OWNED) {
		if (take(st, &n)) {
			key = st->key;
			add_table(&key, &n);
		}
		set_claim(st, CLAIM_FREE);
	}
	st->flags = 0;
}

/* listen(): from now on the state is what accepted sockets begin with, so that nothing of an earlier life may be left in it. */
static __always_inline void on_listen(struct sock *sk, struct sock_state *st)
{
	struct process_id id = {};

	forget_connection(sk, st);
	identify_current(&id);
	own(sk, st, &id, DIRECTION_IN);
	set_claim(st, CLAIM_LISTENER);
}

static __always_inline int on_connect(struct sock *sk, struct sock_state *st, __u16 protocol)
{
	struct flow_key key = {};
	struct counts n = {};

	forget_connection(sk, st);
	if (st && protocol == IPPROTO_MPTCP) {
		set_flag(st, FLAG_CONNECT); /* its address is known later */
		return 0;
	}
	identify_current(&key.process);
	key.uid = current_uid();
	key.direction = DIRECTION_OUT;
	describe(sk, &key);
	if (!sk->__sk_common.skc_num)
		key.local_port = 0; /* of an earlier connection; this one's is chosen next */
	connected_peer(sk, &key);
	n.conns = 1;
	if (st && claim(st)) {
		st->key = key;
		st->counts.conns = 1; /* reported when the local port is known */
		publish(st, CLAIM_OWNED);
	} else {
		add_table(&key, &n); /* no state */
	}
	return 0;
}

/* connect() ended, well or not. The local port was chosen after it was seen. */
static __always_inline void on_answer(struct sock *sk, struct sock_state *st)
{
	struct counts n;

	if (!st->key.local_port)
		local_address(sk, &st->key);
	if (!keep_counts && take(st, &n))
		add_table(&st->key, &n);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, struct sock *sk, int old, int new)
{
	struct sock_state *st;
	__u16 protocol;

	if (new != TCP_SYN_SENT && new != TCP_LISTEN && old != TCP_SYN_SENT)
		return 0;
	protocol = sk->sk_protocol;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return 0;
	/* Subflows of MPTCP and sockets of the kernel itself. A listening subflow gives birth to plain TCP sockets too. */
	if (new != TCP_LISTEN && BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock))
		return 0;
	st = state_of(sk, old != TCP_SYN_SENT);
	if (new == TCP_SYN_SENT)
		on_connect(sk, st, protocol);
	else if (new == TCP_LISTEN && st)
		on_listen(sk, st);
	else if (old == TCP_SYN_SENT && st && st->claim == CLAIM_OWNED)
		on_answer(sk, st);
	return 0;
}
