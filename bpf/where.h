/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What is found step by step: paths, control groups, and what the environment has the loader load. The state of
 * each loop is in the scratch room.
 */
#pragma once

/*
 * bpf_loop() came with 5.17. Where it is missing a plain loop takes its place, each of whose steps costs the verifier the same
 * again: so there are fewer, and what is longer is said to be cut.
 */
#define PATH_STEPS 2048
#define PATH_STEPS_PLAIN 256
#define CWD_STEPS 1024
#define CWD_STEPS_PLAIN 48
#define CGROUP_STEPS 128
#define CGROUP_STEPS_PLAIN 24
#define ENV_STEPS 16384
#define ENV_STEPS_PLAIN 256
#define NAME_ROOM 256

struct looped {
	struct scratch *room;
};

/* Defines a function that repeats `step` until it returns true, and returns whether it did. */
#define REPEATED(step)                                                                   \
	static long step##_each(__u32 i, void *data)                                      \
	{                                                                                 \
		return step(((struct looped *)data)->room);                               \
	}                                                                                 \
	static __always_inline bool repeat_##step(struct scratch *room, int most, int plain) \
	{                                                                                 \
		struct looped c = {room};                                                 \
		bool end = false;                                                         \
                                                                                          \
		if (loops)                                                                \
			return bpf_loop(most, step##_each, &c, 0) < most;                 \
		_Pragma("clang loop unroll(disable)") for (int i = 0; i < plain && !end; i++) \
			end = step(room);                                                 \
		return end;                                                               \
	}

/*
 * One step towards the root: as d_path() does (fs/d_path.c), without its locks: a rename at this moment may mix two names.
 * Returns true at the end.
 */
static __always_inline bool step(struct scratch *room)
{
	struct walk *w = &room->walk;
	struct dentry *dentry = (void *)w->dentry, *parent;
	struct vfsmount *mnt = (void *)w->mnt;
	struct mount *mount, *above;
	const unsigned char *name;
	__u32 len, at;
	__u8 *to;

	if ((__u64)dentry == w->root_dentry && (__u64)mnt == w->root_mnt)
		return true;
	if (dentry == BPF_CORE_READ(mnt, mnt_root)) {
		mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
		above = BPF_CORE_READ(mount, mnt_parent);
		if (above == mount)
			return true; /* the root of all, or a mount that is not in a tree */
		w->dentry = (__u64)BPF_CORE_READ(mount, mnt_mountpoint);
		w->mnt = (__u64)above + bpf_core_field_offset(struct mount, mnt);
		return false;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry)
		w->flags |= EXEC_DISCONNECTED;
	len = BPF_CORE_READ(dentry, d_name.len) & 255;
	name = BPF_CORE_READ(dentry, d_name.name);
	at = w->at;
	if (at < HEADER_ROOM + len + 1) {
		w->flags |= EXEC_PATH_CUT;
		return true;
	}
	at -= len + 1;
	asm volatile("" : "+r"(at)); /* one register for the bound and the address, or the verifier loses the bound */
	if (at > PATH_END)
		return true;
	to = &room->data[at];
	*to = '/';
	bpf_probe_read_kernel(to + 1, len, name);
	w->at = at;
	w->dentry = (__u64)parent;
	return parent == dentry;
}

REPEATED(step)

/* Writes the path of a file, as `task` sees it, before PATH_END. */
static __always_inline void walk(struct scratch *room, struct dentry *dentry, struct vfsmount *mnt, struct task_struct *task, int most, int plain)
{
	struct walk *w = &room->walk;

	w->at = PATH_END;
	w->flags = 0;
	if (!dentry)
		return;
	w->dentry = (__u64)dentry;
	w->mnt = (__u64)mnt;
	w->root_dentry = (__u64)BPF_CORE_READ(task, fs, root.dentry);
	w->root_mnt = (__u64)BPF_CORE_READ(task, fs, root.mnt);
if (!repeat_step(room, most, plain))
		w->flags |= EXEC_PATH_CUT;
}

/* Copies the working directory to CWD_AT and notes its length; 0 when it is too long, or not below the root. */
static __always_inline void working_directory(struct scratch *room, struct task_struct *task)
{
	struct walk *w = &room->walk;
	__u32 at, len;

	walk(room, BPF_CORE_READ(task, fs, pwd.dentry), BPF_CORE_READ(task, fs, pwd.mnt), task, CWD_STEPS, CWD_STEPS_PLAIN);
	w->cwd = 0;
	at = w->at;
	if (w->flags || at < PATH_END - CWD_MAX || at > PATH_END)
		return;
	len = PATH_END - at;
	if (!len) {
		room->data[CWD_AT] = '/';
		w->cwd = 1;
		return;
	}
	asm volatile("" : "+r"(len));
	if (len > CWD_MAX)
		return;
	bpf_probe_read_kernel(&room->data[CWD_AT], len, &room->data[at]);
	w->cwd = len;
}

/* The other walks begin where the report ends so far, and may add `max` bytes to it. */
static __always_inline void begin(struct scratch *room, __u32 max)
{
	room->walk.begin = room->walk.at;
	room->walk.limit = room->walk.at + max - NAME_ROOM;
}

static __always_inline __u32 written(struct scratch *room)
{
	return room->walk.at - room->walk.begin;
}

/* One name of a control group. Returns true at the end. */
static __always_inline bool up(struct scratch *room)
{
	struct walk *w = &room->walk;
	struct kernfs_node *kn = (void *)w->dentry, *parent;
	struct kernfs_node___rcu *k = (void *)kn;
	__u32 at = w->at;
	long n;

	if (bpf_core_field_exists(kn->parent))
		parent = BPF_CORE_READ(kn, parent);
	else
		parent = BPF_CORE_READ(k, __parent);
	if (!parent)
		return true;
	asm volatile("" : "+r"(at));
	if (at > w->limit || at > REPORT_END - NAME_ROOM) {
		w->flags |= EXEC_CGROUP_CUT;
		return true;
	}
	n = bpf_probe_read_kernel_str(&room->data[at], NAME_ROOM, BPF_CORE_READ(kn, name));
	if (n < 1 || n > NAME_ROOM) {
		w->flags |= EXEC_CGROUP_CUT;
		return true;
	}
	w->at = at + n;
	w->dentry = (__u64)parent;
	return false;
}

REPEATED(up)

/* Adds the names of a control group. */
static __always_inline void control_group(struct scratch *room, struct cgroup *group, __u32 max)
{
	struct walk *w = &room->walk;

	begin(room, max);
	w->dentry = (__u64)BPF_CORE_READ(group, kn);
if (!repeat_up(room, CGROUP_STEPS, CGROUP_STEPS_PLAIN))
		w->flags |= EXEC_CGROUP_CUT;
}

/*
 * The control group of a controller that has a hierarchy of its own (cgroup v1), NULL if there is none, or if it is the root:
 * container engines join the groups of all controllers.
 */
static __always_inline struct cgroup *own_hierarchy(struct css_set *set, struct cgroup *unified, __u32 id)
{
	struct cgroup_subsys_state *css = NULL;
	struct kernfs_node *kn, *parent;
	struct kernfs_node___rcu *k;
	struct cgroup *group;

	bpf_probe_read_kernel(&css, sizeof(css), (void *)set + bpf_core_field_offset(struct css_set, subsys) + id * sizeof(css));
	if (!css)
		return NULL;
	group = BPF_CORE_READ(css, cgroup);
	if (!group || BPF_CORE_READ(group, root) == BPF_CORE_READ(unified, root))
		return NULL;
	kn = BPF_CORE_READ(group, kn);
	k = (void *)kn;
	if (bpf_core_field_exists(kn->parent))
		parent = BPF_CORE_READ(kn, parent);
	else
		parent = BPF_CORE_READ(k, __parent);
	return parent ? group : NULL;
}

static __always_inline struct cgroup *other_group(struct css_set *set, struct cgroup *unified)
{
	struct cgroup *group = NULL;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
		group = own_hierarchy(set, unified, bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id));
	if (!group && bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		group = own_hierarchy(set, unified, bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id));
	return group;
}

/* One string of the environment. Returns true at the end. */
static __always_inline bool look(struct scratch *room)
{
	struct walk *w = &room->walk;
	__u8 *v = &room->data[ENV_AT];
	__u64 begin = *(__u64 *)v;
	__u32 at = w->at;
	bool wanted;
	long n, m;

	if (w->dentry >= w->mnt)
		return true;
	n = bpf_probe_read_user_str(v, ENV_PIECE, (void *)w->dentry);
	if (n < 1 || n > ENV_PIECE) {
		w->flags |= EXEC_ENV_CUT;
		return true;
	}
	begin = *(volatile __u64 *)v;
	wanted = (begin == 0x4f4c4552505f444cULL /* LD_PRELO */ && v[8] == 'A' && v[9] == 'D' && v[10] == '=' && n > 12) ||
		 (begin == 0x54494455415f444cULL /* LD_AUDIT */ && v[8] == '=' && n > 10);
	if (wanted && !w->more) {
		asm volatile("" : "+r"(at));
		if (at > w->limit || at > REPORT_END - NAME_ROOM) {
			w->flags |= EXEC_ENV_CUT;
			return true;
		}
		m = bpf_probe_read_kernel_str(&room->data[at], NAME_ROOM, v);
		if (m < 1 || m > NAME_ROOM)
			return true;
		if (m < n)
			w->flags |= EXEC_ENV_CUT;
		w->at = at + m;
	}
	w->more = n == ENV_PIECE;
	w->dentry += n - w->more; /* the piece of a long string was ended for us */
	return false;
}

REPEATED(look)

/* Adds LD_PRELOAD=… and LD_AUDIT=… of the current task. */
static __always_inline void preloads(struct scratch *room, struct mm_struct *mm)
{
	struct walk *w = &room->walk;

	begin(room, PRELOAD_MAX);
	w->dentry = BPF_CORE_READ(mm, env_start);
	w->mnt = BPF_CORE_READ(mm, env_end);
	w->more = 0;
if (!repeat_look(room, ENV_STEPS, ENV_STEPS_PLAIN))
		w->flags |= EXEC_ENV_CUT;
}
