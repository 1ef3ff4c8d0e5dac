package remote

import (
	"sync"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// maxLate bounds the hashes that are kept for rows that wait in the spool.
const maxLate = 1 << 12

// late are the hashes that became known after their rows were spooled. It is safe for concurrent use.
type late struct {
	mu  sync.Mutex
	now map[lateKey]flow.Digest // guarded by mu
	old map[lateKey]flow.Digest // the generation before it; guarded by mu
}

// lateKey is as in package flow: a file, or a path where the file is not known.
type lateKey struct {
	file event.FileID
	path string
}

func newLateKey(file event.FileID, path string) lateKey {
	if !file.IsZero() {
		path = ""
	}
	return lateKey{file, path}
}

func (l *late) learn(news []flow.Digested) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range news {
		if len(l.now) >= maxLate {
			l.old, l.now = l.now, nil
		}
		if l.now == nil {
			l.now = make(map[lateKey]flow.Digest)
		}
		l.now[newLateKey(news[i].File, news[i].Path)] = flow.Digest{SHA256: news[i].SHA256, Reason: news[i].Reason}
	}
}

func (l *late) find(file event.FileID, path string) (flow.Digest, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := newLateKey(file, path)
	d, ok := l.now[k]
	if !ok {
		d, ok = l.old[k]
	}
	return d, ok
}
