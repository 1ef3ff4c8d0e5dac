package recorder

import (
	"context"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

func (r *recorder) takeHello(h *event.Hello, line []byte) {
	r.closeWindow()
	r.flush(true)
	again := h.Stream == r.hello.Stream && r.hello.Stream != ""
	durable := flow.Position{Stream: flow.Printable(h.Stream), Batch: r.batch - 1, Flows: r.flows}
	r.hello = *h
	for _, s := range [...]*string{&r.hello.Stream, &r.hello.Program, &r.hello.Host, &r.hello.Boot, &r.hello.HookSet, &r.hello.Why, &r.hello.SelfTest} {
		*s = flow.Printable(*s)
	}
	text := append([]byte(nil), line...)
	text = append(text, '\n')
	r.helloLine.Store(&text)
	r.processes.Reset()
	r.start, r.end = flow.Bounds(r.at+1, r.o.Settings.WriteLimit)
	r.batch, r.flows, r.final = max(h.Batch, 1), 0, false
	r.deadline = time.Time{}
	r.logged = flow.Position{Stream: r.hello.Stream}
	if again {
		r.resume(durable, nil)
		r.lossesFrom = durable.Batch
	} else {
		clear(r.totals)
		r.unattributed = event.Bytes{}
		r.closed, r.acked = 0, 0
		r.lastLedger, r.lastEvents = 0, 0
		r.resumeSinks()
	}
	if r.limits != nil {
		r.limits.meter.Begin(r.logged)
	}
	r.closed = max(r.closed, r.committed.Batch)
	r.now.PID, r.now.Program, r.now.Stream, r.now.Started = h.PID, r.hello.Program, r.hello.Stream, h.Started
	r.now.Why = r.hello.Why
	r.now.HookSet, r.now.Hooks, r.now.Bandwidth, r.now.SelfTest = r.hello.HookSet, h.Hooks, h.Bandwidth, r.hello.SelfTest
	r.acknowledge()
	r.publishStatus()
}

// resumeSinks asks every sink how far it has the stream that begins: after a kill, one may have more than another.
func (r *recorder) resumeSinks() {
	none := flow.Position{Stream: r.hello.Stream}
	r.lossesFrom = 0
	var at []flow.Position // in the order of queues
	if r.sqlite != nil {
		resume, err := r.sqlite.Resume(context.Background(), r.hello.Stream)
		if err != nil {
			r.notice("error", "read from snitch.db how far the stream was written: "+err.Error(), "some flows may be recorded twice")
			resume.Position = none
		} else {
			r.totals, r.unattributed = resume.Losses, resume.Unattributed
			r.lossesFrom = resume.Position.Batch
			r.logged = resume.Position
		}
		at = append(at, resume.Position)
	}
	if r.text != nil {
		at = append(at, r.text.Resume(r.hello.Stream))
	}
	if r.server != nil {
		at = append(at, r.server.Resume(r.hello.Stream))
	}
	r.resume(none, at)
}

// resume sets what the sinks have of the stream: all of them the same, or one by one.
func (r *recorder) resume(all flow.Position, each []flow.Position) {
	for i, q := range r.queues {
		if each != nil {
			q.Resume(each[i])
		} else {
			q.Resume(all)
		}
	}
	r.committed, r.edges = all, nil
	for i, p := range slices.SortedFunc(slices.Values(each), flow.Position.Compare) {
		if i == 0 {
			r.committed = p
		} else if p.After(r.committed) {
			r.edges = append(r.edges, p)
		}
	}
}

// crosses reports whether the stream, when it comes to p, leaves what one of the sinks has already: a window must not hold
// records of both sides, because that sink is not given the ones before.
func (r *recorder) crosses(p flow.Position) bool {
	crossed := false
	for len(r.edges) > 0 && p.After(r.edges[0]) {
		r.edges = r.edges[1:]
		crossed = true
	}
	return crossed
}

// repeated reports whether the flow line just read is on disk already: the sensor sends batches again that were not
// acknowledged when a recorder died.
func (r *recorder) repeated() bool {
	c := r.committed
	return r.batch <= c.Batch || (r.batch == c.Batch+1 && r.flows <= c.Flows)
}
