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
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/picosnitch/picosnitch/internal/event"
)

// ErrNoHookSet is returned, wrapped with the reasons, when no hook set works on this kernel.
var ErrNoHookSet = errors.New("no hook set works on this kernel")

// wanted reports whether the mode needs the hook at all.
func (h *hook) wanted(bandwidth, storage bool) bool {
	if h.only == withStorage && !storage || h.only == withoutStorage && storage {
		return false
	}
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
	links []link.Link // nil when it is not attached
	unfit error       // why it must not be, although its program may be loaded for another hook
	err   error
}

// Attach attaches every hook that the mode needs, in the order that loses nothing: first who processes are, then
// what opens and closes sockets, then the sockets that are already open, then what counts bytes. An optional hook that fails
// is noted in State; a required one fails the set. When the set was not asked for by name, another one that loses less takes its place.
func (h *Hooks) Attach() error {
	err := h.attachAll()
	if lost := h.missing(); err == nil && (lost == "" || len(h.rest) == 0) {
		return nil
	} else if err == nil {
		err = errors.New("it would not see: " + lost)
	} else if h.options.HookSet != "" {
		return err
	}
	return h.attachNext(err)
}

// attachNext tries the sets that are left, after this one was not good for the reason given, and settles for the first of
// all that works when none is complete.
func (h *Hooks) attachNext(reason error) error {
	first, firstWorks := h.set, h.links() > 0
	reason = fmt.Errorf("%s: %w", h.set, reason)
	var reasons []error
	for _, r := range h.tried {
		reasons = append(reasons, errors.New(r.Reason))
	}
	reasons = append(reasons, reason)
	tried := append(h.tried, Refused{h.set, reason.Error()})
	rest := h.rest
	for _, set := range rest {
		if err := h.become(set, tried); err != nil {
			reasons = append(reasons, err)
			tried = append(tried, Refused{set, err.Error()})
			continue
		}
		err := h.attachAll()
		if err == nil {
			lost := h.missing()
			if lost == "" {
				return nil
			}
			if !firstWorks {
				first, firstWorks = set, true
			}
			err = errors.New("it would not see: " + lost)
		}
		err = fmt.Errorf("%s: %w", set, err)
		reasons = append(reasons, err)
		tried = append(tried, Refused{set, err.Error()})
	}
	if !firstWorks {
		return errors.Join(reasons...)
	}
	tried = slices.DeleteFunc(tried, func(r Refused) bool { return r.Set == first })
	if err := h.become(first, tried); err != nil {
		return err
	}
	return h.attachAll()
}

// become closes the loaded set and loads another one in its place.
func (h *Hooks) become(set string, tried []Refused) error {
	o, why := h.options, h.why
	errs := h.Close()
	next, err := loadSet(o, set)
	if err != nil {
		return errors.Join(err, errs)
	}
	*h = *next
	h.tried, h.why = tried, why
	return errs
}

func (h *Hooks) links() int {
	n := 0
	for i := range h.attached {
		n += len(h.attached[i].links)
	}
	return n
}

// missing says what is not seen because a hook is not attached.
func (h *Hooks) missing() string {
	var lost []string
	for _, s := range h.State() {
		if !s.Attached && !s.Waits && !s.Spare {
			lost = append(lost, s.Cost)
		}
	}
	return strings.Join(lost, "; ")
}

func (h *Hooks) attachAll() error {
	if err := h.forgetCalls(); err != nil {
		return err
	}
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
			for name, on := range map[string]bool{"keep_counts": a.links != nil && h.drains != nil, "use_states": a.links != nil} {
				if err := h.variable(name, on); err != nil {
					return errors.Join(err, h.Detach())
				}
			}
		}
		if a.err != nil && a.required {
			return errors.Join(fmt.Errorf("attach %s (without it is not seen: %s): %w", a.name, a.cost, a.err), h.Detach())
		}
	}
	if err := h.variable("calls_on", true); err != nil {
		return errors.Join(err, h.Detach())
	}
	if !h.adopted {
		return h.adopt()
	}
	return nil
}

func (h *Hooks) attach(a *attachment) {
	if a.links != nil {
		return
	}
	if a.err = a.unfit; a.err != nil {
		return
	}
	// The end of a call first: a beginning that is seen must have an end.
	for _, name := range []string{a.end, a.program} {
		if name == "" {
			continue
		}
		l, err := h.attachProgram(a, name)
		if err != nil {
			a.err = err
			for _, l := range a.links {
				a.err = errors.Join(a.err, l.Close())
			}
			a.links = nil
			return
		}
		a.links = append(a.links, l)
	}
}

func (h *Hooks) attachProgram(a *attachment, name string) (link.Link, error) {
	program := h.collection.Programs[name]
	if h.options.refuse != nil && program != nil {
		if err := h.options.refuse("attach", h.set, a.name); err != nil {
			return nil, err
		}
	}
	switch {
	case program == nil:
		return nil, fmt.Errorf("the kernel refuses the program: %w", h.refused[name])
	case a.cgroup != noCgroup && h.cgroup == "":
		return nil, h.noCgroup
	case a.cgroup != noCgroup:
		return link.AttachCgroup(link.CgroupOptions{Path: h.cgroup, Attach: a.cgroup, Program: program})
	case program.Type() == ebpf.Kprobe && strings.HasPrefix(name, "kretprobe_"):
		// Every thread that waits inside of the function holds one. Many need tracefs; without it the kernel gives a few per CPU.
		l, err := link.Kretprobe(a.function, program, &link.KprobeOptions{RetprobeMaxActive: returnsMax, TraceFSPrefix: "picosnitch"})
		if err != nil {
			h.fewReturns = err
			l, err = link.Kretprobe(a.function, program, nil)
		}
		return l, err
	case program.Type() == ebpf.Kprobe:
		return link.Kprobe(a.function, program, nil)
	}
	return link.AttachTracing(link.TracingOptions{Program: program})
}

// returnsMax is the most that the kernel accepts (KRETPROBE_MAXACTIVE_MAX in kernel/trace/trace_kprobe.c).
const returnsMax = 4096

// Detach takes all hooks off. What they counted can still be drained.
func (h *Hooks) Detach() error { return h.detach(func(*attachment) bool { return true }) }

func (h *Hooks) detach(which func(*attachment) bool) error {
	var errs []error
	for i := range slices.Backward(h.attached) {
		a := &h.attached[i]
		if !which(a) {
			continue
		}
		for _, l := range slices.Backward(a.links) {
			if err := l.Close(); err != nil {
				errs = append(errs, fmt.Errorf("detach %s: %w", a.name, err))
			}
		}
		a.links = nil
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
		} else {
			errs = append(errs, h.detach(func(b *attachment) bool { return b == a }))
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
		s := event.Hook{Name: a.name, Attached: a.links != nil}
		if a.links == nil {
			s.Cost = a.cost
			if a.err != nil {
				s.Error = a.err.Error()
			} else {
				s.Waits = a.when == onDemand
			}
		}
		out = append(out, s)
	}
	if h.storage && h.drains == nil {
		out = append(out, event.Hook{
			Name: "iter/bpf_sk_storage_map", Spare: true, Error: fmt.Sprint(h.refused[drainProgram]),
			Cost: "nothing is lost: every count takes the slower way through a table, and an accepted connection that moves no byte is seen when it is closed",
		})
	}
	if h.fewReturns != nil {
		out = append(out, event.Hook{
			Name: "kretprobe/maxactive", Error: h.fewReturns.Error(),
			Cost: "calls of threads that wait for the network when more than a few per CPU do: each is counted as skipped",
		})
	}
	if h.noReaders != nil {
		out = append(out, event.Hook{
			Name: "iter/bpf_map_elem", Spare: true, Error: h.noReaders.Error(),
			Cost: "calls that run on a CPU while a table is read there are not seen: each is counted as skipped",
		})
	}
	if h.sendpage && h.bandwidth && h.set == SetTracepoint {
		out = append(out, event.Hook{Name: "sendpage", Cost: "bytes sent by sendfile and splice", Error: "no hook of this set sees it on kernels before 6.5"})
	}
	return out
}
