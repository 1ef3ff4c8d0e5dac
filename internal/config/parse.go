package config

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of what is read at all.
const (
	MaxSize   = 64 << 10 // bytes of a file
	maxDepth  = 32       // brackets, indented blocks or dashes within each other
	maxIgnore = 4096     // entries of "Log ignore"
	maxErrors = 20       // errors that are told at once
)

// Parse reads the content of a config.json. It returns either a Config, with defaults for the keys that are not
// there, or an error that joins every *Error found.
func Parse(data []byte) (Config, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))       // an editor's byte order mark
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // one way to end a line, so that line numbers agree
	p := &parse{lines: strings.Split(string(data), "\n")}
	if err := p.check(data); err != nil {
		return Config{}, err
	}
	file, err := parseYAML(data)
	if err != nil {
		return Config{}, p.syntax(err)
	}
	c := Default()
	p.file(file, &c)
	if len(p.errs) > 0 {
		return Config{}, errors.Join(p.errs...)
	}
	return c, nil
}

// parseYAML keeps a bug of the YAML library from ending a process of root's.
func parseYAML(data []byte) (file *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			file, err = nil, errors.New("the YAML parser gave up")
		}
	}()
	return parser.ParseBytes(data, 0)
}

type parse struct {
	lines []string
	errs  []error
}

func (p *parse) fail(e *Error) {
	if len(p.errs) < maxErrors {
		p.errs = append(p.errs, p.source(e))
	}
}

// check refuses what the YAML parser should not even see.
func (p *parse) check(data []byte) error {
	if len(data) > MaxSize {
		return &Error{Problem: fmt.Sprintf("the file has %d bytes", len(data)), Allowed: fmt.Sprintf("at most %d", MaxSize)}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return &Error{Problem: "the file is empty: delete it to get a new one with the defaults, or write {}"}
	}
	for n, line := range p.lines {
		if !utf8.ValidString(line) {
			return p.source(&Error{Line: n + 1, Column: 1, Problem: "not UTF-8 text"})
		}
		for i, r := range line {
			if r != '\t' && unicode.IsControl(r) {
				return p.source(&Error{Line: n + 1, Column: utf8.RuneCountInString(line[:i]) + 1, Problem: fmt.Sprintf("control character U+%04X", r)})
			}
		}
	}
	// The parser recurses per level.
	depth := 0
	for n, line := range p.lines {
		level := 0
		for _, r := range bare(line) {
			switch r {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(0, depth-1)
			case '-', '?', ':', '!', '&', '*', '|', '>':
				level++
			}
		}
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if depth > maxDepth || indent > 8*maxDepth || level > 16*maxDepth {
			return p.source(&Error{Line: n + 1, Column: 1, Problem: "nested too deeply"})
		}
	}
	return nil
}

// bare is a line without its comment and without the texts in quotes. A quote counts only where a value or a key can begin and
// only if it is closed on the same line: what is not surely a text stays, which errs on the safe side.
func bare(line string) string {
	var b strings.Builder
	before := byte('\n') // the last character that is no space
	for i := 0; i < len(line); i++ {
		c := line[i]
		if c == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			break
		}
		if (c == '"' || c == '\'') && strings.IndexByte("\n[{,:-?", before) >= 0 {
			i += closing(line[i:])
		} else {
			b.WriteByte(c)
		}
		if c != ' ' && c != '\t' {
			before = c
		}
	}
	return b.String()
}

// closing is the place of the quote that closes the text which s begins with; 0: there is none.
func closing(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && s[0] == '"':
			i++
		case s[i] == s[0] && s[0] == '\'' && i+1 < len(s) && s[i+1] == '\'':
			i++
		case s[i] == s[0]:
			return i
		}
	}
	return 0
}

// syntax turns an error of the YAML library into ours: its own excerpt shows lines around the error, which may
// hold a secret.
func (p *parse) syntax(err error) error {
	e := &Error{Problem: "not JSON with comments (YAML)"}
	var y yaml.Error
	if errors.As(err, &y) {
		e.Problem = safe(y.GetMessage(), shownLine)
		if t := y.GetToken(); t != nil && t.Position != nil {
			e.Line, e.Column = t.Position.Line, t.Position.Column
			if p.secretAt(e.Line) {
				e.Problem = "syntax error (the line may hold a secret and is not shown)"
			}
		}
	}
	return p.source(e)
}

func (p *parse) file(file *ast.File, c *Config) {
	var body ast.Node
	for _, d := range file.Docs {
		if d == nil || d.Body == nil {
			continue
		}
		if body != nil {
			p.fail(at(d.Body, &Error{Problem: "a second document", Allowed: "one object { … }"}))
			return
		}
		body = d.Body
	}
	entries, ok := mapping(body)
	if !ok {
		e := &Error{Problem: "no settings", Allowed: `one object { "key": value, … }`}
		if body != nil {
			e = at(body, e)
		}
		p.fail(e)
		return
	}
	known := map[string]field{}
	for _, f := range fields() {
		known[f.key] = f
	}
	seen := map[string]bool{}
	places := map[string]ast.Node{}
	for _, entry := range entries {
		key, ok := keyText(entry.Key)
		if !ok {
			p.fail(at(entry.Key, &Error{Problem: "a key that is not a plain text", Allowed: "the keys of the documentation"}))
			continue
		}
		f, ok := known[key]
		switch {
		case !ok:
			e := &Error{Key: safe(key, shownValue), Problem: "unknown key"}
			if n := nearest(key); n != "" {
				e.Problem += fmt.Sprintf(", did you mean %q?", n)
			} else {
				e.Allowed = strings.Join(keys(), ", ")
			}
			p.fail(at(entry.Key, e))
		case seen[key]:
			p.fail(at(entry.Key, &Error{Key: key, Problem: "the key is there twice", Allowed: "each key once"}))
		default:
			seen[key] = true
			f.read(p, f, entry.Value, c)
			places[key] = entry.Key
		}
	}
	if n := places[KeyLimits]; len(c.Limits) > 0 && !c.Bandwidth {
		p.fail(at(n, &Error{Key: KeyLimits, Problem: fmt.Sprintf("there is nothing to count: %q is false", KeyBandwidth), Allowed: fmt.Sprintf("%q: true, or no limits", KeyBandwidth)}))
	}
}

type field struct {
	key     string
	allowed string
	read    func(p *parse, f field, n ast.Node, c *Config)
}

func fields() []field {
	return []field{
		boolean(KeyBandwidth, func(c *Config) *bool { return &c.Bandwidth }),
		integer(KeyRawRetention, 0, 36500, func(c *Config) *int { return &c.RawDays }),
		integer(KeyRetention, 1, 36500, func(c *Config) *int { return &c.RetentionDays }),
		integer(KeySizeLimit, 0, 1<<24, func(c *Config) *int { return &c.SizeLimit }),
		integer(KeySpoolLimit, 16, 1<<20, func(c *Config) *int { return &c.SpoolLimit }),
		boolean(KeySQLLog, func(c *Config) *bool { return &c.SQLLog }),
		{KeySQLServer, `{} or { "client": …, "host": …, "user": …, "password": …, "database": …, … }`, readServer},
		word(KeyTextFormat, func(c *Config) *string { return &c.TextFormat }, FormatCSV, FormatJSON),
		integer(KeyTextLimit, 0, 1<<20, func(c *Config) *int { return &c.TextLimit }),
		boolean(KeyTextLog, func(c *Config) *bool { return &c.TextLog }),
		integer(KeyWriteLimit, 1, 86400, func(c *Config) *int { return &c.WriteLimit }),
		boolean(KeyNotifications, func(c *Config) *bool { return &c.Notifications }),
		boolean(KeyEveryExe, func(c *Config) *bool { return &c.EveryExe }),
		boolean(KeyLogAddresses, func(c *Config) *bool { return &c.LogAddresses }),
		boolean(KeyLogCommands, func(c *Config) *bool { return &c.LogCommands }),
		{KeyLimits, `a list of objects like { "limit": "10 GB", "per": "month" }, also with "program", "interface", "direction", "month starts on" and "local network"`, readLimits},
		{KeyLogIgnore, "a list of ports (numbers), sha256 hashes and domains in reverse notation (texts)", readIgnore},
		integer(KeyNotifyDigest, 0, 1440, func(c *Config) *int { return &c.NotifyDigest }),
		{KeyNotifyIgnore, "a list of paths (/usr/bin/*, /home/me/dev/**), process names and sha256 hashes (texts)", readNotifyIgnore},
		{KeyCommand, `[] or a list of texts: the full path of a program, and its arguments`, readCommand},
		boolean(KeyJournal, func(c *Config) *bool { return &c.Journal }),
		boolean(KeyFeed, func(c *Config) *bool { return &c.Feed }),
		{KeyRingPages, "a power of two from 1 to 16384", readPages},
		{KeyNoFile, "null or a whole number from 64 to 1048576", readNoFile},
		{KeyVTURL, "an address that begins with https:// (http:// for this machine only)", readVTURL},
		{KeyVTKey, "a text; \"\" for none", readVTKey},
		boolean(KeyVTUpload, func(c *Config) *bool { return &c.VTUpload }),
		integer(KeyVTLimit, 0, 86400, func(c *Config) *int { return &c.VTLimit }),
	}
}

func boolean(key string, to func(*Config) *bool) field {
	return field{key, "true or false", func(p *parse, f field, n ast.Node, c *Config) {
		b, ok := n.(*ast.BoolNode)
		if !ok {
			p.wrong(f, n)
			return
		}
		*to(c) = b.Value
	}}
}

func integer(key string, low, high int, to func(*Config) *int) field {
	return field{key, fmt.Sprintf("a whole number from %d to %d", low, high), func(p *parse, f field, n ast.Node, c *Config) {
		v, ok := whole(n)
		switch {
		case !ok:
			p.wrong(f, n)
		case v < int64(low) || v > int64(high):
			p.bad(f, n, "out of range")
		default:
			*to(c) = int(v)
		}
	}}
}

func word(key string, to func(*Config) *string, words ...string) field {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	return field{key, strings.Join(quoted, " or "), func(p *parse, f field, n ast.Node, c *Config) {
		s, ok := text(n)
		switch {
		case !ok:
			p.wrong(f, n)
		case !slices.Contains(words, s):
			p.bad(f, n, "unknown")
		default:
			*to(c) = s
		}
	}}
}

func readPages(p *parse, f field, n ast.Node, c *Config) {
	v, ok := whole(n)
	switch {
	case !ok:
		p.wrong(f, n)
	case v < 1 || v > 16384:
		p.bad(f, n, "out of range")
	case v&(v-1) != 0:
		p.bad(f, n, "not a power of two")
	default:
		c.RingPages = int(v)
	}
}

func readNoFile(p *parse, f field, n ast.Node, c *Config) {
	if _, ok := n.(*ast.NullNode); ok {
		return
	}
	v, ok := whole(n)
	switch {
	case !ok:
		p.wrong(f, n)
	case v < 64 || v > 1<<20:
		p.bad(f, n, "out of range")
	default:
		c.NoFile = uint64(v)
	}
}

func readVTKey(p *parse, f field, n ast.Node, c *Config) {
	s, ok := text(n)
	switch {
	case !ok:
		p.wrong(f, n)
	case len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		p.bad(f, n, "holds a space, a character outside ASCII, or more than 256 characters")
	default:
		c.VTKey = Secret(s)
	}
}

func readIgnore(p *parse, f field, n ast.Node, c *Config) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		p.wrong(f, n)
		return
	}
	if len(list.Values) > maxIgnore {
		p.fail(at(n, &Error{Key: f.key, Problem: fmt.Sprintf("%d entries", len(list.Values)), Allowed: fmt.Sprintf("at most %d", maxIgnore)}))
		return
	}
	sha := regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	for _, v := range list.Values {
		if port, ok := whole(v); ok {
			// -1 is the port of programs without a connection ("Every exe").
			if port < -1 || port > math.MaxUint16 {
				p.bad(f, v, "not a port: out of range -1 to 65535")
				continue
			}
			c.LogIgnore.Ports = append(c.LogIgnore.Ports, int(port))
			continue
		}
		s, ok := text(v)
		_, number := strconv.Atoi(s)
		switch {
		case !ok:
			p.wrong(f, v)
		case sha.MatchString(s):
			c.LogIgnore.SHA256 = append(c.LogIgnore.SHA256, strings.ToLower(s))
		case number == nil:
			p.bad(f, v, "a port must be a number, without quotes")
		case s == "":
			p.bad(f, v, "an empty domain would match everything")
		case len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '/' }):
			p.bad(f, v, "neither a domain nor a sha256")
		default:
			c.LogIgnore.Domains = append(c.LogIgnore.Domains, strings.ToLower(s))
		}
	}
}

func (p *parse) wrong(f field, n ast.Node) { p.bad(f, n, "wrong type") }

func (p *parse) bad(f field, n ast.Node, problem string) {
	value := ""
	switch {
	case f.key == KeyVTKey || f.key == KeySQLServer:
		value = hidden
	case n == nil:
		value = "(nothing)"
	default:
		// A nested value may be another key's: a secret in the wrong place.
		value = "(not a plain value)"
		if plain, ok := scalar(n); ok && looksSecret(plain) {
			value = hidden
		} else if ok {
			value = safe(strings.TrimSpace(n.String()), shownValue)
		}
	}
	p.fail(at(n, &Error{Key: f.key, Value: value, Problem: problem, Allowed: f.allowed}))
}

func at(n ast.Node, e *Error) *Error {
	if n == nil {
		return e
	}
	var t *token.Token
	// A node that the parser made for a missing value may have no token.
	if t = n.GetToken(); t != nil && t.Position != nil {
		e.Line, e.Column = t.Position.Line, t.Position.Column
	}
	return e
}

func mapping(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode: // a block mapping with one entry
		return []*ast.MappingValueNode{m}, true
	}
	return nil, false
}

func keyText(n ast.MapKeyNode) (string, bool) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		return "", false
	}
	return s.Value, true
}

func text(n ast.Node) (string, bool) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		return "", false
	}
	return s.Value, true
}

func whole(n ast.Node) (int64, bool) {
	i, ok := n.(*ast.IntegerNode)
	// YAML has more ways to write a number than people know: 010 is 8, and 1_0 is 10.
	if !ok || !regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`).MatchString(i.GetToken().Value) {
		return 0, false
	}
	switch v := i.Value.(type) {
	case int64:
		return v, true
	case uint64:
		if v > math.MaxInt64 {
			return math.MaxInt64, true // out of every range
		}
		return int64(v), true
	}
	return 0, false
}

func scalar(n ast.Node) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.IntegerNode, *ast.FloatNode:
		return v.GetToken().Value, true
	case *ast.BoolNode:
		return strconv.FormatBool(v.Value), true
	case *ast.NullNode:
		return "", true
	}
	return "", false
}
