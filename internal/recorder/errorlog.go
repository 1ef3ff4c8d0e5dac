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

// write appends a line; at is ns since 1970. The file is opened again after it was moved away.
func (l *errorLog) write(at int64, text, hint string) error {
	if hint != "" {
		text += ": " + hint
	}
	if l.f != nil {
		ours, err := l.f.Stat()
		now, err2 := os.Stat(l.path)
		if err != nil || err2 != nil || !os.SameFile(ours, now) {
			l.close()
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

// restrainer tells an increasing counter at most once in a while, and then all of it.
type restrainer struct {
	every int64 // ns
	told  map[string]int64
	held  map[string]uint64
}

func newRestrainer(every time.Duration) *restrainer {
	return &restrainer{every: int64(every), told: make(map[string]int64), held: make(map[string]uint64)}
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
