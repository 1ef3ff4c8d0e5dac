package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// Text is conn.log: one line of 16 fields per record. A window is appended at once; one that could not be written whole is
// taken back. Unlike the database it does not remember where it stopped: if the recorder is killed, the
// window that the sensor sends again may stand there twice.
type Text struct {
	f    *os.File
	path string
	zone *time.Location
}

// OpenText opens or creates the log; others than the owner and the group cannot read it. Times are written in zone.
func OpenText(path string, zone *time.Location) (*Text, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	f.Chmod(0o640) // whatever the umask: the group reads. It is ours; if it is not, it stays as it is
	return &Text{f: f, path: path, zone: zone}, nil
}

// Name implements Sink.
func (t *Text) Name() string { return "conn.log" }

// Close implements Sink.
func (t *Text) Close() error { return t.f.Close() }

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
	for i := range w.Records {
		line = appendText(line[:0], &w.Records[i], at)
		if _, err = b.Write(line); err != nil {
			break
		}
	}
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		if back := t.f.Truncate(size); back != nil {
			return fmt.Errorf("%w (and part of a window stays in the file: %v)", err, back)
		}
		return err
	}
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
	n, err := OpenText(t.path, t.zone)
	if err != nil {
		return err
	}
	t.f.Close()
	t.f = n.f
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
