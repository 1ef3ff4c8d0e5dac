package recorder

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/desk"
	"github.com/picosnitch/picosnitch/internal/recorder/journal"
)

// maxUnread bounds the executables that wait for a session process that can read them.
const maxUnread = 256

// unread is an executable that only its user can read.
type unread struct {
	event.Executable
	asked bool
}

// openDesk lets the session processes of the desktop users in.
func (r *recorder) openDesk() {
	if r.o.Door == nil {
		return
	}
	s := r.o.Settings
	var err error
	r.desk, err = desk.New(desk.Options{
		Desktop: s.Desktop, Command: s.Command, Owner: s.Owner, Mutes: filepath.Join(r.o.Dir, desk.MutesName), Logger: r.log,
	})
	if err != nil {
		r.notice("warning", err.Error(), "press Mute again where you want it")
	}
	r.desk.Listen(r.o.Door)
	if s.Desktop {
		r.ways = append(r.ways, r.desk.Desktop())
	}
	if len(s.Command) > 0 {
		r.ways = append(r.ways, r.desk.Command())
	}
	if s.Journal {
		r.ways = append(r.ways, journal.New(journal.Socket))
	}
}

// wantHash notes an executable that root may not read, so that the session process of the user who runs it is asked.
func (r *recorder) wantHash(e *event.Executable) {
	if r.desk == nil || e.SHA256 != "" || e.Reason != event.ReasonFUSE {
		return
	}
	for i := range r.unread {
		if r.unread[i].File == e.File {
			return
		}
	}
	if len(r.unread) == maxUnread {
		r.unread = r.unread[1:] // the reason stays in its row
	}
	r.unread = append(r.unread, unread{Executable: *e})
}

// askSessions asks for what is not known yet, and takes what the sessions answered.
func (r *recorder) askSessions() {
	if r.desk == nil {
		return
	}
	for _, n := range r.desk.Take() {
		if n.Text != "" {
			r.notice(n.Level, n.Text, n.Hint)
			continue
		}
		r.takeHash(n)
	}
	rest := r.unread[:0]
	for _, u := range r.unread {
		if !u.asked {
			id, uid, running := r.processes.Runs(u.File)
			if !running {
				continue // nobody is left through whom it could be read
			}
			u.asked = r.desk.Hash(uid, id, u.Path, u.File)
		}
		rest = append(rest, u)
	}
	r.unread = rest
}

// takeHash takes a hash for what it is: the word of a user about a file that only the user can read.
func (r *recorder) takeHash(n desk.News) {
	for i := range r.unread {
		u := &r.unread[i]
		if u.File != n.File || !u.asked {
			continue
		}
		e := u.Executable
		r.unread = append(r.unread[:i], r.unread[i+1:]...)
		e.SHA256, e.Reason = n.SHA256, fmt.Sprintf("by the word of uid %d, who alone can read the file", n.UID)
		if n.SHA256 == "" {
			e.Reason = fmt.Sprintf("%s; asked as uid %d: %s", event.ReasonFUSE, n.UID, n.Reason)
		}
		r.takeExecutable(&e)
		return
	}
}

// Mute is what a user muted on the desktop.
type Mute = desk.Mute

// MutesName is the name of the file of mutes in the folder.
const MutesName = desk.MutesName

// ReadMutes reads the file of mutes.
func ReadMutes(r io.Reader) ([]Mute, error) { return desk.ReadMutes(r) }

// WriteMutes writes the file of mutes.
func WriteMutes(w io.Writer, all []Mute) error { return desk.WriteMutes(w, all) }
