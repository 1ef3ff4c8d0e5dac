package flow

import (
	"github.com/picosnitch/picosnitch/internal/event"
)

// Bounds of the memory of Processes. A machine has 32,768 processes by default, and seldom more than a few hundred.
const (
	maxProcesses = 1 << 17
	maxDigests   = 1 << 13

	// Bytes of the texts of all images. A process that would be forgotten costs its name, so command lines are
	// shortened first: above shortBytes only the first maxShort bytes of a new one are kept.
	shortBytes  = 8 << 20
	maxBytes    = 24 << 20
	maxShort    = 128
	digestBytes = 4 << 20 // of the keys and texts of digests

	maxLineage = 1 << 10 // ancestors that are looked at to keep a hostile stream from making a ring of parents
)

// Processes knows the program of every process that may still be named by the stream. It is not safe for concurrent use.
type Processes struct {
	commands  bool
	tasks     map[task][]*image
	count     int
	bytes     int // of the texts of all images
	forgotten uint64
	shortened uint64
	digests   map[fileKey]*Digest
	held      int // bytes of digests, at most
	sweepAt   int
	sweepHeld int
	unknown   *Program
	kernel    *Executable
	places    map[event.Place]*event.Place // as they came, to what is kept
}

// task is a process through all its execs.
type task struct {
	pid   uint32
	start uint64
}

// image is one program in one process.
type image struct {
	id       event.ProcessID
	program  *Program
	parent   *image
	uid      uint32
	children int
	size     int // bytes of its texts
	ended    bool
}

// fileKey finds a digest: by the file's identity, or by path for a file whose identity is not known.
type fileKey struct {
	file event.FileID
	path string
}

// NewProcesses returns an empty table. Without commands, arguments are dropped.
func NewProcesses(commands bool) *Processes {
	p := &Processes{commands: commands, kernel: &Executable{Path: KernelPath, Digest: &Digest{Reason: "a kernel thread has no file"}}}
	p.Reset()
	p.unknown = &Program{Executable: &Executable{Digest: &Digest{Reason: "the program is not known"}}}
	return p
}

// Reset forgets everything: a Hello is followed by all that later lines may name.
func (p *Processes) Reset() {
	p.tasks = make(map[task][]*image)
	p.digests = make(map[fileKey]*Digest)
	p.places = make(map[event.Place]*event.Place)
	p.sweepAt, p.sweepHeld = maxDigests, digestBytes
	p.count, p.bytes, p.held = 0, 0, 0
}

// Forgotten counts processes that were dropped because there were too many: their later flows are those of an unknown program.
func (p *Processes) Forgotten() uint64 { return p.forgotten }

// Shortened counts command lines of which only the beginning was kept because all of them were too long together.
func (p *Processes) Shortened() uint64 { return p.shortened }

// Len is the number of program images known.
func (p *Processes) Len() int { return p.count }

// Start takes in a process.
func (p *Processes) Start(e *event.Process) {
	if e.ID.IsZero() {
		return
	}
	if old := p.find(e.ID); old != nil {
		// Told again (a better source, a repetition, or after its Exit): it lives, and later flows have the new facts.
		old.ended = false
		if parent := p.find(e.Parent); parent != nil && parent != old.parent && !old.above(parent) {
			parent.children++
			if before := old.parent; before != nil {
				before.children--
				p.release(before)
			}
			old.parent = parent
		}
		p.describe(old, e)
		return
	}
	if p.count >= maxProcesses || p.bytes >= maxBytes {
		p.evict()
	}
	t := task{e.ID.PID, e.ID.Start}
	parent := p.find(e.Parent)
	if parent == nil {
		// The parent may be gone while an earlier image of this process still knows it.
		for _, im := range p.tasks[t] {
			if im.parent != nil && im.parent.id == e.Parent {
				parent = im.parent
			}
		}
	}
	im := &image{id: e.ID, parent: parent}
	if parent != nil {
		parent.children++
	}
	p.describe(im, e)
	p.tasks[t] = append(p.tasks[t], im)
	p.count++
}

// above reports whether im is an ancestor of other, or may be.
func (im *image) above(other *image) bool {
	for n := 0; other != nil; other, n = other.parent, n+1 {
		if other == im || n == maxLineage {
			return true
		}
	}
	return false
}

// describe gives an image its program.
func (p *Processes) describe(im *image, e *event.Process) {
	p.bytes -= im.size
	im.program, im.uid = p.program(e, im.parent), e.UID
	im.size = im.program.size()
	p.bytes += im.size
}

func (p *Processes) program(e *event.Process, parent *image) *Program {
	g := &Program{Name: Printable(e.Name), Cgroup: e.Cgroup, Place: p.place(e.Place), Preload: preload(e)}
	p.addScript(g, e)
	if e.Kernel {
		g.Executable = p.kernel
	} else {
		path := PrintablePath(e.Path)
		g.Executable = &Executable{Path: path, File: e.File, Digest: p.digest(e.File, path)}
	}
	if p.commands {
		g.Cmdline = Printable(Cmdline(e.Argv, e.ArgvCut))
		if p.bytes >= shortBytes && len(g.Cmdline) > maxShort {
			g.Cmdline = clip(g.Cmdline, maxShort)
			p.shortened++
		}
	}
	if parent != nil {
		g.Parent = parent.program.descend()
		g.depth = g.Parent.depth + 1
		// Processes of one file and one path share the Executable; the likeliest one is the parent's (fork).
		if pe := g.Parent.Executable; pe.Path == g.Executable.Path && pe.File == g.Executable.File && pe.Digest == g.Executable.Digest {
			g.Executable = pe
		}
	}
	return g
}

// End forgets an image, once no child needs it to know its ancestors. Other images of the process stay: the kernel's word for an
// image that another one replaced is an end, too.
func (p *Processes) End(id event.ProcessID) {
	if im := p.find(id); im != nil {
		im.ended = true
		p.release(im)
	}
}

func (p *Processes) release(im *image) {
	for im != nil && im.ended && im.children == 0 {
		t := task{im.id.PID, im.id.Start}
		rest := p.tasks[t]
		for i, other := range rest {
			if other == im {
				rest = append(rest[:i], rest[i+1:]...)
				p.count--
				p.bytes -= im.size
				break
			}
		}
		if len(rest) == 0 {
			delete(p.tasks, t)
		} else {
			p.tasks[t] = rest
		}
		parent := im.parent
		im.parent = nil
		if parent != nil {
			parent.children--
		}
		im = parent
	}
}

// evict drops a 64th of the processes, ended ones first: one at a time would cost a walk each. It is reached only when exits
// are not told.
func (p *Processes) evict() {
	for _, ended := range [...]bool{true, false} {
		for t, images := range p.tasks {
			if p.count <= maxProcesses-maxProcesses/64 && p.bytes <= maxBytes-maxBytes/64 {
				return
			}
			if images[0].ended != ended && ended {
				continue
			}
			delete(p.tasks, t)
			p.forgotten += uint64(len(images))
			p.count -= len(images)
			for _, im := range images {
				p.bytes -= im.size
			}
			for _, im := range images {
				parent := im.parent
				if im.parent = nil; parent != nil {
					parent.children--
					p.release(parent)
				}
			}
		}
	}
}

func (p *Processes) find(id event.ProcessID) *image {
	for _, im := range p.tasks[task{id.PID, id.Start}] {
		if im.id == id {
			return im
		}
	}
	return nil
}

// Program returns the program of a process, and false with the unknown program if the process is not known.
func (p *Processes) Program(id event.ProcessID) (*Program, bool) {
	if im := p.find(id); im != nil {
		return im.program, true
	}
	return p.unknown, false
}

// Runs finds a process that executes a file, and its user. It looks at all of them.
func (p *Processes) Runs(file event.FileID) (id event.ProcessID, uid uint32, running bool) {
	if file.IsZero() {
		return event.ProcessID{}, 0, false
	}
	for _, images := range p.tasks {
		for _, im := range images {
			if !im.ended && im.program.Executable.File == file {
				return im.id, im.uid, true
			}
		}
	}
	return event.ProcessID{}, 0, false
}

func key(file event.FileID, path string) fileKey {
	if file.IsZero() {
		return fileKey{path: path}
	}
	return fileKey{file: file}
}

func (p *Processes) digest(file event.FileID, path string) *Digest {
	k := key(file, path)
	if k == (fileKey{}) {
		return p.unknown.Executable.Digest
	}
	d := p.digests[k]
	if d == nil {
		if len(p.digests) >= p.sweepAt || p.held >= p.sweepHeld {
			p.sweep()
		}
		d = new(Digest)
		p.digests[k] = d
		p.held += digestOverhead + len(k.path)
	}
	return d
}

// sweep forgets the digests of files that no known process executes.
func (p *Processes) sweep() {
	used := make(map[*Digest]bool, p.count)
	for _, images := range p.tasks {
		for _, im := range images {
			for g := im.program; g != nil; g = g.Parent {
				used[g.Executable.Digest] = true
				if g.Script != nil {
					used[g.Script.Digest] = true
				}
			}
		}
	}
	p.held = 0
	for k, d := range p.digests {
		if !used[d] {
			delete(p.digests, k)
			continue
		}
		p.held += digestOverhead + len(k.path) + len(d.SHA256) + len(d.Reason)
	}
	p.sweepAt, p.sweepHeld = max(maxDigests, 2*len(p.digests)), max(digestBytes, 2*p.held)
}

// digestOverhead is about what a digest costs besides its texts, in bytes.
const digestOverhead = 128

// Executable takes in a digest and reports whether it is news. A hash never changes into none.
func (p *Processes) Executable(e *event.Executable) bool {
	d := p.digest(e.File, PrintablePath(e.Path))
	sum, reason := PrintableWord(e.SHA256), PrintableReason(e.Reason)
	if d == p.unknown.digestOf() || (sum == "" && d.SHA256 != "") || (sum == d.SHA256 && reason == d.Reason) {
		return false
	}
	if d.SHA256 != "" && d.SHA256 != sum {
		// The same identity, other bytes: what is recorded keeps the old hash, programs from now on have the new one.
		d = &Digest{}
		p.digests[key(e.File, PrintablePath(e.Path))] = d
		p.rebase(key(e.File, PrintablePath(e.Path)), d)
	}
	p.held += len(sum) + len(reason) - len(d.SHA256) - len(d.Reason)
	d.SHA256, d.Reason = sum, reason
	return true
}

func (g *Program) digestOf() *Digest { return g.Executable.Digest }

// rebase gives the programs that execute a file another digest.
func (p *Processes) rebase(k fileKey, d *Digest) {
	for _, images := range p.tasks {
		for _, im := range images {
			if e := im.program.Executable; e != p.kernel && key(e.File, e.Path) == k {
				g, x := *im.program, *e
				x.Digest = d
				g.Executable = &x
				im.program = &g
			}
			if e := im.program.Script; e != nil && !e.File.IsZero() && key(e.File, e.Path) == k {
				g, x := *im.program, *e
				x.Digest = d
				g.Script = &x
				im.program = &g
			}
		}
	}
}
