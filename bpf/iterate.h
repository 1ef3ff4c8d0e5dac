/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Iterators: run by the sensor's read(), in its context. */
#pragma once

/* bpf_sock_from_file() came with 5.11. Before, a socket is known by pointing back to its file. */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *socket;

	if (atomics) {
		socket = bpf_sock_from_file(file);
		return socket ? socket->sk : NULL;
	}
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	if (!socket || BPF_CORE_READ(socket, file) != file)
		return NULL;
	return BPF_CORE_READ(socket, sk);
}

/* Once at the start: every socket in somebody's descriptor table gets its owner and its starting point. */
SEC("iter/task_file")
int adopt_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct process_id id = {};
	struct sock_state *st;
	struct tcp_sock *tp;
	struct sock *sk;
	__u16 protocol;
	__u8 state;

	if (!task || !file || task->pid != task->tgid)
		return 0;
	sk = sock_of(file);
	if (!sk || !is_inet(BPF_CORE_READ(sk, __sk_common.skc_family)))
		return 0;
	protocol = BPF_CORE_READ(sk, sk_protocol);
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	st = state_of(sk, true);
	if (!st)
		return 0;
	if (protocol == IPPROTO_TCP && state != TCP_LISTEN && state != TCP_CLOSE && !(st->flags & FLAG_BASELINE)) {
		tp = (struct tcp_sock *)sk;
		st->copied_seq = BPF_CORE_READ(tp, copied_seq);
		set_flag(st, FLAG_BASELINE);
	}
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) {
		if (state == TCP_CLOSE)
			return 0; /* not connected yet: its connect() will be seen */
		identify(&id, task);
		if (state == TCP_LISTEN) {
			/* Never busy: a socket that it accepts now would stay so. */
			if (st->claim == CLAIM_FREE) {
				own(sk, st, &id, DIRECTION_IN);
				st->key.uid = BPF_CORE_READ(task, cred, uid.val);
				set_claim(st, CLAIM_LISTENER);
			}
			return 0;
		}
		if (!claim(st))
			return 0; /* seen through another descriptor */
		own(sk, st, &id, DIRECTION_UNKNOWN);
		st->key.uid = BPF_CORE_READ(task, cred, uid.val);
		set_flag(st, FLAG_PREEXISTING);
		connected_peer(sk, &st->key);
		publish(st, CLAIM_OWNED);
		return 0;
	}
	/* A datagram socket belongs to the first who uses it. */
	if (st->claim == CLAIM_FREE)
		set_flag(st, FLAG_PREEXISTING);
	return 0;
}

/* Every drain: what live sockets have counted since the last one. */
SEC("iter/bpf_sk_storage_map")
int drain_sockets(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct sock_state *st = ctx->value;
	struct sock *sk = ctx->sk;
	struct flow_report r;

	if (!sk || !st)
		return 0;
	if (st->claim == CLAIM_LISTENER) {
		/*
		 * An accepted connection that nobody has used. Counted for the listener's process, once, at the second
		 * look: by then whoever accepts at once has used it.
		 */
		if (st->flags & (FLAG_REPORTED | FLAG_PREEXISTING) || sk->__sk_common.skc_state == TCP_LISTEN ||
		    !sk->__sk_common.skc_dport /* the listening socket after shutdown() */ ||
		    BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock) /* a subflow of MPTCP */)
			return 0;
		if (!(st->flags & FLAG_IDLE)) {
			set_flag(st, FLAG_IDLE);
			return 0;
		}
	} else if (st->claim != CLAIM_OWNED || !(st->counts.sent | st->counts.received | st->counts.conns)) {
		return 0;
	}
	__builtin_memset(&r, 0, sizeof(r));
	r.kind = KIND_FLOW;
	r.size = sizeof(r);
	/*
	 * Without room the kernel throws the output of this call away and calls again: take nothing yet. A buffer that this fills to its last byte
	 * counts as without (seq_write() in fs/seq_file.c).
	 */
	if (seq->count + sizeof(r) >= seq->size) {
		bpf_seq_write(seq, &r, sizeof(r));
		return 0;
	}
	if (st->claim == CLAIM_LISTENER) {
		set_flag(st, FLAG_REPORTED);
		r.counts.conns = 1;
		r.key = st->key;
		describe(sk, &r.key);
		connected_peer(sk, &r.key);
	} else {
		take(st, &r.counts);
		r.key = st->key; /* after the exchange, which is a barrier: not older than the counts */
		if (!r.key.local_port)
			local_address(sk, &r.key);
	}
	bpf_seq_write(seq, &r, sizeof(r));
	return 0;
}

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

/*
 * The tables' entries, for the sensor that has put the twin in this table's place: nobody else writes to it. Each that is delivered is taken out,
 * so that the kernel, which counts entries to find its place again, may pass over some when its buffer was full: the sensor reads until none comes.
 *
 * The set "kprobe" needs this. While a system call reads or empties a table (bpf_disable_instrumentation() in the kernel), the kernel skips
 * every kprobe on that CPU, also those of others when it preempts the call. Iterators do not do that.
 */
static __always_inline int drain_entry(struct seq_file *seq, struct flow_report *r, struct counts *value, void *table, void *key)
{
	r->kind = KIND_FLOW;
	r->size = sizeof(*r);
	r->counts = *value;
	if (seq->count + sizeof(*r) < seq->size) /* as above */
		bpf_map_delete_elem(table, key);
	bpf_seq_write(seq, r, sizeof(*r));
	return 0;
}

#define DRAIN_FLOWS(table)                                                               \
	SEC("iter/bpf_map_elem")                                                         \
	int drain_##table(struct bpf_iter__bpf_map_elem *ctx)                            \
	{                                                                                \
		struct counts *value = ctx->value;                                       \
		struct flow_key *key = ctx->key;                                         \
		struct flow_report r = {};                                               \
                                                                                         \
		if (!key || !value)                                                      \
			return 0;                                                        \
		r.key = *key;                                                            \
		return drain_entry(ctx->meta->seq, &r, value, &table, &r.key);           \
	}
#define DRAIN_TOTALS(table)                                                              \
	SEC("iter/bpf_map_elem")                                                         \
	int drain_##table(struct bpf_iter__bpf_map_elem *ctx)                            \
	{                                                                                \
		struct counts *value = ctx->value;                                       \
		struct total_key *key = ctx->key, total;                                 \
		struct flow_report r = {};                                               \
                                                                                         \
		if (!key || !value)                                                      \
			return 0;                                                        \
		total = *key;                                                            \
		r.key.process = total.process;                                           \
		r.key.uid = total.uid;                                                   \
		r.key.family = total.family;                                             \
		r.key.protocol = total.protocol;                                         \
		return drain_entry(ctx->meta->seq, &r, value, &table, &total);           \
	}
DRAIN_FLOWS(flow_table_0)
DRAIN_FLOWS(flow_table_1)
DRAIN_TOTALS(total_table_0)
DRAIN_TOTALS(total_table_1)
