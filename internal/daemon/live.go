package daemon

import (
	"bytes"
	"fmt"
	"io"
)

// liveQueue is how many pieces of live output may wait for a slow terminal.
const liveQueue = 256

// live writes to a terminal that may be stopped (Ctrl-S) without ever stopping the recorder: what does not fit into
// its queue is dropped in whole writes, and said.
type live struct {
	queue chan []byte
	lost  int // lines; only the recorder's goroutine uses it
}

// newLive starts the writer; it ends with the process.
func newLive(to io.Writer) *live {
	l := &live{queue: make(chan []byte, liveQueue)}
	go func() {
		for b := range l.queue {
			if _, err := to.Write(b); err != nil {
				return // the terminal is gone; the queue fills up and everything is dropped
			}
		}
	}()
	return l
}

// Write never blocks and never fails.
func (l *live) Write(p []byte) (int, error) {
	b := bytes.Clone(p)
	if l.lost > 0 {
		b = append(fmt.Appendf(nil, "… %d lines not shown: the terminal was too slow (the log has them)\n", l.lost), b...)
	}
	select {
	case l.queue <- b:
		l.lost = 0
	default:
		l.lost += bytes.Count(p, []byte("\n"))
	}
	return len(p), nil
}
