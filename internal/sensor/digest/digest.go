// Package digest gives the sha256 of the executables that processes run. It belongs to the root wing and is the
// only place there that opens files which strangers chose: each is opened as a mere reference first, is read only
// when it is a regular file and is the very file that the kernel named (device, inode, size, change
// time), and is looked at again after reading. What cannot be proven gets a reason in words instead of a digest. Results are kept by
// file identity; the caller is never blocked; the reading is bounded, of low priority, and outlives a file system that
// does not answer.
package digest

import (
	"context"
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Defaults of Options.
const (
	DefaultProc    = "/proc"
	DefaultWorkers = 1
	DefaultQueue   = 1024
	DefaultCache   = 8192
	DefaultMaxSize = 4 << 30
	DefaultStall   = time.Minute
	DefaultLate    = 2 * time.Second
)

// Reasons for which there is no digest; they are shown to the user. ReasonErrno and ReasonRead are followed by the
// system's words.
const (
	ReasonBusy     = "too many executables at once"
	ReasonKernel   = "kernel thread"
	ReasonGone     = "gone before it could be opened"
	ReasonReplaced = "replaced before it could be opened"
	ReasonChanged  = "changed while it was read"
	ReasonTouched  = "renamed, unlinked or changed between its start and the reading"
	ReasonDenied   = "unreadable: permission denied"
	ReasonFUSE     = event.ReasonFUSE
	ReasonSize     = "too large to hash"
	ReasonNoFile   = "not a regular file"
	ReasonFiles    = "too many open files: raise \"Set RLIMIT_NOFILE\""
	ReasonStalled  = "its file system does not answer"
	ReasonUnknown  = "neither its process nor its path is known"
	ReasonErrno    = "could not be opened"
	ReasonRead     = "could not be read"
	ReasonMemory   = "in memory only (memfd), and ended before it could be opened"
	ReasonScript   = "not kept open since it was found, or changed since"
	ReasonYoung    = "ended, and too young to prove that it was not replaced"
	ReasonUnread   = "picosnitch ended before it was read"
)

// Options of New; zero values mean the defaults.
type Options struct {
	Proc    string        // where proc is mounted
	Workers int           // files read at once
	Queue   int           // jobs that wait at most; more are refused with ReasonBusy
	Cache   int           // results kept; the oldest goes first
	MaxSize int64         // bytes of a file; larger ones are refused with ReasonSize
	Settle  func()        // called when a Descriptor was read: after it, whoever watches for writes knows all that came before
	Behind  func()        // called when many Results wait
	Close   func(int)     // closes a Descriptor that Waits, and does not wait itself; nil: close(2)
	Stall   time.Duration // without a byte read for so long, a file system is given up and its worker replaced
	Late    time.Duration // a job that waits for so long has a worker come that does not give its priority away
}

// Result is what became of a job.
type Result struct {
	Process    event.ProcessID // that was asked for first; of other processes with the same File the same is true
	Executable event.Executable
	// Unconfirmed is the digest when Executable.Reason is ReasonTouched or ReasonYoung: the file was opened through the running process
	// and is the right inode with the right size, but its change time moved, as unlink and rename make
	// it. A program that runs cannot be written to, so this is the right digest if and only if the process has not
	// executed anything else before the result came. Only the owner of the process table can know that.
	Unconfirmed string
	// Vouched is true when the file was read through a Descriptor that was: Unconfirmed is right then also after the process
	// ended, and Executable's digest is, if nothing was written to Source between Since and Ended.
	Vouched bool
	Since   time.Time // the Descriptor's
	Ended   time.Time // when the reading was over
	Source  Inode     // what was read
}

// Descriptor is an open executable.
type Descriptor struct {
	FD int // -1: none
	// Vouched says that its content was that of the exec at Since, although its change time may have moved.
	Vouched bool
	Since   time.Time
	// Waits says that its file system may be asked when it is closed, and may not answer.
	Waits bool
	// Own says that the file's identity is what stat(2) told of this descriptor: while its change time is the same, it is the same.
	Own bool
}

// promising tells how likely a is to prove what its process executed.
func (a *asker) promising() int {
	switch {
	case a.fd >= 0 && (a.file.Vouched || a.file.Own):
		return 2
	case !isYoung(&a.Process):
		return 1
	}
	return 0
}

// add takes in one more asker of the job's file. When there are enough, only one that is more promising than the last: while a job waits, a file
// may become old enough for its content to be proven. Digester.mu is held.
func (j *job) add(a *asker) {
	last := len(j.askers) - 1
	switch {
	case len(j.askers)-j.begun < maxAskers:
		j.askers = append(j.askers, *a)
	case a.promising() > j.askers[last].promising():
		j.askers[last].close()
		j.askers[last] = *a
	default:
		a.close()
	}
}

// None is no Descriptor.
func None() Descriptor { return Descriptor{FD: -1} }

// Inode is (st_dev, st_ino).
type Inode struct {
	Device uint64
	Number uint64
}

// Stats are totals since New, but for Stuck, Waiting and Cached, which are now.
type Stats struct {
	Hashed  uint64 // files read to the end
	Bytes   uint64 // of them
	Hits    uint64 // Wants answered from the cache
	Evicted uint64 // results that went from the full cache
	Stuck   int    // workers that wait for a file system that does not answer
	Waiting int
	Halted  time.Duration // while jobs waited and none was done for long
	Cached  int
	Failed  map[string]uint64 // by reason: a Reason… constant (without the system's words)
}

// known remembers failures per process: another process with the same file may have more luck.
type cacheKey struct {
	file    event.FileID
	process event.ProcessID // zero for digests of a known file
}

// entry of the cache.
type entry struct {
	executable event.Executable
	source     Inode // what was read; zero for failures
}

type job struct {
	key    cacheKey
	askers []asker // that have this file; the first asked first
	source Inode   // what was read
	held   bool    // through a descriptor of the asker
	reader int     // that asker's place
	begun  int     // how many askers were tried, or are
	from   uint64  // value of Digester.forgets when it was wanted
	stale  bool    // what was read may have been written to since it was wanted
	wanted time.Time
	ended  time.Time
}

// asker is who wants a digest.
type asker struct {
	event.Process
	fd   int // of the file it executes, or -1; the job's
	file Descriptor
	shut func(int) // Options.Close
}

// close may be called with Digester.mu held.
func (a *asker) close() {
	switch {
	case a.fd < 0:
	case a.file.Waits && a.shut != nil:
		a.shut(a.fd)
	default:
		unix.Close(a.fd)
	}
	a.fd = -1
}

// resultsMax is how many results wait: those of a few milliseconds, so that the reader need not wake up for each.
const resultsMax = 1024

// forgottenMax bounds the written files that are remembered while jobs are pending; beyond it every pending job counts as written to.
const forgottenMax = 4096

// maxAskers is how many processes a job remembers that it has not tried: if one is gone, another may still show the file.
const maxAskers = 4

// Digester hashes executables. Make it with New, and call Run.
type Digester struct {
	o       Options
	results chan Result
	wake    chan struct{} // capacity 1: there may be a job

	mu      sync.Mutex // guards all below
	queue   []*job
	pending map[cacheKey]*job // queued or being read
	cache   map[cacheKey]entry
	order   []cacheKey           // of cache, oldest first
	sources map[Inode][]cacheKey // of cache, by what was read
	stats   Stats
	// A job knows only when it opens the file what it reads; a write while it waits must count all the same.
	forgets   uint64           // calls of Forget
	forgotten map[Inode]uint64 // the last of them for each file, since there are pending jobs

	hangs map[uint64]bool // devices of file systems whose jobs wait until they answer
	done  time.Time       // when the last job was
	hurry bool            // no job is to wait for want of priority
	over  bool            // there are no more Results but those that are being sent
	// sending is how many Results are on their way to the channel.
	sending int
}

// New returns a Digester that does nothing before Run, but queues.
func New(o Options) *Digester {
	if o.Proc == "" {
		o.Proc = DefaultProc
	}
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	if o.Queue <= 0 {
		o.Queue = DefaultQueue
	}
	if o.Cache <= 0 {
		o.Cache = DefaultCache
	}
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Stall <= 0 {
		o.Stall = DefaultStall
	}
	if o.Late <= 0 {
		o.Late = DefaultLate
	}
	return &Digester{
		o:       o,
		results: make(chan Result, resultsMax),
		wake:    make(chan struct{}, 1),
		pending: make(map[cacheKey]*job),
		cache:   make(map[cacheKey]entry),
		sources: make(map[Inode][]cacheKey),
		stats:   Stats{Failed: make(map[string]uint64)},

		forgotten: make(map[Inode]uint64),
	}
}

// Results delivers what became of the jobs. Workers wait while it is full (1024), so it must be read; Want does not.
func (d *Digester) Results() <-chan Result { return d.results }

// Want asks for the digest of the file that p executes. It never blocks. When the answer is known (a digest of
// the same file, a failure for the same process and file, no digest possible, or the queue is full) it is returned with
// true; the last is not remembered, so p may be wanted again. Else a Result follows.
func (d *Digester) Want(p event.Process) (event.Executable, bool) { return d.WantFile(p, None()) }

// WantFile is Want with a descriptor of the file. The descriptor is the Digester's from then on.
func (d *Digester) WantFile(p event.Process, file Descriptor) (event.Executable, bool) {
	a := asker{p, file.FD, file, d.o.Close}
	x, known := d.want(&a)
	if known {
		a.close()
	}
	return x, known
}

func (d *Digester) want(a *asker) (event.Executable, bool) {
	p := &a.Process
	if p.Kernel {
		return event.Executable{File: p.File, Path: p.Path, Reason: ReasonKernel}, true
	}
	key := keyOf(*p)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range []cacheKey{key, {p.File, p.ID}} {
		if e, ok := d.cache[k]; ok {
			d.stats.Hits++
			e.executable.Path = p.Path
			return e.executable, true
		}
	}
	if j := d.pending[key]; j != nil {
		j.add(a)
		return event.Executable{}, false
	}
	if len(d.queue) >= d.o.Queue {
		d.stats.Failed[ReasonBusy]++
		return event.Executable{File: p.File, Path: p.Path, Reason: ReasonBusy}, true
	}
	j := &job{key: key, askers: []asker{*a}, from: d.forgets, wanted: time.Now()}
	d.pending[key] = j
	d.queue = append(d.queue, j)
	d.poke()
	return event.Executable{}, false
}

// Known reports whether the digest of a file is in the cache, by what stat told when it was read.
func (d *Digester) Known(source Inode, ctime, size int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range d.sources[source] {
		if _, ok := d.cache[key]; ok && key.file.Ctime == ctime && key.file.Size == size {
			return true
		}
	}
	return false
}

// Room is how many more jobs the queue takes.
func (d *Digester) Room() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.o.Queue - len(d.queue)
}

// Forget drops what is known of a file: it was written to. A digest of it that was wanted before, whether its job waits or is being read,
// is not kept, and comes as Unconfirmed: its Result says since when nothing may have been written.
func (d *Digester) Forget(source Inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgets++
	if len(d.pending) > 0 {
		if len(d.forgotten) >= forgottenMax {
			d.doubt()
		}
		d.forgotten[source] = d.forgets
	}
	for _, key := range d.sources[source] {
		delete(d.cache, key)
	}
	delete(d.sources, source)
}

// ForgetAll drops everything that is known: nobody can say which files were written to.
func (d *Digester) ForgetAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubt()
	clear(d.cache)
	clear(d.sources)
	d.order = nil
}

// doubt makes every pending job one whose file may have been written to. d.mu is held.
func (d *Digester) doubt() {
	for _, j := range d.pending {
		j.stale = true
	}
	clear(d.forgotten)
}

// Stats returns the counts.
func (d *Digester) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.Waiting, s.Cached = len(d.queue), len(d.cache)
	s.Failed = maps.Clone(s.Failed)
	return s
}

// Pending is how many jobs will still have a Result.
func (d *Digester) Pending() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.pending)
}

// Hurry is for the end, which waits for what is pending.
func (d *Digester) Hurry() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hurry = true
}

// Unread is the end: it returns the Results that are on their way, and the executables of the jobs that will have none now, with ReasonUnread.
func (d *Digester) Unread() (rest []Result, unread []event.Executable) {
	d.mu.Lock()
	d.over = true
	for _, j := range d.pending {
		p := &j.askers[0].Process
		unread = append(unread, event.Executable{File: p.File, Path: p.Path, Reason: ReasonUnread})
	}
	d.mu.Unlock()
	for {
		select {
		case r := <-d.results:
			rest = append(rest, r)
			continue
		default:
		}
		d.mu.Lock()
		more := d.sending > 0 || len(d.results) > 0
		d.mu.Unlock()
		if !more {
			return rest, unread
		}
		time.Sleep(time.Millisecond)
	}
}

// Run reads files until ctx is done, and returns nil then. Workers that hang in a file system are left behind.
func (d *Digester) Run(ctx context.Context) error { return d.run(ctx) }

func keyOf(p event.Process) cacheKey {
	if p.File.IsZero() {
		return cacheKey{process: p.ID}
	}
	return cacheKey{file: p.File}
}

// poke wakes one worker.
func (d *Digester) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}
