//go:build fault

package kernel

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// spoil breaks the hook set as the environment says, so that the tests see what then goes red and what the user is told. It is
// only in builds with the tag "fault". PICOSNITCH_FAULT_REMOVE names programs that are taken out of the table, as if
// somebody had forgotten them; PICOSNITCH_FAULT_REFUSE those that the kernel seems to refuse.
func (h *Hooks) spoil(spec *ebpf.CollectionSpec) {
	for name := range strings.FieldsSeq(os.Getenv("PICOSNITCH_FAULT_REMOVE")) {
		delete(spec.Programs, name)
		h.attached = slices.DeleteFunc(h.attached, func(a attachment) bool { return a.program == name })
	}
	for name := range strings.FieldsSeq(os.Getenv("PICOSNITCH_FAULT_REFUSE")) {
		delete(spec.Programs, name)
		h.refused[name] = errors.New("PICOSNITCH_FAULT_REFUSE names it")
	}
}
