package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// flushLimit is how long a recorder may take to write its last window after the end of the stream.
const flushLimit = 10 * time.Second

// bulletin holds daemon's own notices until a stream can carry them to the recorder, which writes error.log.
type bulletin struct {
	mu    sync.Mutex
	queue []event.Notice // guarded by mu
	left  int            // refused because there were too many; guarded by mu
}

// maxBulletin bounds the queue; the oldest notices are the ones that explain the rest, so the newest are refused.
const maxBulletin = 256

func (b *bulletin) post(n ...event.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range n {
		if len(b.queue) == maxBulletin {
			b.left++
			continue
		}
		one.Text, one.Hint = event.Text([]byte(one.Text)), event.Text([]byte(one.Hint))
		b.queue = append(b.queue, one)
	}
}

func (b *bulletin) peek() []event.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]event.Notice(nil), b.queue...)
}

// flush writes the queue to w and empties it, or keeps what could not be written.
func (b *bulletin) flush(w io.Writer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) > 0 || b.left > 0 {
		if len(b.queue) == 0 {
			b.queue = append(b.queue, event.Notice{Level: "warning", Text: fmt.Sprintf("messages that were left out while no recorder took them: %d", b.left), Hint: "the ones beside this line say why none did"})
			b.left = 0
		}
		line, err := event.Append(nil, &event.Event{At: time.Now().UnixNano(), Notice: &b.queue[0]})
		if err == nil {
			_, err = w.Write(line)
		}
		if err != nil {
			return err
		}
		b.queue = b.queue[1:]
	}
	return nil
}

// link is the sensor's end of the stream to one recorder. It adds daemon's notices between the sensor's lines.
type link struct {
	conn  *net.UnixConn
	board *bulletin
	cmd   *exec.Cmd
	ended chan struct{} // closed when the recorder's process ended

	mu sync.Mutex // one writer at a time

	hup   sync.Mutex
	ready bool // it has spoken, so it listens to signals; guarded by hup
	asked bool // SIGHUP is due when it is ready; guarded by hup
}

// Read reads the recorder's acks.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p)
	if n > 0 {
		l.hup.Lock()
		defer l.hup.Unlock()
		l.ready = true
		if l.asked {
			l.asked = false
			_ = l.cmd.Process.Signal(unix.SIGHUP) // one that is gone needs none
		}
	}
	return n, err
}

// reopen sends SIGHUP to the recorder. It would end one that does not listen yet: that one gets it with its first ack.
func (l *link) reopen() error {
	l.hup.Lock()
	defer l.hup.Unlock()
	if !l.ready {
		l.asked = true
		return nil
	}
	return l.cmd.Process.Signal(unix.SIGHUP)
}

// Write writes lines of the stream, or a part of one.
func (l *link) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.conn.Write(p)
	// Only behind a whole line, and so only behind the Hello that opens the stream.
	if err == nil && n > 0 && p[n-1] == '\n' {
		err = l.board.flush(l.conn)
	}
	return n, err
}

// Close ends the stream and waits until the recorder has flushed its last window and ended.
func (l *link) Close() error {
	// Only our direction: a full close with unread acks would reach the recorder as a reset and not as the end.
	err := l.conn.CloseWrite()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.EPIPE) {
		err = nil
	}
	defer l.conn.Close()
	late := time.NewTimer(flushLimit)
	defer late.Stop()
	select {
	case <-l.ended:
	case <-late.C:
		l.cmd.Process.Kill()
		<-l.ended
		err = errors.Join(err, errors.New("the recorder did not end in time: its last window may be lost"))
	}
	return err
}
