package known

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/recorder/logfile"
)

// maxExeLog is the size at which exe.log becomes exe.log.1, in bytes.
const maxExeLog = 8 << 20

// exeLog is exe.log: a line for everything that became known, in the format of picosnitch 0.11.
type exeLog struct {
	logfile.File
	zone *time.Location
}

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
