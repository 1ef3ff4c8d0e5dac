package sensor

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/digest"
	"github.com/picosnitch/picosnitch/internal/sensor/fanotify"
	"github.com/picosnitch/picosnitch/internal/sensor/place"
	"github.com/picosnitch/picosnitch/internal/sensor/procfs"
	"github.com/picosnitch/picosnitch/internal/sensor/script"
)

// who fills in what the kernel's reports leave open: the files of scripts, and the names of containers.
type who struct {
	interpreters *script.Interpreters
	finder       script.Finder
	names        place.Names
	lookups      *lookups
	stop         func()                   // ends its workers
	called       map[*event.Place]*naming // containers, by the place as it was first told
}

// naming is a container whose name was asked for.
type naming struct {
	asked bool         // an answer is to come
	place *event.Place // with the name, or as it was
	next  time.Time    // when to ask again; zero: never
	tries int
}

// nameTries are the pauses before a name is asked for again: some are written down after the container's first program started.
func nameTries() []time.Duration {
	return []time.Duration{2 * time.Second, 10 * time.Second, time.Minute}
}

// calledMax bounds the containers that are remembered.
const calledMax = 4096

func newWho() who {
	ctx, stop := context.WithCancel(context.Background())
	return who{
		interpreters: script.New(), finder: script.Finder{Proc: procfs.Root, Root: "/"},
		lookups: newLookups(ctx), stop: stop, called: map[*event.Place]*naming{},
	}
}

// describe adds to a process what its arguments and its place tell, and asks for the rest. It is called before the table
// learns the process.
func (l *loop) describe(p *event.Process) {
	l.call(p.Place)
	m := l.who.interpreters.Of(p)
	p.ScriptKind, p.Script = m.Kind, ""
	switch m.Kind {
	case event.ScriptModule:
		p.Script, p.ScriptReason = m.Name, script.ReasonModule
	case event.ScriptFromFile, event.ScriptArgument:
		p.Script = script.Path(m, p.Cwd)
		if m.Cut { // another file may have the name of the beginning
			p.ScriptReason = script.ReasonCut
			return
		}
		q := script.Question{Process: p.ID, UID: p.UID, Started: p.Started, Meaning: m, Folder: p.Cwd, Machine: !p.Apart && p.Source != event.SourceProcfs}
		if p.Source != event.SourceExec {
			q.Started = 0 // the time of its fork, and it may have changed since its exec
		}
		if !l.who.lookups.ask(func() func() {
			f := l.who.finder.Find(q)
			if f.Waits && !l.executed.closer.room() {
				unix.Close(f.FD) // here, where nobody waits for it
				f.FD = -1
			}
			return func() { l.scriptFound(q.Process, f) }
		}) {
			p.ScriptReason = script.ReasonBusy
		}
	}
}

// scriptFound takes in the file of a script.
func (l *loop) scriptFound(id event.ProcessID, f script.File) {
	known := l.table.Amend(id, func(p *event.Process) { p.ScriptFile, p.ScriptReason = f.ID, f.Reason })
	if f.FD >= 0 {
		inode := digest.Inode{Device: f.ID.Device, Number: f.ID.Inode}
		if _, kept := l.executed.files[f.ID]; !known || kept || l.digester.Known(inode, f.ID.Ctime, f.ID.Size) {
			l.executed.shut(digest.Descriptor{FD: f.FD, Waits: f.Waits})
		} else {
			l.executed.hold(f.ID, &held{Descriptor: digest.Descriptor{FD: f.FD, Own: true, Waits: f.Waits}, inode: fanotify.Inode(inode)})
		}
	}
	if p, ok := l.table.Resolve(id); ok && l.stream.knows(id) { // it was told without: it took too long
		l.stream.retell(l.finish(p))
		l.wantScript(p)
	}
}

// unfound reports whether p's script was not found so far, and not given up.
func unfound(p *event.Process) bool {
	return (p.ScriptKind == event.ScriptFromFile || p.ScriptKind == event.ScriptArgument) && p.ScriptFile.IsZero() && p.ScriptReason == ""
}

// unresolved reports whether something about p is still to come.
func (l *loop) unresolved(p *event.Process) bool {
	n := l.who.called[p.Place]
	return unfound(p) || n != nil && n.asked
}

// complete waits a moment for what is still to come about p and those of its ancestors that the recorder does not know, and returns
// what is known then.
func (l *loop) complete(p event.Process) (event.Process, []event.Process) {
	up := l.table.Ancestors(p.ID, l.stream.knows)
	enough := func() bool {
		for i := range up {
			if l.unresolved(&up[i]) {
				return false
			}
		}
		return !l.unresolved(&p)
	}
	again := func() bool {
		if q, ok := l.table.Resolve(p.ID); ok {
			p = q
		}
		up = l.table.Ancestors(p.ID, l.stream.knows)
		return enough()
	}
	if !enough() {
		l.who.lookups.await(again)
		again()
	}
	return p, up
}

// finish makes of a process what is told: with the name of its container, and with the reason why its script is not known.
func (l *loop) finish(p event.Process) event.Process {
	if n := l.who.called[p.Place]; n != nil {
		p.Place = n.place
	}
	if unfound(&p) {
		p.ScriptReason = script.ReasonStalled
	}
	return p
}

// wantScript asks for the digest of what p runs as an interpreter.
func (l *loop) wantScript(p event.Process) {
	if p.ScriptFile.IsZero() {
		if p.ScriptKind == event.ScriptFromFile || p.ScriptKind == event.ScriptArgument {
			l.tally.scripts++
		}
		return
	}
	q := event.Process{ID: p.ID, Path: p.Script, File: p.ScriptFile, ScriptFile: p.ScriptFile, Started: p.Started, Source: p.Source}
	q.ID.Exec = ^q.ID.Exec // that the process still runs says nothing about its script
	l.want(q)
}

// call asks for the name of a container that is met for the first time.
func (l *loop) call(p *event.Place) {
	if p == nil || p.Kind != event.PlaceContainer || l.who.called[p] != nil {
		return
	}
	if len(l.who.called) >= calledMax {
		clear(l.who.called) // those that still run are asked for again
	}
	n := &naming{place: p}
	l.who.called[p] = n
	l.askName(p, n)
}

func (l *loop) askName(p *event.Place, n *naming) {
	n.next = time.Time{}
	n.asked = l.who.lookups.ask(func() func() {
		name, err := l.who.names.Name(p)
		return func() { l.named(p, n, name, err) }
	})
	if !n.asked {
		n.next = time.Now().Add(nameTries()[0])
	}
}

// named takes in the name of a container, "" if there is none (yet).
func (l *loop) named(p *event.Place, n *naming, name string, err error) {
	n.asked = false
	if name != "" {
		c := *p
		c.Name = name
		n.place = &c
		l.stream.rename(p, &c)
		return
	}
	if n.tries < len(nameTries()) && len(p.Container) == 64 && p.Owner == "" {
		n.next = time.Now().Add(nameTries()[n.tries])
		n.tries++
		return
	}
	if err != nil { // else it has none
		l.notice("warning", fmt.Sprintf("the name of container %s could not be read: %s", p.Container, event.Text([]byte(err.Error()))), "its id is recorded")
	}
}

// tickWho asks again for names that were not there.
func (l *loop) tickWho(now time.Time) {
	l.who.lookups.tick()
	for p, n := range l.who.called {
		if !n.asked && !n.next.IsZero() && now.After(n.next) {
			l.askName(p, n)
		}
	}
}
