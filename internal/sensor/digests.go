package sensor

import (
	"fmt"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
)

// awaitDigests takes in what the workers have read. It waits a moment, so that most rows leave with their digest: the
// kernel goes on counting meanwhile. Larger executables follow later.
func (l *loop) awaitDigests(limit time.Duration) {
	end := time.Now().Add(limit)
	for waited := false; ; {
		busy := l.digester.Pending() > 0 || len(l.executed.backlog) > 0
		l.takeDigests(end)
		if !busy && !waited || !time.Now().Before(end) {
			return
		}
		waited = busy // once more after the last job: its result is on the way
		// To wake up for each result costs more than to read a small file.
		time.Sleep(digestPause)
		l.take(l.hooks.Processes(l)) // their ring must not fill meanwhile
		l.claim()
	}
}

// resultsMax bounds the results between two looks at what was written to.
const resultsMax = 256

// takeDigests takes in the results that are there.
func (l *loop) takeDigests(end time.Time) {
	for time.Now().Before(end) {
		results := l.results[:0]
		for len(results) < resultsMax {
			select {
			case r := <-l.digester.Results():
				results = append(results, r)
				continue
			default:
			}
			break
		}
		l.results = results
		if len(results) == 0 {
			return
		}
		l.drainWatch() // once for all of them: whatever was written before the end of their reading is known then
		for i := range results {
			l.digest(&results[i])
		}
	}
}

// digest takes in a result. What was written before the end of its reading must have been taken in.
func (l *loop) digest(r *digest.Result) {
	x := r.Executable
	switch sure := l.vouches(r); {
	case sure && r.Unconfirmed != "":
		x.SHA256, x.Reason = r.Unconfirmed, ""
	case !sure && r.Vouched && x.SHA256 != "":
		x.SHA256, x.Reason = "", digest.ReasonTouched
	}
	l.executable(x)
}

// unread tells of the executables whose digests come too late: it is the end.
func (l *loop) unread() {
	rest, unread := l.digester.Unread()
	l.drainWatch()
	for i := range rest {
		l.digest(&rest[i])
	}
	for _, p := range l.executed.backlog {
		unread = append(unread, event.Executable{File: p.File, Path: p.Path, Reason: digest.ReasonUnread})
	}
	n := 0
	for _, x := range unread {
		if !l.stream.digested(x.File) {
			l.stream.executable(x)
			n++
		}
	}
	if n > 0 {
		l.tally.undigested += uint64(n)
		l.notice("warning", fmt.Sprintf("%d executables were not hashed: %s", n, digest.ReasonUnread), "they are hashed when they are used again while it runs")
	}
}

// halted is for how long executables waited while none was read, and tells when it has become more.
func (l *loop) halted() time.Duration {
	s := l.digester.Stats()
	if s.Halted > l.tally.halted {
		l.tally.halted = s.Halted
		l.notice("error", "executables wait to be hashed, and none is read",
			"look for a file system that does not answer, or for programs that take all processors; the hashes follow when they do not any more")
	}
	return s.Halted
}
