package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// Text is conn.log: one line of 16 fields per record. A window is appended at once; one that could not be written whole is
// taken back. How far it has the stream stands in a small file beside it, written after the lines: a line
// is there at least once, and if the recorder is killed in between, the lines of its last window twice.
type Text struct {
	f    *os.File
	path string
	zone *time.Location
	torn bool // a kill left half a line at the end

	mark     *os.File // holds position
	position flow.Position
}

// OpenText opens or creates the log; others than the owner and the group cannot read it. Times are written in zone.
func OpenText(path string, zone *time.Location) (*Text, error) {
	t := &Text{path: path, zone: zone}
	if err := t.open(); err != nil {
		return nil, err
	}
	if err := t.openMark(); err != nil {
		t.f.Close()
		return nil, err
	}
	return t, nil
}

func (t *Text) open() error {
	f, err := os.OpenFile(t.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	f.Chmod(0o640) // whatever the umask: the group reads. It is ours; if it is not, it stays as it is
	t.f, t.torn = f, false
	if i, err := f.Stat(); err == nil && i.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], i.Size()-1); err == nil {
			t.torn = last[0] != '\n'
		}
	}
	return nil
}

// maxMark bounds what is read of the position's file, in bytes.
const maxMark = 64 << 10

// openMark reads the position. What cannot be understood is none: lines may come twice, and none is missing.
func (t *Text) openMark() error {
	path := filepath.Join(filepath.Dir(t.path), "."+filepath.Base(t.path)+".position")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	// The first value only: what follows it was left by a longer one.
	if json.NewDecoder(io.LimitReader(f, maxMark)).Decode(&t.position) != nil {
		t.position = flow.Position{}
	}
	t.mark = f
	return nil
}

// Resume returns how far the log has a stream.
func (t *Text) Resume(stream string) flow.Position {
	if t.position.Stream != stream {
		return flow.Position{Stream: stream}
	}
	return t.position
}

// Name implements Sink.
func (t *Text) Name() string { return "conn.log" }

// Close implements Sink.
func (t *Text) Close() error { return errors.Join(t.f.Close(), t.mark.Close()) }

// Write implements Sink.
func (t *Text) Write(_ context.Context, w *flow.Window) error {
	if len(w.Records) == 0 {
		return nil
	}
	if err := t.follow(); err != nil {
		return err
	}
	size, err := t.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(t.f, 64<<10)
	at := time.Unix(w.End, 0).In(t.zone).Format(time.DateTime)
	var line []byte
	if t.torn {
		err = b.WriteByte('\n')
	}
	for i := range w.Records {
		line = appendText(line[:0], &w.Records[i], at)
		if _, err = b.Write(line); err != nil {
			break
		}
	}
	if err == nil {
		err = b.Flush()
	}
	if err == nil {
		err = t.setMark(w.Position)
	}
	if err != nil {
		if back := t.f.Truncate(size); back != nil {
			return fmt.Errorf("%w (and part of a window stays in the file: %v)", err, back)
		}
		return err
	}
	t.torn = false
	return nil
}

// setMark keeps the position. One write of less than a page is done whole or not at all, whenever a kill comes.
func (t *Text) setMark(p flow.Position) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if _, err := t.mark.WriteAt(append(b, '\n'), 0); err != nil {
		return err
	}
	t.position = p
	return nil
}

// follow opens the log again when the file was moved away (logrotate).
func (t *Text) follow() error {
	now, err := os.Stat(t.path)
	if err == nil {
		if ours, err := t.f.Stat(); err == nil && os.SameFile(now, ours) {
			return nil
		}
	}
	before := t.f
	if err := t.open(); err != nil {
		return err
	}
	before.Close()
	return nil
}

func appendText(b []byte, r *flow.Record, at string) []byte {
	p := r.Program
	b = appendProgram(b, p)
	b = appendField(b, at)
	b = appendField(b, r.Domain.Name)
	if a := r.Remote.Addr(); a.IsValid() {
		b = appendField(b, flow.Printable(a.String()))
	} else {
		b = append(b, ',')
	}
	b = strconv.AppendUint(b, uint64(r.Remote.Port()), 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, uint64(r.UID), 10)
	b = append(b, ',')
	b = appendProgram(b, p.Parent)
	b = strconv.AppendUint(b, r.Conns, 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, r.Sent, 10)
	b = append(b, ',')
	b = strconv.AppendUint(b, r.Received, 10)
	return append(b, '\n')
}

// appendProgram appends path, name, cmdline and hash, each with its comma.
func appendProgram(b []byte, p *flow.Program) []byte {
	if p == nil {
		return append(b, ",,,,"...)
	}
	b = appendField(b, p.Executable.Path)
	b = appendField(b, p.Name)
	b = appendField(b, p.Cmdline)
	return appendField(b, p.Executable.Digest.SHA256)
}

// appendField appends a value without what would break the line, as the mission says, and the comma after it.
func appendField(b []byte, s string) []byte {
	if strings.ContainsAny(s, ",\n\r\x00") {
		for i := 0; i < len(s); i++ {
			switch s[i] {
			case ',', '\n', '\r', 0:
			default:
				b = append(b, s[i])
			}
		}
	} else {
		b = append(b, s...)
	}
	return append(b, ',')
}
