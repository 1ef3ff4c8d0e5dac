// Package script tells what an interpreter was started to run: from its name and its arguments, with a table of grammars,
// and finds the file that was meant, so that it can be hashed beside the interpreter. It belongs to the root wing. Of looks at
// text only; Finder opens files that strangers named, as mere references, and proves that what it opened cannot have
// been put there after the interpreter started (but for folders on the way that were exchanged, or links in their place). It reads no script, and knows nothing of what a script loads: imports, sourced
// files and shared libraries are not covered.
package script

import (
	"path"
	"slices"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Meaning is what an interpreter runs.
type Meaning struct {
	Kind     string   // one of event.Script…; "": no interpreter that we know
	Name     string   // of a file (as it was given) or of a module; safe text
	Folder   string   // that Name is relative to, itself relative to the working directory; "": the working directory
	Suffixes []string // that the interpreter tries behind Name
	Cut      bool     // Name is only the beginning of a path
}

// kernelMax is the room for the path of a #! file in the kernel's report, with its NUL: SCRIPT_MAX of sensor/kernel/bpf/maps.h.
const kernelMax = 1024

// Interpreters are those whose arguments we can read. They do not change and may be shared.
type Interpreters struct {
	names map[string]*grammar
}

// New returns the interpreters of the table.
func New() *Interpreters {
	i := &Interpreters{names: make(map[string]*grammar)}
	for _, g := range table() {
		for n := range strings.FieldsSeq(g.names) {
			i.names[n] = &g
		}
	}
	return i
}

// Of tells what p runs when its executable is an interpreter. The texts are event.Text's, and so is the answer.
func (i *Interpreters) Of(p *event.Process) Meaning {
	if p.Script != "" && (p.ScriptKind == "" || p.ScriptKind == event.ScriptFromFile) {
		// The kernel's own word. The mark behind one that was cut counts, too: a whole one has fewer bytes than the room.
		raw, _ := event.Raw(p.Script)
		return Meaning{Kind: event.ScriptFromFile, Name: p.Script, Cut: len(raw) >= kernelMax}
	}
	if len(p.Argv) == 0 && !p.ArgvCut || p.Kernel {
		return Meaning{}
	}
	argv := p.Argv
	name := path.Base(p.Path)
	if multiCall(name) {
		if len(argv) == 0 {
			return Meaning{}
		}
		name = strings.TrimPrefix(path.Base(argv[0]), "-")
		if multiCall(name) && len(argv) > 1 {
			argv = argv[1:]
			name = path.Base(argv[0])
		}
	}
	g := i.find(name)
	if g == nil {
		return Meaning{}
	}
	if p.Source != event.SourceExec && len(argv) > 0 && i.find(strings.TrimPrefix(path.Base(argv[0]), "-")) == nil {
		return Meaning{Kind: event.ScriptUnknown} // the arguments are those of now, and the program has rewritten them
	}
	r := reader{g: g, more: p.ArgvCut}
	if len(argv) > 1 {
		r.args = argv[1:]
	}
	return r.read()
}

// find returns the grammar for an executable's name: python3.12 is python, lua5.4 is lua.
func (i *Interpreters) find(name string) *grammar {
	if g := i.names[name]; g != nil {
		return g
	}
	return i.names[strings.TrimRight(strings.TrimSuffix(name, "-dbg"), "0123456789.-")]
}

// reader goes through the arguments of one program.
type reader struct {
	g      *grammar
	args   []string
	more   bool // args are only the beginning
	folder string
	text   bool // program text was given
}

// next takes one argument.
func (r *reader) next() (string, bool) {
	if len(r.args) == 0 {
		return "", false
	}
	a := r.args[0]
	r.args = r.args[1:]
	return a, true
}

func (r *reader) read() Meaning {
	for {
		a, ok := r.next()
		switch {
		case !ok:
			return r.end()
		case r.more && len(r.args) == 0 && !r.g.text:
			return Meaning{Kind: event.ScriptUnknown} // this argument may be half of one
		case a == "-":
			if r.g.flagged || r.g.oneDash { // sh: the end of the options
				return r.operand()
			}
			return r.found(event.ScriptStdin, "")
		case a == "--":
			return r.operand()
		case strings.HasPrefix(a, "--") || r.g.oneDash && strings.HasPrefix(a, "-"):
			if m, done := r.word(a[1:]); done {
				return m
			}
		case strings.HasPrefix(a, "-") || r.g.plus && len(a) > 1 && a[0] == '+':
			if m, done := r.letters(a[1:]); done {
				return m
			}
		case slices.Contains(strings.Fields(r.g.verbs), a):
		case slices.Contains(strings.Fields(r.g.texts), a):
			return Meaning{Kind: event.ScriptCommand}
		default:
			r.args = append([]string{a}, r.args...)
			return r.operand()
		}
	}
}

// end is what no operand means.
func (r *reader) end() Meaning {
	switch {
	case r.more:
		return Meaning{Kind: event.ScriptUnknown}
	case r.text:
		return Meaning{Kind: event.ScriptCommand}
	case r.g.noStdin || r.g.text:
		return Meaning{} // it prints its version, or an error
	}
	return Meaning{Kind: event.ScriptStdin}
}

// operand takes the first argument that is no option.
func (r *reader) operand() Meaning {
	if r.text && !r.g.keep {
		return Meaning{Kind: event.ScriptCommand}
	}
	a, ok := r.next()
	switch {
	case !ok:
		return r.end()
	case r.g.text:
		return Meaning{Kind: event.ScriptCommand}
	case r.more && len(r.args) == 0, r.g.modules && strings.HasPrefix(a, "@"): // java @FILE: the arguments are in a file
		return Meaning{Kind: event.ScriptUnknown}
	case a == "" || a == "-":
		return r.found(event.ScriptStdin, "")
	case r.g.modules && !suffixed(a, r.g.suffixes):
		return r.found(event.ScriptModule, a)
	}
	return r.found(event.ScriptArgument, a)
}

func suffixed(name, suffixes string) bool {
	for s := range strings.FieldsSeq(suffixes) {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

func (r *reader) found(kind, name string) Meaning {
	m := Meaning{Kind: kind, Name: name}
	if kind == event.ScriptArgument {
		m.Folder = r.folder
		if !r.g.modules && r.g.suffixes != "" {
			m.Suffixes = strings.Fields(r.g.suffixes)
		}
	}
	return m
}

// valued takes the value of an option that says what is run.
func (r *reader) valued(kind, value string, have bool) (Meaning, bool) {
	if !have {
		if value, have = r.next(); !have || r.more && len(r.args) == 0 && kind != event.ScriptCommand {
			return r.end(), true
		}
	}
	if kind == event.ScriptCommand {
		r.text = true
		return Meaning{Kind: kind}, !r.g.keep
	}
	return r.found(kind, value), true
}

// word takes a long option: name, name=value.
func (r *reader) word(a string) (Meaning, bool) {
	if !r.g.oneDash {
		a = a[1:]
	}
	name, value, have := strings.Cut(a, "=")
	has := func(words string) bool { return slices.Contains(strings.Fields(words), name) }
	switch {
	case has(r.g.commandWords):
		return r.valued(event.ScriptCommand, value, have)
	case has(r.g.moduleWords):
		return r.valued(event.ScriptModule, value, have)
	case has(r.g.fileWords):
		return r.valued(event.ScriptArgument, value, have)
	case has(r.g.words) && !have:
		r.next()
	}
	return Meaning{}, false
}

// letters takes short options that are written together.
func (r *reader) letters(a string) (Meaning, bool) {
	is := func(c byte, set string) bool { return strings.IndexByte(set, c) >= 0 }
	for i := 0; i < len(a); i++ {
		c, tail := a[i], a[i+1:]
		have := tail != ""
		switch {
		case is(c, r.g.command):
			if r.g.flagged {
				return Meaning{Kind: event.ScriptCommand}, true
			}
			return r.valued(event.ScriptCommand, tail, have)
		case is(c, r.g.ends):
			return Meaning{Kind: event.ScriptStdin}, true
		case is(c, r.g.module):
			return r.valued(event.ScriptModule, tail, have)
		case is(c, r.g.file):
			return r.valued(event.ScriptArgument, tail, have)
		case is(c, r.g.folder):
			if !have {
				tail, _ = r.next()
			}
			r.folder = path.Join(r.folder, tail)
			return Meaning{}, false
		case is(c, r.g.value):
			if r.g.flagged { // sh -eo pipefail: the letters go on, and the values follow
				r.next()
				continue
			}
			if !have {
				r.next()
			}
			return Meaning{}, false
		case is(c, r.g.rest), c == ':': // perl -d:Trace
			return Meaning{}, false
		}
	}
	return Meaning{}, false
}
