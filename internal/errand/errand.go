// Package errand is the vocabulary between the recorder and the session process of a desktop user: what the one asks
// (show this, hash that, run the user's command) and what the other answers. It stands between two wings as event does, imports
// nothing of ours and does nothing but send and receive bounded messages. Neither side trusts the other: the session
// process is handed texts and file names only, and an answer is no more than its user's word.
package errand

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds of a message. A message is one datagram (SOCK_SEQPACKET): it is there as a whole or not at all, whoever dies.
const (
	MaxMessage = 32 << 10 // bytes of a message
	maxTitle   = 200      // bytes of a title
	maxBody    = 2000     // bytes of a body
	maxPath    = 4 * 4096 // bytes of a path, escaped
	maxActions = 4
	maxWord    = 64 // bytes of a key, an icon, a label
	maxReason  = 400
	maxFields  = 16
	maxField   = 1500 // bytes of a field: fewer when all of them together are too long
	minField   = 64
)

// Message is one errand or one answer. Exactly one of the pointers is set.
type Message struct {
	// To the session process.
	Hello *Hello `json:"hello,omitempty"`
	Show  *Show  `json:"show,omitempty"`
	Hash  *File  `json:"hash,omitempty"`
	Open  *File  `json:"open,omitempty"`
	Run   *Run   `json:"run,omitempty"`

	// To the recorder.
	Done    *Done    `json:"done,omitempty"`
	Invoked *Invoked `json:"invoked,omitempty"`
	State   *State   `json:"state,omitempty"`
}

// Hello is the first message of every recorder. What an earlier one asked is still done, but only the asker knows the number.
type Hello struct {
	Desktop bool `json:"desktop"` // show notices: "Desktop notifications"
}

// Urgency of a notice, as in the specification of desktop notifications.
const (
	Low      = 0
	Normal   = 1
	Critical = 2 // stays until it is closed
)

// Show is a notice for the desktop. Its texts are plain: the session process escapes them for its server.
type Show struct {
	N       uint64   `json:"n"`
	Title   string   `json:"title"`
	Body    string   `json:"body"`
	Icon    string   `json:"icon,omitempty"` // a name of the icon theme
	Urgency int      `json:"urgency"`
	Actions []Action `json:"actions,omitempty"`
}

// Action is a button of a notice.
type Action struct {
	Key   string `json:"key"`
	Label string `json:"label"`
}

// File is a file that a process of the user executes: to be hashed, or to be opened and handed over.
type File struct {
	N     uint64 `json:"n"`
	PID   uint32 `json:"pid"`
	Start uint64 `json:"start"` // ns since boot, as event.ProcessID
	Path  string `json:"path"`  // as event.Text made it
	Inode uint64 `json:"ino"`
	Size  int64  `json:"size"` // bytes
}

// Run is a command to be run as the user.
type Run struct {
	N      uint64   `json:"n"`
	Argv   []string `json:"argv"`
	Fields []string `json:"fields"` // of its environment: PICOSNITCH_KIND=new, …
}

// Done ends an errand.
type Done struct {
	N      uint64 `json:"n"`
	SHA256 string `json:"sha256,omitempty"` // of a Hash, lower-case hex
	Reason string `json:"reason,omitempty"` // why it could not be done; "": it was
}

// Invoked says that the user pressed a button.
type Invoked struct {
	N   uint64 `json:"n"` // of the Show
	Key string `json:"key"`
}

// State is how the desktop does, told when it changes.
type State struct {
	Server  string `json:"server,omitempty"`  // name of the notification server; "": none
	Problem string `json:"problem,omitempty"` // why nothing is shown; "": all is well
}

// ErrMessage is returned, wrapped with what is wrong, for a message that is none.
var ErrMessage = errors.New("not an errand")

// check refuses what no honest side sends.
func (m *Message) check() error {
	set := 0
	for _, is := range []bool{m.Hello != nil, m.Show != nil, m.Hash != nil, m.Open != nil, m.Run != nil, m.Done != nil, m.Invoked != nil, m.State != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("%w: it holds %d things, not one", ErrMessage, set)
	}
	switch {
	case m.Show != nil:
		return m.Show.check()
	case m.Hash != nil:
		return texts(maxPath, m.Hash.Path)
	case m.Open != nil:
		return texts(maxPath, m.Open.Path)
	case m.Run != nil:
		if len(m.Run.Argv) == 0 || len(m.Run.Argv) > maxFields || len(m.Run.Fields) > maxFields {
			return fmt.Errorf("%w: a command of %d words with %d fields", ErrMessage, len(m.Run.Argv), len(m.Run.Fields))
		}
		return errors.Join(texts(maxPath, m.Run.Argv...), texts(maxPath, m.Run.Fields...))
	case m.Done != nil:
		if s := m.Done.SHA256; s != "" && (len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "") {
			return fmt.Errorf("%w: %q is no sha256", ErrMessage, Clip(s, 80))
		}
		return texts(maxReason, m.Done.Reason)
	case m.Invoked != nil:
		return texts(maxWord, m.Invoked.Key)
	case m.State != nil:
		return errors.Join(texts(maxWord, m.State.Server), texts(maxReason, m.State.Problem))
	}
	return nil
}

func (s *Show) check() error {
	if len(s.Actions) > maxActions || s.Urgency < Low || s.Urgency > Critical {
		return fmt.Errorf("%w: a notice with %d actions and urgency %d", ErrMessage, len(s.Actions), s.Urgency)
	}
	for _, a := range s.Actions {
		if err := texts(maxWord, a.Key, a.Label); err != nil {
			return err
		}
	}
	return errors.Join(texts(maxTitle, s.Title), texts(maxBody, s.Body), texts(maxWord, s.Icon))
}

// texts checks that texts are short and valid: D-Bus and the environment take no NUL, and a bus throws out who sends what is not
// UTF-8.
func texts(most int, all ...string) error {
	for _, s := range all {
		if len(s) > most || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			return fmt.Errorf("%w: a text of %d bytes, of which at most %d, valid and without NUL are allowed", ErrMessage, len(s), most)
		}
	}
	return nil
}

// Fit shortens the texts of a notice to what is sent, and says so in them.
func (s *Show) Fit() {
	s.Title, s.Body, s.Icon = Clip(s.Title, maxTitle), Clip(s.Body, maxBody), Clip(s.Icon, maxWord)
	s.Actions = s.Actions[:min(len(s.Actions), maxActions)]
	s.Urgency = min(max(s.Urgency, Low), Critical)
}

// Fit shortens the fields until the whole message can be sent, however their bytes are escaped. A command that is too long itself stays so.
func (r *Run) Fit() {
	for n := maxField; n >= minField; n /= 2 {
		for i, f := range r.Fields {
			r.Fields[i] = Clip(f, n)
		}
		if b, err := encode(Message{Run: r}); err == nil && len(b) <= MaxMessage {
			return
		}
	}
}

// Clip makes s valid and at most n bytes long; what is cut off ends in "…".
func Clip(s string, n int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", `\0`), "\ufffd")
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
