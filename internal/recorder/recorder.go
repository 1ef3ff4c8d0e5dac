// Package recorder is the wing that keeps what the sensor saw. It runs without rights under an account of its own. It reads the
// stream of events and wires its rooms: names (what addresses are called), flow (time windows), store (snitch.db and
// conn.log) and feed (the live socket). Time is that of the stream (Ledger.At), so that a
// recorded stream gives the same rows whenever it is replayed.
package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/feed"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/names"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// HostsPath is the usual hosts file.
const HostsPath = "/etc/hosts"

// MemoryLimit is what the process that calls Run should give to debug.SetMemoryLimit, in bytes: without it, a burst of flows lets
// the heap grow to twice of what is needed. It is the process's setting, so Run does not make it.
const MemoryLimit = 10 << 20

// Bounds of the recorder's memory.
const (
	maxRecords = 1 << 14 // of one window; more are written early
	maxWaiting = 1 << 16 // records that a sink could not write
	maxNames   = 1 << 14
	maxDigests = 1 << 12 // news of one window
	maxReasons = 1 << 6  // of losses; event.Losses has a dozen
	maxLive    = 1 << 10 // lines for one ledger
)

// Options of a recorder.
type Options struct {
	Dir      string                   // for snitch.db, conn.log and error.log; must exist
	FeedDir  string                   // for events.sock; "": no live feed
	Settings Settings                 // see Defaults
	Hosts    string                   // file of names; "": HostsPath. Use os.DevNull for another machine's stream
	Live     io.Writer                // gets a readable line per flow; nil: none
	Ack      func(batch uint64) error // told how far the stream is on disk; nil: nobody is
	Logger   *slog.Logger             // nil: none
	Zone     *time.Location           // of the times in conn.log, error.log and Live; nil: time.Local
}

// recorder is the state of one Run. One goroutine owns it; the feed's goroutines see only status and helloLine.
type recorder struct {
	o      Options
	log    *slog.Logger
	errors errorLog
	tell   *restrainer

	processes *flow.Processes
	table     *flow.Table
	names     *names.Cache
	ignore    flow.Ignore
	sqlite    *store.SQLite // nil: off
	queues    []*store.Queue
	feed      *feed.Feed // nil: none
	live      *live      // nil: none

	hello     event.Hello
	helloLine atomic.Pointer[[]byte]
	status    atomic.Pointer[Status]
	now       Status // the next status

	start, end int64 // of the open window, unix seconds
	at         int64 // of the last line, ns since 1970
	batch      uint64
	flows      uint64        // flow lines of the open batch
	committed  flow.Position // what was on disk when the stream was opened
	closed     uint64        // last batch of a closed window
	acked      uint64
	final      bool

	digests      []flow.Digested
	totals       map[string]uint64 // of the last ledger
	unattributed event.Bytes       // of the last ledger
	losses       map[string]uint64 // of the open window
	missing      event.Bytes       // unattributed in the open window
	lastLedger   int64             // At; ns since 1970
	lastEvents   uint64
	badLine      error
	dropped      []uint64 // told records, by queue
}

// Run records the stream until it ends (EOF), which is no error. It always writes what it has taken in. ctx ends it earlier, if
// the stream is an io.Closer. A database of a newer picosnitch is schema.ErrNewer, a stream of one is event.ErrVersion.
func Run(ctx context.Context, stream io.Reader, o Options) error {
	r, err := open(ctx, o)
	if err != nil {
		return err
	}
	if c, ok := stream.(io.Closer); ok {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
	}
	err = r.read(stream)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return errors.Join(err, r.close(context.WithoutCancel(ctx)))
}

func open(ctx context.Context, o Options) (*recorder, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Zone == nil {
		o.Zone = time.Local
	}
	if o.Hosts == "" {
		o.Hosts = HostsPath
	}
	if o.Settings.WriteLimit < 1 {
		return nil, fmt.Errorf("\"DB write limit (seconds)\" is %d: use 1 or more", o.Settings.WriteLimit)
	}
	ignore, err := flow.NewIgnore(o.Settings.Ignore, o.Settings.IgnorePorts)
	if err != nil {
		return nil, err
	}
	r := &recorder{
		o:         o,
		log:       o.Logger.With("component", "recorder"),
		errors:    errorLog{path: filepath.Join(o.Dir, "error.log"), zone: o.Zone},
		tell:      newRestrainer(10 * time.Second),
		processes: flow.NewProcesses(o.Settings.LogCommands),
		table:     flow.NewTable(maxRecords, o.Settings.LogAddresses),
		names:     names.New(maxNames, o.Hosts),
		ignore:    ignore,
		totals:    make(map[string]uint64),
		losses:    make(map[string]uint64),
		batch:     1,
		at:        time.Now().UnixNano(), // for what is told before the first line
	}
	if o.Settings.SQLLog {
		r.sqlite, err = store.OpenSQLite(ctx, filepath.Join(o.Dir, "snitch.db"), time.Second, func(text, hint string) { r.notice("warning", text, hint) })
		if err != nil {
			r.notice("error", err.Error(), "")
			r.errors.close()
			return nil, err
		}
		r.queues = append(r.queues, store.NewQueue(r.sqlite, maxWaiting))
	}
	if o.Settings.TextLog {
		t, err := store.OpenText(filepath.Join(o.Dir, "conn.log"), o.Zone)
		if err != nil {
			r.notice("error", err.Error(), "")
			return nil, errors.Join(err, r.shut())
		}
		r.queues = append(r.queues, store.NewQueue(t, maxWaiting))
	}
	r.dropped = make([]uint64, len(r.queues))
	if o.Live != nil {
		r.live = newLive(o.Live, o.Zone, o.Settings.LogAddresses)
	}
	r.refreshNames()
	r.publishStatus()
	if o.FeedDir != "" {
		// Not having it costs the live views and no record.
		if r.feed, err = feed.Listen(o.FeedDir, r.greet); err != nil {
			r.notice("error", err.Error(), "`picosnitch status` and the live views do not work")
		}
	}
	return r, nil
}

// read takes the stream in.
func (r *recorder) read(stream io.Reader) error {
	d := event.NewDecoder(stream)
	var ev event.Event
	for {
		err := d.Decode(&ev)
		var bad *event.LineError
		switch {
		case err == io.EOF:
			return nil
		case errors.As(err, &bad):
			r.now.BadLines++
			r.badLine = err
			r.tell.add("line", 1)
			r.tellBadLines(false)
			continue
		case err != nil:
			return err
		}
		r.take(&ev, d.Bytes())
	}
}

// take takes one event in; line is its text.
func (r *recorder) take(ev *event.Event, line []byte) {
	r.at = ev.At
	switch {
	case ev.Hello != nil:
		r.takeHello(ev.Hello, line)
	case ev.Process != nil:
		r.processes.Start(ev.Process)
	case ev.Exit != nil:
		r.processes.End(ev.Exit.ID)
	case ev.Executable != nil:
		e := ev.Executable
		if r.processes.Executable(e) {
			r.digests = append(r.digests, flow.Digested{File: e.File, Path: flow.Printable(e.Path), SHA256: flow.Printable(e.SHA256), Reason: flow.Printable(e.Reason)})
			if len(r.digests) >= maxDigests {
				r.closeWindow()
			}
		}
	case ev.Flow != nil:
		r.takeFlow(ev.Flow)
	case ev.Name != nil:
		ev.Name.Name, ev.Name.Source = flow.Printable(ev.Name.Name), flow.Printable(ev.Name.Source)
		r.names.Learn(ev.Name)
	case ev.Notice != nil:
		r.write(flow.Printable(ev.Notice.Text), flow.Printable(ev.Notice.Hint))
	case ev.Ledger != nil:
		r.takeLedger(ev.Ledger)
	}
	if r.feed != nil {
		r.feed.Publish(line)
	}
}

func (r *recorder) takeHello(h *event.Hello, line []byte) {
	r.closeWindow()
	r.flush(true)
	again := h.Stream == r.hello.Stream && r.hello.Stream != ""
	durable := flow.Position{Stream: h.Stream, Batch: r.batch - 1, Flows: r.flows}
	r.hello = *h
	for _, s := range [...]*string{&r.hello.Stream, &r.hello.Program, &r.hello.Host, &r.hello.Boot, &r.hello.HookSet, &r.hello.SelfTest} {
		*s = flow.Printable(*s)
	}
	text := append([]byte(nil), line...)
	text = append(text, '\n')
	r.helloLine.Store(&text)
	r.processes.Reset()
	r.start, r.end = flow.Bounds(r.at+1, r.o.Settings.WriteLimit)
	r.batch, r.flows, r.final = max(h.Batch, 1), 0, false
	if again {
		r.committed = durable
	} else {
		r.committed = flow.Position{}
		clear(r.totals)
		r.unattributed = event.Bytes{}
		r.closed, r.acked = 0, 0
		r.lastLedger, r.lastEvents = 0, 0
		if r.sqlite != nil {
			resume, err := r.sqlite.Resume(context.Background(), r.hello.Stream)
			if err != nil {
				r.notice("error", "read from snitch.db how far the stream was written: "+err.Error(), "some flows may be recorded twice")
			} else {
				r.committed, r.totals, r.unattributed = resume.Position, resume.Losses, resume.Unattributed
			}
		}
	}
	r.closed = max(r.closed, r.committed.Batch)
	r.now.PID, r.now.Program, r.now.Stream, r.now.Started = h.PID, r.hello.Program, r.hello.Stream, h.Started
	r.now.HookSet, r.now.Hooks, r.now.Bandwidth, r.now.SelfTest = r.hello.HookSet, h.Hooks, h.Bandwidth, r.hello.SelfTest
	r.acknowledge()
	r.publishStatus()
}

// repeated reports whether the flow line just read is on disk already: the sensor sends batches again that were not
// acknowledged when a recorder died.
func (r *recorder) repeated() bool {
	c := r.committed
	return r.batch <= c.Batch || (r.batch == c.Batch+1 && r.flows <= c.Flows)
}

func (r *recorder) takeFlow(f *event.Flow) {
	r.flows++
	if r.repeated() {
		r.now.Repeated++
		return
	}
	p, known := r.processes.Program(f.Process)
	if !known {
		r.now.UnknownFlows++
		if !f.Process.IsZero() { // the sensor counts those that it does not know itself
			r.tell.add("unknown", 1)
		}
	}
	n := r.names.Lookup(f.Remote.Addr(), r.at)
	d := flow.Domain{Name: n.Name, Source: n.Source}
	if r.live != nil {
		r.live.add(f, p, d)
	}
	if r.table.Full() {
		r.flows-- // this one is not in it
		r.closeWindow()
		r.flows++
	}
	if r.ignore.Flow(f, d) {
		r.now.IgnoredFlows++
		r.now.Ignored.Sent += f.Sent
		r.now.Ignored.Received += f.Received
		r.table.Know(p)
		return
	}
	r.table.Add(f, p, d)
}

func (r *recorder) takeLedger(l *event.Ledger) {
	if l.Batch != r.batch && l.Batch != 0 {
		r.notice("warning", fmt.Sprintf("the stream's batch %d came where %d was expected", l.Batch, r.batch), "lines between them are missing; see the losses")
	}
	if l.Batch > r.committed.Batch {
		r.takeLosses(l)
	}
	r.batch, r.flows = max(l.Batch, r.batch)+1, 0
	r.final = l.Final
	if r.live != nil {
		r.live.print(r.at)
	}
	const second = 1e9
	if r.end == 0 {
		r.start, r.end = flow.Bounds(r.at, r.o.Settings.WriteLimit)
	}
	if r.at >= r.end*second || r.at < r.start*second || l.Final {
		r.closeWindow()
		r.start, r.end = flow.Bounds(r.at+1, r.o.Settings.WriteLimit)
		r.refreshNames()
	}
	r.flush(l.Final)
	r.tellLosses(l.Final)
	r.tellBadLines(l.Final)

	if d := r.at - r.lastLedger; r.lastLedger != 0 && d > 0 && l.Events >= r.lastEvents {
		r.now.EventsPerSecond = float64(l.Events-r.lastEvents) * second / float64(d)
	}
	r.lastLedger, r.lastEvents = r.at, l.Events
	r.now.Batch, r.now.Events = l.Batch, l.Events
	r.now.Seen, r.now.Attributed, r.now.Unattributed, r.now.Lost = l.Seen, l.Attributed, l.Unattributed, l.Lost
	r.publishStatus()
}

// closeWindow gives the open window to the sinks. Its bounds stay: what comes before the next ledger belongs to it too.
func (r *recorder) closeWindow() {
	at := flow.Position{Stream: r.hello.Stream, Batch: r.batch - 1, Flows: r.flows}
	if c := r.committed; at.Batch < c.Batch || (at.Batch == c.Batch && at.Flows < c.Flows) {
		at = c // in the middle of what is on disk already
	}
	w := &flow.Window{
		Hello:        r.hello,
		Start:        r.start,
		End:          r.end,
		Digests:      r.digests,
		Losses:       r.losses,
		Unattributed: r.missing,
		Position:     at,
	}
	if r.end == 0 {
		w.Start, w.End = flow.Bounds(r.at, r.o.Settings.WriteLimit)
	}
	var dropped int
	w.Records, w.Programs, dropped = r.table.Take(r.ignore.Program)
	r.now.IgnoredFlows += uint64(dropped)
	r.digests, r.losses, r.missing = nil, make(map[string]uint64), event.Bytes{}
	r.closed = max(r.closed, r.batch-1)
	if !w.Empty() {
		for _, q := range r.queues {
			q.Offer(w)
		}
	}
	r.flush(false)
}

// flush writes what waits and acknowledges what is on disk.
func (r *recorder) flush(force bool) bool {
	ok := true
	for i, q := range r.queues {
		waiting := q.Waiting()
		err := q.Flush(context.Background(), r.at/1e9, force)
		if err != nil {
			r.tell.add("write "+q.Name(), 1)
			if n := r.tell.due("write "+q.Name(), r.at, false); n > 0 {
				r.notice("error", fmt.Sprintf("%v (%d windows wait in memory)", err, q.Waiting()), "free disk space, or end what locks the file; it is tried again")
			}
		} else if waiting > 0 && q.Waiting() == 0 {
			r.now.LastWrite = r.at
		}
		if d := q.Dropped(); d.Records > r.dropped[i] {
			r.tell.add("drop "+q.Name(), d.Records-r.dropped[i])
			r.dropped[i] = d.Records
		}
		if n := r.tell.due("drop "+q.Name(), r.at, force); n > 0 {
			r.notice("error", fmt.Sprintf("%d records for %s were lost because it could not be written for too long", n, q.Name()), "free disk space, or end what locks the file")
		}
		ok = ok && q.Waiting() == 0
	}
	r.acknowledge()
	return ok
}

// acknowledge tells the sensor how far everything is on disk.
func (r *recorder) acknowledge() {
	batch := r.closed
	for _, q := range r.queues {
		if q.Waiting() > 0 {
			d := q.Durable()
			if d.Stream != r.hello.Stream {
				return
			}
			batch = min(batch, d.Batch)
		}
	}
	if batch <= r.acked {
		return
	}
	r.acked = batch
	if r.o.Ack == nil {
		return
	}
	if err := r.o.Ack(batch); err != nil {
		r.log.Debug("acknowledge", "batch", batch, "error", err) // the sensor is gone: the stream ends next
	}
}

func (r *recorder) refreshNames() {
	if err := r.names.Refresh(); err != nil {
		r.notice("warning", err.Error(), "")
	}
}

// finalTries and finalPause bound how long the end of a recorder waits for a locked or full disk.
const (
	finalTries = 5
	finalPause = time.Second
)

// close writes the last window and closes everything.
func (r *recorder) close(ctx context.Context) error {
	var err error
	r.closeWindow()
	for try := 1; !r.flush(true); try++ {
		if try == finalTries {
			for _, q := range r.queues {
				if _, cause := q.Failures(); q.Waiting() > 0 {
					err = errors.Join(err, fmt.Errorf("the last %d windows could not be written to %s: %w", q.Waiting(), q.Name(), cause))
				}
			}
			r.notice("error", err.Error(), "free disk space, or end what locks the file")
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(finalPause):
		}
	}
	r.tellLosses(true)
	r.tellBadLines(true)
	if !r.final && r.hello.Stream != "" {
		r.notice("warning", "the stream ended without its last ledger: the sensor ended unexpectedly", "what moved after this moment is not recorded")
	}
	if r.live != nil {
		r.live.print(r.at)
	}
	return errors.Join(err, r.shut())
}

func (r *recorder) shut() error {
	var err error
	if r.feed != nil {
		err = r.feed.Close()
	}
	for _, q := range r.queues {
		err = errors.Join(err, q.Close())
	}
	r.errors.close()
	return err
}
