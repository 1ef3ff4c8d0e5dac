/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Who is it: exec, fork and exit, and the processes that ran before us.
 *
 * sched_process_exec  the task itself, after the new image is in place; its arguments are in its memory
 * sched_process_fork  the parent, for the child
 * sched_process_exit  each thread; the last one ends the process
 */
#pragma once

static __always_inline void file_times(struct inode *inode, struct exec_report *r)
{
	struct inode___ctime *a = (void *)inode;
	struct inode_____ctime *b = (void *)inode;

	if (bpf_core_field_exists(inode->i_ctime_sec)) {
		r->ctime_sec = BPF_CORE_READ(inode, i_ctime_sec);
		/* Bit 31 marks a time that somebody asked for (multigrain timestamps, 6.13). */
		r->ctime_nsec = BPF_CORE_READ(inode, i_ctime_nsec) & 0x7fffffff;
	} else if (bpf_core_field_exists(b->__i_ctime)) {
		r->ctime_sec = BPF_CORE_READ(b, __i_ctime.tv_sec);
		r->ctime_nsec = BPF_CORE_READ(b, __i_ctime.tv_nsec);
	} else {
		r->ctime_sec = BPF_CORE_READ(a, i_ctime.tv_sec);
		r->ctime_nsec = BPF_CORE_READ(a, i_ctime.tv_nsec);
	}
	if (bpf_core_field_exists(inode->i_mtime_sec)) {
		r->mtime_sec = BPF_CORE_READ(inode, i_mtime_sec);
		r->mtime_nsec = BPF_CORE_READ(inode, i_mtime_nsec);
	} else if (bpf_core_field_exists(b->__i_mtime)) {
		r->mtime_sec = BPF_CORE_READ(b, __i_mtime.tv_sec);
		r->mtime_nsec = BPF_CORE_READ(b, __i_mtime.tv_nsec);
	} else {
		r->mtime_sec = BPF_CORE_READ(a, i_mtime.tv_sec);
		r->mtime_nsec = BPF_CORE_READ(a, i_mtime.tv_nsec);
	}
}

/*
 * The file whose bytes an overlay's file has. Two containers of one image have two overlays and one file; two
 * versions of a path in two containers are two files.
 */
static __always_inline struct inode *layer(struct inode *inode)
{
	struct ovl_inode *o;
	struct ovl_inode___path *p;
	struct ovl_inode___lower *l;
	struct dentry *dentry;
	struct inode *real = NULL;

	if (!bpf_core_type_exists(struct ovl_inode))
		return inode;
	o = (void *)inode - bpf_core_field_offset(struct ovl_inode, vfs_inode);
	p = (void *)o;
	l = (void *)o;
	dentry = BPF_CORE_READ(o, __upperdentry);
	if (!dentry) {
		if (bpf_core_field_exists(o->oe))
			dentry = BPF_CORE_READ(o, oe, __lowerstack[0].dentry);
		else if (bpf_core_field_exists(p->lowerpath))
			dentry = BPF_CORE_READ(p, lowerpath.dentry);
		else if (bpf_core_field_exists(l->lower))
			real = BPF_CORE_READ(l, lower);
	}
	if (dentry)
		real = BPF_CORE_READ(dentry, d_inode);
	return real ? real : inode;
}

static __always_inline void file_identity(struct inode *inode, struct exec_report *r)
{
	unsigned long magic = BPF_CORE_READ(inode, i_sb, s_magic);
	struct btrfs_inode *b;

	if (magic == OVERLAYFS_SUPER_MAGIC) {
		inode = layer(inode);
		magic = BPF_CORE_READ(inode, i_sb, s_magic);
		if (magic == OVERLAYFS_SUPER_MAGIC) { /* an overlay as a layer of another; deeper the kernel does not stack them */
			inode = layer(inode);
			magic = BPF_CORE_READ(inode, i_sb, s_magic);
		}
	}
	r->inode = BPF_CORE_READ(inode, i_ino);
	r->device = BPF_CORE_READ(inode, i_sb, s_dev);
	r->generation = BPF_CORE_READ(inode, i_generation);
	r->links = BPF_CORE_READ(inode, i_nlink);
	r->file_size = BPF_CORE_READ(inode, i_size);
	file_times(inode, r);
	/* btrfs: subvolumes share inode numbers; stat(2) reports the subvolume's own device. */
	if (magic == BTRFS_SUPER_MAGIC && bpf_core_type_exists(struct btrfs_inode)) {
		b = (void *)inode - bpf_core_field_offset(struct btrfs_inode, vfs_inode);
		r->device = BPF_CORE_READ(b, root, anon_dev);
	}
}

/*
 * Builds an exec or found report of `task` in this CPU's scratch room and returns its start, 0 if there is no room;
 * its size is in r->size. The arguments are read only of the current task.
 */
static __always_inline __u32 build(struct scratch *room, struct task_struct *task, struct linux_binprm *bprm, __u32 kind, __u32 *size)
{
	struct task_struct *parent = BPF_CORE_READ(task, real_parent, group_leader);
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	unsigned long arg_start, arg_end, total;
	const char *filename, *interp;
	struct cgroup *group, *other;
	struct exec_report *r;
	struct css_set *set;
	struct inode *root;
	struct file *file;
	__u32 at, cwd, len = 0;
	long n;

	file = mm ? BPF_CORE_READ(mm, exe_file) : NULL;
	if (file)
		working_directory(room, task);
	else
		room->walk.cwd = 0;
	walk(room, BPF_CORE_READ(file, f_path.dentry), BPF_CORE_READ(file, f_path.mnt), task, PATH_STEPS, PATH_STEPS_PLAIN);
	at = room->walk.at;
	if (at < HEADER_ROOM || at > PATH_END)
		return 0;
	at -= sizeof(*r);
	r = (void *)&room->data[at];
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = kind;
	r->flags = room->walk.flags;
	r->path_len = PATH_END - sizeof(*r) - at;
	r->ktime = bpf_ktime_get_boot_ns();
	r->process.pid = BPF_CORE_READ(task, tgid);
	r->process.exec = BPF_CORE_READ(task, self_exec_id);
	r->process.start = BPF_CORE_READ(leader, start_boottime);
	r->parent.pid = BPF_CORE_READ(parent, tgid);
	r->parent.exec = BPF_CORE_READ(parent, self_exec_id);
	r->parent.start = BPF_CORE_READ(parent, start_boottime);
	r->uid = BPF_CORE_READ(task, cred, uid.val);
	r->mount_ns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	root = BPF_CORE_READ(task, fs, root.dentry, d_inode);
	r->root_inode = BPF_CORE_READ(root, i_ino);
	r->root_device = BPF_CORE_READ(root, i_sb, s_dev);
	BPF_CORE_READ_INTO(&r->comm, task, comm);
	if (file)
		file_identity(BPF_CORE_READ(file, f_inode), r);
	if (!mm && BPF_CORE_READ(task, flags) & PF_KTHREAD)
		r->flags |= EXEC_KERNEL;
	if (bprm) {
		arg_start = BPF_CORE_READ(mm, arg_start);
		arg_end = BPF_CORE_READ(mm, arg_end);
		total = arg_end - arg_start;
		if (total > 0xffffffff)
			total = 0xffffffff;
		r->argv_total = total;
		len = total < ARGV_MAX ? total : ARGV_MAX;
		/* The pages were written a moment ago by the exec itself, so they are there. */
		if (bpf_probe_read_user(&room->data[PATH_END], len, (void *)arg_start)) {
			r->flags |= EXEC_NO_ARGV;
			len = 0;
		}
		r->argv_len = len;
		filename = BPF_CORE_READ(bprm, filename);
		interp = BPF_CORE_READ(bprm, interp);
		if (filename != interp) {
			n = bpf_probe_read_kernel_str(&room->data[PATH_END + (len & 8191)], SCRIPT_MAX, filename);
			if (n > 1) {
				r->script_len = n - 1;
				len += n - 1;
			}
		}
	}
	/* What a loop need not know lies in the room: the verifier goes through a loop once for each thing that it knows. */
	cwd = room->walk.cwd;
	asm volatile("" : "+r"(len), "+r"(cwd));
	if (len > ARGV_MAX + SCRIPT_MAX || cwd > CWD_MAX)
		return 0;
	bpf_probe_read_kernel(&room->data[PATH_END + len], cwd, &room->data[CWD_AT]); /* of no bytes, too: a look at cwd here costs the bound */
	r->cwd_len = cwd;
	len += cwd;
	room->walk.flags = 0;
	room->walk.at = PATH_END + len;
	set = BPF_CORE_READ(task, cgroups);
	group = BPF_CORE_READ(set, dfl_cgrp);
	r->cgroup = BPF_CORE_READ(group, kn, id);
	control_group(room, group, CGROUP_MAX);
	r->cgroup_len = written(room);
	other = other_group(set, group);
	if (other) {
		control_group(room, other, CGROUP1_MAX);
		r->cgroup1_len = written(room);
	}
	if (bprm) {
		preloads(room, mm);
		r->preload_len = written(room);
	}
	r->flags |= room->walk.flags;
	len = room->walk.at - PATH_END + sizeof(*r) + r->path_len;
	r->size = len;
	*size = len;
	return at;
}

#define REPORT_MAX (sizeof(struct exec_report) + REPORT_END - HEADER_ROOM)

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u32 zero = 0, size = 0, at;
	struct scratch *room = bpf_map_lookup_elem(&scratches, &zero);
	struct exec_report *r;
	__u64 how;

	if (!room)
		return 0;
	at = build(room, task, bprm, KIND_EXEC, &size);
	asm volatile("" : "+r"(at), "+r"(size)); /* check and use the same registers: older verifiers lose the bound else */
	if (!at || at > PATH_END || size > REPORT_MAX) {
		tally(TALLY_LOST_EXEC, 1);
		return 0;
	}
	r = (void *)&room->data[at];
	/* fanotify hands over every file but what is in memory only: it can be opened while it runs, so be quick. */
	how = r->flags & EXEC_DISCONNECTED ? BPF_RB_FORCE_WAKEUP : wake(&processes, size);
	if (bpf_ringbuf_output(&processes, r, size, how))
		tally(TALLY_LOST_EXEC, 1);
	return 0;
}

SEC("iter/task")
int find_processes(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	__u32 zero = 0, size = 0, at;
	struct scratch *room;

	if (!task || task->pid != task->tgid)
		return 0;
	room = bpf_map_lookup_elem(&found_scratch, &zero);
	if (!room)
		return 0;
	at = build(room, task, NULL, KIND_FOUND, &size);
	asm volatile("" : "+r"(at), "+r"(size));
	if (at && at <= PATH_END && size <= REPORT_MAX)
		bpf_seq_write(seq, &room->data[at], size); /* what does not fit is asked for again: bpf_seq_read() */
	else
		tally(TALLY_LOST_EXEC, 1);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct fork_report r = {};

	if (child->pid != child->tgid)
		return 0; /* a thread */
	r.kind = KIND_FORK;
	r.size = sizeof(r);
	r.ktime = bpf_ktime_get_boot_ns();
	r.process.pid = child->tgid;
	r.process.exec = child->self_exec_id;
	r.process.start = child->start_boottime;
	identify(&r.parent, parent);
	if (bpf_ringbuf_output(&processes, &r, sizeof(r), wake(&processes, sizeof(r))))
		tally(TALLY_LOST_FORK, 1);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	struct exit_report r = {};

	if (calls_kept)
		forget_calls(task->pid);
	if (task->signal->live.counter != 0)
		return 0; /* a thread; do_exit() has already taken itself off */
	r.kind = KIND_EXIT;
	r.size = sizeof(r);
	identify(&r.process, task);
	if (bpf_ringbuf_output(&processes, &r, sizeof(r), wake(&processes, sizeof(r))))
		tally(TALLY_LOST_EXIT, 1);
	return 0;
}
