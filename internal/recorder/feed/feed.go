// Package feed is the live feed: a unix socket on which readers get the status and then the stream's lines as
// they come. It belongs to the recorder's wing. A reader can only listen; one that does not keep up is dropped and
// counted, and never holds the recorder up.
package feed

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Name is the socket's name in its directory.
const Name = "events.sock"

// Bounds of one reader, and of all. A reader that is behind by more than maxBehind bytes, or that takes none
// for patience, is dropped. At the end all have farewell to take what was written.
const (
	maxReaders = 16
	maxBehind  = 1 << 20
	patience   = 10 * time.Second
	farewell   = 500 * time.Millisecond
)

// Feed serves readers. Its methods are safe for concurrent use.
type Feed struct {
	greet func(*Feed) [][]byte
	l     *net.UnixListener

	mu      sync.Mutex
	readers map[*reader]struct{} // guarded by mu
	count   atomic.Int32         // len(readers)
	closed  bool                 // guarded by mu
	work    sync.WaitGroup

	dropped atomic.Uint64
	refused atomic.Uint64
}

type reader struct {
	c    net.Conn
	wake chan struct{} // capacity 1

	mu   sync.Mutex
	buf  []byte // guarded by mu
	done bool   // guarded by mu: no more is added; close when buf is out
}

// Listen makes the socket in dir (made if it is missing) and serves readers until Close. Every reader first gets the
// lines that greet returns, each ending in a newline; greet is called from other goroutines, with the
// Feed, also before Listen has returned it.
func Listen(dir string, greet func(*Feed) [][]byte) (*Feed, error) {
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("live feed: %w", err)
	}
	path := filepath.Join(dir, Name)
	// A socket of an earlier run. Only one recorder runs (the daemon's lock), so nobody listens on it.
	if i, err := os.Lstat(path); err == nil && i.Mode()&fs.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("live feed: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("live feed: %w", err)
	}
	// Connecting needs the right to write: the group may, others may not. The group is the directory's (setgid).
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("live feed: %w", err)
	}
	f := &Feed{greet: greet, l: l, readers: make(map[*reader]struct{})}
	f.work.Go(f.accept)
	return f, nil
}

// Readers is the number of readers now.
func (f *Feed) Readers() int { return int(f.count.Load()) }

// Dropped counts readers that were dropped because they did not keep up.
func (f *Feed) Dropped() uint64 { return f.dropped.Load() }

// Refused counts readers that found too many others.
func (f *Feed) Refused() uint64 { return f.refused.Load() }

func (f *Feed) accept() {
	for {
		c, err := f.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, most likely: it passes.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		r := &reader{c: c, wake: make(chan struct{}, 1)}
		for _, line := range f.greet(f) {
			r.buf = append(r.buf, line...)
		}
		f.mu.Lock()
		if f.closed || len(f.readers) >= maxReaders {
			f.mu.Unlock()
			f.refused.Add(1)
			c.Close()
			continue
		}
		f.readers[r] = struct{}{}
		f.count.Store(int32(len(f.readers)))
		f.mu.Unlock()
		f.work.Go(func() { f.serve(r) })
		f.work.Go(func() {
			// Nothing is expected from a reader; this returns when it goes.
			io.Copy(io.Discard, c)
			f.leave(r)
		})
		r.poke()
	}
}

func (r *reader) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (f *Feed) leave(r *reader) {
	f.mu.Lock()
	_, there := f.readers[r]
	delete(f.readers, r)
	f.count.Store(int32(len(f.readers)))
	f.mu.Unlock()
	if there {
		r.mu.Lock()
		r.done, r.buf = true, nil
		r.mu.Unlock()
		r.poke()
		r.c.Close()
	}
}

func (f *Feed) serve(r *reader) {
	defer f.leave(r)
	var out []byte
	for range r.wake {
		r.mu.Lock()
		out, r.buf = r.buf, out[:0]
		done := r.done
		wait := patience
		if done {
			wait = farewell
		}
		// Under mu: Close shortens it, and must not be overtaken.
		r.c.SetWriteDeadline(time.Now().Add(wait))
		r.mu.Unlock()
		if len(out) > 0 {
			if _, err := r.c.Write(out); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					f.dropped.Add(1)
				}
				return
			}
		}
		if done {
			return
		}
		if cap(out) > 64<<10 {
			out = nil
		}
	}
}

// Publish gives a line (with or without its newline) to every reader. It does not block.
func (f *Feed) Publish(line []byte) {
	if f.count.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.readers {
		r.mu.Lock()
		if r.done {
			r.mu.Unlock()
			continue
		}
		if len(r.buf)+len(line)+1 > maxBehind {
			r.done, r.buf = true, nil
			r.mu.Unlock()
			f.dropped.Add(1)
			delete(f.readers, r)
			f.count.Store(int32(len(f.readers)))
			r.c.Close() // ends its goroutines
			r.poke()
			continue
		}
		r.buf = append(r.buf, line...)
		if len(line) == 0 || line[len(line)-1] != '\n' {
			r.buf = append(r.buf, '\n')
		}
		r.mu.Unlock()
		r.poke()
	}
}

// Close ends the feed: readers get what is written already, for half a second at most, and the socket is removed.
func (f *Feed) Close() error {
	err := f.l.Close()
	f.mu.Lock()
	f.closed = true
	for r := range f.readers {
		r.mu.Lock()
		r.done = true
		r.c.SetWriteDeadline(time.Now().Add(farewell))
		r.mu.Unlock()
		r.poke()
	}
	f.mu.Unlock()
	f.work.Wait()
	return err
}
