package sensor

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/identity"
	"github.com/picosnitch/picosnitch/internal/sensor/outlet"
)

// batchMax is when a batch is closed early, in bytes.
const batchMax = 256 << 10

// stream collects the lines of the open batch, and remembers what a new recorder must be told first. The
// loop writes; the outlet asks for the preamble.
type stream struct {
	mu      sync.Mutex
	hello   event.Hello
	facts   map[event.ProcessID]*fact
	ended   []event.ProcessID // facts whose exit is not acknowledged yet
	digests map[event.FileID]event.Executable
	open    outlet.Batch
	buf     []byte
	pending []event.Notice // for the loop to write
	prune   int            // when digests that no process needs any more are forgotten: above so many
}

// fact is a process that the recorder knows.
type fact struct {
	process event.Process
	ended   uint64 // the batch that holds its exit; 0 while it runs
}

func newStream() *stream {
	return &stream{facts: map[event.ProcessID]*fact{}, digests: map[event.FileID]event.Executable{}, prune: digestsMax, buf: make([]byte, 0, batchMax+batchMax/4)}
}

func newStreamID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func (s *stream) setHello(h event.Hello) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hello = h
}

// write adds a line to the open batch.
func (s *stream) write(e *event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(e)
}

func (s *stream) add(e *event.Event) {
	e.At = time.Now().UnixNano()
	var err error
	if s.buf, err = event.Append(s.buf, e); err != nil {
		// Only a line over event.MaxLine gets here: tell instead of it that it is missing.
		s.buf, _ = event.Append(s.buf, &event.Event{At: e.At, Notice: &event.Notice{Level: "error", Text: err.Error()}})
	}
	s.open.Lines++
}

func (s *stream) flow(f *event.Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addFlow(f)
}

func (s *stream) addFlow(f *event.Flow) {
	s.add(&event.Event{Flow: f})
	s.open.Sent += f.Sent
	s.open.Received += f.Received
}

func (s *stream) large() bool { return len(s.buf) > batchMax }

// cut closes the open batch.
func (s *stream) cut(number uint64) outlet.Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.open
	b.Number, b.Data = number, bytes.Clone(s.buf)
	s.open = outlet.Batch{}
	s.buf = s.buf[:0]
	if cap(s.buf) > 4*batchMax {
		s.buf = nil
	}
	return b
}

func (s *stream) knows(id event.ProcessID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.facts[id]
	return f != nil && f.ended == 0
}

// process writes a process, once. It reports whether it was new.
func (s *stream) process(p event.Process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.facts[p.ID]; f != nil && f.ended == 0 {
		return false
	}
	f := &fact{process: p} // new, or the full table had forgotten it while it ran
	s.facts[p.ID] = f
	s.add(&event.Event{Process: &f.process})
	return true
}

// retell writes a process again of which more is known now, if the recorder knows it.
func (s *stream) retell(p event.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.facts[p.ID]; f != nil && f.ended == 0 {
		f.process = p
		s.add(&event.Event{Process: &p})
	}
}

// rename tells all processes of a place again, whose name became known.
func (s *stream) rename(from, to *event.Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.facts {
		if f.process.Place == from && f.ended == 0 {
			f.process.Place = to
			p := f.process
			s.add(&event.Event{Process: &p})
		}
	}
}

// stranger writes a process of which nothing is known, for one flow. It is not remembered: nothing would ever end it.
func (s *stream) stranger(f *event.Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(&event.Event{Process: &event.Process{ID: f.Process, UID: f.UID, Source: event.SourceUnknown}})
	s.addFlow(f)
	s.add(&event.Event{Exit: &event.Exit{ID: f.Process}})
}

// exit writes that a process is forgotten, if the recorder knows it.
func (s *stream) exit(id event.ProcessID, batch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.facts[id]
	if f == nil || f.ended != 0 {
		return
	}
	f.ended = batch
	s.ended = append(s.ended, id)
	s.add(&event.Event{Exit: &event.Exit{ID: id}})
}

func (s *stream) executable(x event.Executable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !x.File.IsZero() {
		s.digests[x.File] = x
		if len(s.digests) > s.prune {
			s.pruneDigests()
			s.prune = max(digestsMax, 2*len(s.digests)) // not for each one, when all are needed
		}
	}
	s.add(&event.Event{Executable: &x})
}

// digested reports whether a file's digest was told.
func (s *stream) digested(file event.FileID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !file.IsZero() && s.digests[file].SHA256 != ""
}

// fileAt finds the path and the identity of a file that was digested.
func (s *stream) fileAt(device, inode uint64) (string, event.FileID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for file, x := range s.digests {
		if file.Inode == inode && file.Device == device {
			return x.Path, file, true
		}
	}
	return "", event.FileID{}, false
}

// digestsMax is how many digests are kept without a look at whether a process needs them.
const digestsMax = 16384

func (s *stream) pruneDigests() {
	needed := make(map[event.FileID]event.Executable)
	for _, f := range s.facts {
		for _, file := range []event.FileID{f.process.File, f.process.ScriptFile} {
			if x, ok := s.digests[file]; ok {
				needed[file] = x
			}
		}
	}
	s.digests = needed
}

// forget drops the facts that no recorder will need: their exit is durable.
func (s *stream) forget(acked uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.ended) > 0 {
		id := s.ended[0]
		f := s.facts[id]
		if f != nil && f.ended > acked {
			return
		}
		if f != nil && f.ended != 0 {
			delete(s.facts, id)
		}
		s.ended = s.ended[1:]
	}
}

// preamble is what a new recorder must know: who we are, and all processes and digests that batches may rest on. A
// process may come before its parent here; the recorder has all before the first flow.
func (s *stream) preamble(next uint64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := time.Now().UnixNano()
	hello := s.hello
	hello.Batch = next
	b, _ := event.Append(nil, &event.Event{At: at, Hello: &hello})
	written := map[event.ProcessID]bool{}
	var introduce func(f *fact, depth int)
	introduce = func(f *fact, depth int) {
		if f == nil || written[f.process.ID] || depth > identity.MaxAncestors {
			return
		}
		introduce(s.facts[f.process.Parent], depth+1)
		written[f.process.ID] = true
		b, _ = event.Append(b, &event.Event{At: at, Process: &f.process})
		for _, file := range []event.FileID{f.process.File, f.process.ScriptFile} {
			if x, ok := s.digests[file]; ok {
				b, _ = event.Append(b, &event.Event{At: at, Executable: &x})
			}
		}
	}
	for _, f := range s.facts {
		introduce(f, 0)
	}
	return b
}

// recorderFailed is told by the outlet that a recorder ended.
func (s *stream) recorderFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && len(s.pending) < 100 {
		s.pending = append(s.pending, event.Notice{
			Level: "error", Text: "the recorder ended: " + err.Error(),
			Hint: "another one was started; what was not on disk is sent again",
		})
	}
}

func (s *stream) takeNotices() []event.Notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.pending
	s.pending = nil
	return n
}
