// Package notify decides what the user is told, when and how often: it takes in everything that is worth a word, leaves out what
// the user does not want to hear, groups what comes at once, keeps what repeats back, and gives out notices. It belongs to the
// recorder's wing and is pure: it reads no clock (instants are passed in), no file and no socket. It does not know what
// is new or changed (recorder/known does) and not how a notice reaches a person (a Way does).
package notify

import (
	"fmt"
	"strings"
)

// Notice is one message to the user, and before that one thing that may become or join a message. Every text in it is printable
// UTF-8 (event.Text) on one line, but for Body, whose lines are separated by newlines. None is markup: a way out escapes for its own language.
type Notice struct {
	// ID tells notices that were given out apart, also over restarts; 0 before.
	ID      uint64  `json:"id,omitempty"`
	Kind    Kind    `json:"kind"`
	At      int64   `json:"at"`    // when the (first) thing happened; wall clock, ns since 1970
	Count   int     `json:"count"` // for how many things it stands, at least 1
	Title   string  `json:"title"` // one line
	Body    string  `json:"body"`  // a few lines
	Urgency Urgency `json:"urgency"`
	// Mute is what a user names to hear no more of this kind about it; "" where there is nothing to mute.
	Mute string `json:"mute,omitempty"`

	// What it is about. Empty where Count > 1 and the things differ.
	Name   string `json:"name,omitempty"`   // of the program
	Path   string `json:"path,omitempty"`   // of its executable
	SHA256 string `json:"sha256,omitempty"` // of the file that the notice is about: the script if there is one
	Script string `json:"script,omitempty"` // path of the script
	Parent string `json:"parent,omitempty"` // path of the parent's executable

	Place  string `json:"place,omitempty"`  // container, app or service that the program runs in
	Before string `json:"before,omitempty"` // sha256 that the file had before
	Remote string `json:"remote,omitempty"` // with whom the program talked when it was noticed
	Origin string `json:"origin,omitempty"` // which package the file is from and whether it still matches, in words
	Detail string `json:"detail,omitempty"` // what else is to be said, in words
	Hint   string `json:"hint,omitempty"`   // what the user can do, in words
	// Key tells things of one kind apart: for each, the cool-down runs on its own. "" is the script, else the path.
	Key string `json:"key,omitempty"`
}

// Way is a way out: what carries notices to the user. It is the consumer's interface of this package's callers.
type Way interface {
	// Name is one word for messages and figures: "desktop", "command", "journal", …
	Name() string
	// Offer takes a notice in or drops and counts it. It never blocks and is called from one goroutine.
	Offer(Notice)
	// Dropped counts the notices that were not delivered and never will be, since the start. It is safe for concurrent use.
	Dropped() uint64
}

// Keeper is a Way that may hold notices for long, because nobody is there to take them. What it holds outlives the recorder: it is kept, and
// handed to the Keeper of the next one.
type Keeper interface {
	Way
	// Waiting says which notices are not delivered yet, by their ID, and for whom: names of the Keeper's own.
	Waiting() map[uint64][]string
	// Resume is Offer after a restart, for those who were named.
	Resume(n Notice, whom []string)
}

// file is the file that the notice is about.
func (n *Notice) file() string {
	if n.Script != "" {
		return n.Script
	}
	return n.Path
}

// key is what the cool-down goes by.
func (n *Notice) key() string {
	if n.Key != "" {
		return n.Key
	}
	return n.file()
}

// label is a short name of the thing.
func (n *Notice) label() string {
	base := func(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }
	switch {
	case n.Script != "":
		return base(n.Script)
	case n.Name != "":
		return n.Name
	case n.Path != "":
		return base(n.Path)
	}
	return n.Key
}

const (
	shownLabel = 40  // characters of a name in a title
	shownLine  = 300 // characters of a line of a body
	shownMany  = 8   // things that a notice for many names
	shownSum   = 16  // hex digits of a hash
)

// short cuts a text to a number of characters, with a sign.
func short(s string, limit int) string {
	n := 0
	for i := range s {
		if n == limit {
			return s[:i] + "…"
		}
		n++
	}
	return s
}

// single writes the title and the body of a notice about one thing.
func (n *Notice) single(f Form) {
	n.Urgency = f.Urgency
	if f.Mutable {
		n.Mute = n.file()
	}
	n.Title = f.One
	if l := n.label(); l != "" && !f.Plain {
		n.Title += ": " + short(l, shownLabel)
	}
	n.Body = strings.Join(n.lines(), "\n")
}

// lines are those of the body, the most telling first: some servers show two.
func (n *Notice) lines() []string {
	var all []string
	add := func(format, s string) {
		if s != "" {
			all = append(all, fmt.Sprintf(format, short(s, shownLine)))
		}
	}
	sum := func(s string) string { return s[:min(len(s), shownSum)] }
	add("%s", n.Detail)
	if n.Script != "" {
		add("%s", n.Script)
		add("run by %s", n.Path)
	} else {
		add("%s", n.Path)
	}
	add("in %s", n.Place)
	add("%s", n.Origin)
	add("with %s", n.Remote)
	add("started by %s", n.Parent)
	switch {
	case n.SHA256 != "" && n.Before != "":
		add("%s", "sha256 "+sum(n.SHA256)+", before "+sum(n.Before))
	case n.SHA256 != "":
		add("sha256 %s", sum(n.SHA256))
	}
	add("%s", n.Hint)
	if n.Count > 1 {
		add("%s", fmt.Sprintf("%d times", n.Count))
	}
	return all
}

// many makes the notice that stands for several things of a kind: count of them, of which some are known.
func many(f Form, at int64, count, more int, some []Notice) Notice {
	n := Notice{Kind: f.Kind, At: at, Count: count, Urgency: f.Urgency, Title: fmt.Sprintf(f.Many, count)}
	var b strings.Builder
	shown := min(len(some), shownMany)
	for i := range some[:shown] {
		s := &some[i]
		line := s.file()
		switch {
		case line == "":
			line = s.Detail
		case s.Origin != "":
			line += " (" + s.Origin + ")"
		}
		fmt.Fprintln(&b, short(line, shownLine))
	}
	if rest := len(some) - shown + more; rest > 0 {
		fmt.Fprintf(&b, "and %d more: %s", rest, f.Where)
	}
	n.Body = strings.TrimSuffix(b.String(), "\n")
	return n
}
