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

// Offer queues the notice for the owner and every user who is or was there, and keeps it for others until somebody has seen it.
func (w desktop) Offer(n notify.Notice) {
	d := w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keep(n)
	for _, u := range d.users {
		d.queue(u, n)
	}
}

// keep keeps a notice for users who never came before. Called with mu held.
func (d *Desk) keep(n notify.Notice) {
	if d.backlog = append(d.backlog, n); len(d.backlog) <= maxQueue {
		return
	}
	i := max(slices.IndexFunc(d.backlog, func(n notify.Notice) bool { return n.Urgency != notify.Critical }), 0)
	d.backlog = slices.Delete(d.backlog, i, i+1)
	d.missed++
	if len(d.users) == 0 { // it was in nobody's queue either
		d.notShown.Add(1)
	}
}

// queue puts a notice into a user's queue, unless the user muted it. Called with mu held.
func (d *Desk) queue(u *user, n notify.Notice) {
	s := show{
		errand: errand.Show{Title: n.Title, Body: n.Body, Urgency: urgency(n.Urgency), Icon: icon(n.Urgency)},
		stands: 1,
		ids:    []uint64{n.ID},
		rank:   rank(&n),
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
		least := slices.MinFunc(u.shows, func(a, b show) int { return a.rank - b.rank }).rank
		i := slices.IndexFunc(u.shows, func(s show) bool { return s.rank == least })
		u.missed += u.shows[i].stands
		d.notShown.Add(uint64(u.shows[i].stands))
		u.shows = slices.Delete(u.shows, i, i+1)
	}
	u.poke()
}

// digest makes one notice of many that have waited: nobody wants to close forty when a screen is unlocked. The most critical ones stay
// by themselves, in front; the one is critical, too, if it stands for further ones, and names these first.
func (u *user) digest() {
	if len(u.shows) <= separate && u.missed == 0 {
		return
	}
	byRank := slices.Clone(u.shows)
	slices.SortStableFunc(byRank, func(a, b show) int { return b.rank - a.rank })
	var first, rest []show
	for _, s := range byRank {
		if s.rank > 0 && s.names == nil && len(first) < separate {
			first = append(first, s)
		} else {
			rest = append(rest, s)
		}
	}
	if len(rest) <= 1 && u.missed == 0 {
		u.shows = append(first, rest...)
		return
	}
	one := show{errand: errand.Show{Urgency: errand.Normal, Icon: icon(notify.Normal)}}
	for _, s := range rest {
		one.stands += s.stands
		one.ids = append(one.ids, s.ids...)
		one.rank = max(one.rank, s.rank)
		if s.names != nil { // it is such a one, of before
			one.names = append(one.names, s.names...)
		} else {
			one.names = append(one.names, name{s.errand.Title, s.rank})
		}
	}
	if one.rank > 0 {
		one.errand.Urgency, one.errand.Icon = errand.Critical, icon(notify.Critical)
	}
	slices.SortStableFunc(one.names, func(a, b name) int { return b.rank - a.rank })
	one.names = one.names[:min(len(one.names), named)]
	lines := make([]string, 0, named+1)
	for _, n := range one.names {
		lines = append(lines, n.title)
	}
	one.errand.Title = fmt.Sprintf("%d notices while you were away", one.stands+u.missed)
	one.errand.Body = strings.Join(append(lines, whileAway), "\n")
	one.errand.Fit()
	u.missed = 0
	u.shows = append(first, one)
}

// rank is how much a notice matters to one who was away: 0 for those that are not critical. What is proven against a package goes before
// what others suspect.
func rank(n *notify.Notice) int {
	switch {
	case n.Urgency != notify.Critical:
		return 0
	case n.Kind == notify.Tampered:
		return 2
	}
	return 1
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
	if u == nil || len(u.runs) >= maxRuns { // nil: root, as whom nothing is run
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
		all = append(all, "PICOSNITCH_"+f.key+"="+f.value)
	}
	return all
}
