package event

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxLine bounds a line of the stream, in bytes.
const MaxLine = 1 << 20

// ErrNoEvent is returned for a line that sets none or several of an Event's pointers.
var ErrNoEvent = errors.New("line holds not exactly one event")

// Encoder writes events as newline-delimited JSON.
type Encoder struct {
	w   io.Writer
	buf []byte
}

// NewEncoder returns an Encoder; w should be buffered.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{w: w} }

// Encode writes one line.
func (e *Encoder) Encode(ev *Event) error {
	var err error
	e.buf, err = Append(e.buf[:0], ev)
	if err != nil {
		return err
	}
	_, err = e.w.Write(e.buf)
	return err
}

// Append appends ev as one line.
func Append(b []byte, ev *Event) ([]byte, error) {
	line, known := appendKnown(b, ev)
	if !known {
		j, err := json.Marshal(ev)
		if err != nil {
			return b, fmt.Errorf("encode event: %w", err)
		}
		line = append(b, j...)
	}
	if n := len(line) - len(b); n >= MaxLine {
		return b, fmt.Errorf("encode event: line of %d bytes, at most %d", n, MaxLine)
	}
	return append(line, '\n'), nil
}

// ErrVersion is returned for a stream that a newer picosnitch wrote. Nothing after it can be trusted to be
// understood, so it ends the reading.
var ErrVersion = errors.New("stream of a newer picosnitch")

// LineError is what was wrong with one line. The lines after it can still be read.
type LineError struct {
	Line int // from 1
	Err  error
}

// Error implements error.
func (e *LineError) Error() string { return fmt.Sprintf("stream line %d: %v", e.Line, e.Err) }

// Unwrap returns the cause.
func (e *LineError) Unwrap() error { return e.Err }

// ErrLong is the cause of a LineError for a line longer than MaxLine.
var ErrLong = fmt.Errorf("line is longer than %d bytes", MaxLine)

// Decoder reads events.
type Decoder struct {
	r    *bufio.Reader
	long []byte // a line that did not fit into r's buffer
	raw  []byte // the line last decoded
	line int
}

// NewDecoder returns a Decoder.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: bufio.NewReaderSize(r, 64<<10)}
}

// Bytes is the line that Decode read last, without its newline. It is valid until the next Decode.
func (d *Decoder) Bytes() []byte { return d.raw }

// Decode reads the next line into ev. It returns io.EOF at the end, a *LineError for a line that is not an event
// (the next call reads the line after it), ErrVersion for a stream that it must not read, or the error of
// the reader.
func (d *Decoder) Decode(ev *Event) error {
	*ev = Event{}
	if err := d.next(); err != nil {
		return err
	}
	if decodeFlow(d.raw, ev) {
		return nil
	}
	*ev = Event{}
	if err := json.Unmarshal(d.raw, ev); err != nil {
		*ev = Event{}
		return &LineError{d.line, err}
	}
	if ev.count() != 1 {
		*ev = Event{}
		return &LineError{d.line, ErrNoEvent}
	}
	if h := ev.Hello; h != nil && (h.Version < 1 || h.Version > Version) {
		v := h.Version
		*ev = Event{}
		return fmt.Errorf("stream line %d: %w: version %d, this one reads up to %d: use the picosnitch that wrote it", d.line, ErrVersion, v, Version)
	}
	return nil
}

// count is how many of the pointers are set.
func (ev *Event) count() int {
	n := 0
	for _, set := range [...]bool{ev.Hello != nil, ev.Process != nil, ev.Exit != nil, ev.Executable != nil, ev.Modified != nil, ev.Flow != nil, ev.Name != nil, ev.Ledger != nil, ev.Notice != nil} {
		if set {
			n++
		}
	}
	return n
}

// next reads one line into raw. A line that is too long is read to its end, so that the next one is found.
func (d *Decoder) next() error {
	d.raw = nil
	line, err := d.r.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		d.long = d.long[:0]
		size := 0
		for err == bufio.ErrBufferFull {
			if size += len(line); size < MaxLine {
				d.long = append(d.long, line...)
			}
			line, err = d.r.ReadSlice('\n')
		}
		if size += len(line); size > MaxLine {
			d.line++
			if err != nil && err != io.EOF {
				return fmt.Errorf("stream line %d: %w", d.line, err)
			}
			return &LineError{d.line, ErrLong}
		}
		d.long = append(d.long, line...)
		line = d.long
	}
	if err != nil && err != io.EOF {
		return fmt.Errorf("stream line %d: %w", d.line+1, err)
	}
	if len(line) == 0 {
		return io.EOF
	}
	d.line++
	if line[len(line)-1] == '\n' {
		line = line[:len(line)-1]
	}
	d.raw = line
	return nil
}
