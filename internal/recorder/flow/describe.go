package flow

import (
	"cmp"

	"github.com/picosnitch/picosnitch/internal/event"
)

// addScript gives a program what it runs as an interpreter.
func (p *Processes) addScript(g *Program, e *event.Process) {
	g.ScriptKind = PrintableWord(e.ScriptKind)
	if e.Script == "" {
		return
	}
	g.ScriptKind = cmp.Or(g.ScriptKind, event.ScriptFromFile)
	g.Script = &Executable{Path: PrintablePath(e.Script), File: e.ScriptFile}
	if e.ScriptFile.IsZero() {
		g.Script.Digest = &Digest{Reason: PrintableReason(ReasonScript + cmp.Or(e.ScriptReason, "its file was not looked up"))}
		return
	}
	g.Script.Digest = p.digest(e.ScriptFile, g.Script.Path)
}

// preload is what LD_PRELOAD and LD_AUDIT were, or may have been.
func preload(e *event.Process) string {
	s := Printable(e.Preload)
	if e.PreloadCut {
		if s != "" {
			s += " "
		}
		s += "…"
	}
	return s
}

// maxPlaces bounds the places that are shared between programs.
const maxPlaces = 1 << 12

// place returns the shared copy of a place, with texts that are safe to print.
func (p *Processes) place(e *event.Place) *event.Place {
	if e == nil {
		return nil
	}
	if known := p.places[*e]; known != nil {
		return known
	}
	if len(p.places) >= maxPlaces {
		clear(p.places) // what programs hold stays; equal places may be there twice then
	}
	c := *e
	for _, s := range [...]*string{&c.Kind, &c.Owner, &c.Session, &c.Runtime} {
		*s = PrintableWord(*s)
	}
	for _, s := range [...]*string{&c.Unit, &c.UserUnit, &c.Container, &c.Name, &c.Pod, &c.App} {
		*s = Printable(*s)
	}
	c.Path = PrintablePath(c.Path)
	p.places[*e] = &c
	return &c
}
