package flow

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/event"
)

// MaxAncestors is how many ancestors of a program are kept.
const MaxAncestors = 8

// KernelPath is the path shown for kernel threads, which have no file.
const KernelPath = "[kernel]"

// Bounds of one text of a stream, in bytes. The sensor cuts long before; a recorded stream may hold anything.
const (
	maxText   = 8 << 10
	maxPath   = 32 << 10 // PATH_MAX characters, escaped
	maxReason = 1 << 10
	maxWord   = 128 // of the words that describe a flow, and of hashes
)

// ReasonScript begins the reason why the digest of a script is not known: it never will be, and a digest that comes for an
// executable of the same path is not the script's.
const ReasonScript = "script: "

// Digest is the hash of a file, shared by every Executable of that file, so that a hash that comes late
// completes them all. It is owned by the goroutine that owns the Table.
type Digest struct {
	SHA256 string // lower-case hex; "" if not known (yet)
	Reason string // why SHA256 is empty
}

// Executable is a file that is executed, under one path.
type Executable struct {
	Path   string
	File   event.FileID // zero if not known
	Digest *Digest      // never nil
}

// Program is what runs: an executable with its arguments and the programs that led to it. It does not change
// once it is made, except for the Digest of its Executable.
type Program struct {
	Executable *Executable
	Name       string
	Cmdline    string
	Script     *Executable  // what Executable runs as an interpreter: a file, or the name of a module; nil: none, or no name
	ScriptKind string       // one of event.Script…; "": Executable is no interpreter
	Preload    string       // LD_PRELOAD and LD_AUDIT at exec
	Cgroup     uint64       // id of the control group, 0 if not known
	Place      *event.Place // nil: not known. Shared: never changed
	Parent     *Program     // nil: not known, or beyond MaxAncestors
	depth      int          // number of ancestors
}

// Title is the path of the executable, and what it runs as an interpreter.
func (p *Program) Title() string {
	name := ""
	if p.Script != nil {
		name = p.Script.Path
	}
	if label := event.ScriptLabel(p.ScriptKind, name); label != "" {
		return p.Executable.Path + " › " + label
	}
	return p.Executable.Path
}

// programOverhead is about what a program costs besides its texts, in bytes.
const programOverhead = 256

// size is about what the program costs, without its ancestors, in bytes.
func (p *Program) size() int {
	n := programOverhead + len(p.Executable.Path) + len(p.Name) + len(p.Cmdline) + len(p.Preload)
	if p.Script != nil {
		n += len(p.Script.Path)
	}
	return n
}

// Sizes counts the memory of the programs that it was given, each once.
type Sizes map[*Program]int // how often it was given

// Add takes in a program with its ancestors and returns the bytes that it adds.
func (s Sizes) Add(p *Program) (bytes int) {
	for ; p != nil; p = p.Parent {
		s[p]++
		if s[p] > 1 {
			return bytes // and so are its ancestors
		}
		bytes += p.size()
	}
	return bytes
}

// Remove takes back one Add and returns the bytes that it frees.
func (s Sizes) Remove(p *Program) (bytes int) {
	for ; p != nil; p = p.Parent {
		if s[p]--; s[p] > 0 {
			return bytes
		}
		delete(s, p)
		bytes += p.size()
	}
	return bytes
}

// descend returns p as a parent: with at most MaxAncestors-1 ancestors of its own. A chain of dead parents would
// otherwise be kept, and grow, for ever.
func (p *Program) descend() *Program {
	if p == nil || p.depth < MaxAncestors {
		return p
	}
	return p.cut(MaxAncestors - 1)
}

func (p *Program) cut(depth int) *Program {
	if p.depth <= depth {
		return p
	}
	c := *p
	c.depth = depth
	c.Parent = nil
	if depth > 0 {
		c.Parent = p.Parent.cut(depth - 1)
	}
	return &c
}

// Cmdline joins arguments with spaces. An argument that a shell would take apart or change is quoted; cut says
// that there were more.
func Cmdline(argv []string, cut bool) string {
	var b strings.Builder
	for i, a := range argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		quote(&b, a)
		if b.Len() > maxText {
			return clip(b.String(), maxText)
		}
	}
	if cut {
		b.WriteString(" …")
	}
	return clip(b.String(), maxText)
}

func quote(b *strings.Builder, a string) {
	if a != "" && strings.IndexFunc(a, special) < 0 {
		b.WriteString(a)
		return
	}
	b.WriteByte('\'')
	b.WriteString(strings.ReplaceAll(a, "'", `'\''`))
	b.WriteByte('\'')
}

// special is true for characters that mean something to a shell. A letter of any script does not.
func special(r rune) bool {
	switch {
	case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r > 0x7f && !unicode.IsSpace(r):
		return false
	}
	return !strings.ContainsRune("_@%+=:,./-", r)
}

// clip bounds s, and says that it did.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	n := limit
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// Printable makes a text of the stream safe to print. The sensor has passed it through event.Text already, so
// it is returned as it is; but a stream can also be a file that a stranger wrote. The backslash is left alone:
// it is event.Text's.
func Printable(s string) string { return bounded(s, maxText) }

// PrintablePath is Printable for a path, which may be longer.
func PrintablePath(s string) string { return bounded(s, maxPath) }

// PrintableReason is Printable for the reason why something is not known.
func PrintableReason(s string) string { return bounded(s, maxReason) }

// PrintableWord is Printable for one of a few short words.
func PrintableWord(s string) string { return bounded(s, maxWord) }

func bounded(s string, limit int) string {
	s = clip(s, limit)
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] >= 0x7f {
			return clip(printable(s), limit)
		}
	}
	return s
}

func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\\' {
			b.WriteByte('\\')
		} else {
			b.WriteString(event.Text(utf8.AppendRune(nil, r)))
		}
	}
	return b.String()
}
