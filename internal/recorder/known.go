package recorder

import (
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/known"
	"github.com/picosnitch/picosnitch/internal/recorder/names"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// openKnown opens what is known, and starts to tell.
func (r *recorder) openKnown(ignore notify.Ignore) {
	r.known = known.Open(known.Options{Dir: r.o.Dir, Zone: r.o.Zone, Key: r.o.Settings.VTKey != "", Tell: func(seq uint64, n notify.Notice) { r.teller.offer(seq, n) }}, r.at)
	first := time.Duration(0)
	if r.known.First() {
		first = time.Duration(r.o.Settings.NotifyDigest) * time.Minute
	}
	r.teller = newTeller(r.known, notify.New(notify.Options{Ignore: ignore, First: first}), r.ways, r.o, r.feedTold)
	go r.teller.run()
	r.tellKnown()
	r.openVirusTotal()
}

// tellKnown tells what went wrong with the files of known, and what the teller has to say.
func (r *recorder) tellKnown() {
	for _, p := range r.known.Problems() {
		r.tell.add("known:"+p.Word, 1)
		if r.tell.due("known:"+p.Word, r.at, false) > 0 {
			r.notice("error", p.Text, p.Hint)
		}
	}
	for _, text := range r.teller.said() {
		r.write(text, "")
		r.feedNotice("info", text, "")
	}
}

// feedTold puts a notice on the live feed. The feed has picosnitch's own messages already.
func (r *recorder) feedTold(n notify.Notice) {
	level := "info"
	switch {
	case n.Kind == notify.Failure || n.Kind == notify.Loss:
		return
	case n.Urgency == notify.Critical:
		level = "error"
	}
	r.feedNotice(level, n.Title, strings.ReplaceAll(n.Body, "\n", "; "))
}

// takeModified takes in that the file of a program was written to.
func (r *recorder) takeModified(m *event.Modified) {
	by := ""
	if p, known := r.processes.Program(m.By); known {
		by = p.Executable.Path
	}
	r.known.Modified(flow.PrintablePath(m.Path), by, r.at)
}

// remote is with whom a flow is, for a notice.
func (r *recorder) remote(f *event.Flow) string {
	if !r.o.Settings.LogAddresses || !f.Remote.IsValid() {
		return ""
	}
	if n := r.names.Lookup(f.Remote.Addr(), r.at); n.Name != "" {
		return names.Reverse(n.Name) + " (" + f.Remote.String() + ")"
	}
	return f.Remote.String()
}
