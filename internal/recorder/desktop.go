package recorder

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/desk"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/journal"
)

const (
	maxUnread  = 256         // executables that wait for a session process that can read them
	unreadWait = 10 * second // for which a row waits for its hash, and what is told with it
)

// unread is an executable that only its user can read.
type unread struct {
	event.Executable
	since int64  // ns since 1970
	uid   uint32 // who was asked
	asked bool
	told  bool // that it could not be hashed
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

// wantHash keeps back an executable that root may not read, so that the session process of the user who runs it is asked first. It
// reports whether it did.
func (r *recorder) wantHash(e *event.Executable) bool {
	if e.SHA256 != "" || e.Reason != event.ReasonFUSE {
		return false
	}
	if r.desk == nil {
		r.unhashed(e)
		return false
	}
	for i := range r.unread {
		if r.unread[i].File == e.File {
			return !r.unread[i].told
		}
	}
	if len(r.unread) == maxUnread {
		r.giveUp(&r.unread[0])
		r.unread = r.unread[1:]
	}
	r.unread = append(r.unread, unread{Executable: *e, since: r.at})
	return true
}

// unhashed tells that an executable has no hash.
func (r *recorder) unhashed(e *event.Executable) {
	r.now.Unread++
	if r.tell.allow("unread", r.at, maxNotices) {
		r.notice("warning", fmt.Sprintf("%s was not hashed: %s", flow.PrintablePath(e.Path), flow.PrintableReason(e.Reason)), "its user must be logged in, and allowed to read the log, while the program runs")
	}
}

// giveUp lets an executable be without a hash: what waits for it goes on.
func (r *recorder) giveUp(u *unread) {
	if !u.told {
		u.told = true
		r.unhashed(&u.Executable)
		r.takeExecutable(&u.Executable)
	}
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
	if len(r.unread) == 0 {
		return
	}
	here := r.desk.Sessions()
	rest := r.unread[:0]
	for _, u := range r.unread {
		id, uid, running := r.processes.Runs(u.File)
		if r.at-u.since > unreadWait {
			r.giveUp(&u) // also when the session process is there and does not answer; a hash that comes late still counts
		}
		switch {
		case !running && (u.told || !u.asked || !slices.Contains(here, u.uid)): // nobody is left through whom it could be read
			r.giveUp(&u)
			continue
		case u.asked && slices.Contains(here, u.uid):
		default:
			u.uid, u.asked = uid, r.desk.Hash(uid, id, u.Path, u.File)
		}
		rest = append(rest, u)
	}
	r.unread = rest
}

// takeHash takes a hash for what it is: the word of a user about a file that only the user can read.
func (r *recorder) takeHash(n desk.News) {
	i := slices.IndexFunc(r.unread, func(u unread) bool { return u.File == n.File && u.asked })
	if i < 0 {
		return
	}
	u := r.unread[i]
	r.unread = slices.Delete(r.unread, i, i+1)
	if n.SHA256 == "" {
		u.Reason = fmt.Sprintf("%s; asked as uid %d: %s", event.ReasonFUSE, n.UID, n.Reason)
		r.giveUp(&u)
		return
	}
	u.SHA256, u.Reason = n.SHA256, fmt.Sprintf("by the word of uid %d, who alone can read the file", n.UID)
	r.takeExecutable(&u.Executable)
}

// forgetUnread gives up what still waits at the end.
func (r *recorder) forgetUnread() {
	for i := range r.unread {
		r.giveUp(&r.unread[i])
	}
	r.unread = nil
}

// Mute is what a user muted on the desktop.
type Mute = desk.Mute

// MutesName is the name of the file of mutes in the folder.
const MutesName = desk.MutesName

// ReadMutes reads the file of mutes.
func ReadMutes(r io.Reader) ([]Mute, error) { return desk.ReadMutes(r) }

// WriteMutes writes the file of mutes.
func WriteMutes(w io.Writer, all []Mute) error { return desk.WriteMutes(w, all) }
