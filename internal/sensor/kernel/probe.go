package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// offer is what the kernel has, found by trial and in its types, never by its version.
type offer struct {
	types    *btf.Spec
	atomics  bool // atomic instructions with a result (5.12)
	storage  bool // socket storage for tracing programs (5.11)
	sendpage bool // a way of sending files and pipes past sock_sendmsg() (before 6.5)
}

func probe() (offer, error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return offer{}, fmt.Errorf("read the kernel's types (needs a kernel with BTF, /sys/kernel/btf/vmlinux): %w", err)
	}
	o := offer{types: types, atomics: hasAtomics()}
	o.storage = o.atomics && hasStorage()
	o.sendpage, err = hasSendpage(types)
	return o, err
}

func hasAtomics() bool {
	exchange := asm.Xchg.Mem(asm.RFP, asm.R0, asm.DWord, -8)
	exchange.Constant = int64(asm.Xchg >> 8) // cilium/ebpf 0.22 writes the operation only where it read it from an object
	err := loads(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 0),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		exchange,
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}})
	return err == nil
}

func hasStorage() bool {
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	const noPrealloc = 1 // BPF_F_NO_PREALLOC, which the kernel demands
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: noPrealloc, Key: number, Value: number})
	if err != nil {
		return false
	}
	defer m.Close()
	err = loads(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "inet_sock_set_state", License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnSkStorageGet.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	return err == nil
}

// loads loads a program and forgets it.
func loads(spec *ebpf.ProgramSpec) error {
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return err
	}
	return p.Close()
}

// hasSendpage reports whether this kernel sends files and pipes by a way of its own, past sock_sendmsg() (before 6.5).
func hasSendpage(types *btf.Spec) (bool, error) {
	var ops *btf.Struct
	if err := types.TypeByName("proto_ops", &ops); err != nil {
		return false, fmt.Errorf("read the kernel's types: %w", err)
	}
	return slices.ContainsFunc(ops.Members, func(m btf.Member) bool { return m.Name == "sendpage" }), nil
}

// order is the sets to try, best first, and why.
func (o *offer) order() (sets []string, why string) {
	switch {
	case o.sendpage:
		return []string{SetFexit, SetKprobe, SetTracepoint}, "sendfile and splice go past the tracepoints of this kernel"
	case o.fastLocks() && (o.tracepointLock() || preemptible("/proc/kallsyms")):
		return []string{SetKprobe, SetTracepoint, SetFexit}, "this kernel may skip hooks at tracepoints when it is busy, and kprobes not"
	}
	return []string{SetTracepoint, SetFexit, SetKprobe}, "first choice"
}

// fastLocks reports whether the kernel has the kind of lock (SRCU-fast, 6.15) that preemptible looks for.
func (o *offer) fastLocks() bool {
	var t *btf.Struct
	return o.types.TypeByName("srcu_ctr", &t) == nil
}

// tracepointLock reports whether the kernel's types have the lock's part for each CPU. A service with ProtectKernelTunables= sees them, and not the
// symbols, whose file systemd hides.
func (o *offer) tracepointLock() bool {
	var v *btf.Var
	return o.types.TypeByName("tracepoint_srcu_srcu_data", &v) == nil
}

// preemptible reports whether this kernel's tracepoints can be preempted (7.0 and later): a program that is, is skipped for the other tasks
// on its CPU meanwhile (docs/design/0001). Those kernels guard their tracepoints with a lock of its own that all code sees (tracepoint_srcu,
// include/linux/tracepoint.h), instead of holding off preemption. Up to 6.12 a lock of that name, but of another kind, was for the tracepoints of
// idle CPUs only. Names are readable without privileges.
func preemptible(symbols string) bool {
	f, err := os.Open(symbols)
	if err != nil {
		return false // the sets are complete in any order, and say what is skipped
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		// "0000000000000000 D tracepoint_srcu": a capital letter is a name for all.
		rest, ok := bytes.CutSuffix(s.Bytes(), []byte(" tracepoint_srcu"))
		if ok && len(rest) > 0 && rest[len(rest)-1] >= 'A' && rest[len(rest)-1] <= 'Z' {
			return true
		}
	}
	return false
}

// arguments returns how many arguments a function of the kernel has.
func (o *offer) arguments(function string) (int, error) {
	var f *btf.Func
	if err := o.types.TypeByName(function, &f); err != nil {
		return 0, err
	}
	proto, ok := f.Type.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("the type of %s is %T", function, f.Type)
	}
	return len(proto.Params), nil
}

// fits looks up a hook's function in the kernel's types. It returns false for a hook that this kernel has no use for, an error for
// one that would read the wrong arguments, and what to tell the program of their number.
func (o *offer) fits(k *hook) (use bool, args int, err error) {
	if k.event != "" {
		var t *btf.Typedef
		err := o.types.TypeByName("btf_trace_"+k.event, &t)
		return !errors.Is(err, btf.ErrNotFound), 0, err
	}
	if k.function == "" {
		return true, 0, nil
	}
	n, err := o.arguments(k.function)
	switch {
	case errors.Is(err, btf.ErrNotFound):
		return !k.absent, 0, fmt.Errorf("the kernel has no function %s", k.function)
	case err != nil:
		return true, 0, err
	case k.args != 0 && n != k.args:
		return true, 0, fmt.Errorf("%s has %d arguments on this kernel, and %d were expected", k.function, n, k.args)
	}
	return true, n, nil
}

// deaden replaces the instructions that kernels before 5.12 refuse even where they cannot be reached by one that no
// kernel accepts where it can.
func deaden(program *ebpf.ProgramSpec) {
	for i := range program.Instructions {
		in := &program.Instructions[i]
		if in.OpCode.Class() == asm.StXClass && in.OpCode.Mode() == asm.AtomicMode && in.OpCode.AtomicOp() != asm.AddAtomic {
			dead := asm.BuiltinFunc(0xdead).Call()
			dead.Metadata = in.Metadata
			*in = dead
		}
	}
}
