package config

import (
	"net/netip"
	"net/url"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Bounds of "Notify command".
const (
	maxWords = 16   // the program and its arguments
	maxWord  = 4096 // bytes of one
)

// readCommand reads a program and its arguments. There is no shell that would split a text: each argument is a text of its own.
func readCommand(p *parse, f field, n ast.Node, c *Config) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		p.wrong(f, n)
		return
	}
	if len(list.Values) > maxWords {
		p.bad(f, n, "more than 16 words")
		return
	}
	var words []string
	for i, v := range list.Values {
		s, ok := text(v)
		switch {
		case !ok:
			p.wrong(f, v)
			return
		case i == 0 && !strings.HasPrefix(s, "/"):
			p.bad(f, v, "not the full path of a program")
			return
		case len(s) > maxWord || strings.ContainsRune(s, 0):
			p.bad(f, v, "longer than 4096 bytes, or with a NUL")
			return
		}
		words = append(words, s)
	}
	c.Command = words
}

// readVTURL reads where VirusTotal is. The key goes there, so nobody on the way may read it.
func readVTURL(p *parse, f field, n ast.Node, c *Config) {
	s, ok := text(n)
	if !ok {
		p.wrong(f, n)
		return
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(s) > 1000:
		p.bad(f, n, "not an address")
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		c.VTURL = strings.TrimRight(s, "/")
	default:
		p.bad(f, n, "not encrypted")
	}
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
