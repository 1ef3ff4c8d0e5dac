// Package sensor is the part that runs as root: it wires the rooms of its wing into one stream of events. The kernel
// side counts and reports, identity knows who it is, digest reads the executables, outlet brings the lines to the recorder.
// It opens no network connection, writes no user's file and parses nothing that came from the network.
//
// One goroutine owns the kernel's door and the process table; the outlet and the digest workers have their own.
package sensor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/identity"
	"github.com/picosnitch/picosnitch/internal/sensor/kernel"
	"github.com/picosnitch/picosnitch/internal/sensor/outlet"
	"github.com/picosnitch/picosnitch/internal/sensor/procfs"
)

// Options of Run and Doctor.
type Options struct {
	Program   string        // version of picosnitch
	Bandwidth bool          // false: connections only
	EveryExe  bool          // every executed program is told and hashed, not only those that use the network
	RingPages int           // size of each ring buffer, in pages
	HookSet   string        // "" for the best that works
	Interval  time.Duration // between drains; 0 is one second
	Logger    *slog.Logger
	root      string            // before the paths of container engines' files: for tests
	OnReady   func(event.Hello) // called once, when the hooks are on and the self-test is done
	// Connect starts a recorder and returns the sensor's end of its stream. Called again, with back-off, when the stream ends.
	Connect func(ctx context.Context) (io.ReadWriteCloser, error)
}

const (
	// grace is how long the recorder has for its last window.
	grace = 10 * time.Second
	// imageGrace is how long an image is kept after its end: sockets that the kernel closes on its behalf come late.
	imageGrace = 30 * time.Second
	// digestWait is how long a batch waits for executables that are met for the first time, lastDigestWait the last one; digestPause is
	// between two looks at what came.
	digestWait     = 500 * time.Millisecond
	digestPause    = 2 * time.Millisecond
	lastDigestWait = 3 * time.Second
	// finalRounds is how often the last execs are looked for: each round may bring some more.
	finalRounds = 3
	// readers is how many threads read from the kernel besides the loop.
	readers = 2
)

// ErrHooks is returned, wrapped with what to do, when the kernel does not let us in.
var ErrHooks = kernel.ErrNoHookSet

// loop is the state of the one goroutine that owns the kernel's door.
type loop struct {
	o        Options
	log      *slog.Logger
	hooks    *kernel.Hooks
	table    *identity.Table
	digester *digest.Digester
	proc     procfs.FS
	out      *outlet.Outlet
	stream   *stream
	tally    ledger
	executed executed
	results  []digest.Result // of takeDigests
	who      who
	self     *selfTest // flows of our own process, while the self-test runs
	packets  packets
	batch    uint64
	told     map[string]time.Time // notices, by text, when last told
}

// Run watches until ctx is done, then flushes everything through the recorder.
func Run(ctx context.Context, o Options) error {
	l, err := newLoop(o)
	if err != nil {
		return err
	}
	// One thread more for each that must not wait for the others: the readers of fanotify. Which of them runs is the kernel's to
	// decide, which knows their priorities.
	before := runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), runtime.NumCPU()+readers))
	defer runtime.GOMAXPROCS(before)
	defer l.hooks.Close()
	defer l.executed.close()
	defer l.who.stop()

	hello, err := l.start(ctx)
	if err != nil {
		return err
	}
	if o.OnReady != nil {
		o.OnReady(hello)
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	work, running := errgroup.WithContext(background)
	flush, flushed := context.WithCancel(running)
	defer flushed()
	work.Go(func() error { return l.out.Run(flush, grace) })
	hashing, hashed := context.WithCancel(running)
	defer hashed()
	work.Go(func() error { return l.digester.Run(hashing) })
	// What fails before its time ends the loop, which still has what was counted delivered.
	looping, end := context.WithCancelCause(ctx)
	defer end(nil)
	if l.executed.watch != nil {
		work.Go(func() error {
			if err := l.executed.watch.Run(hashing); err != nil {
				end(err)
			}
			return nil
		})
	}
	var failed error
	work.Go(func() error {
		err := l.run(looping)
		if cause := context.Cause(looping); ctx.Err() == nil && cause != nil {
			failed = cause
		}
		hashed()
		flushed() // the outlet sends what is queued and ends
		return err
	})
	return errors.Join(work.Wait(), failed)
}

func newLoop(o Options) (*loop, error) {
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	proc, err := procfs.Open(procfs.Root)
	if err != nil {
		return nil, err
	}
	hooks, err := kernel.Load(kernel.Options{HookSet: o.HookSet, Bandwidth: o.Bandwidth, RingPages: o.RingPages})
	if err != nil {
		return nil, err
	}
	l := &loop{
		o: o, log: o.Logger, hooks: hooks, proc: proc,
		table: identity.New(identity.Options{Grace: imageGrace}),
		told:  map[string]time.Time{},
	}
	l.openExecuted()
	l.digester = digest.New(digest.Options{Queue: l.executed.limit, Settle: l.executed.settle, Close: l.executed.closer.close, Behind: func() { _ = l.hooks.Wake() }}) // else they are taken at the next tick
	l.who = newWho()
	l.who.names.Root = o.root
	l.stream = newStream()
	l.out = outlet.New(o.Connect, l.stream.preamble, l.stream.recorderFailed, o.Logger)
	return l, nil
}

// start attaches the hooks, learns what already runs, and proves that counting works.
func (l *loop) start(ctx context.Context) (event.Hello, error) {
	if err := l.hooks.Attach(); err != nil {
		return event.Hello{}, fmt.Errorf("%w: %w", ErrHooks, err)
	}
	if err := l.found(); err != nil {
		return event.Hello{}, err
	}
	l.self = newSelfTest(uint32(os.Getpid()), l.o.Bandwidth)
	checks := l.selfTest(ctx)
	l.self = nil         // from here on we are a program like others
	debug.FreeOSMemory() // of the kernel's types, which loading needs and running does not
	hello, err := l.hello(checks)
	if err != nil {
		return event.Hello{}, err
	}
	l.stream.setHello(hello)
	if hello.SelfTest != "ok" && hello.SelfTest != interrupted { // who stops us while we start needs no warning
		l.notice("error", "the self-test failed: "+hello.SelfTest, "run `picosnitch doctor`; do not trust the figures")
	}
	for _, h := range hello.Hooks {
		if !h.Attached && !h.Waits && !h.Spare {
			l.notice("warning", fmt.Sprintf("hook %s is not attached: %s; not seen: %s", h.Name, h.Error, h.Cost), "run `picosnitch doctor`")
		}
	}
	l.tellExecuted()
	return hello, nil
}

// found learns the processes that ran before us. The iterator does not give their arguments.
func (l *loop) found() error {
	err := l.hooks.Found(func(p event.Process) {
		if !p.Kernel {
			var err error
			p.Argv, p.ArgvCut, err = l.proc.Cmdline(p.ID.PID)
			if now, gone := l.proc.ID(p.ID.PID); err != nil || gone != nil || !procfs.SameProcess(now, p.ID) {
				p.Argv, p.ArgvCut = nil, true // it ended meanwhile, and the number may be another's
			} else {
				p.Preload, p.PreloadCut = l.proc.Preload(p.ID.PID)
			}
			l.describe(&p)
		}
		l.table.Found(p)
		if l.o.EveryExe && !p.Kernel {
			l.executed.records = append(l.executed.records, p)
		}
	})
	if err != nil {
		return fmt.Errorf("list running processes: %w", err)
	}
	return nil
}

func (l *loop) hello(checks []Check) (event.Hello, error) {
	host, err := l.proc.Hostname()
	if err != nil {
		return event.Hello{}, err
	}
	boot, err := l.proc.BootID()
	if err != nil {
		return event.Hello{}, err
	}
	return event.Hello{
		Version: event.Version, Stream: newStreamID(), Program: l.o.Program, Host: host, Boot: boot,
		Started: time.Now().UnixNano(), PID: os.Getpid(), HookSet: l.hooks.Set(), Why: l.hooks.Why(), Hooks: append(l.hooks.State(), l.executed.state()...),
		Bandwidth: l.o.Bandwidth, SelfTest: summary(checks),
	}, nil
}

// run is the loop. It returns nil when ctx is done.
func (l *loop) run(ctx context.Context) error {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		if err := l.hooks.Wake(); err != nil {
			l.log.Error("stop", "err", err)
		}
	})
	defer func() {
		if !stop() {
			<-woken // the hooks are closed next
		}
	}()
	next := time.Now().Add(l.o.Interval)
	for ctx.Err() == nil {
		if err := l.hooks.Wait(time.Until(next)); err != nil {
			return err
		}
		l.take(l.hooks.Processes(l))
		l.claim()
		l.takeDigests(time.Now().Add(digestWait))
		l.record(false)
		l.switchPackets()
		if now := time.Now(); now.Before(next) {
			if !l.out.Full() {
				_, err := l.hooks.Released(l, l.flow)
				l.take(0, err)
			}
			continue
		}
		next = time.Now().Add(l.o.Interval)
		l.tick()
	}
	before, err := l.hooks.Tally()
	l.take(0, err)
	l.take(0, l.hooks.Finish(l, l.flow))
	for range finalRounds {
		l.claim()
	}
	l.executed.flush(l.o.EveryExe)
	l.record(true)
	l.digester.Hurry()
	l.awaitDigests(lastDigestWait)
	l.unread()
	l.book(before)
	l.tally.settle()
	l.closeBatch(true)
	return nil
}

// tick drains everything and closes a batch.
func (l *loop) tick() {
	l.notices()
	l.tickWho(time.Now())
	l.drainWatch()
	l.sweepExecuted(time.Now())
	for _, id := range l.table.Sweep(time.Now().UnixNano()) {
		l.stream.exit(id, l.batch+1)
	}
	if l.out.Full() {
		// The counts stay in the kernel, whose tables are the larger; when they are full, bytes lose their programs. A
		// recorder that hangs does not pass the notice on: the log must have it too.
		if text := "the recorder is behind: counts wait in the kernel"; l.notice("error", text, "see error.log for what keeps it") {
			l.log.Error(text)
		}
		return
	}
	before, err := l.hooks.Tally()
	l.take(0, err)
	l.take(0, l.hooks.Drain(l, l.flow))
	l.claim()
	l.record(false)
	l.awaitDigests(digestWait)
	l.book(before)
	l.idlePackets(before.PacketUsed)
	l.closeBatch(false)
}

// book compares the kernel's totals with what came out.
func (l *loop) book(before kernel.Tally) {
	after, err := l.hooks.Tally()
	l.take(0, err)
	if err == nil {
		l.tally.drained(before, after, l.table.Stats())
	}
}

func (l *loop) closeBatch(final bool) {
	l.batch++
	stats := l.out.Stats()
	l.stream.forget(stats.Acked)
	l.tally.opened = l.executed.lostDescriptors()
	e := l.tally.event(l.batch, stats, l.halted())
	e.Final = final
	l.stream.write(&event.Event{Ledger: &e})
	l.out.Send(l.stream.cut(l.batch))
}

// take notes what went wrong on the kernel's door and goes on: half of the truth with a loud error is better than none.
func (l *loop) take(reports int, err error) {
	l.tally.events += uint64(reports)
	if err != nil {
		l.notice("error", "reading from the kernel: "+err.Error(), "some events may be missing; please report this")
	}
}

// notice tells the user something, the same text at most once a minute. It reports whether it was time.
func (l *loop) notice(level, text, hint string) bool {
	now := time.Now()
	if now.Sub(l.told[text]) <= time.Minute {
		return false
	}
	if len(l.told) > 1000 {
		clear(l.told)
	}
	l.told[text] = now
	l.log.Debug(text, "hint", hint)
	l.stream.write(&event.Event{Notice: &event.Notice{Level: level, Text: text, Hint: hint}})
	return true
}

func (l *loop) notices() {
	for _, n := range l.stream.takeNotices() {
		l.notice(n.Level, n.Text, n.Hint)
	}
}

// Exec implements kernel.Handler.
func (l *loop) Exec(p event.Process) {
	if p.ArgvCut && len(p.Argv) == 0 {
		l.tally.argvLost++
	}
	fresh := append(l.executed.fresh, p)
	l.executed.fresh = fresh
	added := &fresh[len(fresh)-1] // p itself stays where it is
	l.describe(added)
	l.table.Exec(*added)
	l.elsewhere(added)
}

// Fork implements kernel.Handler.
func (l *loop) Fork(child, parent event.ProcessID, at int64) { l.table.Fork(child, parent, at) }

// Exit implements kernel.Handler.
func (l *loop) Exit(id event.ProcessID) { l.table.Exit(id) }

// WantPacket implements kernel.Handler.
func (l *loop) WantPacket() { l.packets.wanted = true }

// flow takes one flow of the kernel into the stream.
func (l *loop) flow(f *event.Flow) {
	l.tally.events++
	if l.self != nil && f.Process.PID == l.self.pid {
		l.self.add(f)
		l.tally.attribute(f)
		return
	}
	l.claim() // what it executes gets its identity
	p, ok := l.table.Resolve(f.Process)
	// /proc shows the image of now. Once an exec report was lost, that may be another one than moved these bytes.
	if (!ok || p.Path == "" && !p.Kernel) && l.tally.kernel.Losses[event.LostExec] == 0 {
		if q, err := l.proc.Process(f.Process.PID); err == nil && procfs.SameProcess(q.ID, f.Process) {
			q.ID = f.Process
			l.describe(&q)
			l.table.Found(q)
			p, ok = l.table.Resolve(f.Process)
		}
	}
	if !ok {
		l.tally.unknown(f)
		l.stream.stranger(f)
		return
	}
	if p.Path == "" && !p.Kernel {
		l.tally.unknown(f)
	} else {
		l.tally.attribute(f)
	}
	l.announce(p)
	f.Process = p.ID // the table may know the process by a coarser number
	l.stream.flow(f)
	if l.stream.large() {
		l.closeBatch(false)
	}
}

// announce writes a process before the first line that names it, its ancestors before it.
func (l *loop) announce(p event.Process) {
	if l.stream.knows(p.ID) {
		return
	}
	p, up := l.complete(p)
	for i := len(up) - 1; i >= 0; i-- {
		l.introduce(up[i])
	}
	l.introduce(p)
}

func (l *loop) introduce(p event.Process) {
	if !l.stream.process(l.finish(p)) || p.Source == event.SourceUnknown {
		return
	}
	l.want(p)
	l.wantScript(p)
}

func (l *loop) executable(x event.Executable) {
	if x.SHA256 == "" && l.stream.digested(x.File) {
		return // another process with the same file had more luck
	}
	// What its user alone can read is for the recorder to have hashed, and to tell of when it was not.
	if x.SHA256 == "" && x.Reason != digest.ReasonKernel && x.Reason != digest.ReasonFUSE {
		l.tally.undigested++
		l.notice("warning", fmt.Sprintf("%s was not hashed: %s", orUnknown(x.Path), x.Reason), "")
	}
	l.stream.executable(x)
}

func orUnknown(path string) string {
	if path == "" {
		return "an unknown executable"
	}
	return path
}

// runs reports whether the process still runs this very image.
func (l *loop) runs(id event.ProcessID) bool {
	for live := range l.table.Live() {
		if live == id {
			return true
		}
	}
	return false
}
