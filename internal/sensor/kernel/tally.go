package kernel

import (
	"fmt"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Tally is the kernel's own sum of everything, independent of flows, since the hooks were attached.
type Tally struct {
	Seen       event.Bytes
	Lost       event.Bytes       // the part of Seen that no map could take
	Losses     map[string]uint64 // by event.Loss key, zeros left out
	PacketUsed uint64            // counts that needed the packet hooks
}

// Tally reads the ledger.
func (h *Hooks) Tally() (Tally, error) {
	var v [bpfTallyTALLY_MAX]uint64
	for i := range v {
		n, err := h.tally(bpfTally(i))
		if err != nil {
			return Tally{}, err
		}
		v[i] = n
	}
	t := Tally{
		Seen:       event.Bytes{Sent: v[bpfTallyTALLY_SENT], Received: v[bpfTallyTALLY_RECEIVED]},
		Lost:       event.Bytes{Sent: v[bpfTallyTALLY_LOST_SENT], Received: v[bpfTallyTALLY_LOST_RECEIVED]},
		Losses:     map[string]uint64{},
		PacketUsed: v[bpfTallyTALLY_PACKET_USED],
	}
	for key, which := range map[string]bpfTally{
		event.LostFlow:       bpfTallyTALLY_LOST_FLOW,
		event.LostFlowDetail: bpfTallyTALLY_LOST_DETAIL,
		event.LostPeer:       bpfTallyTALLY_LOST_PEER,
		event.LostBaseline:   bpfTallyTALLY_LOST_BASELINE,
		event.LostState:      bpfTallyTALLY_LOST_STATE,
		event.LostSkipped:    bpfTallyTALLY_LOST_CALL,
		event.LostExec:       bpfTallyTALLY_LOST_EXEC,
		event.LostFork:       bpfTallyTALLY_LOST_FORK,
		event.LostExit:       bpfTallyTALLY_LOST_EXIT,
	} {
		if v[which] > 0 {
			t.Losses[key] = v[which]
		}
	}
	// A program that is preempted, on kernels whose tracepoints are preemptible (7.0 and later), makes the kernel skip the
	// same program for the next task on that CPU (bpf_prog_get_recursion_context() in include/linux/bpf.h).
	var others bool
	if err := h.collection.Variables["others_used"].Get(&others); err != nil {
		return Tally{}, fmt.Errorf("read the ledger: %w", err)
	}
	for i := range h.attached {
		a := &h.attached[i]
		program := h.collection.Programs[a.program]
		if program == nil {
			continue
		}
		s, err := program.Stats()
		if err != nil {
			return Tally{}, fmt.Errorf("read the statistics of %s: %w", a.name, err)
		}
		t.skip(a.program, s.RecursionMisses, others)
	}
	return t, nil
}

// skip adds skipped runs of a program. Those of the programs for vsock and Bluetooth also run, and are skipped, for IP, which they pass over. As long as
// none of their runs saw such a socket, what was skipped was of IP as far as is known: it is told, but by another name.
func (t *Tally) skip(program string, misses uint64, others bool) {
	key := event.LostSkipped
	if !others && (program == otherSent || program == otherReceived) {
		key = event.LostSkippedOther
	}
	if misses > 0 {
		t.Losses[key] += misses
	}
}

func (h *Hooks) tally(which bpfTally) (uint64, error) {
	var perCPU []uint64
	if err := h.collection.Maps["tallies"].Lookup(uint32(which), &perCPU); err != nil {
		return 0, fmt.Errorf("read the ledger: %w", err)
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}
