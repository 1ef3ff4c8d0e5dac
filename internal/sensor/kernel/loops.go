package kernel

import (
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// hasLoops reports whether the kernel has bpf_loop() (5.17).
func hasLoops() bool { return features.HaveProgramHelper(ebpf.Tracing, asm.FnLoop) == nil }

// loopBody ends the names of the functions that bpf_loop() calls (bpf/where.h).
const loopBody = "_each"

// unloop takes out what kernels without bpf_loop() refuse even where it is not reached: the functions that it would call,
// and the instructions that take their addresses. What calls it is dead by the constant `loops`.
func unloop(program *ebpf.ProgramSpec) {
	kept := program.Instructions[:0]
	body := false
	for _, in := range program.Instructions {
		if s := in.Symbol(); s != "" {
			body = strings.HasSuffix(s, loopBody)
		}
		if body {
			continue
		}
		if in.IsLoadOfFunctionPointer() {
			zero := asm.LoadImm(in.Dst, 0, asm.DWord)
			if s := in.Source(); s != nil {
				zero = zero.WithSource(s)
			}
			in = zero
		}
		kept = append(kept, in)
	}
	program.Instructions = kept
}
