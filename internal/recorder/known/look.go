package known

import (
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// Seen takes in that a program used the network at an instant (ns since 1970), with remote; or, when remote is nil, that it was only
// executed.
func (k *Known) Seen(p *flow.Program, at int64, remote func() string) {
	if _, ok := k.done[p]; ok || p.Executable.Path == "" {
		return
	}
	k.mu.Lock()
	settled := k.look(p, at, remote)
	k.mu.Unlock()
	if settled {
		if len(k.done) >= maxSettled {
			clear(k.done)
		}
		k.done[p] = struct{}{}
	}
}

// Forget lets go of programs that have ended. What is known stays known.
func (k *Known) Forget() { clear(k.done) }

// look compares a program with the record. It reports whether nothing of it is still awaited.
func (k *Known) look(p *flow.Program, at int64, remote func() string) bool {
	exe, name := p.Executable.Path, p.Name
	var n news
	why := k.meet(&n, names, executables, name, exe)
	if why != "" {
		n.Log = append(n.Log, k.log.line(at, name, exe, why))
	}
	newExe := strings.Contains(why, "exe")
	script := ""
	newScript := false
	if p.Script != nil && strings.HasPrefix(p.Script.Path, "/") { // the name of a module is no file
		script = p.Script.Path
		_, known := k.r.Executables[script]
		if k.meet(&n, names, executables, name, script); !known {
			newScript = true
			n.Log = append(n.Log, k.log.line(at, name, script, "(new script)"))
		}
	}
	parent := p.Parent
	newParent := false
	parentPath := ""
	if parent != nil && parent.Executable.Path != "" {
		parentPath = parent.Executable.Path
		why := k.meet(&n, parentNames, parentExecutables, parent.Name, parentPath)
		if why != "" {
			n.Log = append(n.Log, k.log.line(at, parent.Name, parentPath, why+" (parent)"))
		}
		// A program that is known to use the network itself is no news behind another one.
		_, known := k.r.Executables[parentPath]
		newParent = strings.Contains(why, "exe") && !known
	}
	var about *notify.Notice
	var digest *flow.Digest
	switch {
	case newScript:
		about, digest = &notify.Notice{Kind: notify.NewScript, Name: name, Path: exe, Script: script, Parent: parentPath}, p.Script.Digest
	case newExe:
		about, digest = &notify.Notice{Kind: notify.NewProgram, Name: name, Path: exe, Parent: parentPath, Detail: k.namesake(name, exe)}, p.Executable.Digest
	case newParent:
		about, digest = &notify.Notice{Kind: notify.NewParent, Name: parent.Name, Path: parentPath, Detail: "it started " + exe}, parent.Executable.Digest
	}
	if about != nil {
		about.At, about.Count, about.Place = at, 1, place(p)
		switch {
		case remote != nil:
			about.Remote = remote()
		case about.Kind != notify.NewParent:
			about.Kind = notify.Executed
		}
		k.seq++
		n.Seq, n.Notice = k.seq, about
	}
	if n.Notice != nil || len(n.Entries) > 0 {
		k.commit(&n)
	}

	settled := true
	for _, f := range []struct {
		digest    *flow.Digest
		path, exe string
		name      string
	}{
		{p.Executable.Digest, exe, "", name},
		{scriptDigest(p), script, exe, name},
		{parentDigest(p), parentPath, "", parentName(p)},
	} {
		if f.digest == nil || f.path == "" {
			continue
		}
		w := &waiting{since: at, name: f.name, exe: f.exe, place: place(p)}
		if about != nil && f.digest == digest {
			w.seq, w.notice = n.Seq, about
			about = nil
		}
		settled = k.await(awaited{f.digest, f.path}, w, at) && settled
	}
	return settled
}

// place is where a program runs, if it is a place with files of its own, or a service.
func place(p *flow.Program) string {
	if p.Place == nil {
		return ""
	}
	switch p.Place.Kind {
	case event.PlaceContainer, event.PlaceApp, event.PlaceService:
		return p.Place.Label()
	}
	return ""
}

func scriptDigest(p *flow.Program) *flow.Digest {
	if p.Script == nil {
		return nil
	}
	return p.Script.Digest
}

func parentDigest(p *flow.Program) *flow.Digest {
	if p.Parent == nil {
		return nil
	}
	return p.Parent.Executable.Digest
}

func parentName(p *flow.Program) string {
	if p.Parent == nil {
		return ""
	}
	return p.Parent.Name
}

// namesake says where a program of the same name was so far.
func (k *Known) namesake(name, exe string) string {
	var others []string
	for _, other := range k.r.Names[name] {
		if other != exe {
			others = append(others, other)
		}
	}
	if name == "" || len(others) == 0 || len(others) > 3 {
		return ""
	}
	return "so far, " + name + " was " + strings.Join(others, ", ")
}
