package budget

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// MaxLimits bounds the limits of a Meter.
const MaxLimits = 64

const (
	maxPeriods  = 4       // of a limit that are remembered: a clock that went forward and back finds its period again
	maxPrograms = 1 << 12 // of which it is known whose they are
)

// Place is where a flow goes; see links.Place.
type Place struct {
	Interface      string
	Machine, Local bool
	Carried        bool
}

// Meter counts. It is not safe for concurrent use.
type Meter struct {
	zone     *time.Location
	limits   []*limit
	programs map[*flow.Program]uint64 // which limits' they are, as bits
	at       flow.Position
	changed  bool
}

type limit struct {
	Limit
	Matcher
	periods    []*Period     // the last one touched is the last
	start, end time.Time     // of the last one
	have       flow.Position // up to here it was counted before a restart
	seeded     *Period       // the log said what was before, and Begin is yet to say how far the log was
}

// Period is what a limit counted in one of its periods.
type Period struct {
	Start    string `json:"start"` // local date
	Since    int64  `json:"since"` // from when it was counted; ns since 1970
	Sent     uint64 `json:"sent"`  // bytes
	Received uint64 `json:"received"`
	Unplaced uint64 `json:"unplaced,omitempty"` // bytes of a limit of an interface of which it is not known over which they went
	Told     int    `json:"told,omitempty"`     // 80 or 100: the greatest threshold that was told
	ToldOf   uint64 `json:"told_of,omitempty"`  // the limit at that time, bytes
	ToldWay  string `json:"told_way,omitempty"` // and its direction
	// Log is up to where a stream is in it, where that is not what its limit says: it was filled from the log.
	Log *flow.Position `json:"log,omitempty"`
}

// State is what a Meter remembers over a restart.
type State struct {
	Version int          `json:"version"`
	Limits  []LimitState `json:"limits"`
}

// LimitState is the part of a limit.
type LimitState struct {
	Key     string    `json:"key"`
	Stream  string    `json:"stream"` // how far it has which stream: flow.Position
	Batch   uint64    `json:"batch"`
	Flows   uint64    `json:"flows"`
	Periods []*Period `json:"periods"`
}

// version of State.
const version = 1

// New returns a Meter for limits, at most MaxLimits. Days are those of the zone.
func New(limits []Limit, zone *time.Location) *Meter {
	m := &Meter{zone: zone, programs: make(map[*flow.Program]uint64)}
	for _, l := range limits[:min(len(limits), MaxLimits)] {
		m.limits = append(m.limits, &limit{Limit: l, Matcher: l.Matcher()})
	}
	return m
}

// Restore takes over what an earlier Meter counted.
func (m *Meter) Restore(s State) {
	for _, l := range m.limits {
		i := slices.IndexFunc(s.Limits, func(x LimitState) bool { return x.Key == l.key() })
		if i < 0 || s.Version != version {
			continue
		}
		x := s.Limits[i]
		l.have = flow.Position{Stream: x.Stream, Batch: x.Batch, Flows: x.Flows}
		for _, p := range x.Periods {
			if p != nil && len(l.periods) < maxPeriods {
				l.periods = append(l.periods, p)
			}
		}
	}
}

// State is what is to be remembered. It shares memory with the Meter: write it down before the next call.
func (m *Meter) State() State {
	s := State{Version: version}
	for _, l := range m.limits {
		l.settle(m.at)
		at := l.have
		if m.at.Stream != "" && (m.at.Stream != at.Stream || m.at.After(at)) {
			at = m.at
		}
		s.Limits = append(s.Limits, LimitState{l.key(), at.Stream, at.Batch, at.Flows, l.periods})
	}
	return s
}

// Changed reports whether State changed since it was last asked.
func (m *Meter) Changed() bool {
	c := m.changed
	m.changed = false
	return c
}

// Empty gives the limits whose open period at an instant (ns since 1970) was never counted, with when that began: what was before can be
// asked of the log, and given to Seed.
func (m *Meter) Empty(at int64) (limits []Limit, since []time.Time) {
	for _, l := range m.limits {
		name, start, _ := l.period(time.Unix(0, at).In(m.zone))
		if !slices.ContainsFunc(l.periods, func(p *Period) bool { return p.Start == name }) {
			limits, since = append(limits, l.Limit), append(since, start)
		}
	}
	return limits, since
}

// Seed adds what the log has of a limit that Empty gave, of the period at an instant: the bytes from since (ns since 1970) on. Begin
// says how far the log is.
func (m *Meter) Seed(which Limit, at int64, sent, received uint64, since int64) {
	for _, l := range m.limits {
		if l.key() == which.key() {
			p := l.open(at, m.zone)
			p.Sent, p.Received, p.Since, l.seeded = add(p.Sent, sent), add(p.Received, received), min(p.Since, since), p
			m.changed = true
		}
	}
}

// Begin says that a stream begins, or goes on after the sensor connected again, of which the log has what is before a position: the
// periods that were filled from the log do not count that again. The other periods of the same limit go on from where they were: limits.json
// may be ahead of the log.
func (m *Meter) Begin(log flow.Position) {
	for _, l := range m.limits {
		l.settle(m.at)
		if l.seeded != nil {
			l.seeded.Log, l.seeded = &log, nil
		}
		if m.at.Stream == log.Stream && (l.have.Stream != log.Stream || m.at.After(l.have)) {
			l.have = m.at
		}
	}
	if m.at.Stream != log.Stream {
		m.at = flow.Position{Stream: log.Stream}
	}
}

// settle moves the periods that were filled from the log to where the stream is; one that came to where its limit is needs no position of its own.
func (l *limit) settle(at flow.Position) {
	for _, p := range l.periods {
		if p.Log == nil || p.Log.Stream != at.Stream || !at.After(*p.Log) {
			continue
		}
		if p.Log = nil; l.have.Stream == at.Stream && !at.After(l.have) {
			p.Log = &at
		}
	}
}

// counted reports whether the period of an instant has what is at a position.
func (l *limit) counted(pos flow.Position, at int64, zone *time.Location) bool {
	have := l.have
	if slices.ContainsFunc(l.periods, func(p *Period) bool { return p.Log != nil }) {
		name, _, _ := l.period(time.Unix(0, at).In(zone))
		i := slices.IndexFunc(l.periods, func(p *Period) bool { return p.Start == name })
		if i >= 0 && l.periods[i].Log != nil {
			have = *l.periods[i].Log
		}
	}
	return have.Stream == pos.Stream && !pos.After(have)
}

// open is the period of an instant. A period that was left and is entered again, by a clock that was set, goes on.
func (l *limit) open(at int64, zone *time.Location) *Period {
	t := time.Unix(0, at).In(zone)
	if n := len(l.periods); n > 0 && !l.start.IsZero() && !t.Before(l.start) && t.Before(l.end) {
		return l.periods[n-1]
	}
	var name string
	name, l.start, l.end = l.period(t)
	i := slices.IndexFunc(l.periods, func(p *Period) bool { return p.Start == name })
	p := &Period{Start: name, Since: at}
	if i >= 0 {
		p = l.periods[i]
		l.periods = slices.Delete(l.periods, i, i+1)
	} else if n := len(l.periods); n > 0 && l.seeded == nil {
		p.Since = max(l.start.UnixNano(), l.periods[n-1].Since) // it was counted all the time
		p.Since = min(p.Since, at)
	}
	if len(l.periods) >= maxPeriods {
		// The oldest one in which nothing was counted goes first: a clock that only visits other days takes nothing.
		i := max(0, slices.IndexFunc(l.periods, func(p *Period) bool { return *p == Period{Start: p.Start, Since: p.Since} }))
		l.periods = slices.Delete(l.periods, i, i+1)
	}
	l.periods = append(l.periods, p)
	return p
}

// Count counts a flow line of a program that is at a position of the stream. where is asked only if a limit is about the program.
func (m *Meter) Count(pos flow.Position, at int64, f *event.Flow, p *flow.Program, where func() Place) {
	m.at = pos
	if f.Sent == 0 && f.Received == 0 {
		return
	}
	received := f.Received
	switch f.Family {
	case "inet", "inet6":
	case "packet":
		received = 0 // copies of what others receive
	default:
		return
	}
	var place Place
	asked := false
	for mask := m.mask(p); mask != 0; mask &= mask - 1 {
		l := m.limits[bits.TrailingZeros64(mask)]
		if l.counted(pos, at, m.zone) {
			continue
		}
		if !asked {
			place, asked = where(), true
		}
		if place.Machine || place.Local && !l.Local || place.Carried && l.all() {
			continue
		}
		m.changed = true
		o := l.open(at, m.zone)
		switch {
		case l.link == nil || place.Interface != "" && l.link.MatchString(place.Interface):
			o.Sent, o.Received = add(o.Sent, f.Sent), add(o.Received, received)
		case place.Interface == "":
			o.Unplaced = add(o.Unplaced, add(f.Sent, received))
		}
	}
}

// mask says of which limits a program is.
func (m *Meter) mask(p *flow.Program) uint64 {
	mask, ok := m.programs[p]
	if ok {
		return mask
	}
	for i, l := range m.limits {
		if l.program(p) {
			mask |= 1 << i
		}
	}
	if len(m.programs) >= maxPrograms {
		clear(m.programs)
	}
	m.programs[p] = mask
	return mask
}

// Forget lets go of the programs: call it now and then, or ended ones stay in memory.
func (m *Meter) Forget() { clear(m.programs) }

// add stays at the greatest number instead of starting again at zero.
func add(a, b uint64) uint64 {
	if a > math.MaxInt64-min(b, math.MaxInt64) {
		return math.MaxInt64
	}
	return a + b
}

// Bytes is an amount in words, with a unit of 1000, rounded down: a limit is not reached before it is.
func Bytes(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	unit, rest := 0, uint64(0)
	for ; n >= 1000; unit++ {
		n, rest = n/1000, n%1000
	}
	prefix := "kMGTPE"[unit-1 : unit]
	switch {
	case n < 10:
		return fmt.Sprintf("%d.%02d %sB", n, rest/10, prefix)
	case n < 100:
		return fmt.Sprintf("%d.%d %sB", n, rest/100, prefix)
	}
	return fmt.Sprintf("%d %sB", n, prefix)
}

// Use is how a limit stands.
type Use struct {
	What     string `json:"what"`   // all programs, or which, and over which interface
	Amount   string `json:"amount"` // the limit, in words
	Limit    uint64 `json:"limit"`  // bytes
	Used     uint64 `json:"used"`
	Percent  uint64 `json:"percent"`            // rounded down
	Start    int64  `json:"start"`              // of the period, unix seconds
	Resets   int64  `json:"resets"`             // when the next one begins
	Since    int64  `json:"since"`              // from when it is counted, if that is later than Start; 0: from Start
	Unplaced uint64 `json:"unplaced,omitempty"` // bytes of which it is not known over which interface they went
}

// Left is what remains, 0 if nothing does.
func (u *Use) Left() uint64 { return u.Limit - min(u.Used, u.Limit) }

func (l *limit) use(at int64, zone *time.Location) (*Period, Use) {
	p := l.open(at, zone)
	u := Use{What: l.What(), Amount: l.Amount(), Limit: l.Bytes, Start: l.start.Unix(), Resets: l.end.Unix(), Unplaced: p.Unplaced}
	switch l.Direction {
	case Sent:
		u.Used = p.Sent
	case Received:
		u.Used = p.Received
	default:
		u.Used = add(p.Sent, p.Received)
	}
	u.Percent = percent(u.Used, u.Limit)
	if at := p.Since / int64(time.Second); at > u.Start+1 {
		u.Since = at
	}
	return p, u
}

// percent rounds down: 100 is only said when all is used.
func percent(used, limit uint64) uint64 {
	high, low := bits.Mul64(used, 100)
	if high >= max(limit, 1) {
		return math.MaxInt64
	}
	q, _ := bits.Div64(high, low, max(limit, 1))
	return q
}

// Uses says how all limits stand at an instant (ns since 1970).
func (m *Meter) Uses(at int64) []Use {
	all := make([]Use, 0, len(m.limits))
	for _, l := range m.limits {
		_, u := l.use(at, m.zone)
		all = append(all, u)
	}
	return all
}

// Reached is a threshold that was reached.
type Reached struct {
	Use
	Threshold int    // percent: 80 or 100
	ID        string // the same for the same threshold of the same amount in the same period, and no other
	told      func()
}

// Due gives the thresholds that are reached and were not told yet. After Told it is not given again, whatever is restarted.
func (m *Meter) Due(at int64) []Reached {
	var all []Reached
	for _, l := range m.limits {
		p, u := l.use(at, m.zone)
		told := p.Told
		if p.ToldOf != l.Bytes || p.ToldWay != l.Direction {
			told = 0 // another limit now
		}
		threshold := 0
		switch {
		case u.Percent >= 100:
			threshold = 100
		case u.Percent >= 80:
			threshold = 80
		}
		if threshold <= told {
			continue
		}
		id := fmt.Sprintf("limit %x", sha256.Sum256(fmt.Appendf(nil, "%s of %s: %d %% of %d bytes, %s", l.key(), p.Start, threshold, l.Bytes, l.Direction)))
		all = append(all, Reached{Use: u, Threshold: threshold, ID: id, told: func() {
			p.Told, p.ToldOf, p.ToldWay = threshold, l.Bytes, l.Direction
			m.changed = true
		}})
	}
	slices.SortStableFunc(all, func(a, b Reached) int { return cmp.Compare(a.Threshold, b.Threshold) })
	return all
}

// Told says that it was told.
func (r *Reached) Told() { r.told() }
