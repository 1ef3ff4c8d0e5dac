package remote_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/cli"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/test/windows"
)

// command runs picosnitch's command line.
func command(env map[string]string, args ...string) (code int, out, words string) {
	var stdout, stderr bytes.Buffer
	code = cli.Run(args, cli.Env{Stdin: os.Stdin, Stdout: &stdout, Stderr: &stderr, Getenv: func(k string) string { return env[k] }})
	return code, stdout.String(), stderr.String()
}

// TestReport: report and export of a server, by URL with the password from the environment or from .pgpass, and as config.json says; two hosts that write
// to one table and a third one with a table of its own.
func TestReport(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		for host, table := range map[string]string{"one": "", "two": "", "three": "connections_three"} {
			s := g.settings()
			s.Table = table
			r := start(t, s, spoolDir(t))
			m := windows.New(windows.Shape{Programs: 5, Names: 5, Addresses: 5})
			for n := 1; n <= 3; n++ {
				w := m.Window(n, len(host))
				w.Hello.Host = host
				if err := r.Write(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
			delivered(t, r)
			r.Close()
		}
		s := g.readable(t, "")
		scheme, variable := "mysql", "MYSQL_PWD"
		if g.dialect == remote.Postgres {
			scheme, variable = "postgresql", "PGPASSWORD"
		}
		u := url.URL{Scheme: scheme, User: url.User(s.Params["user"]), Host: "127.0.0.1:" + s.Params["port"], Path: g.database}
		from, env := u.String(), map[string]string{variable: secret, "HOME": t.TempDir()}
		run := func(env map[string]string, args ...string) string {
			t.Helper()
			code, out, words := command(env, args...)
			if code != 0 {
				t.Fatalf("%v: exit code %d: %s", args, code, words)
			}
			return out
		}
		if out := run(env, "report", "--from", from, "--by", "host", "--order", "conns", "--format", "csv"); !strings.HasPrefix(out, "host,conns,sent,received\none,9,") || !strings.Contains(out, "\ntwo,9,") || strings.Count(out, "\n") != 3 {
			t.Errorf("by host: %q", out)
		}
		if out := run(env, "report", "--from", from+"?table=connections_three", "--by", "host", "--format", "csv"); !strings.Contains(out, "\nthree,15,") || strings.Count(out, "\n") != 2 {
			t.Errorf("a table of its own: %q", out)
		}
		if out := run(env, "report", "--from", from, "--where", "host=two", "--period", "day", "--utc", "--by", "exe"); strings.Count(out, "2023-11-14") < 3 || !strings.Contains(out, "could not be attributed") {
			t.Errorf("by day: %s", out)
		}
		// A number is this machine's user on this machine only.
		if out := run(env, "report", "--from", from, "--by", "user"); strings.Contains(out, "1000 (") {
			t.Errorf("by user: %s", out)
		}
		var row struct {
			Host, Exe string
			Port      int
		}
		lines := strings.Split(strings.TrimSpace(run(env, "export", "--from", from, "--format", "json", "--where", "host=one")), "\n")
		if err := json.Unmarshal([]byte(lines[0]), &row); err != nil || len(lines) != 9 || row.Host != "one" || row.Port != 443 || !strings.HasPrefix(row.Exe, "/usr/bin/program-") {
			t.Errorf("export: %v %d %+v", err, len(lines), row)
		}
		if g.dialect == remote.Postgres {
			file := filepath.Join(t.TempDir(), "pgpass")
			quoted := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(secret)
			if err := os.WriteFile(file, []byte("127.0.0.1:*:*:"+s.Params["user"]+":"+quoted+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out := run(map[string]string{"PGPASSFILE": file}, "report", "--from", from); !strings.Contains(out, "(total)") {
				t.Errorf("with .pgpass: %s", out)
			}
		}
		// The account and the password of config.json.
		dir := t.TempDir()
		name := map[bool]string{true: "dbname", false: "db"}[g.dialect == remote.Postgres]
		config, err := json.Marshal(map[string]any{"DB sql server": map[string]any{"client": g.settings().Client, "host": "127.0.0.1", "port": g.Port, "user": g.user, "password": secret, name: g.database, "table_name": "connections_three"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
			t.Fatal(err)
		}
		if out := run(map[string]string{"PICOSNITCH_DIR": dir}, "report", "--from", "config", "--by", "host", "--format", "csv"); !strings.Contains(out, "\nthree,15,") {
			t.Errorf("as config.json says: %q", out)
		}
		// What cannot work, and never with the password.
		for _, c := range []struct {
			code int
			env  map[string]string
			args []string
			says string
		}{
			{2, env, []string{"report", "--from", strings.Replace(from, "@", ":s3cret@", 1)}, "can be read by every program"},
			{2, env, []string{"report", "--from", from + "?password=s3cret"}, "can be read by every program"},
			{2, env, []string{"report", "--from", from + "?x=y"}, `parameter "x" is unknown`},
			{2, env, []string{"report", "--from", from + "?table=a;drop"}, "semicolon"},
			{2, env, []string{"report", "--from", from + "?table=a%3Bdrop"}, "not a table's name"},
			{2, env, []string{"report", "--from", "oracle://u@h/d"}, `begins with "oracle"`},
			{2, env, []string{"report", "--from", scheme + "://127.0.0.1/x"}, "says no user"},
			{2, env, []string{"report", "--from", from, "--file", "x"}, "use one of them"},
			{2, env, []string{"report", "--from", from, "--timeout", "0s"}, "--timeout"},
			{2, map[string]string{"PICOSNITCH_DIR": t.TempDir()}, []string{"report", "--from", "config"}, `"DB sql server" is not set`},
			{2, env, []string{"report", "--from", from, "--by", "country", "--where", "port~4"}, ""},
			{1, map[string]string{variable: "wr0ng" + secret}, []string{"report", "--from", from}, "look at the password"},
			{1, env, []string{"report", "--from", strings.Replace(from, s.Params["port"], "1", 1)}, "refused"},
		} {
			code, out, words := command(c.env, c.args...)
			if c.says != "" && (code != c.code || !strings.Contains(words, c.says)) || code == 0 || strings.Contains(words+out, "s3cret") {
				t.Errorf("%v: exit code %d, %q %q, want %d and %q", c.args, code, out, words, c.code, c.says)
			}
		}
	})
}

// TestTables: each host has a table of its own, an account that sees no other, and a view over all of them.
func TestTables(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		hosts := []string{"web1", "web2"}
		var all []*remote.Remote
		for _, host := range hosts {
			s := g.settings()
			s.Table = "connections_" + host
			r := start(t, s, spoolDir(t))
			all = append(all, r)
			m := windows.New(windows.Shape{})
			for n := 1; n <= 20; n++ {
				w := m.Window(n, 20)
				w.Hello.Host = host
				if err := r.Write(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, r := range all {
			delivered(t, r)
			r.Close()
		}
		for _, host := range hosts {
			got := g.ask(t, fmt.Sprintf("SELECT min(host), max(host), count(*), (SELECT sum(records) FROM connections_%s_batches) FROM connections_%s", host, host))
			if got != host+"\t"+host+"\t400\t400" {
				t.Errorf("%q", got)
			}
		}
		g.ask(t, "CREATE VIEW fleet AS SELECT * FROM connections_web1 UNION ALL SELECT * FROM connections_web2")
		s := g.readable(t, "fleet")
		kind := map[bool]string{true: "postgres", false: "mariadb"}[s.Postgres]
		variable := map[bool]string{true: "PGPASSWORD", false: "MYSQL_PWD"}[s.Postgres]
		begin := time.Now()
		code, out, words := command(map[string]string{variable: secret}, "report", "--by", "host", "--format", "csv", "--from",
			fmt.Sprintf("%s://%s@127.0.0.1:%s/%s?table=fleet", kind, s.Params["user"], s.Params["port"], g.database))
		if code != 0 || !strings.Contains(out, "web1,400,") || !strings.Contains(out, "web2,400,") {
			t.Errorf("after %v: %q %q", time.Since(begin), out, words)
		}
	})
}
