package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/width"

	"github.com/picosnitch/picosnitch/internal/reader/query"
)

// maxWidth is how much of a value a table shows where the width of the terminal is not known, in columns.
const maxWidth = 100

// minWidth is how much of a value a table shows on the narrowest terminal.
const minWidth = 16

// label is what a table shows for a value.
func (c *Context) label(value string) string {
	if value == "" {
		return missing(c.By)
	}
	if c.Label != nil {
		value = c.Label(c.By, value)
	}
	return printable(value)
}

// missing says what it means that there is no value.
func missing(by query.Dimension) string {
	switch by {
	case query.Script:
		return "(no script)"
	case query.Domain:
		return "(no name)"
	case query.SHA256:
		return "(no hash)"
	case query.Place:
		return "(no unit or container)"
	case query.Country:
		return "(no address)"
	}
	return "(not known)"
}

// cut shortens a text to so many columns: of a path, the middle is left out, because its end tells more.
func (c *Context) cut(s string, columns int) string {
	if columnsOf(s) <= columns {
		return s
	}
	tail := 0
	if slices.Contains([]query.Dimension{query.Exe, query.Script, query.Parent, query.Place}, c.By) {
		tail = columns * 2 / 3
	}
	runes := []rune(s)
	end, used := len(runes), 0
	for end > 0 && used+columnsOfRune(runes[end-1]) <= tail {
		end--
		used += columnsOfRune(runes[end])
	}
	begin := 0
	used++ // the sign
	for begin < end && used+columnsOfRune(runes[begin]) <= columns {
		used += columnsOfRune(runes[begin])
		begin++
	}
	return string(runes[:begin]) + "…" + string(runes[end:])
}

// columnsOf is how many columns of a terminal a text takes.
func columnsOf(s string) int {
	n := 0
	for _, r := range s {
		n += columnsOfRune(r)
	}
	return n
}

func columnsOfRune(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// table writes rows of numbers, and a text at the end if there is one more than columns. The numbers are on the right.
func (c *Context) table(w io.Writer, head []string, rows [][]string) error {
	numbers := len(head)
	if c.By != query.None {
		numbers--
	}
	wide := make([]int, numbers)
	for _, r := range append([][]string{head}, rows...) {
		for i := range wide {
			wide[i] = max(wide[i], columnsOf(r[i]))
		}
	}
	left := maxWidth
	if c.Width > 0 {
		left = c.Width - 1
		for _, n := range wide {
			left -= n + 2
		}
		left = max(left, minWidth)
	}
	for _, r := range append([][]string{head}, rows...) {
		var b strings.Builder
		for i, n := range wide {
			fmt.Fprintf(&b, "  %s%s", strings.Repeat(" ", n-columnsOf(r[i])), r[i])
		}
		if numbers < len(head) {
			b.WriteString(" " + c.cut(r[numbers], left))
		}
		if _, err := fmt.Fprintln(w, b.String()); err != nil {
			return err
		}
	}
	return nil
}
