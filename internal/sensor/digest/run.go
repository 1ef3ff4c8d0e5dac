package digest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	// chunk is read at once: large enough for sha256 to run at full speed, small enough for the caches of the processor.
	chunk = 256 << 10
	// tries is how often a file whose identity nobody named is read again when it changed meanwhile.
	tries = 3
	// maxStuck is how many workers may hang in file systems before there are no more replacements.
	maxStuck = 16
	// fresh is how old a change time must be for a digest to be kept: two changes within one tick of the kernel's
	// coarse clock (up to 10 ms; before Linux 6.13) share it.
	fresh = 50 * time.Millisecond
	// short is a file that is read before anything is gained by giving way: most programs, in less time than their start takes.
	short = 1 << 20
	// niceness and priority are the lowest that still make progress on a busy machine.
	niceness = 19
	priority = 2<<13 | 7 // IOPRIO_CLASS_BE, level 7: ioprio_set(2)
)

// worker reads one file after the other.
type worker struct {
	mu    sync.Mutex // guards all below
	job   *job       // nil: waits for one
	since int64      // value of progress at the last look
	quiet time.Time  // since then it has not moved
	given bool       // given up: it ends when its file system answers

	hurried  bool         // began because jobs waited: it keeps its priority, and ends when none waits
	low      bool         // its thread gave its priority away; the thread's own
	progress atomic.Int64 // bytes and jobs
	thread   atomic.Int64 // number of its thread
	ended    atomic.Bool
}

func (d *Digester) count(change func(*Stats)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.stats)
}

// set makes j the worker's job; nil after it. False: the worker was given up, and the job was answered.
func (w *worker) set(j *job) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress.Add(1)
	w.job = j
	return !w.given
}

// work reads in a thread of its own, and in another one when that has given its priority away: to take it back is a right of its own.
func (d *Digester) work(ctx context.Context, w *worker) {
	defer w.ended.Store(true)
	buf := make([]byte, chunk)
	again := make(chan bool, 1)
	for more := true; more; more = <-again {
		go func() { again <- d.threadOf(ctx, w, buf) }()
	}
}

// lower gives the priorities of the worker's thread away. Whoever does so for a short file gains nothing, and keeps all others waiting: a
// thread that does not run may just then hold what Go's runtime has for all of them, whose sweeper turns in circles meanwhile.
func (w *worker) lower() {
	if w.low || w.hurried {
		return
	}
	w.low = true
	// Without them the digests are right too, so errors do not matter.
	tid := unix.Gettid()
	_ = unix.Setpriority(unix.PRIO_PROCESS, tid, niceness)
	_, _, _ = unix.RawSyscall(unix.SYS_IOPRIO_SET, 1 /* IOPRIO_WHO_PROCESS */, uintptr(tid), priority)
}

// threadOf reads until there is no more, or until its priority is low. It reports whether another is to go on.
func (d *Digester) threadOf(ctx context.Context, w *worker, buf []byte) bool {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	w.low = false
	w.thread.Store(int64(unix.Gettid()))
	for !w.low {
		j := d.next(ctx, !w.hurried)
		if j == nil {
			return false
		}
		w.set(j)
		exe, unconfirmed, tried, why := d.hash(ctx, w, j, buf)
		if !w.set(nil) {
			d.count(func(s *Stats) { s.Stuck-- })
			return false
		}
		if ctx.Err() != nil {
			return false
		}
		d.finish(ctx, j, exe, unconfirmed, tried, why)
	}
	return true
}

// next is a job; nil when ctx is done, and, without waiting for one, when there is none.
func (d *Digester) next(ctx context.Context, wait bool) *job {
	for {
		d.mu.Lock()
		j := d.take()
		d.mu.Unlock()
		if j != nil || !wait {
			return j
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		}
	}
}

// hash tries the job's processes in turn, and tells how many. The Executable has no Path yet.
func (d *Digester) hash(ctx context.Context, w *worker, j *job, buf []byte) (event.Executable, string, int, *problem) {
	why := because(ReasonGone)
	for i := 0; ; i++ {
		d.mu.Lock()
		if i >= len(j.askers) {
			d.mu.Unlock()
			return event.Executable{}, "", i, why
		}
		a := j.askers[i]
		j.begun = i + 1
		d.mu.Unlock()
		exe, unconfirmed, failed := d.one(ctx, w, j, &a, buf)
		// A touched file would be the same through another process, but the digest belongs to the process that
		// it was opened through: only the first one is answered for, or the one that brought the descriptor.
		if failed == nil || unconfirmed != "" && (i == 0 || j.held) {
			d.mu.Lock()
			j.reader = i
			d.mu.Unlock()
			return exe, unconfirmed, i + 1, failed
		}
		if i == 0 || why.reason == ReasonGone {
			why = failed
		}
	}
}

// one hashes what a executes.
func (d *Digester) one(ctx context.Context, w *worker, j *job, a *asker, buf []byte) (event.Executable, string, *problem) {
	p := &a.Process
	for range tries {
		o, why := d.open(a)
		if why != nil {
			return event.Executable{File: p.File}, "", why
		}
		d.mu.Lock()
		j.source, j.held = Inode{o.stat.Dev, o.stat.Ino}, o.held
		d.mu.Unlock()
		sum, why := d.read(ctx, w, o, buf)
		if o.held && d.o.Settle != nil {
			d.o.Settle()
		}
		d.mu.Lock() // a worker that was replaced comes back while its job is finished without it
		j.ended = time.Now()
		d.mu.Unlock()
		if why == nil {
			exe := event.Executable{File: p.File, SHA256: sum}
			if p.File.IsZero() {
				exe.File = identity(&o.stat)
			}
			if !o.exact {
				return event.Executable{File: p.File}, sum, because(o.doubt)
			}
			return exe, "", nil
		}
		// A change of the change time only (an unlink while it was read) shows as moved when it is opened again.
		if why.reason != ReasonChanged {
			return event.Executable{File: p.File}, "", why
		}
	}
	return event.Executable{File: p.File}, "", because(ReasonChanged)
}

// read hashes and closes o, and proves that it did not change meanwhile.
func (d *Digester) read(ctx context.Context, w *worker, o *opened, buf []byte) (string, *problem) {
	if !o.held {
		defer unix.Close(o.fd)
	}
	var before, after unix.Stat_t
	if err := unix.Fstat(o.fd, &before); err != nil {
		return "", errno(ReasonRead, err)
	}
	if !o.unchanged(&o.stat, &before) {
		return "", because(ReasonChanged)
	}
	if before.Size > short {
		w.lower()
		_ = unix.Fadvise(o.fd, 0, 0, unix.FADV_SEQUENTIAL) // only a wish
	}
	sum := sha256.New()
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return "", &problem{ReasonRead, err}
		}
		n, err := unix.Pread(o.fd, buf, size) // another reader of the descriptor may have moved its position
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", errno(ReasonRead, err)
		}
		if n == 0 {
			break
		}
		sum.Write(buf[:n])
		size += int64(n)
		w.progress.Add(int64(n))
		if size > before.Size { // it grows: whoever does this must not keep us reading
			return "", because(ReasonChanged)
		}
	}
	if err := unix.Fstat(o.fd, &after); err != nil {
		return "", errno(ReasonRead, err)
	}
	if !o.unchanged(&before, &after) || size != before.Size {
		return "", because(ReasonChanged)
	}
	d.count(func(s *Stats) { s.Hashed++; s.Bytes += uint64(size) })
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// finish remembers and delivers what became of j, for which the first tried processes were asked.
func (d *Digester) finish(ctx context.Context, j *job, exe event.Executable, unconfirmed string, tried int, why *problem) {
	d.mu.Lock()
	askers := j.askers
	d.done = time.Now()
	delete(d.pending, j.key)
	exe.Path = askers[0].Path
	j.stale = j.stale || d.forgotten[j.source] > j.from
	if why == nil && j.stale {
		unconfirmed, why = exe.SHA256, because(ReasonTouched)
	}
	if why != nil {
		exe.File, exe.SHA256, exe.Reason = askers[0].File, "", why.Error()
		d.stats.Failed[why.reason]++
		for i, a := range askers {
			if i < tried && why.reason != ReasonFiles {
				d.keep(cacheKey{a.File, a.ID}, entry{executable: exe})
			}
		}
		if tried < len(askers) { // they came after the last try, and may have more luck
			again := &job{key: j.key, askers: askers[tried:], from: j.from, wanted: d.done}
			d.pending[j.key] = again
			d.queue = append(d.queue, again)
			d.poke()
		}
	} else if j.key.file.IsZero() {
		d.keep(cacheKey{process: askers[0].ID}, entry{executable: exe})
	} else if age := time.Since(time.Unix(0, exe.File.Ctime)); !j.stale && (age > fresh || age < -fresh || j.held) {
		// A held file's changes are told: it need not be old.
		d.keep(j.key, entry{exe, j.source})
		if !slices.Contains(d.sources[j.source], j.key) {
			d.sources[j.source] = append(d.sources[j.source], j.key)
		}
	}
	if len(d.pending) == 0 {
		clear(d.forgotten)
	}
	for i := range askers {
		if why == nil || i < tried {
			askers[i].close()
		}
	}
	reader := &askers[0]
	if j.held {
		reader = &askers[j.reader]
	}
	vouched := j.held && reader.file.Vouched
	ended, source := j.ended, j.source
	if d.over {
		d.mu.Unlock()
		return // told as unread
	}
	d.sending++
	d.mu.Unlock()
	defer d.count(func(*Stats) { d.sending-- })
	select {
	case d.results <- Result{
		Process: reader.ID, Executable: exe, Unconfirmed: unconfirmed, Vouched: vouched, Since: reader.file.Since, Ended: ended, Source: source,
	}:
	case <-ctx.Done():
	}
	if n := len(d.results); n >= min(resultsMax, d.o.Queue)/2 && d.o.Behind != nil {
		d.o.Behind()
	}
}

// keep puts e into the cache. d.mu is held.
func (d *Digester) keep(key cacheKey, e entry) {
	if _, ok := d.cache[key]; !ok {
		for len(d.order) >= d.o.Cache {
			if old, ok := d.cache[d.order[0]]; ok {
				d.stats.Evicted++
				d.drop(d.order[0], old.source)
			}
			d.order = d.order[1:]
		}
		d.order = append(d.order, key)
	}
	d.cache[key] = e
}

// drop takes key out of the cache. d.mu is held.
func (d *Digester) drop(key cacheKey, source Inode) {
	delete(d.cache, key)
	left := slices.DeleteFunc(d.sources[source], func(k cacheKey) bool { return k == key })
	if len(left) == 0 {
		delete(d.sources, source)
	} else {
		d.sources[source] = left
	}
}
