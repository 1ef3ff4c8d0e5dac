/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* All maps, and the settings that the loader fills in. */
#pragma once

/* Set by the loader before the program is loaded; those without const also later. */
const volatile bool loops = true;	   /* bpf_loop() is there */
const volatile bool bandwidth = true;	   /* false: count connections only */
/* Counts stay in the socket's state until it is drained or released; false where one of the two is not to be had: then they go to the table. */
volatile bool keep_counts = true;
/*
 * What the kernel offers, found by trial (internal/sensor/kernel/probe.go). Code that is dead by these constants may hold what the kernel would refuse:
 * its verifier does not look there. The exception is an atomic instruction with a result, which kernels before 5.12 refuse
 * wherever it stands; the loader replaces it by an instruction that no kernel accepts, so it is dead or the program does not load.
 */
const volatile bool storage = true; /* tracing programs may use socket storage */
const volatile bool atomics = true; /* atomic instructions with a result, and the current task with its types: 5.12 */
const volatile bool calls_kept = false; /* the set "kprobe" */
volatile bool calls_on = false;	     /* all probes are attached: a call must have both ends from now on */
volatile bool use_states = true;    /* without storage: something tells us that a socket is released */
volatile __u32 stateless_used = 0;    /* entries of that map were made */
volatile bool packets_asked = false; /* a socket wants the packet programs; the sensor clears it when it detaches them */
const volatile __u32 wake_bytes = 1 << 16; /* wake the reader when so much waits in a ring; a power of two */

/*
 * One socket's first flow. The counts are what is not reported yet: every report takes them with an exchange, so
 * an update that runs at the same moment is either in this report or in the next one, on whatever CPU.
 */
struct sock_state {
	struct flow_key key;
	struct counts counts;
	__u32 claim; /* who the key belongs to: see enum claim */
	__u32 flags;
	__u32 copied_seq; /* TCP: received up to here is counted */
	/* The address of the datagram that thread `slot_tid` is sending or receiving right now. */
	__u32 slot_tid;
	__u32 pendings; /* threads whose address is in the map of that name, because the slot was taken */
	__u8 slot_remote[16];
	__be16 slot_port;
	/* The last packets' peers, sent and received, noted only while the packet programs are attached. */
	__be16 packet_port[2];
	__u16 packet_seen; /* bit 0: sent, bit 1: received */
	__u8 packet_remote[2][16];
	__u32 packet_lock; /* 1 while somebody writes or reads the above */
	/* Where the first part of a corked datagram went. */
	__u8 cork_remote[16];
	__be16 cork_port;
	__u16 zero[3];
	__u64 address; /* of the socket, see plain_address() */
};

enum claim {
	CLAIM_FREE = 0,
	CLAIM_BUSY, /* a CPU is filling in the key */
	CLAIM_OWNED,
	CLAIM_LISTENER, /* on a listening socket, and inherited by those that it accepts until one uses them */
};

#define FLAG_BASELINE 1	   /* copied_seq is set */
#define FLAG_FIN 2	   /* the sequence number of the FIN is taken off */
#define FLAG_PREEXISTING 4 /* open before us: who opened it is not known */
#define FLAG_REPORTED 8	   /* an accepted connection that nobody used yet was counted for the listener */
#define FLAG_IDLE 16	   /* ... and was seen once by the drain */
#define FLAG_NAMED 128	   /* the flow began without a known peer, and has one now */
#define FLAG_CORKED 64	   /* the last send left a datagram that is not complete (MSG_MORE, UDP_CORK) */
#define FLAG_CONNECT 32	   /* MPTCP: connect() was called; the address is known later */

/* Atomic: the drain and the counting programs set flags of one socket on different CPUs. */
static __always_inline void set_flag(struct sock_state *st, __u32 flag)
{
	if (atomics)
		__sync_fetch_and_or(&st->flags, flag);
	else
		st->flags |= flag;
}

static __always_inline void clear_flag(struct sock_state *st, __u32 flag)
{
	if (atomics)
		__sync_fetch_and_and(&st->flags, ~flag);
	else
		st->flags &= ~flag;
}

/* BPF_F_CLONE: an accepted socket starts with its listener's state. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sock_state);
} socks SEC(".maps");

/*
 * The same where tracing programs have no socket storage. Key: the socket. An entry is made at the socket's first use and
 * removed when it is released. Counts do not stay in it. The loader makes both maps small where storage is to be had.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct sock_state);
} states SEC(".maps");
const struct sock_state no_state = {}; /* what an entry begins with */

/* Who fills in the key of a state right now. Key: the socket. Inserting is the kernel's atomic test. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u8);
} claims SEC(".maps");

/*
 * Everything that does not fit into a socket's state: other processes, other peers, other families. The sensor
 * replaces the inner map by an empty one; the kernel's update of a map of maps waits until no program uses the old
 * one any more (maybe_wait_bpf_programs() in kernel/bpf/syscall.c), then the old one is read in peace.
 */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct counts);
};
struct flow_table flow_table_0 SEC(".maps"), flow_table_1 SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flow_table);
} flows SEC(".maps") = {.values = {&flow_table_0}};

/* The same for processes whose flows found no room. */
struct total_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct total_key);
	__type(value, struct counts);
};
struct total_table total_table_0 SEC(".maps"), total_table_1 SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct total_table);
} totals SEC(".maps") = {.values = {&total_table_0}};

/* Addresses of datagrams under way when two threads use one socket. Key: thread; one entry a thread at most. */
struct pending {
	__u8 remote[16];
	__be16 port;
	__u16 zero[3];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pending);
} pendings SEC(".maps");

/* Set "kprobe": what the calls under way were given. Key: thread and kind of call. */
struct call_key {
	__u32 tid;
	__u32 which;
};
struct call_value {
	__u64 sk;
	__u64 second; /* the msghdr, or what else the second argument is */
	__u64 flags;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768); /* the loader makes it small for the other sets */
	__type(key, struct call_key);
	__type(value, struct call_value);
} calls SEC(".maps");

/* Starting points of TCP sockets whose state the kernel would not give (their option memory is full). Key: the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} stateless SEC(".maps");

/* The ledger and the losses, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TALLY_MAX);
	__type(key, __u32);
	__type(value, __u64);
} tallies SEC(".maps");

/* Reports of sockets that were released. The size is set by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} released SEC(".maps");

/* Reports of exec, fork and exit. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} processes SEC(".maps");

/* Room to build an exec report in. The path grows towards the front, the arguments follow it. */
#define HEADER_ROOM 256
#define PATH_MAX 4096
#define ARGV_MAX 4096
#define SCRIPT_MAX 1024
#define CWD_MAX 1024
#define CGROUP_MAX 4096
#define CGROUP1_MAX 2048
#define PRELOAD_MAX 1024
#define PATH_END (HEADER_ROOM + PATH_MAX)
#define REPORT_END (PATH_END + ARGV_MAX + SCRIPT_MAX + CWD_MAX + CGROUP_MAX + CGROUP1_MAX + PRELOAD_MAX)
/* Behind the report: what is put together elsewhere. */
#define CWD_AT 18432
#define ENV_AT (CWD_AT + CWD_MAX)
#define ENV_PIECE 4096
struct scratch {
	__u8 data[24576]; /* a value per CPU is at most 32768 bytes */
	/* Where the walk to the root is: here and not in registers, so that each of its steps looks the same to the verifier. */
	struct walk {
		__u64 dentry;
		__u64 mnt;
		__u64 root_dentry;
		__u64 root_mnt;
		__u32 at; /* the path begins here */
		__u32 flags;
		__u32 limit; /* `at` of the other walks may not go beyond */
		__u32 more;  /* what is read next is the rest of a long string */
		__u32 cwd;   /* length of the working directory at CWD_AT */
		__u32 begin; /* of what is written at the end of the report */
	} walk;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* The iterator's own: it can be preempted, and an exec on its CPU would write into the same room. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} found_scratch SEC(".maps");

static __always_inline void tally(__u32 which, __u64 n)
{
	__u64 *v = bpf_map_lookup_elem(&tallies, &which);

	/* Atomic although per CPU: a program in an interrupt may hit the same entry. */
	if (v)
		__sync_fetch_and_add(v, n);
}

/*
 * Wake the reader for every quarter of a ring that fills, not for every report: a wake-up costs ten times the report
 * itself. A few reports around the mark wake, because two CPUs may step over it together.
 */
static __always_inline __u64 wake(void *ring, __u32 size)
{
	__u64 waiting = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);

	return waiting >= wake_bytes && (waiting & (wake_bytes - 1)) < 2 * size ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}
