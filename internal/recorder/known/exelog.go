package known

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// exeLog is exe.log: a line for everything that became known, in the format of picosnitch 0.11.
type exeLog struct {
	path string
	zone *time.Location
	f    *os.File
}

// maxExeLog is the size at which exe.log becomes exe.log.1, in bytes. There is one of those.
const maxExeLog = 8 << 20

// column is the width of the name and of the hash, in characters.
const column = 16

// line is a line of exe.log without its newline: local time, name or hash, path, and why in brackets.
func (l *exeLog) line(at int64, first, path, why string) string {
	n := utf8.RuneCountInString(first)
	if n > column {
		first = string([]rune(first)[:column])
	} else {
		first += strings.Repeat(" ", column-n)
	}
	return fmt.Sprintf("%s %s %s %s", time.Unix(0, at).In(l.zone).Format(time.DateTime), first, path, why)
}

// write appends lines. The file is opened again after it was moved away.
func (l *exeLog) write(lines []string) error {
	if l.f != nil {
		ours, err := l.f.Stat()
		now, err2 := os.Stat(l.path)
		switch {
		case err != nil || err2 != nil || !os.SameFile(ours, now):
			l.close()
		case ours.Size() >= maxExeLog:
			l.close()
			if err := os.Rename(l.path, l.path+".1"); err != nil {
				return err
			}
		}
	}
	if l.f == nil {
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return err
		}
		f.Chmod(0o640) // whatever the umask: the group reads
		l.f = f
	}
	st, err := l.f.Stat()
	if err != nil {
		return err
	}
	n, err := l.f.WriteString(strings.Join(lines, "\n") + "\n")
	if err != nil && n > 0 {
		l.f.Truncate(st.Size()) // it is written again as a whole
	}
	return err
}

// has reports whether the log ends with these lines.
func (l *exeLog) has(lines []string) bool {
	f, err := os.Open(l.path)
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

func (l *exeLog) close() {
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
