package config

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
)

// maxComm is the longest name that a process can have, in bytes: TASK_COMM_LEN without its NUL.
const maxComm = 15

func readNotifyIgnore(p *parse, f field, n ast.Node, c *Config) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		p.wrong(f, n)
		return
	}
	if len(list.Values) > maxIgnore {
		p.fail(at(n, &Error{Key: f.key, Problem: fmt.Sprintf("%d entries", len(list.Values)), Allowed: fmt.Sprintf("at most %d", maxIgnore)}))
		return
	}
	sum := regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	hex := regexp.MustCompile(`^[0-9A-Fa-f]{32,}$`)
	for _, v := range list.Values {
		s, ok := text(v)
		switch {
		case !ok:
			p.wrong(f, v)
		case s == "":
			p.bad(f, v, "an empty entry matches nothing")
		case len(s) > 4096 || strings.ContainsFunc(s, unicode.IsControl):
			p.bad(f, v, "more than 4096 bytes")
		case strings.Trim(s, "*?/") == "":
			p.bad(f, v, fmt.Sprintf("this would match everything: set %q to false instead", KeyNotifications))
		case sum.MatchString(s):
			c.NotifyIgnore = append(c.NotifyIgnore, s)
		case hex.MatchString(s):
			p.bad(f, v, "a sha256 has 64 hex digits")
		case strings.Contains(s, "/") && !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "*"):
			p.bad(f, v, "a path must begin with / or with **")
		case !strings.Contains(s, "/") && len(s) > maxComm && !strings.ContainsAny(s, "*?"):
			p.bad(f, v, fmt.Sprintf("the kernel cuts names after %d bytes: write %q", maxComm, cutName(s)))
		default:
			c.NotifyIgnore = append(c.NotifyIgnore, s)
		}
	}
}

// cutName is what the kernel makes of a name.
func cutName(s string) string {
	n := maxComm
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
