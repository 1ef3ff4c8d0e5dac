// Package origin says which package of the system a file is from and whether it still is what the package ships. It belongs to the
// recorder's wing and needs no right: it reads the package database and the file as anybody can, and starts no process itself (the tools
// of rpm and pacman are run by a function that it is given). It believes the database, which only root can change, and
// proves the bytes: a file counts as the package's only if the bytes that were hashed are the ones that match.
package origin

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// State is what is known of a file's origin.
type State int

// States.
const (
	Unknown   State = iota // it could not be found out: see Reason
	Unowned                // no package has the file
	Shipped                // the file is what its package ships
	Differs                // the file is not what its package ships
	Conffile               // a package has the file, as one that the administrator changes
	Elsewhere              // the file that is at the path now is another one: it was replaced again, or is in a container
)

// Query is a question.
type Query struct {
	Path   string // as event.Text gives it
	SHA256 string // of the bytes that it is about; "" if not known
}

// Verdict is an answer.
type Verdict struct {
	State   State
	Package string // "" if none
	Version string
	Reason  string // why it is Unknown
	// Unsettled is set when a package manager was at work, so that the next answer may be another one.
	Unsettled bool
}

// String says it in words, for a line of a notice; "" if there is nothing to say.
func (v Verdict) String() string {
	p := strings.TrimSpace(v.Package + " " + v.Version)
	switch v.State {
	case Unowned:
		return "of no package"
	case Shipped:
		return "from package " + p + ", unchanged"
	case Differs:
		return "differs from package " + p
	case Conffile:
		return "configuration of package " + p
	case Elsewhere:
		if v.Package == "" {
			return "not the file that is at this path now: replaced since, or in a container"
		}
		return "not the file of package " + p + " that is at this path now: replaced since, or in a container"
	}
	if v.Reason == "" {
		return ""
	}
	if v.Package != "" {
		return "of package " + p + ", not compared: " + v.Reason
	}
	return "package not known: " + v.Reason
}

// Tool runs a program of the system's and gives its output and exit code. An error means that it did not run to its end.
type Tool func(ctx context.Context, path string, args ...string) (out []byte, code int, err error)

// Options of New.
type Options struct {
	Root string // of the file system; "": /
	Tool Tool   // nil: rpm and pacman are not asked
	// Clock is the wall clock.
	Clock func() time.Time
}

// Finder answers. It is not safe for concurrent use.
type Finder struct {
	o     Options
	cache map[Query]cached
}

type cached struct {
	v     Verdict
	stamp string // of the databases
}

// maxCache bounds the answers that are kept.
const maxCache = 1 << 11

// New returns a Finder.
func New(o Options) *Finder {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Finder{o: o, cache: make(map[Query]cached)}
}

// manager is a package database.
type manager interface {
	present() bool
	stamp() string // changes with the database
	busy() bool    // the database is being changed
	// find answers for absolute paths (raw bytes), in their order. State is Unowned, Conffile, Unknown, or Shipped for an
	// owner whose sum is given.
	find(ctx context.Context, paths []string) []found
}

// found is what a database says of a path.
type found struct {
	Verdict
	sums []string // hex: what the file has if it is as shipped; one of them is enough
	sum  func() hash.Hash
}

// nowhere are folders of which no package has files.
func nowhere() []string {
	return []string{"/home/", "/root/", "/tmp/", "/var/tmp/", "/run/", "/mnt/", "/media/", "/proc/", "/dev/", "/sys/", "/memfd:"}
}

// Find answers queries, in their order. It takes some ten milliseconds, and the time to read the files that have a package.
func (f *Finder) Find(ctx context.Context, queries []Query) []Verdict {
	answers := make([]Verdict, len(queries))
	var managers []manager
	stamp := ""
	for _, m := range []manager{&dpkg{root: f.o.Root, clock: f.o.Clock}, &rpm{root: f.o.Root, tool: f.o.Tool, clock: f.o.Clock}, &pacman{root: f.o.Root, tool: f.o.Tool}} {
		if m.present() {
			managers = append(managers, m)
			stamp += m.stamp() + ";"
		}
	}
	if len(managers) == 0 {
		for i := range answers {
			answers[i] = Verdict{Reason: "neither dpkg nor rpm nor pacman is here"}
		}
		return answers
	}
	var open []int
	var paths []string
	for i, q := range queries {
		if c, ok := f.cache[q]; ok && c.stamp == stamp {
			answers[i] = c.v
			continue
		}
		path, ok := raw(q.Path)
		switch {
		case !ok || !strings.HasPrefix(path, "/"):
			answers[i] = Verdict{} // a kernel thread
		case anyPrefix(path, nowhere()):
			answers[i] = Verdict{State: Unowned}
		default:
			open = append(open, i)
			paths = append(paths, path)
		}
	}
	if len(open) == 0 {
		return answers
	}
	best := make([]found, len(paths))
	busy := false
	for n, m := range managers {
		busy = m.busy() || busy
		for i, a := range m.find(ctx, paths) {
			// Who has the file knows best; who does not know, knows more than who has it not.
			if n == 0 || a.Package != "" || best[i].Package == "" && a.State == Unknown {
				best[i] = a
			}
		}
	}
	for i, at := range open {
		v := f.compare(ctx, paths[i], queries[at].SHA256, best[i])
		v.Unsettled = busy && v.State != Shipped
		answers[at] = v
		if !v.Unsettled && v.State != Elsewhere && v.State != Unknown {
			if len(f.cache) >= maxCache {
				clear(f.cache)
			}
			f.cache[queries[at]] = cached{v, stamp}
		}
	}
	return answers
}

func anyPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// maxRead bounds a file that is compared, in bytes.
const maxRead = 4 << 30

// compare reads a file that a package has: it proves that the bytes at the path are the ones that the query is about, and says
// whether they are the package's.
func (f *Finder) compare(ctx context.Context, path, sum string, a found) Verdict {
	v := a.Verdict
	if v.State != Shipped {
		return v
	}
	if len(a.sums) == 0 {
		v.State, v.Reason = Unknown, "the package has no checksum of it"
		return v
	}
	if sum == "" {
		v.State, v.Reason = Unknown, "the program could not be hashed"
		return v
	}
	theirs := a.sum()
	if _, same := theirs.(sha); same && contains(a.sums, sum) {
		return v // nothing has to be read
	}
	ours := sha256.New()
	if err := read(ctx, f.o.Root+path, io.MultiWriter(ours, theirs)); err != nil {
		v.State, v.Reason = Unknown, err.Error()
		return v
	}
	switch {
	case hex.EncodeToString(ours.Sum(nil)) != sum:
		v.State = Elsewhere
	case !contains(a.sums, hex.EncodeToString(theirs.Sum(nil))):
		v.State = Differs
	}
	return v
}

// sha marks a database whose checksums are the ones that we have.
type sha struct{ hash.Hash }

func asSHA256() hash.Hash { return sha{sha256.New()} }

func asMD5() hash.Hash { return md5.New() }

func contains(list []string, s string) bool {
	for _, l := range list {
		if strings.EqualFold(l, s) {
			return true
		}
	}
	return false
}

// read copies a plain file, without waiting for anybody.
func read(ctx context.Context, path string, w io.Writer) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxRead {
		return fmt.Errorf("%s is not a plain file, or a very large one", path)
	}
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf)
		w.Write(buf[:n]) // a hash never fails
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// slurp reads a file of a database, within bounds.
func slurp(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
