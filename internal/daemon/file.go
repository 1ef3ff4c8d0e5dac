package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder"
	"github.com/picosnitch/picosnitch/internal/sensor"
)

// Record writes the stream of events to a new file until ctx is done. It needs root, no folder and no lock: it can run
// beside a running picosnitch.
func Record(ctx context.Context, file string, o Options) error {
	// A new file only: root writes where a user says.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %s exists: name a new file", ErrConfig, file)
	}
	if err != nil {
		return err
	}
	if uid, gid, ok := sudoUser(o.Getenv); ok {
		if err := f.Chown(uid, gid); err != nil {
			f.Close()
			return err
		}
	}
	c := config.Default()
	tape := &tape{f: f}
	tape.ready = sync.NewCond(&tape.mu)
	connected := false
	err = sensor.Run(ctx, sensor.Options{
		Program:   o.Program,
		Bandwidth: c.Bandwidth,
		RingPages: c.RingPages,
		HookSet:   o.HookSet,
		Logger:    o.Logger.With("component", "sensor"),
		OnReady: func(h event.Hello) {
			if o.Ready != nil {
				o.Ready(Started{Hello: h})
			}
		},
		Connect: func(context.Context) (io.ReadWriteCloser, error) {
			if connected {
				return nil, fmt.Errorf("the recording to %s ended: %w", file, tape.err)
			}
			connected = true
			return tape, nil
		},
	})
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, tape.Close(), tape.err)
}

func sudoUser(getenv func(string) string) (uid, gid int, ok bool) {
	uid, err1 := strconv.Atoi(getenv("SUDO_UID"))
	gid, err2 := strconv.Atoi(getenv("SUDO_GID"))
	return uid, gid, err1 == nil && err2 == nil
}

// tape is a recorder that only writes down the lines, and acks every batch that it has.
type tape struct {
	f    *os.File
	line []byte // the line that is being written
	err  error  // the first failure

	mu     sync.Mutex
	ready  *sync.Cond // acks or closed changed
	acks   []byte     // guarded by mu: what Read has still to give
	closed bool       // guarded by mu
}

// Write writes to the file and looks for ledgers.
func (t *tape) Write(p []byte) (int, error) {
	n, err := t.f.Write(p)
	if err != nil {
		t.err = err
		return n, err
	}
	for rest := p; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte("\n"))
		t.line = append(t.line, part...)
		rest = after
		if !whole {
			break
		}
		if bytes.Contains(t.line, []byte(`"ledger"`)) {
			var ev event.Event
			if event.NewDecoder(bytes.NewReader(append(t.line, '\n'))).Decode(&ev) == nil && ev.Ledger != nil {
				t.mu.Lock()
				t.acks = fmt.Appendf(t.acks, "{\"ack\":%d}\n", ev.Ledger.Batch)
				t.mu.Unlock()
				t.ready.Broadcast()
			}
		}
		t.line = t.line[:0]
	}
	return n, nil
}

// Read gives the acks.
func (t *tape) Read(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.acks) == 0 {
		if t.closed {
			return 0, io.EOF
		}
		t.ready.Wait()
	}
	n := copy(p, t.acks)
	t.acks = t.acks[n:]
	return n, nil
}

// Close ends the recording.
func (t *tape) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.ready.Broadcast()
	return errors.Join(t.f.Sync(), t.f.Close())
}

// Replay feeds a recorded stream into a recorder in this process, which writes into dir. It needs no rights.
func Replay(ctx context.Context, file, dir string, o Options) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	c, err := readConfigFile(dir + "/" + configName)
	if err != nil {
		return err
	}
	return recorder.Run(ctx, in, recorder.Options{Dir: dir, Settings: settings(c, uint32(os.Getuid())), Linger: 30 * time.Second, Live: o.Live, Logger: o.Logger})
}
