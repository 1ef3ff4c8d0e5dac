package desk

import (
	"cmp"
	"slices"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
)

// Hash asks the session process of uid for the hash of the file that a process executes. The answer is News. False: there is no
// such session, or it has too much to do; ask again when it changed.
func (d *Desk) Hash(uid uint32, id event.ProcessID, path string, f event.FileID) bool {
	return d.file(uid, request(id, path, f, nil))
}

// Open asks the session process of uid for an open descriptor of a file. The answer comes to asked, which must have room for it.
func (d *Desk) Open(uid uint32, id event.ProcessID, path string, f event.FileID, asked chan<- Opened) bool {
	return d.file(uid, request(id, path, f, asked))
}

func request(id event.ProcessID, path string, f event.FileID, asked chan<- Opened) file {
	return file{errand.File{PID: id.PID, Start: id.Start, Path: path, Inode: f.Inode, Size: f.Size}, f, asked}
}

func (d *Desk) file(uid uint32, f file) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.users[uid]
	if d.closed || u == nil || u.conn == nil || len(u.files) >= maxFiles {
		return false
	}
	u.files = append(u.files, f)
	u.poke()
	return true
}

// Sessions are the users with a session process now, in ascending order.
func (d *Desk) Sessions() []uint32 {
	var all []uint32
	for _, s := range d.Status() {
		if s.Here {
			all = append(all, s.UID)
		}
	}
	return all
}

// Status tells how a user's desktop does.
type Status struct {
	UID     uint32 `json:"uid"`
	Here    bool   `json:"here"`              // a session process is there
	Server  string `json:"server,omitempty"`  // the notification server's name, by its own word
	Problem string `json:"problem,omitempty"` // why nothing is shown
	Waiting int    `json:"waiting"`           // notices that wait
	Muted   int    `json:"muted"`             // kinds of notices about files that this user muted
}

// Status returns the users, in ascending order.
func (d *Desk) Status() []Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.mutes.refresh() // what is told here is only the number
	all := make([]Status, 0, len(d.users))
	for _, u := range d.users {
		s := Status{UID: u.uid, Here: u.conn != nil, Server: u.state.Server, Problem: u.state.Problem, Waiting: len(u.shows)}
		if u.showing != nil {
			s.Waiting++
		}
		for _, m := range d.mutes.all {
			if m.UID == u.uid {
				s.Muted++
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.UID, b.UID) })
	return all
}
