package config

import (
	"fmt"
	"regexp"
	"slices"
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
	if p.secretAt(e.Line) {
		e.Source, e.Column = hidden, 1
		return e
	}
	line := strings.ReplaceAll(p.lines[e.Line-1], "\t", " ")
	e.Source = safe(line, shownLine)
	if e.Column > shownLine {
		e.Column = shownLine
	}
	return e
}

// keyLike finds what may be a key: a text in quotes, or words, before a colon.
func keyLike() *regexp.Regexp {
	return regexp.MustCompile(`(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s"'{}\[\],:#][^"'{}\[\],:]*?))\s*:`)
}

// secretAt reports whether line may hold a secret. That is so unless every key in it, or the last one before it, is a
// key of ours that holds none: a misspelt key may be the one of a secret. It looks at the text, not at the
// syntax tree, because it must also be right for a file that does not parse.
func (p *parse) secretAt(line int) bool {
	like := keyLike()
	for i := min(line, len(p.lines)); i >= 1; i-- {
		text := p.lines[i-1]
		if i == line && looksSecret(text) {
			return true
		}
		found := like.FindAllStringSubmatchIndex(text, -1)
		if len(found) == 0 {
			continue
		}
		if i < line {
			found = found[len(found)-1:]
		} else if strings.Trim(text[:found[0][0]], " \t{") != "" {
			return true // something stands before the first key: the value of the one before
		}
		for _, m := range found {
			key := ""
			for g := 2; g < len(m); g += 2 {
				if m[g] >= 0 {
					key = text[m[g]:m[g+1]]
				}
			}
			if key == KeyVTKey || key == KeySQLServer || !slices.Contains(keys(), key) && !slices.Contains(limitKeys(), key) {
				return true
			}
		}
		return false
	}
	return true
}

// looksSecret reports whether a text has a word that people use for secrets.
func looksSecret(text string) bool {
	text = strings.ToLower(text)
	for _, word := range []string{"passw", "passphrase", "pwd", "secret", "token", "key", "credential", "auth"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}
