package recorder

import (
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// kept is what the teller remembers over a restart.
type kept struct {
	notify.State
	Out []outgoing `json:"out,omitempty"`
}

// outgoing is a notice that was given out, and the ways that may not have delivered it.
type outgoing struct {
	Notice notify.Notice       `json:"notice"`
	Whom   map[string][]string `json:"whom"` // way → for whom it holds it; nil: it was not asked yet
}

// maxOut bounds the notices that are kept for a restart: no way holds more.
const maxOut = 1 << 7

// lookEvery is how often the ways are asked what they delivered: soon after a notice, because a kill between its delivery and the question
// repeats it, and seldom when nobody comes to take it.
func (t *teller) lookEvery(now time.Time) time.Duration {
	switch age := now.Sub(t.gave); {
	case age < 2*time.Second:
		return 100 * time.Millisecond
	case age < time.Minute:
		return time.Second
	}
	return 10 * time.Second
}

// outgo notes that a notice is given to the ways that hold notices.
func (t *teller) outgo(n notify.Notice) {
	whom := make(map[string][]string)
	for _, w := range t.ways {
		if _, ok := w.(notify.Keeper); ok {
			whom[w.Name()] = nil
		}
	}
	if len(whom) == 0 {
		return
	}
	if len(t.out) >= maxOut {
		t.out = slices.Delete(t.out, 0, 1)
	}
	t.out = append(t.out, outgoing{n, whom})
	t.gave = time.Now() // not the instant that the ID is: it stays in the future when the clock is set back
	t.changed = true
}

// delivered asks the ways what they delivered, now and then, and reports whether it is news.
func (t *teller) delivered(now time.Time) bool {
	if len(t.out) == 0 || now.Sub(t.look) < t.lookEvery(now) {
		return false
	}
	t.look = now
	news := false
	waiting := make(map[string]map[uint64][]string)
	for _, w := range t.ways {
		if k, ok := w.(notify.Keeper); ok {
			waiting[w.Name()] = k.Waiting()
		}
	}
	for i := range t.out {
		o := &t.out[i]
		for way, before := range o.Whom {
			whom := waiting[way][o.Notice.ID]
			slices.Sort(whom)
			switch {
			case len(whom) == 0:
				delete(o.Whom, way)
			case !slices.Equal(whom, before):
				o.Whom[way] = whom
			default:
				continue
			}
			news = true
		}
	}
	t.out = slices.DeleteFunc(t.out, func(o outgoing) bool { return len(o.Whom) == 0 })
	t.changed = t.changed || news
	return news
}

// resume gives the ways what an earlier recorder left undelivered.
func (t *teller) resume(out []outgoing) {
	for _, o := range out {
		whom := make(map[string][]string)
		for _, w := range t.ways {
			names, ok := o.Whom[w.Name()]
			k, keeps := w.(notify.Keeper)
			switch {
			case !ok || !keeps:
			case names == nil: // the kill came before anybody was asked
				w.Offer(o.Notice)
				whom[w.Name()] = nil
			default:
				k.Resume(o.Notice, names)
				whom[w.Name()] = names
			}
		}
		t.lastID = max(t.lastID, o.Notice.ID)
		if len(whom) > 0 {
			t.out = append(t.out, outgoing{o.Notice, whom})
			t.gave = time.Now()
		}
	}
}
