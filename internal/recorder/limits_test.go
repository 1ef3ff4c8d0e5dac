package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/budget"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// of gives the notices of a kind.
func (w *fakeWay) of(k notify.Kind) []notify.Notice {
	var all []notify.Notice
	for _, n := range w.all() {
		if n.Kind == k {
			all = append(all, n)
		}
	}
	return all
}

func (w *fakeWay) waitFor(t *testing.T, k notify.Kind, n int) notify.Notice {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); len(w.of(k)) < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d notices, want %d: %+v", len(w.of(k)), n, w.all())
		}
	}
	return w.of(k)[n-1]
}

func month(bytes uint64) func(*Settings) {
	return func(s *Settings) {
		s.Limits = []Limit{{Bytes: bytes, Text: budget.Bytes(bytes), Per: budget.Month, Starts: 1, Direction: budget.Both}}
	}
}

// TestLimits: from the flow to the notice, with what does not count; once, also after restarts; and what the status says.
func TestLimits(t *testing.T) {
	dir := t.TempDir()
	w := &fakeWay{}
	stream := func(name string, sent ...uint64) *script {
		s := &script{t: t, at: epoch * 1e9}
		s.add(event.Event{Hello: &event.Hello{Version: 1, Stream: name}})
		s.process(1, 0, "/usr/bin/curl", "curl")
		for _, n := range sent {
			s.tcp(1, "8.8.8.8:443", 1, n, 0)
			s.tcp(1, "192.168.1.1:443", 1, 5000, 0)
			s.tcp(1, "127.0.0.1:443", 1, 5000, 0)
			s.tcp(1, "10.0.0.1:443", 1, 5000, 0) // its own address
			s.ledger()
		}
		return s
	}
	r := runOn(t, dir, w, month(1000))
	r.send(stream("s1", 799))
	r.send(stream("s2", 1, 0, 0))
	n := w.waitFor(t, notify.DataLimit, 1)
	if n.Title != "Data limit: 80 % of 1.00 kB per month, all programs" || n.Body != "all programs: 800 B of 1.00 kB per month used\n200 B left until Sunday, 1 February 00:00; counted since 2 January 03:04" || n.Urgency != notify.Normal {
		t.Errorf("%q\n%s", n.Title, n.Body)
	}
	r.end()
	r = runOn(t, dir, w, month(1000))
	r.send(stream("s3", 1, 0, 0))
	r.send(stream("s4", 199, 0))
	n = w.waitFor(t, notify.DataLimit, 2)
	if n.Title != "Data limit: 100 % of 1.00 kB per month, all programs" || !strings.Contains(n.Body, "\nnothing is blocked; it begins anew on Sunday, 1 February") {
		t.Errorf("%q\n%s", n.Title, n.Body)
	}
	r.end()
	r = runOn(t, dir, w, month(1000))
	r.send(stream("s5", 9999, 0, 0))
	r.end()
	r = runOn(t, dir, w, month(10_000)) // changed, and less than is used
	r.send(stream("s6", 0, 0, 0))
	if n = w.waitFor(t, notify.DataLimit, 3); !strings.HasPrefix(n.Title, "Data limit: 109 % of 10.0 kB per month") {
		t.Errorf("%q", n.Title)
	}
	r.end()
	if all := w.of(notify.DataLimit); len(all) != 3 {
		t.Errorf("%+v", all)
	}
}

// TestLimitsDamaged: what strangers wrote into limits.json ends nothing, and is told.
func TestLimitsDamaged(t *testing.T) {
	for _, text := range []string{"", "{", "[]", "null", `{"version":1,"limits":[null]}`, `{"version":1,"limits":[{"periods":[null,{"start":"\u001b[31m","sent":-5}]}]}`, `{"version":99}`, strings.Repeat(" ", maxLimitsFile+1), "\xff\x00"} {
		dir := t.TempDir()
		w := &fakeWay{}
		path := filepath.Join(dir, limitsFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := runOn(t, dir, w, month(1000))
		s := newScript(t)
		s.process(1, 0, "/usr/bin/curl", "curl")
		s.tcp(1, "8.8.8.8:443", 1, 1000, 0)
		s.end()
		r.send(s)
		r.end()
		var state budget.State
		if err := json.Unmarshal([]byte(readFile(t, dir, limitsFile)), &state); err != nil || len(state.Limits) != 1 || state.Limits[0].Periods[len(state.Limits[0].Periods)-1].Sent != 1000 {
			t.Errorf("%.40q: %v %+v", text, err, state)
		}
		aside, _ := filepath.Glob(path + ".damaged-*")
		valid := json.Unmarshal([]byte(text), new(budget.State)) == nil && len(text) <= maxLimitsFile
		if told := strings.Contains(readFile(t, dir, "error.log"), "limits.json is damaged"); told == valid || (len(aside) == 1) == valid {
			t.Errorf("%.40q: told %t, set aside as %v", text, told, aside)
		}
	}
}

// TestLimitsUnwritable: a full disk costs nothing as long as the recorder lives, and is told once.
func TestLimitsUnwritable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, limitsFile+".new"), 0o700); err != nil { // cannot be written
		t.Fatal(err)
	}
	w := &fakeWay{}
	r := runOn(t, dir, w, month(1000))
	s := newScript(t)
	s.process(1, 0, "/usr/bin/curl", "curl")
	for range 20 {
		s.tcp(1, "8.8.8.8:443", 1, 50, 0)
		s.ledger()
	}
	r.send(s)
	w.waitFor(t, notify.DataLimit, 1)
	r.end()
	if n := strings.Count(readFile(t, dir, "error.log"), "write limits.json"); n == 0 || n > 4 {
		t.Errorf("told %d times:\n%s", n, readFile(t, dir, "error.log"))
	}
}

// TestLimitsPast: a new limit begins with what the log has; if the log cannot say, that is told.
func TestLimitsPast(t *testing.T) {
	for _, fail := range []bool{false, true} {
		dir := t.TempDir()
		o := Options{Dir: dir, Settings: Defaults(), Hosts: os.DevNull, Zone: time.UTC}
		month(1000)(&o.Settings)
		o.Settings.Limits[0].Interface = ""
		asked := 0
		o.Past = func(_ context.Context, l Limit, since time.Time) (event.Bytes, time.Time, error) {
			asked++
			if fail {
				return event.Bytes{}, since, errors.New("no such table")
			}
			return event.Bytes{Sent: 600, Received: 50}, since, nil
		}
		for range 2 { // it is asked once: then it is known
			s := newScript(t)
			if err := Run(t.Context(), strings.NewReader(string(s.end())), o); err != nil {
				t.Fatal(err)
			}
		}
		var state budget.State
		if err := json.Unmarshal([]byte(readFile(t, dir, limitsFile)), &state); err != nil {
			t.Fatal(err)
		}
		var sum uint64
		for _, p := range state.Limits[0].Periods {
			sum += p.Sent + p.Received
		}
		log := readFile(t, dir, "error.log")
		if want := map[bool]uint64{false: 650}[fail]; sum != want || asked != 1 || strings.Contains(log, "no such table") != fail {
			t.Errorf("fail %t: %d bytes, asked %d times, %s", fail, sum, asked, log)
		}
	}
}

// TestLimitsOff: what was counted before the limits were off is not taken for all of it when they are on again: the log is asked once more.
func TestLimitsOff(t *testing.T) {
	dir := t.TempDir()
	asked := 0
	run := func(sent uint64, on bool) {
		t.Helper()
		o := Options{Dir: dir, Settings: Defaults(), Hosts: os.DevNull, Zone: time.UTC}
		if on {
			month(10_000)(&o.Settings)
		}
		o.Past = func(_ context.Context, l Limit, since time.Time) (event.Bytes, time.Time, error) {
			asked++
			return event.Bytes{Sent: uint64(asked) * 1000}, since, nil
		}
		s := newScript(t)
		s.process(1, 0, "/usr/bin/curl", "curl")
		s.tcp(1, "8.8.8.8:443", 1, sent, 0)
		if err := Run(t.Context(), strings.NewReader(string(s.end())), o); err != nil {
			t.Fatal(err)
		}
	}
	run(1, true)
	run(5000, false)
	run(1, true)
	var state budget.State
	if err := json.Unmarshal([]byte(readFile(t, dir, limitsFile)), &state); err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, p := range state.Limits[0].Periods {
		sum += p.Sent
	}
	if asked != 2 || sum < 2000 {
		t.Errorf("the log was asked %d times, and %d bytes are used; want 2, and what the log has", asked, sum)
	}
}

// limitsOfKilled are those of beKilled: one for each way to begin a month, reached one after the other.
func limitsOfKilled() []Limit {
	var all []Limit
	for i := range 28 {
		all = append(all, Limit{Bytes: 500_000 + 100_000*uint64(i), Text: fmt.Sprint(i), Per: budget.Month, Starts: 1 + i, Direction: budget.Both, Local: true})
	}
	return all
}

// fileWay appends how many limits a notice is about.
type fileWay struct{ path string }

func (w fileWay) Name() string    { return "file" }
func (w fileWay) Dropped() uint64 { return 0 }
func (w fileWay) Offer(n notify.Notice) {
	if n.Kind != notify.DataLimit {
		return
	}
	if f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
		fmt.Fprintln(f, n.Count)
		f.Close()
	}
}

// checkLimitsOfKilled: after all kills every byte is counted once. A threshold is told once; what is lost, or told again, is at most what a kill
// found between the journal and the way, or between the way and the journal.
func checkLimitsOfKilled(t *testing.T, dir string, want uint64, kills int) {
	t.Helper()
	var state budget.State
	if err := json.Unmarshal([]byte(readFile(t, dir, limitsFile)), &state); err != nil {
		t.Fatal(err)
	}
	thresholds := 0
	for i, l := range limitsOfKilled() {
		p := state.Limits[i].Periods[len(state.Limits[i].Periods)-1]
		used := p.Sent + p.Received
		if used != want {
			t.Errorf("limit %d counted %d, want %d", i, used, want)
		}
		told := 0
		if used*100 >= 80*l.Bytes {
			thresholds, told = thresholds+1, 80
		}
		if used >= l.Bytes {
			thresholds, told = thresholds+1, 100
		}
		if p.Told != told {
			t.Errorf("limit %d: told %d, want %d", i, p.Told, told)
		}
	}
	told := 0
	for line := range strings.Lines(readFile(t, dir, "told")) {
		n := 0
		fmt.Sscan(line, &n)
		told += n
	}
	waiting := 0
	for line := range strings.Lines(readFile(t, dir, ".record.journal")) {
		var l struct {
			State *kept
		}
		if json.Unmarshal([]byte(line), &l) == nil && l.State != nil {
			waiting = 0
			if g := l.State.Groups[notify.DataLimit]; g != nil {
				waiting = g.Count
			}
		}
	}
	t.Logf("%d thresholds, %d told, %d wait to be told, %d kills", thresholds, told, waiting, kills)
	if n := told + waiting; n > thresholds+kills/16 || n < thresholds-kills/4 || thresholds == 0 {
		t.Errorf("%d thresholds were reached; told %d, waiting %d", thresholds, told, waiting)
	}
}
