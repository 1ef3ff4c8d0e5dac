package sensor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/kernel"
)

// Report is what Doctor found.
type Report struct {
	Kernel   string       `json:"kernel"`
	HookSet  string       `json:"hook_set"` // "" when none works
	Why      string       `json:"hook_set_why"`
	Features []Check      `json:"features"`
	Hooks    []event.Hook `json:"hooks"`
	SelfTest []Check      `json:"self_test"`
}

// OK reports whether picosnitch works here without a loss.
func (r Report) OK() bool {
	if r.HookSet == "" || summary(r.SelfTest) != "ok" {
		return false
	}
	for _, h := range r.Hooks {
		if !h.Attached && !h.Waits && !h.Spare {
			return false
		}
	}
	return true
}

// Doctor looks at what the kernel offers, attaches the hooks (all of them, also those that wait for a need), and proves
// with traffic of its own that they count. It may run beside a running daemon. The error is set only when no hook set works;
// the report says what it could find out.
func Doctor(ctx context.Context, o Options) (Report, error) {
	var uname unix.Utsname
	r := Report{Features: features()}
	if err := unix.Uname(&uname); err == nil {
		r.Kernel = unix.ByteSliceToString(uname.Release[:]) + " " + unix.ByteSliceToString(uname.Machine[:])
	}
	l, err := newLoop(o)
	if err != nil {
		return r, err
	}
	err = l.hooks.Attach()
	if err == nil && o.Bandwidth {
		_ = l.hooks.Packets(true) // those that fail stand in State, and a start goes on without them
	}
	r.Hooks = append(l.hooks.State(), l.executed.state()...)
	defer l.executed.close()
	defer l.who.stop()
	if err == nil {
		r.HookSet, r.Why = l.hooks.Set(), l.hooks.Why()
		l.self = newSelfTest(uint32(os.Getpid()), o.Bandwidth)
		r.SelfTest = l.selfTest(ctx)
	} else {
		err = fmt.Errorf("%w: %w", ErrHooks, err)
	}
	return r, errors.Join(err, l.hooks.Close())
}

// features tells what the kernel offers, each with what it is good for.
func features() []Check {
	check := func(name string, err error, good, hint string) Check {
		if err != nil {
			return Check{Name: name, Detail: err.Error(), Hint: hint}
		}
		return Check{Name: name, OK: true, Detail: good}
	}
	_, btf := os.Stat("/sys/kernel/btf/vmlinux")
	checks := []Check{
		check("BTF", btf, "/sys/kernel/btf/vmlinux", "a kernel built with CONFIG_DEBUG_INFO_BTF is needed: all distributions of the last years have one"),
		check("cgroup v2", kernel.CgroupRoot(), "remote addresses of datagrams, end of sockets", "mount it: mount -t cgroup2 none /sys/fs/cgroup"),
	}
	if b, err := os.ReadFile("/sys/kernel/security/lockdown"); err == nil {
		state := strings.TrimSpace(string(b))
		c := Check{Name: "lockdown", OK: !strings.Contains(state, "[confidentiality]"), Detail: state}
		if !c.OK {
			c.Hint = "lockdown=confidentiality forbids BPF to read kernel memory: use integrity"
		}
		checks = append(checks, c)
	}
	return checks
}
