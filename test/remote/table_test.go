package remote_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
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

// TestUnixSocket: the server on this machine, over its socket.
func TestUnixSocket(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		s := g.settings()
		if g.dialect == remote.Postgres {
			s.Params["host"] = g.Socket
		} else {
			delete(s.Params, "host")
			s.Params["unix_socket"] = g.Socket
		}
		r := start(t, s, spoolDir(t))
		if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		r.Close()
		if n := g.number(t, "SELECT count(*) FROM connections"); n != 10 {
			t.Errorf("%d rows", n)
		}
	})
}

// TestTLS: the server is who it must be, or nothing is sent: not to one whose certificate another authority signed, not to one that is
// right and reached by a name that is not in it, and not without TLS.
func TestTLS(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		other := filepath.Join(t.TempDir(), "other.pem")
		strange, err := os.ReadFile("testdata/other-ca.pem")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(other, strange, 0o644); err != nil {
			t.Fatal(err)
		}
		// The same server at an address that its certificate does not have.
		alias := forward(t, "127.0.0.2:0", fmt.Sprintf("127.0.0.1:%d", g.Port))
		_, port, _ := strings.Cut(alias, ":")
		type params = map[string]string
		full, chain, plain := params{"sslmode": "verify-full"}, params{"sslmode": "verify-ca"}, params{"sslmode": "disable"}
		ca := "sslrootcert"
		if g.dialect == remote.MySQL {
			g.ask(t, "ALTER USER "+g.user+"@'%' REQUIRE SSL") // what arrives was encrypted
			full, chain, plain = params{"ssl_verify_identity": "true"}, params{}, params{"ssl_disabled": "true"}
			ca = "ssl_ca"
		}
		for n, c := range []struct {
			how, more params
			ok        bool
			why       string
		}{
			{full, params{ca: g.CA(), "host": "localhost"}, true, ""},
			{full, params{ca: g.CA()}, true, ""},
			{chain, params{ca: g.CA()}, true, ""},
			{full, params{ca: g.CA(), "host": "127.0.0.2", "port": port}, false, "127.0.0.2"},
			{chain, params{ca: g.CA(), "host": "127.0.0.2", "port": port}, true, ""}, // the chain is all that was asked for
			{chain, params{ca: other}, false, "x509"},
			{full, params{ca: other}, false, "x509"},
			{plain, params{}, false, "TLS"},
		} {
			s := g.settings()
			s.Table = fmt.Sprintf("tls%d", n)
			maps.Copy(s.Params, c.how)
			maps.Copy(s.Params, c.more)
			if c.why == "TLS" && g.dialect == remote.Postgres {
				continue // whether it takes a connection without it is in the server's pg_hba.conf
			}
			r := start(t, s, spoolDir(t))
			if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
				t.Fatal(err)
			}
			if c.ok {
				delivered(t, r)
				if g.dialect == remote.Postgres && g.number(t, "SELECT count(*) FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()") == 0 {
					t.Errorf("%d: no connection is encrypted", n)
				}
			} else {
				until(t, r, "two failures", func() bool { return r.Status().Failures >= 2 })
				if c.why != "TLS" && !strings.Contains(r.Status().Error, c.why) {
					t.Errorf("%d: %+v", n, r.Status())
				}
				if r.Status().Delivered.Records > 0 {
					t.Errorf("%d: delivered", n)
				}
			}
			r.Close()
		}
		// A server without TLS, or somebody between who takes it away.
		naked := forward(t, "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d", g.Port), withoutTLS(g.dialect == remote.Postgres))
		_, port, _ = strings.Cut(naked, ":")
		s := g.settings()
		maps.Copy(s.Params, full)
		maps.Copy(s.Params, params{ca: g.CA(), "port": port})
		r := start(t, s, spoolDir(t))
		if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
			t.Fatal(err)
		}
		until(t, r, "two failures", func() bool { return r.Status().Failures >= 2 })
		if st := r.Status(); !strings.Contains(st.Error, "TLS") {
			t.Errorf("%+v", st)
		}
		r.Close()
	})
}

// forward passes connections at an address on to another one, and returns the address. change sees what the server says first.
func forward(t *testing.T, at, to string, change ...func([]byte) []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer s.Close()
				go io.Copy(s, c)
				for _, f := range change {
					b := make([]byte, 4096)
					n, err := s.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(f(b[:n])); err != nil {
						return
					}
				}
				io.Copy(c, s)
			}()
		}
	}()
	return l.Addr().String()
}

// withoutTLS changes a server's first words to those of one that has no TLS.
func withoutTLS(postgres bool) func([]byte) []byte {
	return func(b []byte) []byte {
		if postgres { // the answer to SSLRequest
			return []byte("N")
		}
		// The greeting: version, thread, 8 bytes, a filler, and the lower two bytes of what the server can; CLIENT_SSL is 0x800.
		if end := bytes.IndexByte(b[5:], 0); end > 0 {
			b[5+end+1+4+8+1+1] &^= 0x08
		}
		return b
	}
}

// TestSpool: an outage longer than the spool: the oldest rows go, all of them are counted, and the server is told.
func TestSpool(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		if g.dialect != remote.Postgres {
			return // the spool is the same
		}
		s := g.settings()
		port := s.Params["port"]
		s.Params["port"] = "1" // nobody is there
		dir := spoolDir(t)
		r := start(t, s, dir)
		m := windows.New(windows.Shape{})
		const n, records = 80, 4000
		for i := 1; i <= n; i++ {
			if err := r.Write(t.Context(), m.Window(i, records)); err != nil {
				t.Fatal(err)
			}
		}
		st := r.Status()
		if st.Dropped.Records == 0 || st.Bytes > spool.MinLimit || st.Dropped.Records+st.Waiting.Records != n*records || st.Connected {
			t.Errorf("%+v", st)
		}
		r.Close()
		s.Params["port"] = port
		r = start(t, s, dir)
		delivered(t, r)
		r.Close()
		got := g.ask(t, "SELECT count(*), (SELECT sum(dropped) FROM connections_batches), max(net_ns) FROM connections")
		if want := fmt.Sprintf("%d\t%d\t%d", st.Waiting.Records, st.Dropped.Records, n); got != want {
			t.Errorf("rows, dropped, last window: got %q, want %q", got, want)
		}
	})
}

// TestDamagedSpool: records that cannot be read back from the spool, or not be understood, are neither delivered nor dropped because it was
// full: they are counted as what they are, here and on the server, and the others arrive.
func TestDamagedSpool(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		if g.dialect != remote.Postgres {
			return // the spool is the same
		}
		dir := spoolDir(t)
		s := g.settings()
		port := s.Params["port"]
		s.Params["port"] = "1" // nobody is there
		r := start(t, s, dir)
		m := windows.New(windows.Shape{})
		const n, records = 5, 100
		for i := 1; i <= n; i++ {
			if err := r.Write(t.Context(), m.Window(i, records)); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
		// The second window: a bit of its payload. Its host's name is in every payload.
		names, _ := filepath.Glob(filepath.Join(dir, "*.spool"))
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if parts := bytes.SplitAfter(b, []byte("host-a")); len(parts) > n {
				at := len(parts[0]) + len(parts[1]) - 1
				b[at] ^= 1
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		// One of a version that is not known.
		sp, err := spool.Open(dir, spool.MinLimit)
		if err != nil {
			t.Fatal(err)
		}
		if err := sp.Append(spool.Frame{Count: spool.Count{Records: 7}, Payload: []byte{99, 1, 2, 3}}); err != nil {
			t.Fatal(err)
		}
		sp.Close()
		s.Params["port"] = port
		r = start(t, s, dir)
		if err := r.Write(t.Context(), m.Window(n+1, records)); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		st, told := r.Status(), fmt.Sprint(r.Notices())
		r.Close()
		if st.Unreadable.Records != records+7 || st.Delivered.Records != n*records || st.Dropped.Records != 0 || st.Damaged == 0 {
			t.Errorf("%+v", st)
		}
		if !strings.Contains(told, "its version is 99") || strings.Count(told, "cannot be understood") != 1 {
			t.Errorf("told: %s", told)
		}
		got := g.ask(t, "SELECT count(*), count(DISTINCT net_ns), (SELECT sum(records) FROM connections_batches), (SELECT sum(dropped) FROM connections_batches) FROM connections")
		if want := fmt.Sprintf("%d\t%d\t%d\t%d", n*records, n, n*records, records+7); got != want {
			t.Errorf("rows, windows, records, lost: got %q, want %q", got, want)
		}
	})
}

// TestLate: a row waits for the hash of its program, and for no longer than it may.
func TestLate(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		var shift time.Duration
		clock := func() time.Time { return time.Now().Add(shift) }
		r, err := remote.Open(g.settings(), remote.Options{Dir: spoolDir(t), Zone: time.UTC, Linger: time.Second, Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		m := windows.New(windows.Shape{Programs: 1, Names: 1, Addresses: 1})
		w := m.Window(1, 1)
		x := w.Records[0].Program.Executable
		sum := x.Digest.SHA256
		x.Digest = &flow.Digest{}
		if err := r.Write(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if st := r.Status(); st.Delivered.Records != 0 {
			t.Errorf("sent without its hash: %+v", st)
		}
		if err := r.Write(t.Context(), &flow.Window{Hello: w.Hello, Position: w.Position, Digests: []flow.Digested{{File: x.File, Path: x.Path, SHA256: sum}}}); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		r.Close()
		// Another one, whose hash never comes.
		r, err = remote.Open(g.settings(), remote.Options{Dir: spoolDir(t), Zone: time.UTC, Linger: time.Second, Clock: func() time.Time { return time.Now().Add(30 * time.Second) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Write(t.Context(), m.Window(2, 1)); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		if st := r.Status(); st.NoHash != 1 {
			t.Errorf("%+v", st)
		}
		r.Close()
		if got := g.ask(t, "SELECT net_ns, sha256 FROM connections ORDER BY net_ns"); got != "1\t"+sum+"\n2" {
			t.Errorf("%q", got)
		}
	})
}

// TestRefused: settings that can never work are an error at once, and show nothing of the password.
func TestRefused(t *testing.T) {
	file := t.TempDir() + "/x"
	if err := os.WriteFile(file, []byte("no certificate"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, s := range []remote.Settings{
		{Dialect: "oracle"},
		{Dialect: remote.Postgres, Params: map[string]string{"ssl_ca": "x"}},
		{Dialect: remote.MySQL, Params: map[string]string{"sslmode": "x"}},
		{Dialect: remote.Postgres, Params: map[string]string{"port": "http", "password": secret}},
		{Dialect: remote.Postgres, Params: map[string]string{"sslmode": "verify-full", "sslrootcert": file, "host": "h", "password": secret}},
		{Dialect: remote.MySQL, Params: map[string]string{"ssl_ca": file, "password": secret}},
		{Dialect: remote.MySQL, Params: map[string]string{"unix_socket": "/x", "ssl": "true"}},
	} {
		s.Limit = spool.MinLimit
		_, err := remote.Open(s, remote.Options{Dir: spoolDir(t)})
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v: %v", s.Params, err)
		}
	}
}
