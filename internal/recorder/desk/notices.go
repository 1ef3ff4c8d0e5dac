package desk

import (
	"fmt"
	"slices"
	"strings"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// Desktop is the way out to the desktops of all sessions.
func (d *Desk) Desktop() notify.Way { return desktop{d} }

// Command is the way out through the user's command.
func (d *Desk) Command() notify.Way { return command{d} }

type desktop struct{ d *Desk }

func (desktop) Name() string      { return "desktop" }
func (w desktop) Dropped() uint64 { return w.d.notShown.Load() }

// Offer queues the notice for every user who is or was there; for the first one, when nobody was yet.
func (w desktop) Offer(n notify.Notice) {
	d := w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.users) == 0 {
		if d.backlog = append(d.backlog, n); len(d.backlog) > maxQueue {
			i := max(slices.IndexFunc(d.backlog, func(n notify.Notice) bool { return n.Urgency != notify.Critical }), 0)
			d.backlog = slices.Delete(d.backlog, i, i+1)
			d.missed++
			d.notShown.Add(1)
		}
		return
	}
	for _, u := range d.users {
		d.queue(u, n)
	}
}

// queue puts a notice into a user's queue, unless the user muted it. Called with mu held.
func (d *Desk) queue(u *user, n notify.Notice) {
	s := show{
		errand:  errand.Show{Title: n.Title, Body: n.Body, Urgency: urgency(n.Urgency), Icon: icon(n.Urgency)},
		stands:  1,
		ids:     []uint64{n.ID},
		crucial: n.Urgency == notify.Critical,
	}
	if n.Mute != "" {
		s.mute = Mute{UID: u.uid, Kind: n.Kind, Path: n.Mute, Title: title(n.Kind)}
		if d.mutes.has(s.mute) {
			return
		}
		s.errand.Actions = []errand.Action{{Key: "mute", Label: "Mute"}}
	}
	d.enqueue(u, s)
}

func (d *Desk) enqueue(u *user, s show) {
	s.errand.Fit()
	if u.shows = append(u.shows, s); len(u.shows) > maxQueue {
		i := max(slices.IndexFunc(u.shows, func(s show) bool { return !s.crucial }), 0)
		u.missed += u.shows[i].stands
		d.notShown.Add(uint64(u.shows[i].stands))
		u.shows = slices.Delete(u.shows, i, i+1)
	}
	u.poke()
}

// digest makes one notice of many that have waited: nobody wants to close forty when a screen is unlocked. Critical ones stay
// by themselves, in front.
func (u *user) digest() {
	if len(u.shows) <= separate && u.missed == 0 {
		return
	}
	var first, rest []show
	for _, s := range u.shows {
		if s.crucial && len(first) < separate {
			first = append(first, s)
		} else {
			rest = append(rest, s)
		}
	}
	if len(rest) <= 1 && u.missed == 0 {
		u.shows = append(first, rest...)
		return
	}
	stands, lines := 0, make([]string, 0, 10)
	var ids []uint64
	for _, s := range rest {
		stands += s.stands
		ids = append(ids, s.ids...)
		if len(lines) < 8 {
			lines = append(lines, s.errand.Title)
		}
	}
	lines = append(lines, whileAway)
	all := stands + u.missed
	body := strings.Join(lines, "\n")
	one := show{errand: errand.Show{Title: fmt.Sprintf("%d notices while you were away", all), Body: body, Urgency: errand.Normal, Icon: icon(notify.Normal)}, stands: stands, ids: ids}
	one.errand.Fit()
	u.missed = 0
	u.shows = append(first, one)
}

func urgency(u notify.Urgency) int {
	switch u {
	case notify.Low:
		return errand.Low
	case notify.Critical:
		return errand.Critical
	}
	return errand.Normal
}

// icon is a name that every icon theme has: icon-naming-spec.
func icon(u notify.Urgency) string {
	if u == notify.Critical {
		return "dialog-warning"
	}
	return "dialog-information"
}

func title(k notify.Kind) string {
	for _, f := range notify.Kinds() {
		if f.Kind == k {
			return f.One
		}
	}
	return string(k)
}

type command struct{ d *Desk }

func (command) Name() string      { return "command" }
func (w command) Dropped() uint64 { return w.d.notRun.Load() }

// Offer queues the notice for the owner's session process.
func (w command) Offer(n notify.Notice) {
	d := w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.users[d.o.Owner]
	if u == nil {
		u = &user{uid: d.o.Owner, wake: make(chan struct{}, 1)}
		d.users[d.o.Owner] = u
	}
	if len(u.runs) >= maxRuns {
		d.notRun.Add(1)
		return
	}
	u.runs = append(u.runs, n)
	u.poke()
}

// fields are what a command is told, in its environment: no shell ever splits or expands them, unless the command asks one to.
func fields(n *notify.Notice) []string {
	all := []string{"PICOSNITCH_COUNT=" + fmt.Sprint(n.Count)}
	for _, f := range []struct{ key, value string }{
		{"KIND", string(n.Kind)},
		{"URGENCY", string(n.Urgency)},
		{"TITLE", n.Title},
		{"BODY", n.Body},
		{"NAME", n.Name},
		{"EXE", n.Path},
		{"SHA256", n.SHA256},
		{"SCRIPT", n.Script},
		{"PARENT", n.Parent},
		{"BEFORE", n.Before},
		{"REMOTE", n.Remote},
		{"ORIGIN", n.Origin},
		{"DETAIL", n.Detail},
	} {
		all = append(all, "PICOSNITCH_"+f.key+"="+errand.Clip(f.value, 1500))
	}
	return all
}
