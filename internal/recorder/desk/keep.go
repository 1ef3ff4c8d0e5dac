package desk

import (
	"slices"
	"strconv"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// nobody stands for users who never came before, in what is kept over a restart.
const nobody = ""

// owner stands for the user whose command it is.
const owner = "owner"

// Waiting implements notify.Keeper: users by their number.
func (w desktop) Waiting() map[uint64][]string {
	d := w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[uint64][]string)
	for _, n := range d.backlog {
		all[n.ID] = append(all[n.ID], nobody)
	}
	for _, u := range d.users {
		name := strconv.FormatUint(uint64(u.uid), 10)
		shows := u.shows
		if u.showing != nil {
			shows = append([]show{*u.showing}, shows...)
		}
		for _, s := range shows {
			for _, id := range s.ids {
				all[id] = append(all[id], name)
			}
		}
	}
	return all
}

// Resume implements notify.Keeper.
func (w desktop) Resume(n notify.Notice, whom []string) {
	d := w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range whom {
		uid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			d.keep(n)
			for _, u := range d.users { // nobody has seen it: neither the owner, nor who came while this recorder started
				if !slices.Contains(whom, strconv.FormatUint(uint64(u.uid), 10)) {
					d.queue(u, n)
				}
			}
			continue
		}
		if u := d.user(uint32(uid)); u != nil {
			d.queue(u, n)
		} else {
			d.notShown.Add(1)
		}
	}
}

// Waiting implements notify.Keeper. What a session process has begun to run counts as run: twice is worse than the count.
func (w command) Waiting() map[uint64][]string {
	d := w.d
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[uint64][]string)
	if u := d.users[d.o.Owner]; u != nil {
		for _, n := range u.runs {
			all[n.ID] = append(all[n.ID], owner)
		}
	}
	return all
}

// Resume implements notify.Keeper.
func (w command) Resume(n notify.Notice, _ []string) { w.Offer(n) }
