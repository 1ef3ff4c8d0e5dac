package flow

import (
	"github.com/picosnitch/picosnitch/internal/event"
)

// Bounds of the memory of Processes. A machine has 32,768 processes by default, and seldom more than a few hundred.
const (
	maxProcesses = 1 << 17
	maxDigests   = 1 << 13
)

// Processes knows the program of every process that may still be named by the stream. It is not safe for concurrent use.
type Processes struct {
	commands  bool
	tasks     map[task][]*image
	count     int
	forgotten uint64
	digests   map[fileKey]*Digest
	sweepAt   int
	unknown   *Program
	kernel    *Executable
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
	children int
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
	p.sweepAt = maxDigests
	p.count = 0
}

// Forgotten counts processes that were dropped because there were too many: their later flows are those of an unknown program.
func (p *Processes) Forgotten() uint64 { return p.forgotten }

// Len is the number of program images known.
func (p *Processes) Len() int { return p.count }

// Start takes in a process.
func (p *Processes) Start(e *event.Process) {
	if e.ID.IsZero() {
		return
	}
	if old := p.find(e.ID); old != nil {
		// Told again (a better source, or a repetition): later flows have the new facts.
		old.program = p.program(e, old.parent)
		return
	}
	if p.count >= maxProcesses {
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
	im.program = p.program(e, parent)
	p.tasks[t] = append(p.tasks[t], im)
	p.count++
}

func (p *Processes) program(e *event.Process, parent *image) *Program {
	g := &Program{Name: Printable(e.Name), Script: Printable(e.Script), Cgroup: e.Cgroup}
	if e.Kernel {
		g.Executable = p.kernel
	} else {
		path := Printable(e.Path)
		g.Executable = &Executable{Path: path, File: e.File, Digest: p.digest(e.File, path)}
	}
	if p.commands {
		g.Cmdline = Printable(Cmdline(e.Argv, e.ArgvCut))
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

// End forgets a process, all its images, once no child needs it to know its ancestors.
func (p *Processes) End(id event.ProcessID) {
	for _, im := range append([]*image(nil), p.tasks[task{id.PID, id.Start}]...) {
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

// evict drops some processes, ended ones first. It is reached only when exits are not told.
func (p *Processes) evict() {
	for _, ended := range [...]bool{true, false} {
		for t, images := range p.tasks {
			if p.count < maxProcesses {
				return
			}
			if images[0].ended == ended || !ended {
				p.count -= len(images)
				p.forgotten += uint64(len(images))
				delete(p.tasks, t)
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
		if len(p.digests) >= p.sweepAt {
			p.sweep()
		}
		d = new(Digest)
		p.digests[k] = d
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
			}
		}
	}
	for k, d := range p.digests {
		if !used[d] {
			delete(p.digests, k)
		}
	}
	p.sweepAt = max(maxDigests, 2*len(p.digests))
}

// Executable takes in a digest and reports whether it is news. A hash never changes into none.
func (p *Processes) Executable(e *event.Executable) bool {
	d := p.digest(e.File, Printable(e.Path))
	sum, reason := Printable(e.SHA256), Printable(e.Reason)
	if d == p.unknown.digestOf() || (sum == "" && d.SHA256 != "") || (sum == d.SHA256 && reason == d.Reason) {
		return false
	}
	if d.SHA256 != "" && d.SHA256 != sum {
		// The same identity, other bytes: what is recorded keeps the old hash, programs from now on have the new one.
		d = &Digest{}
		p.digests[key(e.File, Printable(e.Path))] = d
		p.rebase(key(e.File, Printable(e.Path)), d)
	}
	d.SHA256, d.Reason = sum, reason
	return true
}

func (g *Program) digestOf() *Digest { return g.Executable.Digest }

// rebase gives the programs that execute a file another digest.
func (p *Processes) rebase(k fileKey, d *Digest) {
	for _, images := range p.tasks {
		for _, im := range images {
			e := im.program.Executable
			if e != p.kernel && key(e.File, e.Path) == k {
				g, x := *im.program, *e
				x.Digest = d
				g.Executable = &x
				im.program = &g
			}
		}
	}
}
