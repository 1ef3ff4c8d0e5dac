package notify

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

const t0 = int64(1_700_000_000_000_000_000)

// clock runs a Decider through time in small steps and collects what it tells.
type clock struct {
	d    *Decider
	at   int64
	told []Notice
	when []time.Duration
}

func newClock(o Options) *clock { return &clock{d: New(o), at: t0} }

func (c *clock) run(for_ time.Duration) {
	end := c.at + int64(for_)
	for c.at < end {
		step := end
		if n := c.d.Next(); n > c.at && n < end {
			step = n
		} else if n != 0 && n <= c.at {
			step = min(end, c.at+int64(time.Millisecond))
		}
		c.at = step
		for _, n := range c.d.Due(c.at) {
			c.told = append(c.told, n)
			c.when = append(c.when, time.Duration(c.at-t0))
		}
	}
}

func (c *clock) add(k Kind, path string) {
	c.d.Add(Notice{Kind: k, At: c.at, Path: path, Name: path[strings.LastIndexByte(path, '/')+1:]}, c.at)
}

func TestOneIsToldAtOnce(t *testing.T) {
	for _, f := range Kinds() {
		c := newClock(Options{})
		c.add(f.Kind, "/usr/bin/curl")
		c.run(time.Second)
		if len(c.told) != 1 || c.when[0] > 500*time.Millisecond {
			t.Errorf("%s: told %d, after %v", f.Kind, len(c.told), c.when)
			continue
		}
		n := c.told[0]
		if n.Title == "" || !strings.Contains(n.Body, "/usr/bin/curl") || n.Count != 1 || n.Urgency != f.Urgency || (n.Mute != "") != f.Mutable {
			t.Errorf("%+v", n)
		}
	}
}

// TestManyAreTwo: however 500 changes are spread over up to a minute, they are one or two notices, and nothing is missing in them.
func TestManyAreTwo(t *testing.T) {
	for _, kind := range []Kind{Changed, Upgraded, Tampered} {
		for _, over := range []time.Duration{0, time.Second, 5 * time.Second, 20 * time.Second, time.Minute} {
			c := newClock(Options{})
			for i := range 500 {
				c.add(kind, fmt.Sprintf("/usr/bin/p%d", i))
				c.run(over / 500)
			}
			c.run(3 * time.Hour)
			sum := 0
			for _, n := range c.told {
				sum += n.Count
			}
			if len(c.told) > 2 || sum != 500 {
				t.Errorf("%s over %v: %d notices for %d changes, at %v", kind, over, len(c.told), sum, c.when)
			}
		}
	}
}

func TestSlowStreamIsHeldBack(t *testing.T) {
	c := newClock(Options{})
	for i := range 1000 { // for eight hours
		c.add(NewProgram, fmt.Sprintf("/tmp/p%d", i))
		c.run(30 * time.Second)
	}
	c.run(2 * time.Hour)
	sum := 0
	for _, n := range c.told {
		sum += n.Count
	}
	// One every 30 s is not one event by Calm of new programs, but no reason to speak 1000 times either.
	if sum != 1000 {
		t.Errorf("%d of 1000 were told", sum)
	}
	t.Logf("%d notices", len(c.told))
	if len(c.told) > 40 {
		t.Errorf("%d notices", len(c.told))
	}
}

func TestDayOfTheSame(t *testing.T) {
	c := newClock(Options{})
	for range 24*60 - 1 {
		c.add(Changed, "/home/u/a.out")
		c.run(time.Minute)
	}
	if len(c.told) != 1 {
		t.Fatalf("%d notices in a day, at %v", len(c.told), c.when)
	}
	c.run(2 * time.Minute)
	if len(c.told) != 2 || c.told[1].Count != 24*60-2 || !strings.Contains(c.told[1].Body, "1438 times") {
		t.Fatalf("%+v", c.told)
	}
}

// TestClockGoesBack: what was told, or waits, by a wrong clock keeps silence no longer than by the right one.
func TestClockGoesBack(t *testing.T) {
	const years = 4 * 365 * 24 * time.Hour
	for name, first := range map[string]time.Duration{"at once": 0, "first minutes": 3 * time.Minute} {
		c := newClock(Options{First: first})
		c.at += int64(years)
		c.add(NewProgram, "/usr/bin/a")
		c.run(10 * time.Minute)
		c.add(Loss, "/usr/bin/b")
		c.add(NewProgram, "/usr/bin/b") // waits
		told := len(c.told)
		c.at -= int64(years)
		c.run(time.Second) // when it is noticed
		c.run(10 * time.Minute)
		if got := len(c.told) - told; got != 2 {
			t.Errorf("%s: %d of 2 that waited were told: %+v", name, got, c.told[told:])
		}
		c.run(25 * time.Hour)
		told = len(c.told)
		c.add(NewProgram, "/usr/bin/a")
		c.run(10 * time.Minute)
		if got := len(c.told) - told; got != 1 {
			t.Errorf("%s: told %d times a day later", name, got)
		}
	}
	c := newClock(Options{First: 3 * time.Minute})
	c.at += int64(years)
	c.add(NewProgram, "/usr/bin/a")
	c.at -= int64(years)
	c.run(time.Second)
	c.run(4 * time.Minute)
	if len(c.told) != 1 {
		t.Errorf("the digest of the first minutes was told %d times", len(c.told))
	}
}

func TestOtherKindIsNotAtRest(t *testing.T) {
	c := newClock(Options{})
	c.add(Upgraded, "/usr/bin/curl")
	c.run(time.Second)
	c.add(Tampered, "/usr/bin/curl")
	c.run(time.Second)
	if len(c.told) != 2 || c.told[1].Kind != Tampered || c.told[1].Urgency != Critical {
		t.Errorf("%+v", c.told)
	}
}

// TestTamperedIsNotHidden: nobody can hide one change among others by making noise of another kind.
func TestTamperedIsNotHidden(t *testing.T) {
	c := newClock(Options{First: 5 * time.Minute})
	for i := range 500 {
		c.add(Changed, fmt.Sprintf("/home/u/%d", i))
		c.add(NewProgram, fmt.Sprintf("/home/u/%d", i))
		c.run(10 * time.Millisecond)
	}
	before := c.at
	c.add(Tampered, "/usr/bin/sudo")
	c.run(2 * time.Second)
	last := c.told[len(c.told)-1]
	if last.Kind != Tampered || last.Path != "/usr/bin/sudo" || c.when[len(c.when)-1] > time.Duration(before-t0)+time.Second {
		t.Errorf("%+v at %v", last, c.when)
	}
}

func TestFirstMinutes(t *testing.T) {
	c := newClock(Options{First: 3 * time.Minute})
	for i := range 40 {
		c.add(NewProgram, fmt.Sprintf("/usr/bin/p%d", i))
		c.add(NewParent, fmt.Sprintf("/usr/bin/parent%d", i))
		c.run(time.Second)
	}
	c.add(Tampered, "/usr/bin/bad")
	c.run(time.Hour)
	if len(c.told) != 2 || c.told[0].Kind != Tampered || c.told[1].Count != 80 || c.when[1] < 3*time.Minute || c.when[1] > 3*time.Minute+time.Second {
		t.Fatalf("%d notices at %v: %+v", len(c.told), c.when, c.told)
	}
	c.add(NewProgram, "/usr/bin/later")
	c.run(time.Second)
	if len(c.told) != 3 || c.told[2].Path != "/usr/bin/later" {
		t.Errorf("after the first minutes: %+v", c.told)
	}
}

// TestRestart: a Decider that is ended at any moment and made anew says neither more nor less.
func TestRestart(t *testing.T) {
	run := func(restart bool) (titles []string) {
		c := newClock(Options{First: time.Minute})
		again := func() {
			if !restart {
				return
			}
			b, err := json.Marshal(c.d.State())
			if err != nil {
				t.Fatal(err)
			}
			var s State
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			c.d = New(Options{}) // no first run any more
			c.d.Restore(s, c.at)
		}
		for i := range 200 {
			c.add(NewProgram, fmt.Sprintf("/usr/bin/p%d", i%150))
			again()
			c.add(Changed, fmt.Sprintf("/usr/bin/p%d", i%10))
			again()
			c.run(700 * time.Millisecond)
			again()
		}
		again()
		c.run(26 * time.Hour)
		for _, n := range c.told {
			titles = append(titles, n.Title+"\n"+n.Body)
		}
		return titles
	}
	want, got := run(false), run(true)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("with restarts:\n%q\nwithout:\n%q", got, want)
	}
	if len(want) < 4 {
		t.Errorf("too little was told to compare: %q", want)
	}
}

func TestIgnore(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	g, err := NewIgnore([]string{"/home/*/dev/**", "/opt/tool-?", "make*", strings.ToUpper(sum), `/odd\name`, "/[a-z]/x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		n    Notice
		want bool
	}{
		{Notice{Path: "/home/u/dev/a/b/c"}, true},
		{Notice{Path: "/home/u/v/dev/a"}, false},
		{Notice{Path: "/home/u/dev"}, false},
		{Notice{Path: "/opt/tool-1"}, true},
		{Notice{Path: "/opt/tool-12"}, false},
		{Notice{Path: "/opt/tool-/"}, false},
		{Notice{Path: "/x/opt/tool-1"}, false},
		{Notice{Name: "make-kpkg", Path: "/x"}, true},
		{Notice{Name: "cmake", Path: "/x"}, false},
		{Notice{SHA256: sum, Path: "/x"}, true},
		{Notice{SHA256: sum, Path: "/x", Kind: Suspicious}, true},
		{Notice{Path: "/home/u/dev/a", Kind: Suspicious}, false},
		{Notice{Path: "/home/u/dev/a", Kind: Loss}, false},
		{Notice{Path: "/home/u/dev/a", Kind: Tampered}, false},
		{Notice{Name: "make", Path: "/usr/bin/curl", Kind: Tampered}, false}, // a symlink to it gives it any name
		{Notice{SHA256: sum, Path: "/x", Kind: Tampered}, true},
		{Notice{Path: `/odd\\name`}, true},
		{Notice{Path: "/[a-z]/x"}, true},
		{Notice{Path: "/b/x"}, false},
		{Notice{Path: "/usr/bin/python3", Script: "/home/u/dev/x.py"}, true},
		{Notice{}, false},
	} {
		if tc.n.Kind == "" {
			tc.n.Kind = Changed
		}
		if got := g.matches(&tc.n, form(Kinds(), tc.n.Kind)); got != tc.want {
			t.Errorf("%+v: %v", tc.n, got)
		}
	}
	c := newClock(Options{Ignore: g})
	c.add(NewProgram, "/opt/tool-1")
	c.run(time.Hour)
	if len(c.told) != 0 || c.d.State().Ignored != 1 {
		t.Errorf("told %+v", c.told)
	}
	if _, err := NewIgnore([]string{""}); err == nil {
		t.Error("an empty entry is taken")
	}
}

// TestBounded: a hostile machine with a million programs that change costs little memory, and all are counted.
func TestBounded(t *testing.T) {
	c := newClock(Options{})
	for i := range 50_000 {
		c.add(Changed, fmt.Sprintf("/tmp/%d/%s", i, strings.Repeat("x", 200)))
		if i%1000 == 0 {
			c.run(time.Second)
		}
	}
	b, err := json.Marshal(c.d.State())
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 2<<20 {
		t.Errorf("the state has %d bytes", len(b))
	}
	c.run(30 * time.Hour)
	sum := 0
	for _, n := range c.told {
		sum += n.Count
		if len(n.Body) > 8<<10 || strings.Count(n.Body, "\n") > 12 {
			t.Errorf("a body of %d bytes", len(n.Body))
		}
	}
	if sum != 50_000 {
		t.Errorf("%d of 50000 were told", sum)
	}
}

func TestTable(t *testing.T) {
	seen := map[Kind]bool{}
	for _, f := range Kinds() {
		if f.Kind == "" || f.One == "" || strings.Count(f.Many, "%d") != 1 || f.Where == "" || f.Urgency == "" || f.Rest <= 0 || f.Calm <= 0 || f.Quiet <= 0 || seen[f.Kind] {
			t.Errorf("%+v", f)
		}
		seen[f.Kind] = true
	}
	c := newClock(Options{})
	c.add("of a newer picosnitch", "/x")
	c.run(time.Second)
	if len(c.told) != 1 {
		t.Error("an unknown kind is lost")
	}
}

func BenchmarkAdd(b *testing.B) {
	d := New(Options{})
	i := 0
	for b.Loop() {
		d.Add(Notice{Kind: Changed, Path: "/usr/bin/p" + fmt.Sprint(i%5000)}, t0+int64(i)*1e6)
		i++
	}
}
