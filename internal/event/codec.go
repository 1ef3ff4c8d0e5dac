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
	j, err := json.Marshal(ev)
	if err != nil {
		return b, fmt.Errorf("encode event: %w", err)
	}
	if len(j) >= MaxLine {
		return b, fmt.Errorf("encode event: line of %d bytes, at most %d", len(j), MaxLine)
	}
	b = append(b, j...)
	return append(b, '\n'), nil
}

// Decoder reads events.
type Decoder struct {
	s    *bufio.Scanner
	line int
}

// NewDecoder returns a Decoder.
func NewDecoder(r io.Reader) *Decoder {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), MaxLine)
	return &Decoder{s: s}
}

// Decode reads the next line into ev. It returns io.EOF at the end; any other error names the line.
func (d *Decoder) Decode(ev *Event) error {
	*ev = Event{}
	if !d.s.Scan() {
		if err := d.s.Err(); err != nil {
			return fmt.Errorf("stream line %d: %w", d.line+1, err)
		}
		return io.EOF
	}
	d.line++
	if err := json.Unmarshal(d.s.Bytes(), ev); err != nil {
		return fmt.Errorf("stream line %d: %w", d.line, err)
	}
	n := 0
	for _, set := range []bool{ev.Hello != nil, ev.Process != nil, ev.Exit != nil, ev.Executable != nil, ev.Flow != nil, ev.Name != nil, ev.Ledger != nil, ev.Notice != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("stream line %d: %w", d.line, ErrNoEvent)
	}
	if h := ev.Hello; h != nil && (h.Version < 1 || h.Version > Version) {
		return fmt.Errorf("stream line %d: version %d of the stream; this picosnitch reads up to %d: use the picosnitch that wrote it", d.line, h.Version, Version)
	}
	return nil
}
