package recorder

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// errorLog is error.log: a line of local time and message for all that the user must know.
type errorLog struct {
	path string
	zone *time.Location
	f    *os.File
}

// maxErrorLog is the size at which error.log becomes error.log.1, in bytes. There is one of those.
const maxErrorLog = 8 << 20

// write appends a line; at is ns since 1970. The file is opened again after it was moved away.
func (l *errorLog) write(at int64, text, hint string) error {
	if hint != "" {
		text += ": " + hint
	}
	if l.f != nil {
		ours, err := l.f.Stat()
		now, err2 := os.Stat(l.path)
		switch {
		case err != nil || err2 != nil || !os.SameFile(ours, now):
			l.close()
		case ours.Size() >= maxErrorLog:
			l.close()
			if err := os.Rename(l.path, l.path+".1"); err != nil {
				return err
			}
		}
	}
	if l.f == nil {
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return err
		}
		f.Chmod(0o640) // whatever the umask: the group reads
		l.f = f
	}
	_, err := fmt.Fprintf(l.f, "%s %s\n", time.Unix(0, at).In(l.zone).Format(time.DateTime), strings.ReplaceAll(text, "\n", `\n`))
	return err
}

func (l *errorLog) close() {
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
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
