package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Error is one thing that is wrong in a config file.
type Error struct {
	Line    int    // from 1; 0: the whole file
	Column  int    // from 1, in characters
	Key     string // "" when it is not about one key
	Value   string // as written; "(hidden)" for a secret
	Problem string // what is wrong
	Allowed string // what is allowed instead
	Source  string // the line, with secrets hidden
}

// Error names line, key, value and what is allowed, and shows the line.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Key != "" {
		b.WriteString(strconv.Quote(e.Key))
		if e.Value != "" {
			b.WriteString(": " + e.Value)
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	if e.Allowed != "" {
		b.WriteString("; allowed: " + e.Allowed)
	}
	if e.Source != "" {
		n := strconv.Itoa(e.Line)
		fmt.Fprintf(&b, "\n  %s | %s\n  %s | %s^", n, e.Source, strings.Repeat(" ", len(n)), strings.Repeat(" ", max(0, e.Column-1)))
	}
	return b.String()
}

const (
	shownLine  = 160 // characters of a line that an error shows
	shownValue = 60  // characters of a value
)

// safe makes a text of the file printable and short.
func safe(s string, limit int) string {
	s = event.Text([]byte(s))
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return s
}

// source fills in the line that the error is about.
func (p *parse) source(e *Error) *Error {
	if e.Line < 1 || e.Line > len(p.lines) {
		return e
	}
	line := p.lines[e.Line-1]
	if p.secretAt(e.Line) {
		// Only what stands before the value; a line that is all value is not shown at all.
		name, _, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(name, "{,") {
			e.Source, e.Column = hidden, 1
			return e
		}
		line = name + ": " + hidden
		e.Column = min(e.Column, len([]rune(line)))
	}
	e.Source = safe(strings.ReplaceAll(line, "\t", " "), shownLine)
	if e.Column > shownLine {
		e.Column = shownLine
	}
	return e
}

// secretAt reports whether line belongs to the value of a key that holds secrets. It looks at the text, not at
// the syntax tree, because it must also be right for a file that does not parse.
func (p *parse) secretAt(line int) bool {
	for i := min(line, len(p.lines)); i >= 1; i-- {
		text := p.lines[i-1]
		if strings.Contains(text, KeyVTKey) || strings.Contains(text, KeySQLServer) || looksSecret(text) {
			return true
		}
		for _, k := range keys() {
			if strings.Contains(text, `"`+k+`"`) || strings.HasPrefix(strings.TrimSpace(text), k+":") {
				return false
			}
		}
	}
	return false
}

func looksSecret(text string) bool {
	text = strings.ToLower(text)
	for _, word := range []string{"passw", "passphrase", "secret", "token", "apikey", "api key", "api_key"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}
