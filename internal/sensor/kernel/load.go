package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Options of Load.
type Options struct {
	HookSet   string // one of Sets; "" is the best that works
	Bandwidth bool   // false: connections only, no hook that is only for bytes
	RingPages int    // size of each ring buffer in pages, a power of two; 0 is 64
	Plain     bool   // do without bpf_loop(), as kernels before 5.17 have to; for tests

	// For tests: what the verifier has to say, and what the kernel seems to refuse.
	logLevel ebpf.LogLevel
	refuse   func(stage, set, hook string) error
}

// Refused is a hook set that was not taken. The reason begins with its name.
type Refused struct {
	Set, Reason string
}

// Hooks is a loaded hook set.
type Hooks struct {
	set        string
	options    Options
	rest       []string  // sets to try when this one does not do
	tried      []Refused // better sets that do not work here
	why        string    // the set was the first choice
	bandwidth  bool
	plain      bool
	storage    bool // tracing programs have socket storage in this set
	collection *ebpf.Collection
	refused    map[string]error // programs that did not load
	attached   []attachment
	adopted    bool
	cgroup     string // path of the cgroup v2 root, "" if there is none
	cgroupFD   int    // of a private mount, or -1
	noCgroup   error
	released   *ringbuf.Reader
	processes  *ringbuf.Reader
	epoll      *os.File
	wake       int        // eventfd
	ring       int        // size of a ring buffer, in bytes
	sendpage   bool       // the kernel has a way of sending of its own for files and pipes
	drains     *link.Iter // over the sockets' states
	tables     [2]swap
	reads      bool  // the tables have iterators of their own, all of them
	noReaders  error // why they have none, where they should
	fewReturns error // why only a few calls at a time can be seen to return
	tableUsed  uint64
	datagrams  *datagrams
	buffers    buffers

	surroundings surroundings
}

// Load loads the best hook set that the kernel takes, or the one asked for, and attaches nothing.
func Load(o Options) (*Hooks, error) {
	// Kernels before 5.11 count maps against the limit of locked memory, which is 64 KiB for a service; later ones need nothing.
	// Without CAP_BPF this fails, too, on any kernel: what the sets then say is told first.
	memlock := rlimit.RemoveMemlock()
	sets, why := []string{o.HookSet}, "asked for"
	if o.HookSet == "" {
		k, err := probe()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoHookSet, err)
		}
		sets, why = k.order()
	} else if _, err := hooksOf(o.HookSet); err != nil {
		return nil, err
	}
	var errs []error
	var tried []Refused
	for i, set := range sets {
		h, err := loadSet(o, set)
		if err == nil {
			h.rest, h.tried, h.why = sets[i+1:], tried, why
			return h, nil
		}
		errs = append(errs, err)
		tried = append(tried, Refused{set, err.Error()})
	}
	if lockedDown() {
		errs = slices.Insert(errs, 0, errors.New("the kernel is locked down for confidentiality, which forbids BPF to read its memory (boot with lockdown=integrity)"))
	}
	if memlock != nil {
		return nil, fmt.Errorf("%w: %w; the limit of locked memory cannot be raised, which kernels before 5.11 need (CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity in the service): %w", ErrNoHookSet, errors.Join(errs...), memlock)
	}
	return nil, fmt.Errorf("%w: %w", ErrNoHookSet, errors.Join(errs...))
}

// lockedDown reports whether kernel_lockdown(7) is at its highest level.
func lockedDown() bool {
	state, err := os.ReadFile("/sys/kernel/security/lockdown")
	return err == nil && strings.Contains(string(state), "[confidentiality]")
}

func loadSet(o Options, set string) (*Hooks, error) {
	hooks, err := hooksOf(set)
	if err != nil {
		return nil, err
	}
	pages := o.RingPages
	if pages == 0 {
		pages = 64
	}
	h := &Hooks{
		set: set, options: o, bandwidth: o.Bandwidth, plain: o.Plain, cgroupFD: -1, wake: -1,
		refused: map[string]error{}, datagrams: newDatagrams(),
	}
	h.cgroup, h.cgroupFD, h.noCgroup = cgroupRoot()
	if err := h.load(hooks, pages*os.Getpagesize()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", set, err), h.Close())
	}
	return h, nil
}

// Set is the name of the hook set. Attach may change it.
func (h *Hooks) Set() string { return h.set }

// Why says why this set was taken, and which sets would have been taken before it and what is wrong with them.
func (h *Hooks) Why() string {
	if len(h.tried) == 0 {
		return h.why
	}
	var parts []string
	for _, r := range h.tried {
		reason, _, _ := strings.Cut(r.Reason, "\n")
		if len(reason) > reasonMax {
			reason = reason[:reasonMax] + "…"
		}
		parts = append(parts, "not "+strings.TrimPrefix(reason, "not "))
	}
	return strings.Join(parts, "; ")
}

// reasonMax bounds what a verifier has to say.
const reasonMax = 200

func (h *Hooks) load(hooks []hook, ring int) error {
	h.ring = ring
	k, err := probe()
	if err != nil {
		return err
	}
	h.sendpage = k.sendpage
	// A kprobe gets addresses, not typed pointers, which socket storage needs.
	h.storage = k.storage && h.set != SetKprobe
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the BPF object: %w", err)
	}
	variables := map[string]any{
		"bandwidth": h.bandwidth, "wake_bytes": uint32(ring / 4),
		"storage": h.storage, "atomics": k.atomics, "calls_kept": h.set == SetKprobe,
	}
	keep := map[string]bool{"find_processes": true, "adopt_sockets": true, drainProgram: h.storage}
	if h.set == SetKprobe {
		for _, p := range readers() {
			keep[p[0]], keep[p[1]] = true, true
		}
	}
	if err := h.choose(hooks, &k, keep, variables); err != nil {
		return err
	}
	// A program that the mode does not use is not loaded: it could only fail.
	for name, program := range spec.Programs {
		if !keep[name] {
			delete(spec.Programs, name)
		} else if !k.atomics {
			deaden(program)
		}
	}
	h.spoil(spec)
	loops := hasLoops() && !h.plain
	for _, program := range spec.Programs {
		if !loops {
			unloop(program)
		}
	}
	variables["loops"] = loops
	for name, v := range variables {
		if err := spec.Variables[name].Set(v); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	spec.Maps["released"].MaxEntries = uint32(ring)
	spec.Maps["processes"].MaxEntries = uint32(ring)
	if h.storage {
		spec.Maps["states"].MaxEntries = 1
		spec.Maps["claims"].MaxEntries = 1
	}
	if h.set != SetKprobe {
		spec.Maps["calls"].MaxEntries = 1
	}

	h.tryKinds(spec)
	if h.collection, err = h.newCollection(spec); err != nil {
		return err
	}
	if err := h.openRings(); err != nil {
		return err
	}
	h.attachDrains()
	for i, name := range []string{"flow_table", "total_table"} {
		outer := []string{"flows", "totals"}[i]
		h.tables[i] = swap{outer: h.collection.Maps[outer], spare: table{Map: h.collection.Maps[name+"_1"]}, used: table{Map: h.collection.Maps[name+"_0"]}}
	}
	if h.set == SetKprobe {
		h.noReaders = h.attachReaders(h.attachReader)
	}
	return nil
}

// choose notes which of the hooks the mode and this kernel need, and the programs and settings for them.
func (h *Hooks) choose(hooks []hook, k *offer, keep map[string]bool, variables map[string]any) error {
	for _, hook := range hooks {
		if !hook.wanted(h.bandwidth, h.storage) {
			continue
		}
		use, args, err := k.fits(&hook)
		if use && err == nil && h.options.refuse != nil {
			err = h.options.refuse("load", h.set, hook.name)
		}
		switch {
		case !use:
			continue
		case err != nil && hook.required:
			return fmt.Errorf("%s (without it is not seen: %s): %w", hook.name, hook.cost, err)
		case err != nil:
			h.attached = append(h.attached, attachment{hook: hook, unfit: fmt.Errorf("the kernel refuses the program: %w", err)})
			continue
		default:
			keep[hook.program] = true
			keep[hook.end] = true
			if hook.variable != "" {
				variables[hook.variable] = uint32(args)
			}
		}
		h.attached = append(h.attached, attachment{hook: hook})
	}
	return nil
}

// attachDrains makes the iterator over the sockets' states. Some kernels refuse it; then no count may stay in a state.
func (h *Hooks) attachDrains() {
	program := h.collection.Programs[drainProgram]
	if program == nil {
		return
	}
	it, err := link.AttachIter(link.IterOptions{Program: program, Map: h.collection.Maps["socks"]})
	if err != nil {
		h.refused[drainProgram] = err
		return
	}
	h.drains = it
}

// tryKinds leaves out the optional programs of kinds that the kernel refuses as such, as it does with those of cgroups without CAP_NET_ADMIN. Otherwise
// newCollection would have everything else verified again for each of them: minutes, on a slow machine.
func (h *Hooks) tryKinds(spec *ebpf.CollectionSpec) {
	type kind struct {
		program ebpf.ProgramType
		attach  ebpf.AttachType
		to      string
	}
	names := iterators()
	for _, a := range h.attached {
		if a.cgroup != noCgroup && !a.required {
			names = append(names, a.program)
		}
	}
	tried := map[kind]error{}
	for _, name := range names {
		p := spec.Programs[name]
		if p == nil {
			continue
		}
		k := kind{p.Type, p.AttachType, p.AttachTo}
		err, known := tried[k]
		if !known {
			err = loads(&ebpf.ProgramSpec{
				Type: k.program, AttachType: k.attach, AttachTo: k.to, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
			})
			tried[k] = err
		}
		if err != nil {
			h.refused[name] = err
			delete(spec.Programs, name)
		}
	}
}

// iterators are the programs that drain faster where the kernel takes them.
func iterators() []string {
	r := readers()
	return []string{drainProgram, r[0][0], r[0][1], r[1][0], r[1][1]}
}

// newCollection loads all programs; when the kernel refuses an optional one, the rest without it.
func (h *Hooks) newCollection(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	options := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: h.options.logLevel}}
	// Where these are modules, their types are in the modules' BTF. Without them files have the numbers of the overlay, and
	// on btrfs a device that is not stat's.
	for _, name := range []string{"btrfs", "overlay"} {
		if module, err := btf.LoadKernelModuleSpec(name); err == nil {
			options.Programs.ExtraRelocationTargets = append(options.Programs.ExtraRelocationTargets, module)
		}
	}
	for range len(spec.Programs) + 1 {
		c, err := ebpf.NewCollectionWithOptions(spec, options)
		if err == nil {
			return c, nil
		}
		refused := ""
		for _, program := range iterators() {
			if strings.HasPrefix(err.Error(), "program "+program+": ") {
				refused = program
			}
		}
		for _, a := range h.attached {
			for _, program := range []string{a.program, a.end} {
				if !a.required && program != "" && strings.HasPrefix(err.Error(), "program "+program+": ") {
					refused = program
				}
			}
		}
		if refused == "" {
			return nil, explain(err)
		}
		h.refused[refused] = err
		delete(spec.Programs, refused)
	}
	return nil, errors.New("load: too many programs refused")
}

// explain adds what a user can do about a refused load.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		var verifier *ebpf.VerifierError
		if !errors.As(err, &verifier) {
			return fmt.Errorf("%w (needs root, or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN; and a kernel that is not locked down against BPF)", err)
		}
	}
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w (needs a kernel with BTF, /sys/kernel/btf/vmlinux; the tracepoint set needs 6.3 or later)", err)
	}
	return err
}

func (h *Hooks) openRings() error {
	var err error
	if h.released, err = ringbuf.NewReader(h.collection.Maps["released"]); err != nil {
		return fmt.Errorf("open ring buffer: %w", err)
	}
	if h.processes, err = ringbuf.NewReader(h.collection.Maps["processes"]); err != nil {
		return fmt.Errorf("open ring buffer: %w", err)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // Go's runtime is to wait for it: see Wait
		return errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(epoll))
	}
	h.epoll = os.NewFile(uintptr(epoll), "epoll")
	if h.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	for _, fd := range []int{h.collection.Maps["released"].FD(), h.collection.Maps["processes"].FD(), h.wake} {
		// Edge-triggered: a ring is readable with a single report in it, but we only want the kernel's wake-ups.
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
	}
	return nil
}

// forgetCalls empties the table of calls under way, of an earlier time.
func (h *Hooks) forgetCalls() error {
	if err := h.variable("calls_on", false); err != nil {
		return err
	}
	var keys []bpfCallKey
	var key bpfCallKey
	var value bpfCallValue
	for it := h.collection.Maps["calls"].Iterate(); it.Next(&key, &value); {
		keys = append(keys, key)
	}
	for _, k := range keys {
		if err := h.collection.Maps["calls"].Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("empty the table of calls: %w", err)
		}
	}
	return nil
}

func (h *Hooks) variable(name string, v any) error {
	if err := h.collection.Variables[name].Set(v); err != nil {
		return fmt.Errorf("set %s in the kernel: %w", name, err)
	}
	return nil
}

// adopt runs once over all open sockets.
func (h *Hooks) adopt() error {
	err := h.iterate("adopt_sockets", func(b []byte) (int, error) { return len(b), nil })
	if err != nil {
		return fmt.Errorf("adopt open sockets: %w", err)
	}
	h.adopted = true
	return nil
}

// Close detaches everything and gives the kernel's memory back.
func (h *Hooks) Close() error {
	errs := []error{h.Detach()}
	if h.drains != nil {
		errs = append(errs, h.drains.Close())
	}
	errs = append(errs, h.closeReaders())
	if h.released != nil {
		errs = append(errs, h.released.Close())
	}
	if h.processes != nil {
		errs = append(errs, h.processes.Close())
	}
	if h.epoll != nil {
		errs = append(errs, h.epoll.Close())
		h.epoll = nil
	}
	for _, fd := range []*int{&h.wake, &h.cgroupFD} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	if h.collection != nil {
		h.collection.Close()
	}
	return errors.Join(errs...)
}

// cgroupRoot finds the root of the cgroup v2 hierarchy, where a program sees every socket of the machine. Where it is
// not mounted (pure v1 systems) it makes a mount of its own, which is in no mount namespace (fsmount(2)).
func cgroupRoot() (path string, fd int, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", -1, fmt.Errorf("find cgroup v2: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		left, right, ok := strings.Cut(line, " - ")
		field := strings.Fields(left)
		if ok && strings.HasPrefix(right, "cgroup2 ") && len(field) > 4 && field[3] == "/" && !strings.Contains(field[4], `\`) {
			return field[4], -1, nil
		}
	}
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", -1, fmt.Errorf("cgroup v2 is not mounted and cannot be: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return "", -1, fmt.Errorf("cgroup v2 is not mounted and cannot be: %w", err)
	}
	fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", -1, fmt.Errorf("cgroup v2 is not mounted and cannot be: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), fd, nil
}

// CgroupRoot returns nil when the root of the cgroup v2 hierarchy can be had.
func CgroupRoot() error {
	_, fd, err := cgroupRoot()
	if fd >= 0 {
		unix.Close(fd)
	}
	return err
}
