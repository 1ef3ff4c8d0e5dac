package remote_test

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/reader/query"
	reader "github.com/picosnitch/picosnitch/internal/reader/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/test/windows"
)

// recorded are windows over three days, with everything that strangers could choose.
func recorded() (all []*flow.Window) {
	m := windows.New(windows.Shape{Programs: 20, Names: 30, Addresses: 50})
	for _, n := range []int{1, 2, 3, 400, 6000, 6001, 9000, 20000, 26000} {
		w := m.Window(n, 120)
		for i := range w.Records {
			r := &w.Records[i]
			if i%7 == 0 { // a service of ours
				r.Local, r.Remote = netip.AddrPortFrom(r.Local.Addr(), 22), netip.AddrPortFrom(r.Remote.Addr(), uint16(40000+i))
			}
			if i%11 == 0 {
				r.UID = uint32(i)
			}
		}
		all = append(all, w)
	}
	h := windows.Hostile(7000)
	h.Records[0].Sent = 5 << 30 // so that no sum overflows
	return append(all, h)
}

// readable is the target's reader: an account that may SELECT and nothing else.
func (g *target) readable(t *testing.T, table string) reader.Settings {
	t.Helper()
	name := g.user + "r"
	if g.dialect == remote.Postgres {
		g.ask(t, fmt.Sprintf("DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '%s') THEN CREATE ROLE %s LOGIN PASSWORD '%s'; END IF; END$$; GRANT USAGE ON SCHEMA log TO %s; GRANT SELECT ON ALL TABLES IN SCHEMA log TO %s", name, name, strings.ReplaceAll(secret, "'", "''"), name, name))
	} else {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(secret)
		g.ask(t, fmt.Sprintf("CREATE USER IF NOT EXISTS %s@'%%' IDENTIFIED BY '%s'; GRANT SELECT ON %s.* TO %s@'%%'", name, quoted, g.database, name))
	}
	return reader.Settings{Postgres: g.dialect == remote.Postgres, Table: table, Password: secret, Params: map[string]string{
		"host": "127.0.0.1", "port": strconv.Itoa(g.Port), "user": name, "database": g.database,
	}}
}

func land(a netip.Addr) string {
	if a.Is6() {
		return "SIX"
	}
	if a.Is4() && a.As4()[3]%2 == 0 {
		return "EVEN"
	}
	return ""
}

// pair is the same rows in a local file and on a server.
func pair(t *testing.T, g *target, table string, zone *time.Location) (*query.Local, *reader.Remote) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snitch.db")
	l, err := store.OpenSQLite(t.Context(), path, time.Second, func(text, hint string) { t.Error(text) })
	if err != nil {
		t.Fatal(err)
	}
	s := g.settings()
	s.Table = table
	r, err := remote.Open(s, remote.Options{Dir: spoolDir(t), Zone: zone, Linger: 5 * time.Second, Wait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range recorded() {
		if err := r.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if err := l.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	delivered(t, r)
	r.Close()
	o := query.Options{Country: land}
	local, err := query.OpenLocal(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	far, err := reader.Open(t.Context(), g.readable(t, table), zone, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return local, far
}

// questions are of every dimension, with filters of every kind, over ranges that cut windows' hours.
func questions(dimensions []query.Dimension) (all []query.Question) {
	at := func(n int64) int64 { return windows.Begin + n*10 }
	ranges := []query.Range{{}, {Since: at(3), Until: at(6001) + 5}, {Since: at(400)}, {Until: at(7000)}, {Since: at(4), Until: at(300)}}
	wheres := [][]string{
		{},
		{"exe=/usr/bin/program-3|/usr/bin/program-4"},
		{"exe~PROGRAM-1", "domain!=www.example-3.com"},
		{"domain=www.example-7.com|com.example-8.www"},
		{"name=trailing "},
		{"name=plain|'; DROP TABLE connections; --"},
		{"name~%s"},
		{`cmdline~\`},
		{"ip!=93.0.0.1"},
		{"user=1000", "sha256!="},
		{"exe=nothing"},
		{"parent=/usr/bin/bash"},
	}
	for i, d := range dimensions {
		for k := range 2 { // each dimension with other ones
			j := (i + 2*k) % len(ranges)
			rng := ranges[j]
			var where []query.Filter
			for _, s := range wheres[(i*len(ranges)+j)%len(wheres)] {
				f, err := query.ParseFilter(s)
				if err != nil {
					panic(err)
				}
				where = append(where, f)
			}
			all = append(all, query.Question{By: d, Range: rng, Where: where, Limit: []int{0, 3, 50}[(i+j)%3], Order: query.Order((i + j) % 4)})
		}
	}
	return all
}

// lines is a time line without its empty intervals, which depend on what was recorded before and after.
func lines(x query.Timeline) map[string]query.Sum {
	m := make(map[string]query.Sum)
	for i, start := range x.Starts {
		for k, s := range x.Series {
			if s.Sums[i] != (query.Sum{}) {
				m[fmt.Sprintf("%d %d %q", start, k, s.Value)] = s.Sums[i]
			}
		}
		if x.Others[i] != (query.Sum{}) {
			m[fmt.Sprintf("%d others", start)] = x.Others[i]
		}
	}
	return m
}

// TestRead: a server gives the answers that the local file gives, from our table and from one of picosnitch 0.11.
func TestRead(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		paris, err := time.LoadLocation("Europe/Paris")
		if err != nil {
			t.Fatal(err)
		}
		old := []query.Dimension{query.Exe, query.SHA256, query.Name, query.Cmdline, query.Parent, query.User, query.Domain, query.Address, query.Country, query.None}
		for _, c := range []struct {
			table      string
			dimensions []query.Dimension
		}{
			{"", append(slices.DeleteFunc(query.Dimensions(), func(d query.Dimension) bool { return d == query.Host }), query.None)},
			{"old", old},
		} {
			if c.table != "" {
				end := ""
				if g.dialect == remote.MySQL { // whose comparisons know no case, and no space at the end
					end = " DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"
				}
				g.ask(t, strings.ReplaceAll(fmt.Sprintf(original, c.table, end), "send integer, recv integer", "send bigint, recv bigint"))
				if g.dialect == remote.Postgres {
					g.ask(t, "GRANT INSERT, SELECT ON old TO "+g.user)
				}
			}
			local, far := pair(t, g, c.table, paris)
			for i, q := range questions(c.dimensions) {
				want, err := local.Totals(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				got, err := far.Totals(t.Context(), q)
				if err != nil {
					t.Fatalf("%s %+v: %v", c.table, q, err)
				}
				if d := gocmp.Diff(want, got); d != "" {
					t.Fatalf("%s %+v: %s", c.table, q, d)
				}
				if step := query.Hour + query.Step(i/3%4); i%3 == 0 {
					zone := []*time.Location{paris, time.UTC, time.FixedZone("odd", 5*3600+45*60)}[int(step)%3]
					if c.table != "" && step == query.Hour {
						zone = time.UTC // an hour of the text is one of every whole zone
					}
					want, err := local.Timeline(t.Context(), q, step, zone)
					if err != nil {
						t.Fatal(err)
					}
					got, err := far.Timeline(t.Context(), q, step, zone)
					if err != nil {
						t.Fatalf("%s %+v: %v", c.table, q, err)
					}
					if d := gocmp.Diff(lines(want), lines(got)); d != "" {
						t.Fatalf("%s %+v, step %d: %s", c.table, q, step, d)
					}
				}
				if len(q.Where) > 0 && i%4 == 1 { // a few: the file takes its time under the race detector
					want, err1 := local.Seen(t.Context(), q.Where)
					got, err2 := far.Seen(t.Context(), q.Where)
					if want != got || err1 != nil || err2 != nil {
						t.Fatalf("%s seen %+v: got %+v, want %+v; %v %v", c.table, q.Where, got, want, err1, err2)
					}
				}
			}
			want, err1 := local.Timeline(t.Context(), query.Question{By: query.Exe, Limit: 3, Range: query.Range{Until: windows.Begin + 5000}}, query.Minute, paris)
			got, err2 := far.Timeline(t.Context(), query.Question{By: query.Exe, Limit: 3, Range: query.Range{Until: windows.Begin + 5000}}, query.Minute, paris)
			if d := gocmp.Diff(lines(want), lines(got)); d != "" || err1 != nil || err2 != nil || len(lines(want)) == 0 {
				t.Errorf("minutes: %s %v %v", d, err1, err2)
			}
			lost, err := far.Lost(t.Context(), query.Range{Since: windows.Begin + 1, Until: windows.Begin + 1<<30})
			if n := uint64(len(recorded())); err != nil || lost.Sent != n || lost.Received != 2*n || lost.Reasons["exec"] != n {
				t.Errorf("lost: %+v %v", lost, err)
			}
			read := func(s query.Source, where []query.Filter, rng query.Range) (rows []query.Record) {
				last := 0.0
				err := s.Records(t.Context(), where, rng, func(r *query.Record, done float64) error {
					if done < last || done > 1 {
						t.Errorf("progress %g after %g", done, last)
					}
					last = done
					x := *r
					if c.table != "" { // what the original's table does not have
						x.Start, x.Host, x.Script, x.Place, x.Family, x.Protocol, x.Direction, x.LocalIP, x.LocalPort = 0, "", "", "", "", "", "", "", 0
					}
					rows = append(rows, x)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				slices.SortStableFunc(rows, func(a, b query.Record) int { return cmp.Compare(fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b)) })
				return rows
			}
			for _, q := range questions([]query.Dimension{query.Exe}) {
				if d := gocmp.Diff(read(local, q.Where, q.Range), read(far, q.Where, q.Range)); d != "" {
					t.Fatalf("%s records %+v: %s", c.table, q, d)
				}
			}
			if n := len(read(far, nil, query.Range{})); n != 9*120+len(windows.Hostile(1).Records) {
				t.Errorf("%d rows", n)
			}
			for _, text := range []string{"PROGRAM-1", "www.example-7", "%", "_", `\`} {
				known, err1 := local.Search(t.Context(), text, 1000)
				found, err2 := far.Search(t.Context(), text, 1000)
				if err1 != nil || err2 != nil {
					t.Fatal(err1, err2)
				}
				for _, f := range found { // the file also knows programs that moved nothing, as parents
					if !slices.Contains(known, f) {
						t.Errorf("search %q: %+v is not in the file", text, f)
					}
				}
				if (len(found) == 0) != (text == "_") { // not a wildcard
					t.Errorf("search %q found nothing", text)
				}
			}
			if few, err := far.Search(t.Context(), "program", 2); err != nil || len(few) > 2*10 {
				t.Errorf("%d found: %v", len(few), err)
			}
		}
	})
}

// TestReadHostile: what another account wrote into the table is made printable and bounded, times that are none are told, a table that is none of ours
// is refused, and the session can write nothing.
func TestReadHostile(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		end := ""
		if g.dialect == remote.MySQL {
			end = " DEFAULT CHARACTER SET utf8mb4"
		}
		g.ask(t, strings.ReplaceAll(fmt.Sprintf(original, "old", end), "name text", "name "+map[bool]string{true: "text", false: "longtext"}[g.dialect == remote.Postgres]))
		g.ask(t, fmt.Sprintf("INSERT INTO old (exe, name, contime, send, recv, uid) VALUES ('/bin/evil', concat('a', %[1]s(27), '[2J', %[1]s(10), 'b'), '2024-01-02 03:04:05', 5, 7, -2), ('/bin/evil', repeat('x', 1000000), 'yesterday', 11, 13, 1), (NULL, NULL, NULL, NULL, NULL, NULL), ('/bin/evil', 'neg', '2024-01-02 03:04:05', -5, 0, 1)", map[bool]string{true: "chr", false: "char"}[g.dialect == remote.Postgres]))
		far, err := reader.Open(t.Context(), g.readable(t, "old"), time.UTC, query.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		a, err := far.Totals(t.Context(), query.Question{By: query.Name})
		if err != nil || len(a.Rows) < 2 || a.Rows[0].Value != strings.Repeat("x", 64<<10)+"…" || a.Rows[1].Value != `a\u{1b}[2J\u{a}b` {
			t.Errorf("%v %.300q", err, fmt.Sprint(a))
		}
		line, err := far.Timeline(t.Context(), query.Question{By: query.Exe}, query.Day, time.UTC)
		if err != nil || line.Undated != (query.Sum{Sent: 11, Received: 13}) {
			t.Errorf("%v %+v", err, line)
		}
		if a, err := far.Totals(t.Context(), query.Question{By: query.User, Where: []query.Filter{{By: query.User, Values: []string{"4294967294"}}}}); err != nil || a.Total.Sent != 5 {
			t.Errorf("%v %+v", err, a)
		}
		for _, d := range []query.Dimension{query.Host, query.Direction, query.Place, "exe; DROP TABLE old", query.Country} {
			if _, err := far.Totals(t.Context(), query.Question{By: d}); !errors.Is(err, query.ErrQuestion) {
				t.Errorf("by %q: %v", d, err)
			}
		}
		// Values of filters are parameters.
		for _, v := range []string{"' OR 1=1 --", `\`, `\' OR 1=1 -- `, "$1", "?", "%"} {
			for _, m := range []query.Match{query.Equal, query.Contains} {
				if a, err := far.Totals(t.Context(), query.Question{By: query.Exe, Where: []query.Filter{{By: query.Exe, Match: m, Values: []string{v}}}}); err != nil || a.Values != 0 {
					t.Errorf("%q: %v %+v", v, err, a)
				}
			}
		}
		g.ask(t, "CREATE TABLE other (exe text, note text)")
		if _, err := reader.Open(t.Context(), g.readable(t, "other"), time.UTC, query.Options{}); err == nil || !strings.Contains(err.Error(), "not one of picosnitch's") {
			t.Errorf("%v", err)
		}
		if _, err := reader.Open(t.Context(), g.readable(t, "none"), time.UTC, query.Options{}); err == nil || !strings.Contains(err.Error(), "names another table") {
			t.Errorf("%v", err)
		}
		bad := g.readable(t, "old")
		bad.Password = "wr0ng" + secret
		if _, err := reader.Open(t.Context(), bad, time.UTC, query.Options{}); err == nil || !strings.Contains(err.Error(), "look at the password") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v", err)
		}
		// A view that sleeps stands for a table that is too large.
		sleep := "pg_sleep(3)::text"
		if g.dialect == remote.MySQL {
			sleep = "CAST(sleep(3) AS CHAR)"
		}
		g.ask(t, "CREATE VIEW slow AS SELECT "+sleep+" AS exe, name, contime, send, recv, conns FROM old")
		slow := g.readable(t, "slow")
		slow.Timeout = 500 * time.Millisecond
		far, err = reader.Open(t.Context(), slow, time.UTC, query.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		begin := time.Now()
		if _, err := far.Totals(t.Context(), query.Question{By: query.Exe}); err == nil || !strings.Contains(err.Error(), "took too long") || time.Since(begin) > 2500*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}
