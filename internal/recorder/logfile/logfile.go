// Package logfile appends lines to the recorder's logs for people, error.log and exe.log. It belongs to the recorder's wing. A file that
// was moved away is made again, one that is full becomes NAME.1, and lines that cannot be written wait, in order and bounded; those that
// found no room are counted. It does not know what a line means.
package logfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
)

// maxWaiting bounds the lines that wait, and maxBytes their bytes.
const (
	maxWaiting = 1 << 12
	maxBytes   = 4 << 20
)

// File is a log. A File with Path and Limit is ready; it belongs to one goroutine at a time.
type File struct {
	Path  string
	Limit int64 // bytes, from which on it becomes Path.1; there is one of those

	f       *os.File
	waiting []string
	bytes   int // of waiting
	lost    int
}

// Write appends lines, after those that wait already. Those that cannot be written wait, and the error says why.
func (l *File) Write(lines ...string) error {
	l.waiting = append(l.waiting, lines...)
	for _, s := range lines {
		l.bytes += len(s) + 1
	}
	err := l.Retry()
	if err == nil {
		return nil
	}
	for len(l.waiting) > maxWaiting || l.bytes > maxBytes && len(l.waiting) > 1 {
		l.bytes -= len(l.waiting[0]) + 1
		l.waiting = l.waiting[1:]
		l.lost++
	}
	return err
}

// Retry writes what waits.
func (l *File) Retry() error {
	if len(l.waiting) == 0 {
		return nil
	}
	if err := l.open(); err != nil {
		return err
	}
	st, err := l.f.Stat()
	if err != nil {
		return err
	}
	n, err := l.f.WriteString(strings.Join(l.waiting, "\n") + "\n")
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.f.Truncate(st.Size())) // it is written again as a whole
		}
		return err
	}
	l.waiting, l.bytes = nil, 0
	return nil
}

// Waiting is how many lines wait.
func (l *File) Waiting() int { return len(l.waiting) }

// Lost is how many lines found no room, since the beginning.
func (l *File) Lost() int { return l.lost }

// open makes the open file the one that is at the path, with room in it.
func (l *File) open() error {
	if l.f != nil {
		ours, err := l.f.Stat()
		now, err2 := os.Stat(l.Path)
		switch {
		case err != nil || err2 != nil || !os.SameFile(ours, now):
			l.Close()
		case ours.Size() >= l.Limit:
			l.Close()
			if err := os.Rename(l.Path, l.Path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if l.f != nil {
		return nil
	}
	f, err := os.OpenFile(l.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	f.Chmod(0o640) // whatever the umask: the group reads
	l.f = f
	return nil
}

// EndsWith reports whether the log ends with these lines.
func (l *File) EndsWith(lines []string) bool {
	f, err := os.Open(l.Path)
	if err != nil {
		return false
	}
	defer f.Close()
	want := strings.Join(lines, "\n") + "\n"
	st, err := f.Stat()
	if err != nil || st.Size() < int64(len(want)) {
		return false
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, st.Size()-int64(len(want))); err != nil && err != io.EOF {
		return false
	}
	return string(got) == want
}

// Close lets the file go; the next Write opens it again.
func (l *File) Close() {
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
