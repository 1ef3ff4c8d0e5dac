// Package kernel is the sensor's door to the kernel: it loads the BPF object, attaches the hooks of one hook set,
// and turns what the hooks counted and reported into values of package event. The kernel's own types do not leave it.
// It decides nothing about who a process is (package identity) or what is told (package sensor).
//
// Source of the facts about hooks: bpf/README.md.
package kernel

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Names of the hook sets.
const (
	SetTracepoint = "tracepoint"
)

// ErrNoHookSet is returned, wrapped with the reasons, when no hook set works on this kernel.
var ErrNoHookSet = errors.New("no hook set works on this kernel")

// hook is one attach point of a set.
type hook struct {
	name     string          // as the user sees it
	program  string          // in the BPF object
	cgroup   ebpf.AttachType // of programs that attach to the cgroup root; noCgroup for the others
	required bool
	when     when
	cost     string // what is not seen without it
}

// noCgroup marks programs that do not attach to a cgroup; zero is a cgroup attach type.
const noCgroup = ^ebpf.AttachType(0)

const (
	releaseProgram = "sock_release"
	drainProgram   = "drain_sockets"
)

// when a hook is attached.
type when int

const (
	always     when = iota
	noBytes         // only when they are not
	onDemand        // when a socket shows up that needs it
	afterAdopt      // only when bytes are counted, and the sockets that were open before must have their starting point first
)

// tracepointSet works where fentry and kprobes are refused; kernel 6.3 and later.
func tracepointSet() []hook {
	return []hook{
		{"sched_process_exec", "sched_process_exec", noCgroup, true, always, "which program it is"},
		{"sched_process_fork", "sched_process_fork", noCgroup, true, always, "who started a program"},
		{"sched_process_exit", "sched_process_exit", noCgroup, false, always, "the end of processes: memory is kept longer"},
		{"inet_sock_set_state", "inet_sock_set_state", noCgroup, true, always, "TCP connection attempts, and who opened a connection"},
		{"cgroup/sock_create", "sock_create", ebpf.AttachCGroupInetSockCreate, false, afterAdopt, "the remote address of the first packets of raw and ICMP sockets"},
		{"cgroup/sock_release", releaseProgram, ebpf.AttachCgroupInetSockRelease, false, always, "accepted connections that move no byte; every count takes the slower way through a table"},
		{"cgroup/sendmsg4", "sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, false, always, "where datagrams of unconnected IPv4 sockets go"},
		{"cgroup/sendmsg6", "sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, false, always, "where datagrams of unconnected IPv6 sockets go"},
		{"cgroup/recvmsg4", "recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, false, always, "where datagrams of unconnected IPv4 sockets come from"},
		{"cgroup/recvmsg6", "recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, false, always, "where datagrams of unconnected IPv6 sockets come from"},
		{"cgroup/connect4", "connect4", ebpf.AttachCGroupInet4Connect, false, noBytes, "connected IPv4 UDP sockets"},
		{"cgroup/connect6", "connect6", ebpf.AttachCGroupInet6Connect, false, noBytes, "connected IPv6 UDP sockets"},
		{"sock_send_length", "sock_send_length", noCgroup, true, afterAdopt, "all sent bytes"},
		{"sock_recv_length", "sock_recv_length", noCgroup, true, afterAdopt, "received bytes of all but TCP"},
		{"tcp_rcv_space_adjust", "tcp_rcv_space_adjust", noCgroup, true, afterAdopt, "received bytes of TCP"},
		{"cgroup_skb/egress", "packet_egress", ebpf.AttachCGroupInetEgress, false, onDemand, "where raw and ICMP sockets send to"},
		{"cgroup_skb/ingress", "packet_ingress", ebpf.AttachCGroupInetIngress, false, onDemand, "the source of datagrams whose reader does not ask for it"},
	}
}

// Sets names the hook sets that this program has, best first.
func Sets() []string { return []string{SetTracepoint} }

func hooksOf(set string) ([]hook, error) {
	switch set {
	case SetTracepoint:
		return tracepointSet(), nil
	}
	return nil, fmt.Errorf("hook set %q: there is %q", set, Sets())
}

// wanted reports whether the mode needs the hook at all.
func (h *hook) wanted(bandwidth bool) bool {
	switch h.when {
	case afterAdopt, onDemand:
		return bandwidth
	case noBytes:
		return !bandwidth
	}
	return true
}

// attachment is one hook's state.
type attachment struct {
	hook
	link link.Link
	err  error
}

// Attach attaches every hook that the mode needs, in the order that loses nothing: first who processes are, then
// what opens and closes sockets, then the sockets that are already open, then what counts bytes. An optional hook that fails
// is noted in State; a required one fails Attach, and everything is detached again.
func (h *Hooks) Attach() error {
	for i := range h.attached {
		a := &h.attached[i]
		if a.when == afterAdopt && !h.adopted {
			if err := h.adopt(); err != nil {
				return errors.Join(err, h.Detach())
			}
		}
		if a.when == onDemand {
			continue
		}
		h.attach(a)
		if a.program == releaseProgram {
			// A count may stay in a socket's state only if every end of it is covered: the drain, and a close between two drains.
			if err := h.variable("keep_counts", a.link != nil && h.drains != nil); err != nil {
				return errors.Join(err, h.Detach())
			}
		}
		if a.err != nil && a.required {
			return errors.Join(fmt.Errorf("attach %s (without it is not seen: %s): %w", a.name, a.cost, a.err), h.Detach())
		}
	}
	if !h.adopted {
		return h.adopt()
	}
	return nil
}

func (h *Hooks) attach(a *attachment) {
	if a.link != nil {
		return
	}
	program := h.collection.Programs[a.program]
	switch {
	case program == nil:
		a.err = fmt.Errorf("the kernel refuses the program: %w", h.refused[a.program])
	case a.cgroup != noCgroup && h.cgroup == "":
		a.err = h.noCgroup
	case a.cgroup != noCgroup:
		a.link, a.err = link.AttachCgroup(link.CgroupOptions{Path: h.cgroup, Attach: a.cgroup, Program: program})
	default:
		a.link, a.err = link.AttachTracing(link.TracingOptions{Program: program})
	}
	if a.err != nil {
		a.link = nil
	}
}

// Detach takes all hooks off. What they counted can still be drained.
func (h *Hooks) Detach() error { return h.detach(func(*attachment) bool { return true }) }

func (h *Hooks) detach(which func(*attachment) bool) error {
	var errs []error
	for i := range slices.Backward(h.attached) {
		a := &h.attached[i]
		if a.link == nil || !which(a) {
			continue
		}
		if err := a.link.Close(); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", a.name, err))
		}
		a.link = nil
	}
	return errors.Join(errs...)
}

// Packets attaches or detaches the hooks that see every packet. They cost every packet of every socket, so they are
// on only while a socket needs them.
func (h *Hooks) Packets(on bool) error {
	var errs []error
	for i := range h.attached {
		a := &h.attached[i]
		if a.when != onDemand {
			continue
		}
		if on {
			h.attach(a)
			if a.err != nil {
				errs = append(errs, fmt.Errorf("attach %s (without it is not seen: %s): %w", a.name, a.cost, a.err))
			}
		} else if a.link != nil {
			errs = append(errs, a.link.Close())
			a.link = nil
		}
	}
	if !on {
		errs = append(errs, h.variable("packets_asked", false))
	}
	return errors.Join(errs...)
}

// State tells every hook and whether it is on.
func (h *Hooks) State() []event.Hook {
	out := make([]event.Hook, 0, len(h.attached))
	for i := range h.attached {
		a := &h.attached[i]
		s := event.Hook{Name: a.name, Attached: a.link != nil}
		if a.link == nil {
			s.Cost = a.cost
			if a.err != nil {
				s.Error = a.err.Error()
			} else {
				s.Waits = a.when == onDemand
			}
		}
		out = append(out, s)
	}
	if h.drains == nil {
		out = append(out, event.Hook{
			Name: "iter/bpf_sk_storage_map", Spare: true, Error: fmt.Sprint(h.refused[drainProgram]),
			Cost: "nothing: every count takes the slower way through a table, and an accepted connection that moves no byte is seen when it is closed",
		})
	}
	if h.sendpage && h.bandwidth {
		out = append(out, event.Hook{Name: "sendpage", Cost: "bytes sent by sendfile and splice", Error: "no hook of this set sees it on kernels before 6.5"})
	}
	return out
}
