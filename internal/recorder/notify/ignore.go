package notify

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Ignore is "Notify ignore": what the user does not want to hear of. The zero value ignores nothing.
type Ignore struct {
	hashes map[string]bool
	names  []*regexp.Regexp
	paths  []*regexp.Regexp
}

// NewIgnore makes an Ignore of entries: 64 hex digits are a hash; a text with a slash is a path; any other is a
// name. In paths and names, * stands for any characters but a slash, ** also for slashes, and ? for one character.
func NewIgnore(entries []string) (Ignore, error) {
	g := Ignore{hashes: make(map[string]bool)}
	sum := regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
	for _, e := range entries {
		switch {
		case e == "":
			return Ignore{}, fmt.Errorf("\"Notify ignore\": an empty entry would match nothing")
		case sum.MatchString(e):
			g.hashes[strings.ToLower(e)] = true
		case strings.Contains(e, "/"):
			g.paths = append(g.paths, Glob(e))
		default:
			g.names = append(g.names, Glob(e))
		}
	}
	return g, nil
}

// Glob compiles a pattern of "Notify ignore" or "Data limits" for texts that went through event.Text.
func Glob(pattern string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`^`)
	for i := 0; i < len(pattern); {
		switch {
		case strings.HasPrefix(pattern[i:], "**"):
			b.WriteString(`.*`)
			i += 2
		case pattern[i] == '*':
			b.WriteString(`[^/]*`)
			i++
		case pattern[i] == '?':
			b.WriteString(`[^/]`)
			i++
		default:
			end := i + strings.IndexAny(pattern[i:]+"*", "*?")
			b.WriteString(regexp.QuoteMeta(event.Text([]byte(pattern[i:end]))))
			i = end
		}
	}
	b.WriteString(`$`)
	return regexp.MustCompile(b.String())
}

// matches reports whether the user does not want to hear of n.
func (g Ignore) matches(n *Notice, f Form) bool {
	if f.Always {
		return false
	}
	if n.SHA256 != "" && g.hashes[n.SHA256] {
		return true
	}
	if f.Loud {
		return false
	}
	for _, p := range g.paths {
		// A script is what is ignored, not every script of its interpreter: naming the interpreter does that.
		if n.Script != "" && p.MatchString(n.Script) || n.Path != "" && p.MatchString(n.Path) {
			return true
		}
	}
	for _, p := range g.names {
		if n.Name != "" && p.MatchString(n.Name) {
			return true
		}
	}
	return false
}
