// Package recorder is the wing that keeps what the sensor saw. It runs without rights under an account of its own. It reads the
// stream of events and wires its rooms: names (what addresses are called), flow (time windows), known (what was seen before), origin (which
// package a file is from), notify (what the user is told), store (snitch.db and conn.log) and feed (the live socket). Time is that of the stream (Ledger.At), so that a
// recorded stream gives the same rows whenever it is replayed.
package recorder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/desk"
	"github.com/picosnitch/picosnitch/internal/recorder/feed"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/known"
	"github.com/picosnitch/picosnitch/internal/recorder/logfile"
	"github.com/picosnitch/picosnitch/internal/recorder/names"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
	"github.com/picosnitch/picosnitch/internal/recorder/origin"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/recorder/virustotal"
)

const second = int64(1e9) // in nanoseconds

// HostsPath is the usual hosts file.
const HostsPath = "/etc/hosts"

// MemoryLimit is what a process that does nothing but Run should give to debug.SetMemoryLimit, in bytes: without it, a burst of
// flows lets the heap grow to twice of what is needed. It is more than a busy machine needs, so that the
// collector does not work all the time, and no bound: a hostile machine may need more (see the bounds below). It
// is the process's setting, so Run does not make it.
const MemoryLimit = 24 << 20

// Bounds of the recorder's memory.
const (
	maxRecords = 1 << 14 // of one window; more are written early
	maxWaiting = 1 << 16 // records that a sink could not write
	maxNames   = 1 << 14
	maxDigests = 1 << 12 // news of one window
	maxNews    = 1 << 20 // bytes of their texts
	maxNotices = 1 << 6  // of the sensor, in ten seconds
	maxReasons = 1 << 6  // of losses; event.Losses has a dozen
	maxLive    = 1 << 10 // lines for one ledger
)

// Options of a recorder.
type Options struct {
	Dir      string                   // for snitch.db, conn.log and error.log; must exist
	FeedDir  string                   // for events.sock; "": no live feed
	Settings Settings                 // see Defaults
	Hosts    string                   // file of names; "": HostsPath. Use os.DevNull for another machine's stream
	Door     *errand.Door             // where the sessions of desktop users come in; nil: nowhere
	Live     io.Writer                // gets a readable line per flow; nil: none
	Reopen   <-chan struct{}          // open conn.log again: it was moved away; nil: never
	Ack      func(batch uint64) error // told how far the stream is on disk; nil: nobody is
	Linger   time.Duration            // how long the end may wait for the SQL server; 0: three seconds
	Logger   *slog.Logger             // nil: none
	Zone     *time.Location           // of the times in conn.log, error.log and Live; nil: time.Local

	// Machine is true when the stream is of this machine: "Data limits" ask it for its network interfaces.
	Machine bool
	// Past says what the log has of a limit from a time on, and from when on it has it: for one that is new. nil: nothing.
	Past func(ctx context.Context, l Limit, since time.Time) (event.Bytes, time.Time, error)

	Ways []notify.Way // ways out for notices, besides the desktop and the live feed
	// Tool runs a tool of a package manager, to find out where files are from. nil: this is not the machine of the stream, and nobody is asked.
	Tool origin.Tool
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
	text      *store.Text   // nil: off
	queues    []*store.Queue
	desk      *desk.Desk // nil: none
	ways      []notify.Way

	virustotal     *virustotal.Client // nil: nobody is asked
	stopVirusTotal func()
	unkept         []virustotal.Result // not in snitch.db yet
	asked          time.Time           // when it was looked for what is to be asked
	unread         []unread
	server         *remote.Remote // nil: off
	feed           *feed.Feed     // nil: none
	live           *live          // nil: none
	known          *known.Known
	teller         *teller
	limits         *limits // nil: none

	hello     event.Hello
	helloLine atomic.Pointer[[]byte]
	status    atomic.Pointer[Status]
	now       Status // the next status

	start, end int64 // of the open window, unix seconds
	at         int64 // of the last line, ns since 1970
	batch      uint64
	flows      uint64          // flow lines of the open batch
	committed  flow.Position   // what every sink had when the stream was opened
	edges      []flow.Position // what some sinks had besides, ascending
	logged     flow.Position   // what snitch.db had when the stream was opened
	lossesFrom uint64          // the last batch whose losses were on disk
	closed     uint64          // last batch of a closed window
	acked      uint64
	final      bool

	deadline time.Time // of the last tries to write; zero: the end has not come

	digests      []flow.Digested
	news         int               // bytes of digests
	totals       map[string]uint64 // of the last ledger
	unattributed event.Bytes       // of the last ledger
	losses       map[string]uint64 // of the open window
	missing      event.Bytes       // unattributed in the open window
	lastLedger   int64             // At; ns since 1970
	lastEvents   uint64
	badLine      error
	badBatch     string
	dropped      []store.Dropped // told, by queue

	serverDropped    uint64 // records dropped by the spool, told
	serverUnreadable uint64 // records in it that cannot be read, told
	serverError      string // why there is no copy although one is asked for
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
	return errors.Join(err, r.close())
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
	ignore, err := flow.NewIgnore(o.Settings.IgnoreHashes, o.Settings.IgnoreDomains, o.Settings.IgnorePorts)
	if err != nil {
		return nil, err
	}
	unheard, err := notify.NewIgnore(o.Settings.NotifyIgnore)
	if err != nil {
		return nil, err
	}
	r := &recorder{
		o:         o,
		log:       o.Logger.With("component", "recorder"),
		errors:    errorLog{File: logfile.File{Path: filepath.Join(o.Dir, "error.log"), Limit: maxErrorLog}, zone: o.Zone},
		tell:      newRestrainer(10 * time.Second),
		processes: flow.NewProcesses(o.Settings.LogCommands),
		table:     flow.NewTable(maxRecords, o.Settings.LogAddresses),
		names:     names.New(maxNames, o.Hosts),
		ignore:    ignore,
		ways:      slices.Clone(o.Ways),
		totals:    make(map[string]uint64),
		losses:    make(map[string]uint64),
		batch:     1,
		at:        time.Now().UnixNano(), // for what is told before the first line
	}
	r.openDesk()
	r.openKnown(unheard)
	if o.Settings.SQLLog {
		r.sqlite, err = store.OpenSQLite(ctx, filepath.Join(o.Dir, "snitch.db"), time.Second, func(text, hint string) { r.notice("warning", text, hint) })
		if err != nil {
			r.notice("error", err.Error(), "")
			return nil, errors.Join(err, r.shut())
		}
		r.sqlite.SetKeep(store.Keep{RawDays: o.Settings.RawDays, Days: o.Settings.Days, Bytes: o.Settings.SizeLimit})
		r.queues = append(r.queues, store.NewQueue(r.sqlite, maxWaiting))
	}
	if o.Settings.TextLog {
		r.text, err = store.OpenText(filepath.Join(o.Dir, "conn.log"), store.TextOptions{Zone: o.Zone, JSON: o.Settings.TextJSON, Limit: o.Settings.TextLimit})
		if err != nil {
			r.notice("error", err.Error(), "")
			return nil, errors.Join(err, r.shut())
		}
		r.queues = append(r.queues, store.NewQueue(r.text, maxWaiting))
	}
	if s := o.Settings.Remote; s != nil {
		r.server, err = remote.Open(*s, remote.Options{Dir: filepath.Join(o.Dir, "spool"), Zone: o.Zone, Linger: cmp.Or(o.Linger, linger)})
		if err != nil {
			// The log on this machine must not end with the copy of it.
			r.serverError = err.Error()
			r.notice("error", "nothing is copied to the SQL server: "+r.serverError, "mend it, and restart picosnitch")
		} else {
			r.queues = append(r.queues, store.NewQueue(r.server, maxWaiting))
			r.serverUnreadable = r.server.Status().Unreadable.Records // it tells those itself
		}
	}
	r.dropped = make([]store.Dropped, len(r.queues))
	r.openLimits(ctx)
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
	select {
	case <-r.o.Reopen:
		r.reopen()
	default:
	}
	switch {
	case ev.Hello != nil:
		r.takeHello(ev.Hello, line)
	case ev.Process != nil:
		r.processes.Start(ev.Process)
	case ev.Exit != nil:
		r.processes.End(ev.Exit.ID)
	case ev.Executable != nil:
		if !r.wantHash(ev.Executable) {
			r.takeExecutable(ev.Executable)
		}
	case ev.Modified != nil:
		r.takeModified(ev.Modified)
	case ev.Flow != nil:
		r.takeFlow(ev.Flow)
	case ev.Name != nil:
		ev.Name.Name, ev.Name.Source = flow.Printable(ev.Name.Name), flow.PrintableWord(ev.Name.Source)
		r.names.Learn(ev.Name)
	case ev.Notice != nil:
		if r.tell.allow("notice", r.at, maxNotices) {
			text, hint := flow.Printable(ev.Notice.Text), flow.Printable(ev.Notice.Hint)
			r.write(text, hint)
			r.failure(ev.Notice.Level, text, hint)
		}
	case ev.Ledger != nil:
		r.takeLedger(ev.Ledger)
	}
	if r.feed != nil && (ev.Notice == nil || r.o.Settings.Feed) {
		r.feed.Publish(line)
	}
}

// reopen lets go of the files that another program moved away. error.log follows by itself.
func (r *recorder) reopen() {
	r.errors.Close()
	if r.text != nil {
		if err := r.text.Reopen(); err != nil {
			r.notice("error", "open conn.log again: "+err.Error(), "")
		}
	}
}

func (r *recorder) takeExecutable(e *event.Executable) {
	if !r.processes.Executable(e) {
		return
	}
	r.known.Digested(r.at)
	d := flow.Digested{File: e.File, Path: flow.PrintablePath(e.Path), SHA256: flow.PrintableWord(e.SHA256), Reason: flow.PrintableReason(e.Reason)}
	r.digests = append(r.digests, d)
	if r.news += len(d.Path) + len(d.SHA256) + len(d.Reason); len(r.digests) >= maxDigests || r.news >= maxNews {
		r.closeWindow()
	}
}

func (r *recorder) takeFlow(f *event.Flow) {
	r.flows++
	p, known := r.processes.Program(f.Process)
	switch { // also what comes a second time: what is known already is no news
	case known && f.Family == event.FamilyExec:
		r.known.Seen(p, r.at, nil)
	case known:
		r.known.Seen(p, r.at, func() string { return r.remote(f) })
	}
	if r.limits != nil {
		r.limits.count(flow.Position{Stream: r.hello.Stream, Batch: r.batch - 1, Flows: r.flows}, r.at, f, p)
	}
	if r.repeated() {
		r.now.Repeated++
		return
	}
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
	crossed := r.crosses(flow.Position{Batch: r.batch - 1, Flows: r.flows})
	// A machine that slept: what moves after it does not belong to the time before.
	late := r.end != 0 && r.at > (r.end+r.o.Settings.WriteLimit)*second
	if crossed || late || r.table.Full() {
		r.flows-- // this one is not in it
		r.closeWindow()
		r.flows++
	}
	if late {
		r.start, r.end = flow.Bounds(r.at, r.o.Settings.WriteLimit)
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
	r.askSessions()
	r.askVirusTotal()
	if l.Batch != r.batch && l.Batch != 0 {
		r.badBatch = fmt.Sprintf("%d came where %d was expected", l.Batch, r.batch)
		r.tell.add("batch", 1)
	}
	batch := max(l.Batch, r.batch)
	if r.crosses(flow.Position{Batch: batch}) {
		r.closeWindow()
	}
	if l.Batch > r.lossesFrom {
		r.takeLosses(l)
	}
	r.batch, r.flows = batch+1, 0
	r.final = l.Final
	if r.live != nil {
		r.live.print(r.at)
	}
	if r.end == 0 {
		r.start, r.end = flow.Bounds(r.at, r.o.Settings.WriteLimit)
	}
	if r.at >= r.end*second || r.at < r.start*second || l.Final {
		r.closeWindow()
		r.start, r.end = flow.Bounds(r.at+1, r.o.Settings.WriteLimit)
		r.refreshNames()
	}
	if l.Final {
		r.finish() // close tells what could not be written
	} else {
		r.flush(false)
	}
	r.known.Tick(r.at)
	r.tellKnown()
	r.tellLimits()
	r.care(l.Final)
	r.tellLosses(l.Final)
	r.tellBadLines(l.Final)
	r.tellServer()

	if d := r.at - r.lastLedger; r.lastLedger != 0 && d > 0 && l.Events >= r.lastEvents {
		r.now.EventsPerSecond = float64(l.Events-r.lastEvents) * float64(second) / float64(d)
	}
	r.lastLedger, r.lastEvents = r.at, l.Events
	r.now.Batch, r.now.Events = l.Batch, l.Events
	r.now.Seen, r.now.Attributed, r.now.Unattributed, r.now.Lost = l.Seen, l.Attributed, l.Unattributed, l.Lost
	r.publishStatus()
}

// closeWindow gives the open window to the sinks. Its bounds stay: what comes before the next ledger belongs to it too.
func (r *recorder) closeWindow() {
	at := flow.Position{Stream: r.hello.Stream, Batch: r.batch - 1, Flows: r.flows}
	if r.committed.After(at) {
		at = r.committed // in the middle of what is on disk already
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
	// A part of a window, or the last one: it ends now. A clock that went back does not turn it around.
	w.End = min(w.End, max((r.at+second-1)/second, w.Start+1))
	var left flow.Left
	w.Records, w.Programs, left = r.table.Take(r.ignore.Program)
	r.now.IgnoredFlows += uint64(left.Records)
	r.now.Ignored.Sent += left.Bytes.Sent
	r.now.Ignored.Received += left.Bytes.Received
	r.digests, r.news, r.losses, r.missing = nil, 0, make(map[string]uint64), event.Bytes{}
	r.known.Forget()
	r.closed = max(r.closed, r.batch-1)
	r.saveLimits(false) // before the sensor is told that it need not send it again
	if !w.Empty() {
		for _, q := range r.queues {
			q.Offer(w)
		}
	}
	r.flush(false)
}

func (r *recorder) refreshNames() {
	if err := r.names.Refresh(); err != nil {
		r.notice("warning", err.Error(), "")
	}
}
