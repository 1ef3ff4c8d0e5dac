package sensor

import (
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/identity"
	"github.com/picosnitch/picosnitch/internal/sensor/kernel"
	"github.com/picosnitch/picosnitch/internal/sensor/outlet"
)

// ledger compares what the kernel counted in all with what came out as flows.
type ledger struct {
	kernel     kernel.Tally
	attributed event.Bytes
	noProgram  event.Bytes // came out as flows of an unknown program
	unknowns   uint64      // such flows
	missing    [settled]event.Bytes
	turn       int
	events     uint64
	undigested uint64
	argvLost   uint64
	evicted    uint64
}

// settled is for how many drains bytes must be missing to count as missing: a socket may move from one bucket of the
// kernel's table to the next while it is read, and is then drained a second later.
const settled = 3

func (t *ledger) attribute(f *event.Flow) {
	t.attributed.Sent += f.Sent
	t.attributed.Received += f.Received
}

func (t *ledger) unknown(f *event.Flow) {
	t.unknowns++
	t.noProgram.Sent += f.Sent
	t.noProgram.Received += f.Received
}

// drained is told the kernel's totals as they were before a drain that is now complete: whatever they hold must have come
// out by now.
func (t *ledger) drained(before kernel.Tally, table identity.Stats) {
	t.kernel = before
	t.evicted = table.EvictedLive
	t.missing[t.turn%settled] = event.Bytes{
		Sent:     lacking(before.Seen.Sent, t.attributed.Sent+t.noProgram.Sent+before.Lost.Sent),
		Received: lacking(before.Seen.Received, t.attributed.Received+t.noProgram.Received+before.Lost.Received),
	}
	t.turn++
}

func lacking(seen, out uint64) uint64 {
	if out >= seen {
		return 0
	}
	return seen - out
}

func (t *ledger) event(batch uint64, out outlet.Stats, digests digest.Stats) event.Ledger {
	e := event.Ledger{
		Batch: batch, Seen: t.kernel.Seen, Attributed: t.attributed, Events: t.events,
		Unattributed: event.Bytes{
			Sent:     t.noProgram.Sent + t.kernel.Lost.Sent + out.DroppedSent,
			Received: t.noProgram.Received + t.kernel.Lost.Received + out.DroppedReceived,
		},
		Lost: map[string]uint64{},
	}
	missing := t.missing[0]
	for _, m := range t.missing[1:] {
		missing.Sent = min(missing.Sent, m.Sent)
		missing.Received = min(missing.Received, m.Received)
	}
	e.Unattributed.Sent += missing.Sent
	e.Unattributed.Received += missing.Received
	for key, n := range t.kernel.Losses {
		e.Lost[key] = n
	}
	for key, n := range map[string]uint64{
		event.LostProcess:  t.unknowns,
		event.LostDigest:   t.undigested,
		event.LostQueue:    out.Dropped,
		event.LostRecorder: out.Restarts,
		event.LostArgv:     t.argvLost,
		event.LostTable:    t.evicted,
	} {
		if n > 0 {
			e.Lost[key] = n
		}
	}
	return e
}
