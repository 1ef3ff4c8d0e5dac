// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The kernel side of picosnitch, one object for all hook sets. README.md beside this file says what each hook is for. */

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#define __KERNEL__ /* pt_regs by its names in the kernel; ours is in kernel.h */
#include <bpf/bpf_tracing.h>

#include "types.h"
#include "maps.h"
#include "flow.h"
#include "hooks_flow.h"
#include "hooks_call.h"
#include "hooks_peer.h"
#include "where.h"
#include "process.h"
#include "iterate.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Types that no map names, kept in the object's BTF for the generated Go. */
const enum kind *unused_kind __attribute__((unused));
const enum direction *unused_direction __attribute__((unused));
const enum peer *unused_peer __attribute__((unused));
const enum tally *unused_tally __attribute__((unused));
const struct flow_report *unused_flow_report __attribute__((unused));
const struct exec_report *unused_exec_report __attribute__((unused));
const struct fork_report *unused_fork_report __attribute__((unused));
const struct exit_report *unused_exit_report __attribute__((unused));
