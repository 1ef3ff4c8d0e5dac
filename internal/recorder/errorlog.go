package recorder

import (
	"fmt"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/logfile"
)

// maxErrorLog is the size at which error.log becomes error.log.1, in bytes.
const maxErrorLog = 8 << 20

// errorLog is error.log: a line of local time and message for all that the user must know.
type errorLog struct {
	logfile.File
	zone *time.Location
	lost int // told
}

// write appends a line; at is ns since 1970. One that cannot be written comes later.
func (l *errorLog) write(at int64, text, hint string) error {
	if hint != "" {
		text += ": " + hint
	}
	if err := l.Write(l.line(at, text)); err != nil {
		return err
	}
	return l.tellLost(at)
}

// retry writes what could not be written.
func (l *errorLog) retry(at int64) error {
	if l.Waiting() == 0 {
		return nil
	}
	if err := l.Retry(); err != nil {
		return err
	}
	return l.tellLost(at)
}

// tellLost tells how many lines found no room while it could not be written.
func (l *errorLog) tellLost(at int64) error {
	n := l.Lost() - l.lost
	if n == 0 {
		return nil
	}
	l.lost += n
	return l.Write(l.line(at, fmt.Sprintf("lines of this log that were lost because it could not be written for too long: %d: free disk space", n)))
}

func (l *errorLog) line(at int64, text string) string {
	return time.Unix(0, at).In(l.zone).Format(time.DateTime) + " " + strings.ReplaceAll(text, "\n", `\n`)
}

// restrainer tells an increasing counter at most once in a while, and then all of it. Its keys are few: a word of the
// recorder's, or such a word, a colon, and one of a bounded set of words.
type restrainer struct {
	every int64 // ns
	told  map[string]int64
	held  map[string]uint64
	since map[string]int64 // begin of the while that said counts
	said  map[string]int
}

func newRestrainer(every time.Duration) *restrainer {
	return &restrainer{every: int64(every), told: make(map[string]int64), held: make(map[string]uint64), since: make(map[string]int64), said: make(map[string]int)}
}

// allow reports whether one of several things may be told at an instant (ns): the first n of a while. The others are
// counted under the same key.
func (r *restrainer) allow(key string, at int64, n int) bool {
	if began, ok := r.since[key]; !ok || at < began || at-began >= r.every {
		r.since[key], r.said[key] = at, 0
	}
	if r.said[key]++; r.said[key] <= n {
		return true
	}
	r.add(key, 1)
	return false
}

// add adds to a counter.
func (r *restrainer) add(key string, n uint64) {
	if n > 0 {
		r.held[key] += n
	}
}

// due returns what may be told of a counter at an instant (ns); 0: nothing, or not yet. A clock that went back does not
// silence it.
func (r *restrainer) due(key string, at int64, force bool) uint64 {
	n := r.held[key]
	if n == 0 {
		return 0
	}
	last, ok := r.told[key]
	if ok && !force && at >= last && at-last < r.every {
		return 0
	}
	delete(r.held, key)
	r.told[key] = at
	return n
}
