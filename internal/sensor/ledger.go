package sensor

import (
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/identity"
	"github.com/picosnitch/picosnitch/internal/sensor/kernel"
	"github.com/picosnitch/picosnitch/internal/sensor/outlet"
)

// ledger compares what the kernel counted in all with what came out as flows.
type ledger struct {
	kernel     kernel.Tally
	attributed event.Bytes
	noProgram  event.Bytes          // came out as flows of an unknown program
	unknowns   uint64               // such flows
	missing    [settled]event.Bytes // seen, and not come out
	excess     [settled]event.Bytes // come out, and not seen
	turn       int
	events     uint64
	undigested uint64
	argvLost   uint64
	evicted    uint64
	opened     uint64        // descriptors of executables that could not be had
	scripts    uint64        // scripts whose file was not found
	halted     time.Duration // told
	modified   uint64        // executables that somebody wrote to
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

// drained is told the kernel's totals as they were before and after a drain: whatever they held before must have come out
// by now, and nothing may have come out that they do not hold after it.
func (t *ledger) drained(before, after kernel.Tally, table identity.Stats) {
	t.kernel = after
	t.evicted = table.EvictedLive
	out := event.Bytes{
		Sent:     t.attributed.Sent + t.noProgram.Sent + after.Lost.Sent,
		Received: t.attributed.Received + t.noProgram.Received + after.Lost.Received,
	}
	t.missing[t.turn%settled] = event.Bytes{Sent: lacking(before.Seen.Sent, out.Sent), Received: lacking(before.Seen.Received, out.Received)}
	t.excess[t.turn%settled] = event.Bytes{Sent: lacking(out.Sent, after.Seen.Sent), Received: lacking(out.Received, after.Seen.Received)}
	t.turn++
}

// settle is for the last drain, after which nothing moves: its figures stand.
func (t *ledger) settle() {
	last := (t.turn + settled - 1) % settled
	for i := range settled {
		t.missing[i], t.excess[i] = t.missing[last], t.excess[last]
	}
}

// least is what all of the last drains agree on.
func least(of [settled]event.Bytes) event.Bytes {
	b := of[0]
	for _, o := range of[1:] {
		b.Sent = min(b.Sent, o.Sent)
		b.Received = min(b.Received, o.Received)
	}
	return b
}

func lacking(seen, out uint64) uint64 {
	if out >= seen {
		return 0
	}
	return seen - out
}

func (t *ledger) event(batch uint64, out outlet.Stats, halted time.Duration) event.Ledger {
	e := event.Ledger{
		Batch: batch, Seen: t.kernel.Seen, Attributed: t.attributed, Events: t.events,
		Unattributed: event.Bytes{
			Sent:     t.noProgram.Sent + t.kernel.Lost.Sent + out.DroppedSent,
			Received: t.noProgram.Received + t.kernel.Lost.Received + out.DroppedReceived,
		},
		Lost: map[string]uint64{},
	}
	missing, excess := least(t.missing), least(t.excess)
	e.Unattributed.Sent += missing.Sent
	e.Unattributed.Received += missing.Received
	if n := excess.Sent + excess.Received; n > 0 {
		e.Lost[event.LostTwice] = n
	}
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
		event.LostOpened:   t.opened,
		event.LostScript:   t.scripts,
		event.LostHashing:  uint64(halted / time.Second),
	} {
		if n > 0 {
			e.Lost[key] = n
		}
	}
	return e
}
