// Package budget counts what "Data limits" are about, and says when 80 % and 100 % of one are used. It belongs to the recorder's wing and is
// pure: it reads no clock, no file and no socket; instants are those of the stream. It does not know the interfaces of the machine
// (recorder/links does), not how a notice reaches a person (recorder/notify), and not where what it remembers is kept (recorder).
package budget

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// Periods.
const (
	Day   = "day"
	Month = "month"
)

// Directions.
const (
	Both     = "both"
	Sent     = "sent"
	Received = "received"
)

// Limit is an entry of "Data limits".
type Limit struct {
	Programs  []string `json:"programs,omitempty"` // paths and names, as in "Notify ignore"; empty: all programs together
	Bytes     uint64   `json:"bytes"`
	Text      string   `json:"text"` // Bytes, as the user wrote it
	Per       string   `json:"per"`
	Starts    int      `json:"starts,omitempty"`    // day on which a month begins, 1 to 31; in a shorter month its last day
	Interface string   `json:"interface,omitempty"` // may hold * and ?; "": all
	Direction string   `json:"direction"`
	Local     bool     `json:"local,omitempty"` // what stays in the local network counts, too
}

// What says what is limited: "firefox over wwan0".
func (l *Limit) What() string {
	s := "all programs"
	if len(l.Programs) > 0 {
		s = event.Text([]byte(strings.Join(l.Programs, ", ")))
	}
	if l.Interface != "" {
		s += " over " + event.Text([]byte(l.Interface))
	}
	return s
}

// Amount is the limit: "10 GB per month", "500 MB sent per day".
func (l *Limit) Amount() string {
	if l.Direction == Both || l.Direction == "" {
		return l.Text + " per " + l.Per
	}
	return l.Text + " " + l.Direction + " per " + l.Per
}

// key tells limits apart. What is the same after a change of the configuration keeps what was counted: the amount and the direction are not
// in it.
func (l *Limit) key() string {
	programs := slices.Clone(l.Programs)
	slices.Sort(programs)
	return fmt.Sprintf("%q per %s from %d over %q local %t", programs, l.Per, l.Starts, l.Interface, l.Local)
}

// Matcher finds what a limit is about.
type Matcher struct {
	paths, names []*regexp.Regexp
	link         *regexp.Regexp // nil: any
}

// Matcher returns the Matcher of a limit.
func (l *Limit) Matcher() Matcher {
	var m Matcher
	for _, p := range l.Programs {
		if strings.Contains(p, "/") {
			m.paths = append(m.paths, notify.Glob(p))
		} else {
			m.names = append(m.names, notify.Glob(p))
		}
	}
	if l.Interface != "" {
		m.link = notify.Glob(l.Interface)
	}
	return m
}

func (m *Matcher) all() bool { return len(m.paths) == 0 && len(m.names) == 0 }

// program reports whether it is one of the limit's.
func (m *Matcher) program(p *flow.Program) bool {
	if m.all() {
		return true
	}
	script := ""
	if p.Script != nil {
		script = p.Script.Path
	}
	return m.Match(p.Executable.Path, script, p.Name)
}

// Match reports whether a program with such a path, script and name is one of the limit's.
func (m *Matcher) Match(path, script, name string) bool {
	any := func(all []*regexp.Regexp, s string) bool {
		return s != "" && slices.ContainsFunc(all, func(r *regexp.Regexp) bool { return r.MatchString(s) })
	}
	return any(m.paths, path) || any(m.paths, script) || any(m.names, name)
}

// period is when an instant's period begins and ends, and its name: the local date on which it begins. Days and months are those of the
// zone, whatever their length.
func (l *Limit) period(at time.Time) (name string, start, end time.Time) {
	y, m, d := at.Date()
	if l.Per == Day {
		start, end = midnight(y, m, d, at.Location()), midnight(y, m, d+1, at.Location())
		return start.Format(time.DateOnly), start, end
	}
	first := func(y int, m time.Month) (int, time.Month, int) {
		t := time.Date(y, m, 1, 12, 0, 0, 0, time.UTC) // m may be 0 or 13
		last := time.Date(t.Year(), t.Month()+1, 0, 12, 0, 0, 0, time.UTC).Day()
		return t.Year(), t.Month(), min(max(l.Starts, 1), last)
	}
	_, _, begins := first(y, m)
	if d < begins {
		m--
	}
	y1, m1, d1 := first(y, m)
	y2, m2, d2 := first(y, m+1)
	start, end = midnight(y1, m1, d1, at.Location()), midnight(y2, m2, d2, at.Location())
	return start.Format(time.DateOnly), start, end
}

// midnight is the first instant of a local day. Where the clock is set at midnight, the day begins at 1:00, or twice at 0:00.
func midnight(y int, m time.Month, d int, zone *time.Location) time.Time {
	t := time.Date(y, m, d, 0, 0, 0, 0, zone)
	noon := time.Date(y, m, d, 12, 0, 0, 0, zone)
	if t.Day() != noon.Day() {
		// There is no 0:00: Date gave an instant of the day before. The day begins when the clock is set.
		from, to := t, noon
		for to.Sub(from) > time.Second {
			mid := from.Add(to.Sub(from) / 2)
			if mid.Day() == noon.Day() {
				to = mid
			} else {
				from = mid
			}
		}
		return to.Truncate(time.Second)
	}
	// The hour after midnight may be there twice: the first one is meant.
	if before := t.Add(-time.Hour); before.Day() == t.Day() {
		return before
	}
	return t
}
