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
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// TextOptions say how conn.log is written.
type TextOptions struct {
	Zone  *time.Location // of the times
	JSON  bool           // an object of all Fields per line, instead of the mission's 16 fields separated by commas
	Limit int64          // bytes from which on the file is moved to conn.log.1 before the next window; 0: never
}

// keptTexts is how many files of their own size the rotation keeps besides the one that is written.
const keptTexts = 9

// Text is conn.log: one line per record. A window is appended at once; one that could not be written whole is
// taken back. How far it has the stream stands in a small file beside it, written after the lines: a line
// is there at least once, and if the recorder is killed in between, the lines of its last window twice.
type Text struct {
	f    *os.File
	path string
	o    TextOptions
	torn bool // a kill left half a line at the end

	fields []jsonField

	mark     *os.File // holds position
	position flow.Position
}

// OpenText opens or creates the log; others than the owner and the group cannot read it.
func OpenText(path string, o TextOptions) (*Text, error) {
	t := &Text{path: path, o: o, fields: jsonFields()}
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
	if err := t.rotate(); err != nil {
		return err
	}
	size, err := t.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(t.f, 64<<10)
	at := time.Unix(w.End, 0).In(t.o.Zone).Format(time.DateTime)
	var line []byte
	if t.torn {
		err = b.WriteByte('\n')
	}
	for i := range w.Records {
		if t.o.JSON {
			line = appendJSON(line[:0], t.fields, w, &w.Records[i], t.o.Zone)
		} else {
			line = appendText(line[:0], &w.Records[i], at)
		}
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

// rotate moves a file that has reached its limit to .1, what was there to .2, and so on; the oldest goes. A kill in between
// leaves a gap in the numbers and takes no line.
func (t *Text) rotate() error {
	if t.o.Limit <= 0 {
		return nil
	}
	i, err := t.f.Stat()
	if err != nil || i.Size() < t.o.Limit {
		return err
	}
	number := func(n int) string { return t.path + "." + strconv.Itoa(n) }
	for n := keptTexts; n > 1; n-- {
		if err := os.Rename(number(n-1), number(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(t.path, number(1)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return t.Reopen()
}

// Reopen opens the log again at its path, and lets go of the file that it was: another program moved it away and wants to
// compress or delete it now.
func (t *Text) Reopen() error {
	before := t.f
	if err := t.open(); err != nil {
		return err
	}
	return before.Close()
}

// follow opens the log again when the file was moved away (logrotate).
func (t *Text) follow() error {
	now, err := os.Stat(t.path)
	if err == nil {
		if ours, err := t.f.Stat(); err == nil && os.SameFile(now, ours) {
			return nil
		}
	}
	return t.Reopen()
}
