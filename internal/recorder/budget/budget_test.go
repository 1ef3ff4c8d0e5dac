package budget

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
	_ "time/tzdata" // the tests need zones where the machine has no table of them

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

func in(t *testing.T, zone string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func program(path, script, name string) *flow.Program {
	p := &flow.Program{Executable: &flow.Executable{Path: path, Digest: new(flow.Digest)}, Name: name}
	if script != "" {
		p.Script = &flow.Executable{Path: script, Digest: new(flow.Digest)}
	}
	return p
}

// TestPeriod: days and months are local, whatever their length, and follow each other without a gap.
func TestPeriod(t *testing.T) {
	for _, c := range []struct {
		zone, per        string
		starts           int
		at               string
		name, start, end string
	}{
		{"UTC", Day, 0, "2026-03-15T00:00:00Z", "2026-03-15", "2026-03-15T00:00:00Z", "2026-03-16T00:00:00Z"},
		{"UTC", Day, 0, "2026-03-14T23:59:59Z", "2026-03-14", "2026-03-14T00:00:00Z", "2026-03-15T00:00:00Z"},
		{"Europe/Berlin", Day, 0, "2026-03-28T23:30:00Z", "2026-03-29", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"}, // 23 hours
		{"Europe/Berlin", Day, 0, "2026-10-25T12:00:00Z", "2026-10-25", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"}, // 25 hours
		{"Asia/Kathmandu", Day, 0, "2026-01-01T18:15:00Z", "2026-01-02", "2026-01-01T18:15:00Z", "2026-01-02T18:15:00Z"},
		{"America/Sao_Paulo", Day, 0, "2018-11-04T12:00:00Z", "2018-11-04", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"}, // begins at 1:00
		{"America/Sao_Paulo", Day, 0, "2018-11-03T12:00:00Z", "2018-11-03", "2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z"},
		{"America/Havana", Day, 0, "2026-11-01T12:00:00Z", "2026-11-01", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"}, // 0:00 is there twice
		{"UTC", Month, 1, "2026-02-28T23:59:59Z", "2026-02-01", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"UTC", Month, 1, "2026-01-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"},
		{"UTC", Month, 17, "2026-01-16T23:59:59Z", "2025-12-17", "2025-12-17T00:00:00Z", "2026-01-17T00:00:00Z"},
		{"UTC", Month, 17, "2026-12-17T00:00:00Z", "2026-12-17", "2026-12-17T00:00:00Z", "2027-01-17T00:00:00Z"},
		{"UTC", Month, 31, "2026-02-28T00:00:00Z", "2026-02-28", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"}, // February has no 31st
		{"UTC", Month, 31, "2026-02-27T23:59:59Z", "2026-01-31", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"},
		{"UTC", Month, 30, "2028-03-29T00:00:00Z", "2028-02-29", "2028-02-29T00:00:00Z", "2028-03-30T00:00:00Z"},
		{"America/New_York", Month, 1, "2026-03-08T12:00:00Z", "2026-03-01", "2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z"},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		l := Limit{Per: c.per, Starts: c.starts}
		name, start, end := l.period(at.In(in(t, c.zone)))
		if name != c.name || start.UTC().Format(time.RFC3339) != c.start || end.UTC().Format(time.RFC3339) != c.end {
			t.Errorf("%s %s %d at %s: %s %s %s", c.zone, c.per, c.starts, c.at, name, start.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
		}
	}
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Beirut", "Pacific/Apia"} {
		z := in(t, zone)
		for range 2000 {
			l := Limit{Per: Day}
			if rand.IntN(2) == 0 {
				l = Limit{Per: Month, Starts: 1 + rand.IntN(31)}
			}
			at := time.Unix(rand.Int64N(2_500_000_000), 0).In(z)
			name, start, end := l.period(at)
			next, start2, _ := l.period(end)
			_, _, end0 := l.period(start.Add(-time.Second))
			again, _, _ := l.period(end.Add(-time.Second))
			if at.Before(start) || !at.Before(end) || !start2.Equal(end) || !end0.Equal(start) || next <= name || again != name {
				t.Fatalf("%s %+v at %s: %s, %s to %s, then %s from %s, before to %s", zone, l, at, name, start, end, next, start2, end0)
			}
		}
	}
}

// bench counts flows of programs.
type bench struct {
	t     *testing.T
	m     *Meter
	at    int64
	flows uint64
	place Place
}

func newBench(t *testing.T, at string, limits ...Limit) *bench {
	t.Helper()
	b := &bench{t: t, m: New(limits, time.UTC)}
	b.to(at)
	b.m.Begin(flow.Position{Stream: "s"})
	return b
}

func (b *bench) to(at string) {
	b.t.Helper()
	t, err := time.Parse(time.DateTime, at)
	if err != nil {
		b.t.Fatal(err)
	}
	b.at = t.UnixNano()
}

func (b *bench) move(p *flow.Program, sent, received uint64) {
	b.flows++
	f := event.Flow{Family: "inet", Sent: sent, Received: received, Remote: netip.MustParseAddrPort("8.8.8.8:443")}
	b.m.Count(flow.Position{Stream: "s", Flows: b.flows}, b.at, &f, p, func() Place { return b.place })
}

// due tells what is due, as thresholds.
func (b *bench) due() []int {
	var all []int
	due := b.m.Due(b.at)
	for i := range due {
		all = append(all, due[i].Threshold)
		due[i].Told()
	}
	return all
}

func (b *bench) want(want ...int) {
	b.t.Helper()
	got := b.due()
	if len(got) != len(want) {
		b.t.Fatalf("told %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			b.t.Fatalf("told %v, want %v", got, want)
		}
	}
}

// restart goes on with another Meter, from what is on disk.
func (b *bench) restart(limits ...Limit) {
	b.t.Helper()
	data, err := json.Marshal(b.m.State())
	if err != nil {
		b.t.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		b.t.Fatal(err)
	}
	b.m = New(limits, time.UTC)
	b.m.Restore(s)
	b.m.Begin(flow.Position{Stream: "s"})
}

var curl = program("/usr/bin/curl", "", "curl")

// TestThresholds: each once per period, the greater one only if both are reached at once.
func TestThresholds(t *testing.T) {
	l := Limit{Bytes: 1000, Per: Day, Direction: Both}
	b := newBench(t, "2026-03-15 10:00:00", l)
	b.want()
	b.move(curl, 700, 99)
	b.want()
	b.move(curl, 1, 0)
	b.want(80)
	b.want()
	b.move(curl, 199, 0)
	b.want()
	b.restart(l)
	b.want()
	b.move(curl, 0, 1)
	b.want(100)
	b.move(curl, 5000, 1)
	b.want()
	b.restart(l)
	b.want()
	b.to("2026-03-16 00:00:00") // another day
	b.want()
	if u := b.m.Uses(b.at)[0]; u.Used != 0 || u.Since != 0 || time.Unix(u.Resets, 0).UTC().Format(time.DateTime) != "2026-03-17 00:00:00" {
		t.Errorf("%+v", u)
	}
	b.move(curl, 1000, 0)
	b.want(100)
	b.to("2026-03-15 23:59:59") // the clock was set back: that day goes on
	b.want()
	if u := b.m.Uses(b.at)[0]; u.Used != 6001 {
		t.Errorf("%+v", u)
	}
	b.to("2036-01-01 00:00:00") // and ten years forward
	b.move(curl, 800, 0)
	b.want(80)
	b.to("2026-03-16 01:00:00") // and right again
	b.move(curl, 1, 0)
	b.want()
	if u := b.m.Uses(b.at)[0]; u.Used != 1001 || u.Percent != 100 || u.Left() != 0 {
		t.Errorf("%+v", u)
	}
}

// TestChanged: a changed limit keeps what was counted, and is told anew.
func TestChanged(t *testing.T) {
	l := Limit{Bytes: 1000, Per: Month, Starts: 1, Direction: Both}
	b := newBench(t, "2026-03-15 10:00:00", l)
	b.move(curl, 900, 300)
	b.want(100)
	l.Bytes = 2000
	b.restart(l)
	b.want()
	b.move(curl, 400, 0)
	b.want(80)
	l.Bytes = 500 // less than is used: once
	b.restart(l)
	b.want(100)
	b.want()
	l.Direction = Received
	b.restart(l)
	b.want()
	b.move(curl, 0, 150)
	b.want(80)
	l.Starts = 10 // other periods: nothing is known of them
	b.restart(l)
	if limits, since := b.m.Empty(b.at); len(limits) != 1 || since[0].Format(time.DateOnly) != "2026-03-10" {
		t.Errorf("%v %v", limits, since)
	}
	b.want()
}

// TestWhat: what counts for which limit.
func TestWhat(t *testing.T) {
	limits := []Limit{
		{Bytes: 1e6, Per: Day, Direction: Both},
		{Bytes: 1e6, Per: Day, Direction: Sent, Local: true},
		{Bytes: 1e6, Per: Day, Programs: []string{"/usr/bin/*"}, Direction: Received},
		{Bytes: 1e6, Per: Day, Programs: []string{"/home/me/**", "steam"}, Direction: Both},
		{Bytes: 1e6, Per: Day, Interface: "wwan*", Direction: Both},
		{Bytes: 1e6, Per: Day, Programs: []string{"\u009b\x1b[2J"}, Direction: Both},
	}
	python := program("/usr/bin/python3", "/home/me/x/y.py", "y.py")
	steam := program("/home/other/steam", "", "steam")
	hostile := program("/tmp/x", "", event.Text([]byte("\u009b\x1b[2J")))
	for _, c := range []struct {
		name   string
		p      *flow.Program
		place  Place
		family string
		want   [6]uint64 // used, of 100 sent and 10 received
	}{
		{"curl", curl, Place{Interface: "eth0"}, "inet", [6]uint64{110, 100, 10, 0, 0, 0}},
		{"modem", curl, Place{Interface: "wwan0"}, "inet6", [6]uint64{110, 100, 10, 0, 110, 0}},
		{"this machine", curl, Place{Machine: true, Local: true}, "inet", [6]uint64{}},
		{"local network", curl, Place{Interface: "eth0", Local: true}, "inet", [6]uint64{0, 100, 0, 0, 0, 0}},
		{"script", python, Place{}, "inet", [6]uint64{110, 100, 10, 110, 0, 0}},
		{"name", steam, Place{}, "inet", [6]uint64{110, 100, 0, 110, 0, 0}},
		{"carried", steam, Place{Interface: "wwan0", Carried: true}, "inet", [6]uint64{0, 0, 0, 110, 0, 0}},
		{"packets", curl, Place{}, "packet", [6]uint64{100, 100, 0, 0, 0, 0}},
		{"vsock", curl, Place{}, "vsock", [6]uint64{}},
		{"executed", curl, Place{}, event.FamilyExec, [6]uint64{}},
		{"hostile", hostile, Place{}, "inet", [6]uint64{110, 100, 0, 0, 0, 110}},
	} {
		m := New(limits, time.UTC)
		at := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC).UnixNano()
		f := event.Flow{Family: c.family, Sent: 100, Received: 10}
		m.Count(flow.Position{Stream: "s", Flows: 1}, at, &f, c.p, func() Place { return c.place })
		for i, u := range m.Uses(at) {
			if u.Used != c.want[i] {
				t.Errorf("%s: limit %d (%s) has %d, want %d", c.name, i, u.What, u.Used, c.want[i])
			}
		}
		if c.name == "curl" {
			continue
		}
		if u := m.Uses(at)[4]; (u.Unplaced != 0) != (c.place.Interface == "" && !c.place.Machine && (c.family == "inet" || c.family == "packet")) {
			t.Errorf("%s: %+v", c.name, u)
		}
	}
}

// TestAgain: what the sensor sends a second time is counted once, after whatever restart.
func TestAgain(t *testing.T) {
	l := Limit{Bytes: 1e6, Per: Day, Direction: Both}
	seed := rand.Uint64()
	dice := rand.New(rand.NewPCG(seed, 0))
	m := New([]Limit{l}, time.UTC)
	at := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC).UnixNano()
	const batches, flows = 20, 10
	saved, pos := m.State(), flow.Position{Stream: "s"}
	m.Begin(flow.Position{Stream: "s"})
	for b := range uint64(batches) {
		for f := uint64(1); f <= flows; f++ {
			m.Count(flow.Position{Stream: "s", Batch: b, Flows: f}, at, &event.Flow{Family: "inet", Sent: 1}, curl, func() Place { return Place{} })
			if dice.IntN(5) == 0 { // written down
				data, _ := json.Marshal(m.State())
				saved = State{}
				if err := json.Unmarshal(data, &saved); err != nil {
					t.Fatal(err)
				}
				pos = flow.Position{Stream: "s", Batch: b, Flows: f}
			}
			if dice.IntN(10) == 0 { // killed: the sensor begins again before what was written down
				data, _ := json.Marshal(saved)
				var s State
				if err := json.Unmarshal(data, &s); err != nil {
					t.Fatal(err)
				}
				m = New([]Limit{l}, time.UTC)
				m.Restore(s)
				m.Begin(flow.Position{Stream: "s"})
				for b2 := pos.Batch - min(pos.Batch, 2); b2 <= b; b2++ {
					for f2 := uint64(1); f2 <= flows && (b2 < b || f2 <= f); f2++ {
						m.Count(flow.Position{Stream: "s", Batch: b2, Flows: f2}, at, &event.Flow{Family: "inet", Sent: 1}, curl, func() Place { return Place{} })
					}
				}
			}
			if dice.IntN(10) == 0 { // only the sensor connected again
				m.Begin(flow.Position{Stream: "s"})
				for f2 := uint64(1); f2 <= f; f2++ {
					m.Count(flow.Position{Stream: "s", Batch: b, Flows: f2}, at, &event.Flow{Family: "inet", Sent: 1}, curl, func() Place { return Place{} })
				}
			}
			if u := m.Uses(at)[0]; u.Used != b*flows+f {
				t.Fatalf("seed %d: %d after batch %d flow %d", seed, u.Used, b, f)
			}
		}
	}
}

// TestSeed: a new limit has what the log has, and what comes again of that is not counted.
func TestSeed(t *testing.T) {
	l := Limit{Bytes: 1000, Per: Day, Direction: Both}
	m := New([]Limit{l}, time.UTC)
	at := time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC).UnixNano()
	limits, since := m.Empty(at)
	if len(limits) != 1 || since[0].Hour() != 0 {
		t.Fatalf("%v %v", limits, since)
	}
	m.Seed(limits[0], at, 500, 100, since[0].UnixNano())
	m.Begin(flow.Position{Stream: "s", Batch: 3, Flows: 2})
	for b := range uint64(5) {
		for f := uint64(1); f <= 4; f++ {
			m.Count(flow.Position{Stream: "s", Batch: b, Flows: f}, at, &event.Flow{Family: "inet", Sent: 10}, curl, func() Place { return Place{} })
		}
	}
	if u := m.Uses(at)[0]; u.Used != 660 || u.Since != 0 {
		t.Errorf("%+v", u)
	}
}

// TestSeedAhead: limits.json is ahead of the log at a start in the next period. The new period has what the log has of it, and no byte of the
// old one is counted twice, wherever the next kill comes.
func TestSeedAhead(t *testing.T) {
	limits := []Limit{{Bytes: 1000, Text: "1 kB", Per: Day, Direction: Both}}
	p := program("/a", "", "a")
	old, new := time.Date(2026, 3, 1, 23, 59, 50, 0, time.UTC).UnixNano(), time.Date(2026, 3, 2, 0, 1, 0, 0, time.UTC).UnixNano()
	place := func() Place { return Place{Interface: "eth0"} }
	const logged = 4 // batches that the log has at the start; its bytes after midnight are what Seed is given
	stream := func(m *Meter, from, to uint64) {
		for n := from; n <= to; n++ {
			m.Count(flow.Position{Stream: "s", Batch: n, Flows: 1}, old, &event.Flow{Family: "inet", Sent: 1}, p, place)
			m.Count(flow.Position{Stream: "s", Batch: n, Flows: 2}, new, &event.Flow{Family: "inet", Sent: 10}, p, place)
		}
	}
	again := func(m *Meter) *Meter {
		text, err := json.Marshal(m.State())
		if err != nil {
			t.Fatal(err)
		}
		var s State
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatal(err)
		}
		m = New(limits, time.UTC)
		m.Restore(s)
		return m
	}
	for killed := uint64(0); killed <= 12; killed++ { // before this batch came a second time
		m := New(limits, time.UTC)
		m.Begin(flow.Position{Stream: "s"})
		for n := uint64(1); n <= 8; n++ { // the clock was behind: all is yesterday's
			m.Count(flow.Position{Stream: "s", Batch: n, Flows: 1}, old, &event.Flow{Family: "inet", Sent: 1}, p, place)
		}
		m = again(m)
		if fresh, _ := m.Empty(new); len(fresh) != 1 {
			t.Fatalf("%d limits are empty", len(fresh))
		}
		m.Seed(limits[0], new, logged*10, 0, new)
		m.Begin(flow.Position{Stream: "s", Batch: logged, Flows: 2})
		stream(m, 1, killed)
		m = again(m)
		m.Begin(flow.Position{Stream: "s", Batch: logged, Flows: 2})
		stream(m, 1, 12)
		if a, b := m.Uses(old)[0].Used, m.Uses(new)[0].Used; a != 12 || b != 120 {
			t.Errorf("killed after batch %d: %d and %d bytes, want 12 and 120", killed, a, b)
		}
	}
}

// TestVisits: a clock that visits more days than are remembered, without traffic there, takes nothing from what was counted.
func TestVisits(t *testing.T) {
	b := newBench(t, "2026-03-01 12:00:00", Limit{Bytes: 1000, Text: "1 kB", Per: Day, Direction: Both})
	b.move(program("/a", "", "a"), 900, 0)
	b.want(80)
	for _, day := range []string{"02", "03", "04", "05", "06"} {
		b.to("2026-03-" + day + " 12:00:00")
		b.want()
	}
	b.to("2026-03-01 13:00:00")
	b.want()
	if u := b.m.Uses(b.at); u[0].Used != 900 {
		t.Errorf("used %d, want 900", u[0].Used)
	}
}

// TestHuge: numbers stay at the greatest one.
func TestHuge(t *testing.T) {
	b := newBench(t, "2026-03-15 10:00:00", Limit{Bytes: math.MaxInt64, Per: Day, Direction: Both}, Limit{Bytes: 1, Per: Day, Direction: Sent}, Limit{Per: Month}) // the last one is of no bytes at all, which config does not let through
	b.move(curl, math.MaxUint64, math.MaxUint64)
	b.move(curl, math.MaxUint64, math.MaxUint64)
	b.want(100, 100, 100)
	if u := b.m.Uses(b.at)[0]; u.Used != math.MaxInt64 || u.Percent != 100 {
		t.Errorf("%+v", u)
	}
	for _, s := range []State{{}, {Version: 2}, {Version: 1, Limits: []LimitState{{Key: "x"}, {Key: (&Limit{Per: Month}).key(), Periods: []*Period{nil, {Start: "nonsense"}, nil}}}}} {
		m := New([]Limit{{Bytes: 1, Per: Month}}, time.UTC)
		m.Restore(s)
		m.Uses(b.at)
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9_999: "9.99 kB", 10_000: "10.0 kB", 999_999: "999 kB", 7_990_000_000: "7.99 GB", math.MaxUint64: "18.4 EB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// BenchmarkCount is one flow line with 32 limits.
func BenchmarkCount(b *testing.B) {
	var limits []Limit
	for i := range 32 {
		l := Limit{Bytes: 1e18, Per: Day, Direction: Both}
		if i%2 == 0 {
			l.Programs = []string{"/opt/**"}
		}
		limits = append(limits, l)
	}
	m := New(limits, time.UTC)
	f := event.Flow{Family: "inet", Sent: 100, Received: 10}
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		n++
		m.Count(flow.Position{Stream: "s", Flows: n}, 1_700_000_000_000_000_000, &f, curl, func() Place { return Place{Interface: "eth0"} })
	}
}
