//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit code of picosnitch where the kernel lacks what it needs.
const unsupported = 4

// Exit code of picosnitch where its recorder cannot write.
const unrecordable = 6

// unit is what the service's CapabilityBoundingSet leaves.
func unit() []int {
	return []int{
		unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH,
		unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL,
	}
}

// programs are what can be broken in a hook set: the names that they have in the BPF object.
type programs struct {
	required, next string // without it, the set that is taken
	optional, cost string // without it, what the user is told
	removed        string // the self test notices
}

func breakable(set string) programs {
	if set == "tracepoint" {
		return programs{"sock_send_length", "fexit", "recvmsg4", "where datagrams of unconnected IPv4 sockets come from", "sock_recv_length"}
	}
	return programs{"fexit_inet_sendmsg", "kprobe", "fexit_inet6_sendmsg", "all bytes sent over IPv6", "fexit_inet_recvmsg"}
}

// conditions are ordered: what cannot be undone comes last.
func conditions(set string) []condition {
	hidden := func(at string) (func() error, func() error) {
		return func() error { return unix.Mount("none", at, "tmpfs", 0, "") }, func() error { return unix.Unmount(at, 0) }
	}
	away := func(at, kind string) (func() error, func() error) {
		return func() error { return unix.Unmount(at, unix.MNT_DETACH) }, func() error { return unix.Mount(kind, at, kind, 0, "") }
	}
	sysctl := func(name, value string) (func() error, func() error) {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		old, _ := os.ReadFile(path)
		return func() error { return os.WriteFile(path, []byte(value), 0) }, func() error {
			if err := os.WriteFile(path, old, 0); err != nil && !errors.Is(err, unix.EPERM) {
				return err
			}
			return nil // some go one way only
		}
	}
	btf, showBTF := hidden("/sys/kernel/btf")
	noTrace, trace := away("/sys/kernel/tracing", "tracefs")
	noDebug, debug := away("/sys/kernel/debug", "debugfs")
	noGroups, groups := away("/sys/fs/cgroup", "cgroup2")
	paranoid, trusting := sysctl("kernel.perf_event_paranoid", "3")
	noBPF, bpf := sysctl("kernel.unprivileged_bpf_disabled", "2")
	h := breakable(set)
	no := func(caps ...int) []string { return dropping(func(c int) bool { return slices.Contains(caps, c) }) }
	return []condition{
		{name: "nothing is wrong", starts: true, said: "self test ok"},
		{name: "BTF hidden", set: btf, unset: showBTF, code: unsupported, said: "BTF"},
		{name: "tracefs and debugfs unmounted", set: both(noTrace, noDebug), unset: both(trace, debug), starts: true},
		{name: "cgroup v2 unmounted", set: noGroups, unset: groups, starts: true},
		{name: "perf_event_paranoid=3", set: paranoid, unset: trusting, starts: true},
		{name: "unprivileged_bpf_disabled=2", set: noBPF, unset: bpf, starts: true},
		{name: "the service's capabilities only", wrap: dropping(func(c int) bool { return !slices.Contains(unit(), c) }), starts: true},
		{name: "no CAP_BPF, no CAP_SYS_ADMIN", wrap: no(unix.CAP_BPF, unix.CAP_SYS_ADMIN, unix.CAP_PERFMON, unix.CAP_SYS_RESOURCE), code: unsupported, said: "CAP_BPF"},
		{name: "no CAP_NET_ADMIN, no CAP_SYS_ADMIN", wrap: no(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN), closed: true, code: unrecordable, said: "give picosnitch CAP_SYS_ADMIN"},
		{name: "the same, with a folder that others may reach", wrap: append(opening(), no(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN)...), starts: true, said: "cgroup/sock_release is not attached", red: true},
		{name: "64 KiB of locked memory", wrap: append([]string{"/bin/sh", "-c", `'ulimit -l 64; exec "$0" "$@"'`}, no(unix.CAP_SYS_NICE)...), starts: true},
		{name: "a hook of the best set refused", faulty: true, env: []string{"PICOSNITCH_FAULT_REFUSE=" + h.required}, starts: true, said: "hook set " + h.next},
		{name: "a hook that every set needs refused", faulty: true, env: []string{"PICOSNITCH_FAULT_REFUSE=sched_process_exec"}, code: unsupported, said: "which program it is"},
		{name: "an optional hook refused", faulty: true, hooks: set, env: []string{"PICOSNITCH_FAULT_REFUSE=" + h.optional}, starts: true, said: h.cost, red: true},
		{name: "a hook removed from the table", faulty: true, hooks: set, env: []string{"PICOSNITCH_FAULT_REMOVE=" + h.removed}, starts: true, said: "self test [^o]", red: true},
		{name: "lockdown=integrity", set: func() error { return lockdown("integrity") }, starts: true},
		{name: "lockdown=confidentiality", set: func() error { return lockdown("confidentiality") }, code: unsupported, said: "lock"},
	}
}

// opening is the command line that lets others enter the home in which the folder is to be.
func opening() []string {
	return []string{"/bin/sh", "-c", `'chmod 755 "${PICOSNITCH_DIR%/*}"; exec "$0" "$@"'`}
}

func both(a, b func() error) func() error {
	return func() error { return errors.Join(a(), b()) }
}

// lockdown raises the kernel's lockdown, which can only be raised.
func lockdown(level string) error {
	return os.WriteFile("/sys/kernel/security/lockdown", []byte(level), 0)
}

// dropping is the command line that starts a program without some capabilities.
func dropping(drop func(int) bool) []string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	var caps []string
	for c := range unix.CAP_LAST_CAP + 1 {
		if drop(c) {
			caps = append(caps, strconv.Itoa(c))
		}
	}
	return []string{self, "without", strings.Join(caps, ",")}
}

// without drops capabilities for good and becomes another program.
func without(caps string, args []string) error {
	for s := range strings.SplitSeq(caps, ",") {
		c, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		// A kernel may know fewer than this program.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}
