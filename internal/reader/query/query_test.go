package query

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
	_ "time/tzdata"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
	"pgregory.net/rapid"
)

// moved is a raw row as the test remembers it.
type moved struct {
	at     int64 // the last second of its window
	values map[Dimension]string
	sum    Sum
}

// model writes random windows and remembers them.
type model struct {
	t    *rapid.T
	s    *store.SQLite
	path string
	rows []moved
	at   int64
	now  int64 // the latest
	n    int
}

var (
	names   = []string{"curl", "firefox", "sshd", "x' OR 1=1 --", "", "\\x1b[31m"}
	remotes = []string{"", "192.0.2.1", "192.0.2.2", "2001:db8::1", "198.51.100.7"}
	hosts   = []string{"", "com.example.www", "com.example", "org.<script>"}
)

func (m *model) write() {
	k := rapid.IntRange(0, 12).Draw(m.t, "rows")
	w := &flow.Window{
		Hello: event.Hello{Stream: "s", Boot: "b"}, Start: m.at, End: m.at + 10, Position: flow.Position{Stream: "s", Batch: uint64(m.n + 1)},
		Unattributed: event.Bytes{Sent: uint64(rapid.IntRange(0, 1).Draw(m.t, "unattributed"))},
	}
	m.n++
	for range k {
		name, ip, host := rapid.SampledFrom(names).Draw(m.t, "name"), rapid.SampledFrom(remotes).Draw(m.t, "ip"), rapid.SampledFrom(hosts).Draw(m.t, "host")
		direction := rapid.SampledFrom([]string{"out", "in", ""}).Draw(m.t, "direction")
		lport, rport := rapid.SampledFrom([]uint16{0, 22, 40000}).Draw(m.t, "local port"), rapid.SampledFrom([]uint16{0, 443, 53}).Draw(m.t, "remote port")
		uid := rapid.SampledFrom([]uint32{0, 1000}).Draw(m.t, "uid")
		sum := Sum{Conns: uint64(rapid.IntRange(0, 2).Draw(m.t, "conns")), Sent: uint64(rapid.IntRange(0, 1000).Draw(m.t, "sent")), Received: uint64(rapid.IntRange(1, 1<<30).Draw(m.t, "received"))}
		var a netip.Addr
		if ip != "" {
			a = netip.MustParseAddr(ip)
		}
		p := &flow.Program{Executable: &flow.Executable{Path: "/bin/" + name, Digest: &flow.Digest{SHA256: name}, File: event.FileID{Inode: 1}}, Name: name, Cmdline: name + " -x"}
		if name == "curl" {
			p.Parent = &flow.Program{Executable: &flow.Executable{Path: "/bin/sh", Digest: &flow.Digest{}}, Name: "sh"}
		}
		w.Records = append(w.Records, flow.Record{
			Key: flow.Key{
				Program: p, Kind: &flow.Kind{Family: "inet", Protocol: "tcp", Direction: direction, Layer: "payload"}, UID: uid,
				Local: netip.AddrPortFrom(netip.Addr{}, lport), Remote: netip.AddrPortFrom(a, rport), Domain: &flow.Domain{Name: host, Source: rapid.SampledFrom([]string{"dns", "hosts"}).Draw(m.t, "source")},
			},
			Conns: sum.Conns, Sent: sum.Sent, Received: sum.Received,
		})
		parent := ""
		if p.Parent != nil {
			parent = "/bin/sh"
		}
		m.rows = append(m.rows, moved{m.at + 9, map[Dimension]string{
			None: "", Exe: "/bin/" + name, SHA256: name, Name: name, Cmdline: name + " -x", Script: "", Parent: parent, Place: "", User: fmt.Sprint(uid), Family: "inet", Protocol: "tcp",
			Direction: direction, Port: fmt.Sprint(rollup.ServicePort(direction, int64(lport), int64(rport))), Domain: host, Address: ip, Country: land(a),
		}, sum})
	}
	if err := m.s.Write(m.t.Context(), w); err != nil {
		m.t.Fatal(err)
	}
	m.now = max(m.now, m.at)
}

// dimensions are those of a local file.
func dimensions() []Dimension {
	return slices.DeleteFunc(Dimensions(), func(d Dimension) bool { return d == Host })
}

func land(a netip.Addr) string {
	if a.Is6() {
		return "SIX"
	}
	return ""
}

// ask compares an answer with what adding the remembered rows up gives.
func (m *model) ask(l *Local, rounded bool, from int64) {
	q := Question{By: rapid.SampledFrom(append(dimensions(), None)).Draw(m.t, "by")}
	for range rapid.IntRange(0, 2).Draw(m.t, "filters") {
		f := Filter{By: rapid.SampledFrom(dimensions()).Draw(m.t, "filter by"), Match: Match(rapid.IntRange(0, 2).Draw(m.t, "match"))}
		if f.By == Port && f.Match == Contains {
			f.Match = Equal
		}
		for range rapid.IntRange(1, 2).Draw(m.t, "values") {
			v := rapid.SampledFrom([]string{"", "22", "443", "/bin/curl", "www.example.com", "example", "tcp", "in", "1000", "sshd", "192.0.2.1"}).Draw(m.t, "value")
			if len(m.rows) > 0 && rapid.Bool().Draw(m.t, "existing") {
				v = m.rows[rapid.IntRange(0, len(m.rows)-1).Draw(m.t, "row")].values[f.By]
			}
			if _, err := strconv.Atoi(v); err != nil && f.By == Port {
				v = "443"
			}
			f.Values = append(f.Values, v)
		}
		q.Where = append(q.Where, f)
	}
	unit := rapid.SampledFrom([]int64{1, 1800, 3600, 86400}).Draw(m.t, "unit")
	begin := m.now - 10*86400
	if rapid.Bool().Draw(m.t, "bounded") {
		q.Range.Since = (begin + rapid.Int64Range(0, 10*86400).Draw(m.t, "since")) / unit * unit
		q.Range.Until = q.Range.Since + unit*rapid.Int64Range(1, 3*86400/unit).Draw(m.t, "until")
	}
	q.Range.Since = max(q.Range.Since, from)
	if q.Range.Until != 0 && q.Range.Until <= q.Range.Since {
		return
	}
	passes := func(r *moved) bool {
		if r.at < q.Range.Since || r.at >= q.Range.End() {
			return false
		}
		for i := range q.Where {
			if !q.Where[i].Matches(r.values[q.Where[i].By]) {
				return false
			}
		}
		return true
	}
	want := make(map[string]Sum)
	for i := range m.rows {
		if r := &m.rows[i]; passes(r) {
			s := want[r.values[q.By]]
			s.Add(r.sum)
			want[r.values[q.By]] = s
		}
	}
	a, err := l.Totals(m.t.Context(), q)
	if err != nil {
		m.t.Fatal(err)
	}
	got := make(map[string]Sum)
	for _, r := range a.Rows {
		got[r.Value] = r.Sum
	}
	if a.Rounded && rounded {
		return
	}
	if d := gocmp.Diff(want, got); d != "" || a.Rounded {
		m.t.Fatalf("%+v: rounded %v: %s", q, a.Rounded, d)
	}
	step := Step(rapid.IntRange(int(Minute), int(Month)).Draw(m.t, "step"))
	name := rapid.SampledFrom([]string{"UTC", "Asia/Kolkata", "America/Phoenix", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"}).Draw(m.t, "zone") // the last one's summer time is half an hour
	zone, err := time.LoadLocation(name)
	if err != nil {
		m.t.Fatal(err)
	}
	// Whether a time line follows candidates only, and guesses them by a part of the data.
	l.bounds.cells = rapid.SampledFrom([]int{0, 0, maxCells}).Draw(m.t, "cells")
	l.bounds.sampled = rapid.SampledFrom([]int{0, minSampled}).Draw(m.t, "sampled")
	q.Limit = 2
	line, err := l.Timeline(m.t.Context(), q, step, zone)
	if err != nil {
		if step == Minute || step == Hour { // too many of them
			return
		}
		m.t.Fatal(err)
	}
	if line.Rounded && rounded {
		return
	}
	lines := make([]map[string]Sum, len(line.Starts))
	for i := range lines {
		lines[i] = make(map[string]Sum)
		for _, s := range line.Series {
			if s.Sums[i] != (Sum{}) {
				lines[i][s.Value] = s.Sums[i]
			}
		}
		if line.Others[i] != (Sum{}) {
			lines[i]["others"] = line.Others[i]
		}
	}
	wanted := make([]map[string]Sum, len(line.Starts))
	for i := range wanted {
		wanted[i] = make(map[string]Sum)
	}
	for i := range m.rows {
		r := &m.rows[i]
		if !passes(r) {
			continue
		}
		value := r.values[q.By]
		if !slices.ContainsFunc(line.Series, func(s Series) bool { return s.Value == value }) {
			value = "others"
		}
		k, found := slices.BinarySearchFunc(line.Starts, r.at, func(a, b int64) int { return cmp.Compare(a, b) })
		if !found {
			k--
		}
		s := wanted[k][value]
		s.Add(r.sum)
		wanted[k][value] = s
		local := time.Unix(line.Starts[k], 0).In(zone)
		if step >= Day && (local.Hour() != 0 || local.Minute() != 0) {
			m.t.Fatalf("an interval begins at %v", local)
		}
	}
	if d := gocmp.Diff(wanted, lines); d != "" {
		m.t.Fatalf("%+v, step %d, %v: %s", q, step, zone, d)
	}
}

// see compares first and last seen, and what single rows add up to.
func (m *model) see(l *Local, rounded bool, from int64) {
	f := Filter{By: Name, Values: []string{rapid.SampledFrom(names).Draw(m.t, "seen name")}}
	var want Seen
	var sum Sum
	for i := range m.rows {
		if r := &m.rows[i]; f.Matches(r.values[Name]) {
			if want.First == 0 || r.at < want.First {
				want.First = r.at
			}
			want.Last = max(want.Last, r.at)
			if r.at >= from {
				sum.Add(r.sum)
			}
		}
	}
	if from > 0 { // some of it may be deleted, and some not yet
		want.First = 0
	}
	got, err := l.Seen(m.t.Context(), []Filter{f})
	if err != nil {
		m.t.Fatal(err)
	}
	if from > 0 {
		got.First = 0
	}
	if !got.Rounded && !rounded && got != want && want.Last >= from {
		m.t.Fatalf("%q seen %+v, want %+v", f.Values, got, want)
	}
	var rows Sum
	last := 0.0
	err = l.Records(m.t.Context(), []Filter{f}, Range{Since: from}, func(r *Record, done float64) error {
		if done < last || done > 1 || r.End-1 < from || r.Name != f.Values[0] {
			m.t.Fatalf("%+v, %v of it done after %v", r, done, last)
		}
		last = done
		rows.Add(Sum{Conns: r.Conns, Sent: r.Sent, Received: r.Received})
		return nil
	})
	if err != nil || (rows != sum && !rounded) {
		m.t.Fatalf("rows of %q: %+v, want %+v (%v)", f.Values, rows, sum, err)
	}
}

// TestRollups: whatever is recorded, in whatever order of time, rolled up, deleted and read: every answer is what adding the raw
// rows up gives, and the database's own check says the same.
func TestRollups(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
		s, err := store.OpenSQLite(t.Context(), path, time.Second, func(text, hint string) { t.Error(text, hint) })
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		// An ordinary day, and those on which summer time begins or ends: in Europe, in Newfoundland, on Lord Howe Island.
		begin := rapid.SampledFrom([]int64{1_700_000_000, 1_679_792_400, 1_698_541_200, 1_678_600_000, 1_696_085_000}).Draw(t, "begin")
		m := &model{t: t, s: s, path: path, at: begin - begin%10}
		m.now = m.at
		rawDays, days := rapid.IntRange(0, 4).Draw(t, "raw days"), rapid.IntRange(0, 6).Draw(t, "days")
		s.SetKeep(store.Keep{RawDays: rawDays, Days: days})
		for range rapid.IntRange(1, 60).Draw(t, "windows") {
			switch rapid.IntRange(0, 9).Draw(t, "what next") {
			case 0: // a sleep, or the clock is set
				m.at += 10 * rapid.Int64Range(-5*8640, 2*8640).Draw(t, "jump")
				m.at = max(m.at, 0)
			case 1, 2:
				m.at += 10 * rapid.Int64Range(0, 1000).Draw(t, "gap")
			default:
				m.at += 10
			}
			m.write()
			if rapid.Bool().Draw(t, "care") {
				if _, err := s.Care(t.Context(), m.now, time.Duration(rapid.IntRange(0, 1).Draw(t, "budget"))*time.Second); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "settled") == 0 { // an hour without a jump
				for range 3 {
					if _, err := s.Care(t.Context(), m.now+1300, 0); err != nil {
						t.Fatal(err)
					}
					m.now += 1300
				}
			}
		}
		l, err := OpenLocal(t.Context(), path, Options{Country: land})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		// Before this, something may be deleted.
		from := int64(0)
		if days > 0 {
			from = (m.now/86400 - int64(days)) * 86400
		}
		for range 4 {
			m.ask(l, rawDays > 0, from)
		}
		m.see(l, rawDays > 0, from)
		report, err := l.Check(t.Context(), nil)
		if err != nil || len(report.Problems) > 0 {
			t.Fatalf("check: %v %q", err, report.Problems)
		}
	})
}
