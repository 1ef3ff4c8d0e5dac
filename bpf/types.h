/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What crosses from the kernel to the sensor. No packing, padding is explicit, ports and addresses are in network order. */
#pragma once

enum kind {
	KIND_FLOW = 1,
	KIND_EXEC,
	KIND_FORK,
	KIND_EXIT,
	KIND_FOUND,	  /* a process that ran before us, from the task iterator */
	KIND_WANT_PACKET, /* a socket whose peers only its packets tell */
};

enum direction {
	DIRECTION_UNKNOWN = 0,
	DIRECTION_OUT,
	DIRECTION_IN,
};

enum peer {
	PEER_NONE = 0,
	PEER_SOCKET,
	PEER_MESSAGE,
	PEER_PACKET,
};

/* Counters of the ledger, one array entry each. Bytes first. */
enum tally {
	TALLY_SENT = 0,
	TALLY_RECEIVED,
	TALLY_LOST_SENT,     /* bytes that no map could take */
	TALLY_LOST_RECEIVED,
	TALLY_LOST_FLOW,     /* updates that no map could take */
	TALLY_LOST_DETAIL,   /* updates folded into the process's total */
	TALLY_LOST_PEER,     /* updates without a remote address */
	TALLY_LOST_BASELINE, /* TCP sockets met without a starting point */
	TALLY_LOST_STATE,    /* sockets for whose state there was no room */
	TALLY_LOST_CALL,     /* calls of which only the beginning or only the end was seen */
	TALLY_LOST_EXEC,
	TALLY_LOST_FORK,
	TALLY_LOST_EXIT,
	TALLY_TABLE,	     /* updates of the flow table: tells the sensor whether a drain is worth it */
	TALLY_PACKET_USED,   /* counts that took their peer from a packet */
	TALLY_MAX,
};

struct process_id {
	__u64 start; /* ns since boot */
	__u32 pid;
	__u32 exec;
};

struct flow_key {
	struct process_id process;
	__u8 local[16];
	__u8 remote[16];
	__be16 local_port;
	__be16 remote_port;
	__u32 uid;
	__u32 net_ns;
	__u16 family;
	__u16 protocol;
	__u8 type;
	__u8 direction;
	__u8 peer;
	__u8 zero8;
	__u32 zero;
};

struct counts {
	__u64 sent;
	__u64 received;
	__u32 conns;
	__u32 continued; /* the flow's opening was counted already, without its peer */
};

/* One report of a flow: what moved since its last report. */
struct flow_report {
	__u32 kind;
	__u32 size;
	struct flow_key key;
	struct counts counts;
};

/* What is left of a flow when the flow table is full. */
struct total_key {
	struct process_id process;
	__u32 uid;
	__u16 family;
	__u16 protocol;
};

/*
 * Header of an exec (or found) report. What follows: path, arguments, script, working directory, control group, control group of another
 * hierarchy, environment; each as long as its length says. Names of control groups are NUL-terminated, the nearest first.
 */
struct exec_report {
	__u32 kind;
	__u32 size;
	__u64 ktime; /* ns since boot */
	struct process_id process;
	struct process_id parent;
	__u64 cgroup;
	__u64 inode;
	__u64 file_size;
	__s64 ctime_sec;
	__s64 mtime_sec;
	__u64 device;
	__u32 ctime_nsec;
	__u32 mtime_nsec;
	__u32 generation;
	__u32 links;
	__u32 uid;
	__u32 mount_ns;
	__u32 argv_total; /* bytes of all arguments, of which argv_len follow */
	__u16 path_len;
	__u16 argv_len;
	__u16 script_len;
	__u16 flags;
	__u8 comm[16];
	__u32 root_device; /* the file system of the process's root directory */
	__u64 root_inode;
	__u16 cwd_len;
	__u16 cgroup_len;
	__u16 cgroup1_len;
	__u16 preload_len; /* LD_PRELOAD=… and LD_AUDIT=…, each NUL-terminated */
};

#define EXEC_PATH_CUT 1	     /* the path's beginning is missing */
#define EXEC_DISCONNECTED 2  /* the file is not below the process's root (memfd, detached mount) */
#define EXEC_NO_ARGV 4	     /* the arguments could not be read */
#define EXEC_KERNEL 8	     /* a kernel thread */
#define EXEC_ENV_CUT 16	     /* the environment was not seen to its end, or a value not */
#define EXEC_CGROUP_CUT 32   /* the names nearest to the root are missing */

struct fork_report {
	__u32 kind;
	__u32 size;
	__u64 ktime;
	struct process_id process;
	struct process_id parent;
};

struct exit_report {
	__u32 kind;
	__u32 size;
	struct process_id process;
};
