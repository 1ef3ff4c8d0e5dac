package remote_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/test/windows"
)

// read returns all rows of a table as JSON objects, in the order of net_ns and local_port.
func (g *target) read(t *testing.T, table string) (rows []map[string]string) {
	t.Helper()
	q := "SELECT row_to_json(c) FROM " + table + " c ORDER BY net_ns, local_port, send"
	if g.dialect == remote.MySQL {
		var parts []string
		for _, c := range schema.RemoteColumns() {
			parts = append(parts, fmt.Sprintf("'%s', `%s`", c.Name, c.Name))
		}
		q = "SELECT hex(json_object(" + strings.Join(parts, ",") + ")) FROM " + table + " ORDER BY net_ns, local_port, send"
	}
	for line := range strings.SplitSeq(g.ask(t, q), "\n") {
		if g.dialect == remote.MySQL { // the client escapes backslashes
			var b []byte
			if _, err := fmt.Sscanf(line, "%x", &b); err != nil {
				t.Fatal(err)
			}
			line = string(b)
		}
		var row map[string]any
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&row); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		text := make(map[string]string)
		for k, v := range row {
			text[k] = fmt.Sprint(v)
		}
		for _, k := range []string{"contime", "start"} {
			for _, layout := range []string{"2006-01-02T15:04:05Z07:00", time.DateTime, "2006-01-02 15:04:05.000000"} {
				if at, err := time.Parse(layout, text[k]); err == nil {
					text[k] = at.UTC().Format(time.RFC3339)
					break
				}
			}
		}
		rows = append(rows, text)
	}
	return rows
}

// TestRows: what goes in is what the server has, whatever strangers chose; with COPY and, where that is refused, without it.
func TestRows(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		m := windows.New(windows.Shape{})
		all := []*flow.Window{windows.Hostile(1), m.Window(2, 500), m.Window(3, 0), m.Window(4, 1)}
		for _, how := range []string{"plain", "refused COPY"} {
			s := g.settings()
			if how != "plain" {
				if g.dialect != remote.Postgres {
					continue
				}
				// Row level security: COPY FROM is not supported there.
				g.ask(t, "ALTER TABLE connections RENAME TO before; ALTER TABLE connections_batches RENAME TO before_batches")
				for _, q := range schema.PostgresRemote("connections") {
					g.ask(t, q)
				}
				g.ask(t, fmt.Sprintf("ALTER TABLE connections ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON connections FOR INSERT WITH CHECK (true); GRANT SELECT, INSERT ON connections, connections_batches TO %s", g.user))
			}
			r := start(t, s, spoolDir(t))
			for _, w := range all {
				if err := r.Write(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
			delivered(t, r)
			r.Close()
			got, want := g.read(t, "connections"), windows.Rows(all...)
			if len(got) != len(want) {
				t.Fatalf("%s: %d rows, want %d", how, len(got), len(want))
			}
			key := func(r map[string]string) string {
				return fmt.Sprintf("%9s %9s", r["net_ns"], r["local_port"])
			}
			slices.SortStableFunc(want, func(a, b map[string]string) int { return strings.Compare(key(a), key(b)) })
			slices.SortStableFunc(got, func(a, b map[string]string) int { return strings.Compare(key(a), key(b)) })
			for i := range want {
				if d := cmp.Diff(want[i], got[i]); d != "" {
					t.Fatalf("%s: row %d: %s", how, i, d)
				}
			}
			if got := g.ask(t, "SELECT sum(records), sum(unattributed_sent), sum(unattributed_received), min(host), max(losses) FROM connections_batches"); got != fmt.Sprintf("%d\t4\t8\thost-a\texec=4", len(want)) && got != fmt.Sprintf("%d\t4\t8\thost-a\texec=1", len(want)) && !strings.HasPrefix(got, fmt.Sprintf("%d\t4\t8\thost-a\texec=", len(want))) {
				t.Errorf("batches: %q", got)
			}
		}
	})
}

// original is the table of picosnitch 0.11, whose columns are text and integer.
const original = "CREATE TABLE %s (exe text, name text, cmdline text, sha256 text, contime text, domain text, ip text, port integer, uid integer, pexe text, pname text, pcmdline text, psha256 text, conns integer, send integer, recv integer)%s"

// TestOriginal: a table that the original made keeps working, without a column more: local times as text, sums that are right although
// its numbers have 32 bits, and every text although its character set may hold few.
func TestOriginal(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		end := ""
		if g.dialect == remote.MySQL {
			end = " ENGINE=MyISAM DEFAULT CHARACTER SET latin1"
		}
		g.ask(t, fmt.Sprintf(original, "old", end))
		g.ask(t, "CREATE TABLE narrow (contime text, send integer, recv integer, exe varchar(30), name text, cmdline varchar(100), sha256 text, pexe text, pname text, pcmdline text, psha256 text, uid integer, lport integer, rport integer, laddr text, raddr text, domain text, note varchar(10) DEFAULT 'mine')"+end)
		if g.dialect == remote.Postgres {
			g.ask(t, "GRANT INSERT, SELECT ON old, narrow TO "+g.user)
		}
		s := g.settings()
		s.Table = "old"
		zone := time.FixedZone("somewhere", 2*3600)
		r, err := remote.Open(s, remote.Options{Dir: spoolDir(t), Zone: zone, Linger: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		w := windows.Hostile(1)
		// The sums of one record must fit into the check's 64 bits.
		w.Records[0].Sent = 5 << 30
		if err := r.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		r.Close()
		var want flow.Record
		for _, x := range w.Records {
			want.Sent, want.Received, want.Conns = want.Sent+x.Sent, want.Received+x.Received, want.Conns+x.Conns
		}
		got := g.ask(t, "SELECT sum(send), sum(recv), sum(conns), min(uid), min(contime), count(DISTINCT contime) FROM old")
		if w := fmt.Sprintf("%d\t%d\t%d\t-2\t%s\t1", want.Sent, want.Received, want.Conns, time.Unix(w.End, 0).In(zone).Format(time.DateTime)); got != w {
			t.Errorf("got  %q\nwant %q", got, w)
		}
		names := g.number(t, "SELECT count(DISTINCT name) FROM old")
		if wantNames := 20; names < wantNames-2 {
			t.Errorf("%d names: two became one", names)
		}
		if g.dialect == remote.MySQL {
			if n := g.number(t, `SELECT count(*) FROM old WHERE name = '\\u{e9}moji \\u{1f427} \\u{6f22}\\u{5b57}'`); n != 1 {
				t.Errorf("%d rows with the escaped name", n)
			}
		}

		s.Table = "narrow"
		r = start(t, s, spoolDir(t))
		if err := r.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		until(t, r, "the cut is told", func() bool { return r.Status().Cut > 0 })
		notices := fmt.Sprint(r.Notices())
		r.Close()
		if (g.dialect == remote.MySQL) != strings.Contains(notices, "engine MyISAM") {
			t.Errorf("told: %s", notices)
		}
		if !strings.Contains(notices, "do not fit") {
			t.Errorf("told: %s", notices)
		}
		if got := g.ask(t, "SELECT sum(send), max(rport), max(note) FROM narrow"); got != fmt.Sprintf("%d\t65535\tmine", want.Sent) {
			t.Errorf("narrow: %q", got)
		}
	})
}

// TestGrants: nothing but INSERT and SELECT is needed once the tables are there, and with just those nobody can rewrite the past.
func TestGrants(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		statements := schema.PostgresRemote("connections")
		if g.dialect == remote.MySQL {
			statements = schema.MySQLRemote("connections")
		}
		for _, q := range statements {
			g.ask(t, q)
		}
		g.deny(t, "CREATE")
		if g.dialect == remote.Postgres {
			g.ask(t, fmt.Sprintf("GRANT INSERT, SELECT ON connections, connections_batches TO %s", g.user))
		}
		r := start(t, g.settings(), spoolDir(t))
		m := windows.New(windows.Shape{})
		for n := 1; n <= 5; n++ {
			if err := r.Write(t.Context(), m.Window(n, 10)); err != nil {
				t.Fatal(err)
			}
		}
		delivered(t, r)
		if st := r.Status(); st.Failures > 0 {
			t.Errorf("%+v", st)
		}
		r.Close()
		if err := g.asUser("SELECT count(*) FROM connections"); err != nil {
			t.Errorf("the account cannot even read: %v", err)
		}
		for _, q := range []string{"UPDATE connections SET send = 0", "DELETE FROM connections", "TRUNCATE TABLE connections", "DROP TABLE connections_batches", "DELETE FROM connections_batches"} {
			if err := g.asUser(q); err == nil {
				t.Errorf("%s was allowed", q)
			}
		}
		if n := g.number(t, "SELECT count(*) FROM connections"); n != 50 {
			t.Errorf("%d rows, want 50", n)
		}
		// Without INSERT: told once, with what to do, and it goes on when it is granted.
		g.deny(t, "INSERT")
		r = start(t, g.settings(), spoolDir(t))
		if err := r.Write(t.Context(), m.Window(6, 10)); err != nil {
			t.Fatal(err)
		}
		until(t, r, "two failures", func() bool { return r.Status().Failures >= 2 })
		if n := r.Notices(); len(n) != 1 || !strings.Contains(n[0].Hint, "grant INSERT") {
			t.Errorf("told: %+v", n)
		}
		g.allow(t, "INSERT")
		delivered(t, r)
		r.Close()
		if n := r.Notices(); len(n) != 1 || n[0].Level != "info" || !strings.Contains(n[0].Text, "there again") {
			t.Errorf("told: %+v", n)
		}
		if n := g.number(t, "SELECT count(*) FROM connections"); n != 60 {
			t.Errorf("%d rows, want 60", n)
		}
	})
}

func (g *target) deny(t *testing.T, right string) { g.change(t, "REVOKE", "FROM", right) }
func (g *target) allow(t *testing.T, right string) {
	g.change(t, "GRANT", "TO", right)
}

func (g *target) change(t *testing.T, verb, to, right string) {
	t.Helper()
	switch {
	case g.dialect == remote.MySQL:
		g.ask(t, fmt.Sprintf("%s %s ON %s.* %s %s@'%%'", verb, right, g.database, to, g.user))
	case right == "CREATE":
		g.ask(t, fmt.Sprintf("%s CREATE ON SCHEMA log %s %s", verb, to, g.user))
	default:
		g.ask(t, fmt.Sprintf("%s %s ON ALL TABLES IN SCHEMA log %s %s", verb, right, to, g.user))
	}
}

// asUser runs a statement as the account of the recorder.
func (g *target) asUser(q string) error {
	_, err := g.As(g.user, secret).SQL(g.database, q)
	return err
}

// TestTold: bad credentials and a changed table are told once, however often it is tried, and never with the password.
func TestTold(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		bad := g.settings()
		bad.Params["password"] = "wr0ng' " + secret
		r := start(t, bad, spoolDir(t))
		if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
			t.Fatal(err)
		}
		until(t, r, "three failures", func() bool { return r.Status().Failures >= 3 })
		n := r.Notices()
		all := fmt.Sprintf("%+v %+v %v %+v %#v", n, r.Status(), bad, bad, bad)
		if len(n) != 1 || !strings.Contains(n[0].Hint, "password") || n[0].Level != "error" {
			t.Errorf("told: %+v", n)
		}
		if strings.Contains(all, "wr0ng") || strings.Contains(all, "s3cret") {
			t.Errorf("the password is shown: %s", all)
		}
		r.Close()

		s := g.settings()
		s.Table = "changed"
		g.ask(t, "CREATE TABLE changed (exe text, name text, contime text)")
		if g.dialect == remote.Postgres {
			g.ask(t, "GRANT INSERT, SELECT ON changed TO "+g.user)
		}
		r = start(t, s, spoolDir(t))
		if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
			t.Fatal(err)
		}
		until(t, r, "three failures", func() bool { return r.Status().Failures >= 3 })
		if n := r.Notices(); len(n) != 1 || !strings.Contains(n[0].Text, "has no column cmdline, sha256, domain") {
			t.Errorf("told: %+v", n)
		}
		r.Close()
	})
}

// TestHosts: two hosts deliver into one table at the same time, and each has its rows under its name.
func TestHosts(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		var all []*remote.Remote
		for _, host := range []string{"one", "two"} {
			r := start(t, g.settings(), spoolDir(t))
			m := windows.New(windows.Shape{})
			for n := 1; n <= 20; n++ {
				w := m.Window(n, 20)
				w.Hello.Host = host
				if err := r.Write(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
			all = append(all, r)
		}
		for _, r := range all {
			delivered(t, r)
			r.Close()
		}
		if got := g.ask(t, "SELECT host, count(*), count(DISTINCT net_ns) FROM connections GROUP BY host ORDER BY host"); got != "one\t400\t20\ntwo\t400\t20" {
			t.Errorf("%q", got)
		}
	})
}
