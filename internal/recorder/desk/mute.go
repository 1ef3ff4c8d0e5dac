package desk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// MutesName is the name of the file of what is muted.
const MutesName = "mutes.json"

// maxMutes bounds what is muted, and so the file.
const (
	maxMutes = 1000
	maxFile  = 8 << 20
)

// Mute is a button that a user pressed, or that a program of that user pressed for him: it silences one kind of notices about one
// file on that user's desktop, and nothing else. The log, the journal and the command go on.
type Mute struct {
	UID   uint32      `json:"uid"`
	Kind  notify.Kind `json:"kind"`
	Path  string      `json:"path"`
	Title string      `json:"title"`        // of the notices, for people
	At    int64       `json:"at,omitempty"` // when; ns since 1970
}

func (m Mute) same(o Mute) bool { return m.UID == o.UID && m.Kind == o.Kind && m.Path == o.Path }

// mutes is the file of what is muted. Root may change it at any time: `picosnitch unmute`.
type mutes struct {
	path string
	all  []Mute
	seen os.FileInfo // the file when it was read or written; nil: there was none
}

// load reads the file. One that is damaged is put aside, and that is told.
func (m *mutes) load(path string) error {
	m.path = path
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		m.all, m.seen = nil, nil
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	seen, err := f.Stat()
	if err != nil {
		return err
	}
	all, err := ReadMutes(f)
	if err != nil {
		m.all, m.seen = nil, nil
		aside := path + ".damaged"
		return errors.Join(fmt.Errorf("%s cannot be read and was put aside as %s: nothing is muted any more: %w", path, aside, err), os.Rename(path, aside))
	}
	m.all, m.seen = all, seen
	return nil
}

// ReadMutes reads the file of what is muted.
func ReadMutes(r io.Reader) ([]Mute, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	var all []Mute
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	return all[:min(len(all), maxMutes)], nil
}

// WriteMutes writes the file of what is muted.
func WriteMutes(w io.Writer, all []Mute) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

// refresh reads the file again if somebody changed it.
func (m *mutes) refresh() error {
	if m.path == "" {
		return nil
	}
	now, err := os.Stat(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		if m.seen != nil {
			m.all, m.seen = nil, nil // deleted: that is the user's way to say it
		}
		return nil
	}
	if err == nil && m.seen != nil && os.SameFile(now, m.seen) && now.ModTime().Equal(m.seen.ModTime()) && now.Size() == m.seen.Size() {
		return nil
	}
	return m.load(m.path)
}

func (m *mutes) has(one Mute) bool {
	_ = m.refresh() // a file that cannot be read mutes nothing
	return slices.ContainsFunc(m.all, one.same)
}

func (m *mutes) add(one Mute) error {
	if err := m.refresh(); err != nil {
		return err
	}
	if slices.ContainsFunc(m.all, one.same) {
		return nil
	}
	if len(m.all) >= maxMutes {
		return fmt.Errorf("%d things are muted already: see `picosnitch mutes`", maxMutes)
	}
	m.all = append(m.all, one)
	return m.write()
}

func (m *mutes) remove(one Mute) error {
	if err := m.refresh(); err != nil {
		return err
	}
	m.all = slices.DeleteFunc(m.all, one.same)
	return m.write()
}

// write replaces the file in one step.
func (m *mutes) write() error {
	if m.path == "" {
		return nil
	}
	temp := m.path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	err = WriteMutes(f, m.all)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, m.path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	m.seen, err = os.Stat(m.path)
	return err
}

// invoked takes a button. Called with mu held. It counts only for a notice that was shown in this user's session, once.
func (d *Desk) invoked(u *user, a *errand.Invoked) bool {
	i := slices.IndexFunc(u.shown, func(s shown) bool { return s.n == a.N })
	if i < 0 {
		// A notice of an earlier recorder.
		d.enqueue(u, show{errand: errand.Show{Title: "Not muted", Body: "picosnitch was restarted since that notice.\nThe button of the next one works.", Urgency: errand.Low}, stands: 0})
		return false
	}
	s := u.shown[i]
	u.shown = slices.Delete(u.shown, i, i+1)
	switch {
	case a.Key == "mute" && s.mute.Path != "":
		s.mute.At = time.Now().UnixNano()
		if err := d.mutes.add(s.mute); err != nil {
			d.tell("error", "mute: "+err.Error(), "it is not muted")
			return true
		}
		d.tell("info", fmt.Sprintf("uid %d muted \"%s\" for %s on the desktop", u.uid, s.mute.Title, s.mute.Path), "if you did not do that, a program did: sudo picosnitch unmute")
		d.enqueue(u, show{
			errand: errand.Show{Title: "Muted", Body: fmt.Sprintf("Not shown any more: %s\n%s\nexe.log has it; picosnitch mutes lists it", s.mute.Title, s.mute.Path), Urgency: errand.Low, Icon: icon(notify.Low), Actions: []errand.Action{{Key: "undo", Label: "Undo"}}},
			undo:   s.mute,
		})
	case a.Key == "undo" && s.undo.Path != "":
		if err := d.mutes.remove(s.undo); err != nil {
			d.tell("error", "unmute: "+err.Error(), "sudo picosnitch unmute")
			return true
		}
		d.tell("info", fmt.Sprintf("uid %d unmuted \"%s\" for %s", u.uid, s.undo.Title, s.undo.Path), "")
	default:
		return false
	}
	return true
}
