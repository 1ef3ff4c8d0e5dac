package notify

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Bounds of a Decider, and its pace.
const (
	settle  = int64(400 * time.Millisecond) // for things of one batch to come together
	atMost  = int64(time.Minute)            // a stream of things that does not pause is told nevertheless
	weight  = int64(2 * time.Minute)        // of one notice
	hot     = int64(10 * time.Minute)       // what may weigh before a kind is held back, however slowly its things come
	maxSome = 32                            // things of a group that are kept whole; the others are counted
	maxRest = 1 << 12                       // things that are at rest
)

// holds is how long a group that does not come to rest is held back, by how often it was told.
func holds() []int64 {
	return []int64{0, 0, int64(time.Minute), int64(5 * time.Minute), int64(30 * time.Minute), int64(time.Hour)}
}

// Options of a Decider.
type Options struct {
	Ignore Ignore
	// First is how long after the first Add the new programs are told in one digest: for a first run, on which everything is new.
	// 0: no digest.
	First time.Duration
}

// Decider decides. It is not safe for concurrent use. All instants are ns since 1970.
type Decider struct {
	o     Options
	forms []Form
	holds []int64
	s     State
	last  int64 // the last instant
}

// State is all that a Decider remembers: a Decider that gets it with Restore goes on where the other one was.
type State struct {
	Groups map[Kind]*Group  `json:"groups,omitempty"`
	Rests  map[string]*Rest `json:"rests,omitempty"` // by kind and key
	// First is the digest of the first minutes, FirstUntil when it is told; 0: not begun.
	First      Group  `json:"first,omitzero"`
	FirstUntil int64  `json:"first_until,omitempty"`
	FirstTold  bool   `json:"first_told,omitempty"`
	Ignored    uint64 `json:"ignored,omitempty"` // things left out by "Notify ignore", since State began
}

// Group is what waits to be told together.
type Group struct {
	Some  []Notice `json:"some,omitempty"`
	More  int      `json:"more,omitempty"` // things that are not in Some
	Count int      `json:"count,omitempty"`
	First int64    `json:"first,omitempty"` // when the first one came
	Last  int64    `json:"last,omitempty"`
	Told  int64    `json:"told,omitempty"`  // when the group was told last
	Level int      `json:"level,omitempty"` // how often, without having come to rest
	Hot   int64    `json:"hot,omitempty"`   // until when what was told weighs: each telling adds weight
}

// Rest is a thing that was told and is not told again before Until.
type Rest struct {
	Until int64  `json:"until"`
	Again int    `json:"again,omitempty"` // how often it happened meanwhile
	Last  Notice `json:"last,omitzero"`   // the last time
}

// New returns a Decider.
func New(o Options) *Decider {
	return &Decider{o: o, forms: Kinds(), holds: holds(), s: State{Groups: make(map[Kind]*Group), Rests: make(map[string]*Rest)}}
}

// Restore makes a new Decider go on with the State of another one; at is now. A clock that went back since lets nothing wait longer than
// its rule says.
func (d *Decider) Restore(s State, at int64) {
	if s.Groups == nil {
		s.Groups = make(map[Kind]*Group)
	}
	if s.Rests == nil {
		s.Rests = make(map[string]*Rest)
	}
	maps.DeleteFunc(s.Groups, func(_ Kind, g *Group) bool { return g == nil })
	maps.DeleteFunc(s.Rests, func(_ string, r *Rest) bool { return r == nil })
	d.s, d.last = s, at
	d.clamp(at)
}

// clamp lets nothing wait longer than its rule says, counted from an instant.
func (d *Decider) clamp(at int64) {
	for _, g := range d.s.Groups {
		g.First, g.Last, g.Told = min(g.First, at), min(g.Last, at), min(g.Told, at)
		g.Level = max(0, min(g.Level, len(d.holds)-1))
		g.Hot = min(g.Hot, at+hot+weight)
	}
	for _, r := range d.s.Rests {
		r.Until = min(r.Until, at+int64(24*time.Hour))
	}
	first := int64(d.o.First)
	if first <= 0 { // begun by an earlier Decider
		first = int64(24 * time.Hour)
	}
	d.s.FirstUntil = min(d.s.FirstUntil, at+first)
}

// tick notices a clock that went back: what was told in a future that is none must not keep silence until then.
func (d *Decider) tick(at int64) {
	if at < d.last {
		d.clamp(at)
	}
	d.last = at
}

// State returns what is to be remembered. It is the Decider's own: write it down before the next call.
func (d *Decider) State() State { return d.s }

// Add takes a thing in. Its Title, Body, Urgency and Mute are written later.
func (d *Decider) Add(n Notice, at int64) {
	d.tick(at)
	f := form(d.forms, n.Kind)
	n.Count = max(n.Count, 1)
	if d.o.Ignore.matches(&n, f) {
		d.s.Ignored++
		return
	}
	key := string(n.Kind) + " " + n.key()
	if r := d.s.Rests[key]; r != nil {
		if at < r.Until {
			r.Again += n.Count
			r.Last = n
			return
		}
		n.Count += r.Again // due, and here is one more
	}
	d.makeRoom(key, at)
	d.s.Rests[key] = &Rest{Until: at + int64(f.Rest)}
	if d.o.First > 0 && d.s.FirstUntil == 0 && !d.s.FirstTold {
		d.s.FirstUntil = at + int64(d.o.First)
	}
	if f.First && at < d.s.FirstUntil {
		d.s.First.add(n, at)
		return
	}
	d.group(n.Kind).add(n, at, d.calm(f))
}

// calm is after how long without a word a group starts anew, by its level.
func (d *Decider) calm(f Form) func(level int) int64 {
	return func(level int) int64 {
		if level <= 1 {
			return int64(f.Calm)
		}
		return 2 * d.holds[level]
	}
}

func (d *Decider) group(k Kind) *Group {
	g := d.s.Groups[k]
	if g == nil {
		g = new(Group)
		d.s.Groups[k] = g
	}
	return g
}

func (g *Group) add(n Notice, at int64, calm ...func(level int) int64) {
	if g.Count == 0 {
		g.First = at
		for _, c := range calm {
			if g.Told == 0 || at-g.Told >= c(g.Level) {
				g.Level = 0
			}
			if g.Hot-at > hot {
				g.Level = max(g.Level, 2)
			}
		}
	}
	g.Last = at
	g.Count++
	if len(g.Some) < maxSome {
		g.Some = append(g.Some, n)
	} else {
		g.More++
	}
}

// due is when a group is told.
func (d *Decider) due(g *Group, f Form) int64 {
	switch {
	case g.Level == 0:
		return g.First + settle
	case g.Level == 1:
		return min(g.Last+int64(f.Quiet), g.First+atMost)
	}
	return max(g.Told+d.holds[g.Level], g.First+settle)
}

// makeRoom makes room for one more thing at rest: what has nothing to tell goes first, and of that, what ends soonest.
func (d *Decider) makeRoom(key string, at int64) {
	if _, ok := d.s.Rests[key]; ok || len(d.s.Rests) < maxRest {
		return
	}
	keys := slices.SortedFunc(maps.Keys(d.s.Rests), func(a, b string) int {
		x, y := d.s.Rests[a], d.s.Rests[b]
		return cmp.Or(cmp.Compare(min(x.Again, 1), min(y.Again, 1)), cmp.Compare(x.Until, y.Until))
	})
	for _, k := range keys[:maxRest/8] {
		if r := d.s.Rests[k]; r.Again > 0 {
			d.again(r, at)
		}
		delete(d.s.Rests, k)
	}
}

// again puts what happened during a rest into its group.
func (d *Decider) again(r *Rest, at int64) {
	n := r.Last
	n.Count = r.Again
	d.group(n.Kind).add(n, at, d.calm(form(d.forms, n.Kind)))
}

// Due returns what is to be told at an instant, the least urgent first.
func (d *Decider) Due(at int64) []Notice {
	d.tick(at)
	for k, r := range d.s.Rests {
		switch {
		case at < r.Until:
		case r.Again == 0:
			delete(d.s.Rests, k)
		default:
			d.again(r, at)
			*r = Rest{Until: at + int64(form(d.forms, r.Last.Kind).Rest)}
		}
	}
	var told []Notice
	if d.s.FirstUntil != 0 && at >= d.s.FirstUntil {
		if g := &d.s.First; g.Count > 0 {
			f := Form{Kind: NewProgram, Many: "First look: %d programs and scripts use the network", Where: "exe.log has them all", Urgency: Normal}
			told = append(told, many(f, g.First, g.Count, g.More, g.Some))
		}
		d.s.First, d.s.FirstUntil, d.s.FirstTold = Group{}, 0, true
	}
	for _, f := range d.forms {
		if g := d.s.Groups[f.Kind]; g != nil && g.Count > 0 && at >= d.due(g, f) {
			told = append(told, g.tell(f, at))
		}
	}
	for k, g := range d.s.Groups {
		if g.Count > 0 && !slices.ContainsFunc(d.forms, func(f Form) bool { return f.Kind == k }) {
			told = append(told, g.tell(form(d.forms, k), at)) // a state of another version
		}
	}
	return told
}

func (g *Group) tell(f Form, at int64) Notice {
	var n Notice
	if g.Count == 1 && len(g.Some) == 1 {
		n = g.Some[0]
		n.single(f)
	} else {
		n = many(f, g.First, g.Count, g.More, g.Some)
	}
	*g = Group{Told: at, Level: min(g.Level+1, len(holds())-1), Hot: max(g.Hot, at) + weight}
	return n
}

// Next is when Due may have something, or 0: when nothing waits.
func (d *Decider) Next() int64 {
	next := d.s.FirstUntil
	earlier := func(at int64) {
		if next == 0 || at < next {
			next = at
		}
	}
	for k, g := range d.s.Groups {
		if g.Count > 0 {
			earlier(d.due(g, form(d.forms, k)))
		}
	}
	for _, r := range d.s.Rests {
		if r.Again > 0 {
			earlier(r.Until)
		}
	}
	return next
}
