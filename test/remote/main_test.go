package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
	"github.com/picosnitch/picosnitch/test/servers"
	"github.com/picosnitch/picosnitch/test/windows"
)

const (
	killedEnv = "REMOTE_TEST_BE_KILLED"
	secret    = "s3cret'\\ \"x"
)

// TestMain makes the test binary a client that is killed, and ends the servers.
func TestMain(m *testing.M) {
	if what := os.Getenv(killedEnv); what != "" {
		client(what)
	}
	code := m.Run()
	for _, s := range []*shared{&postgresServer, &mariadbServer, &mysqlServer} {
		if s.server != nil {
			s.server.Remove()
		}
	}
	os.Exit(code)
}

// shared is one server for all tests of the package.
type shared struct {
	once   sync.Once
	server *servers.Server
	err    error
}

var postgresServer, mariadbServer, mysqlServer shared

// target is a database of a test's own on one of the servers, and an account that has INSERT, SELECT and CREATE in it.
type target struct {
	*servers.Server
	dialect  string
	database string
	user     string
}

func targets(t *testing.T, f func(t *testing.T, g *target)) {
	for _, c := range []struct {
		kind, dialect string
		shared        *shared
		start         func() (*servers.Server, error)
	}{
		{"postgres", remote.Postgres, &postgresServer, func() (*servers.Server, error) { return servers.StartPostgres() }},
		{"mariadb", remote.MySQL, &mariadbServer, func() (*servers.Server, error) {
			return servers.StartMariaDB("--innodb-lock-wait-timeout=5")
		}},
		{"mysql", remote.MySQL, &mysqlServer, func() (*servers.Server, error) {
			return servers.StartMySQL("--innodb-lock-wait-timeout=5")
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			c.shared.once.Do(func() { c.shared.server, c.shared.err = c.start() })
			err := c.shared.err
			if errors.Is(err, servers.ErrMissing) && os.Geteuid() != 0 || errors.Is(err, servers.ErrNotFetched) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			f(t, newTarget(t, c.shared.server, c.dialect))
		})
	}
}

func newTarget(t *testing.T, s *servers.Server, dialect string) *target {
	t.Helper()
	name := fmt.Sprintf("t%d", time.Now().UnixNano())
	g := &target{s, dialect, name, name}
	if dialect == remote.Postgres {
		g.must(t, "", fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", name, strings.ReplaceAll(secret, "'", "''")))
		g.must(t, "", "CREATE DATABASE "+name)
		g.must(t, name, "CREATE SCHEMA log; ALTER DATABASE "+name+" SET search_path = log; GRANT USAGE, CREATE ON SCHEMA log TO "+name)
	} else {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(secret)
		g.must(t, "", fmt.Sprintf("CREATE DATABASE %s; CREATE USER %s@'%%' IDENTIFIED BY '%s'; GRANT CREATE, INSERT, SELECT ON %s.* TO %s@'%%'", name, name, quoted, name, name))
	}
	return g
}

func (g *target) must(t *testing.T, database, text string) string {
	t.Helper()
	out, err := g.SQL(database, text)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// ask runs a statement in the target's database.
func (g *target) ask(t *testing.T, text string) string {
	t.Helper()
	if g.dialect == remote.Postgres {
		return g.must(t, g.database, "SET search_path = log; SET timezone = 'UTC'; "+text)
	}
	return g.must(t, g.database, text)
}

func (g *target) number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(g.ask(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (g *target) settings() remote.Settings {
	client := "psycopg"
	if g.dialect == remote.MySQL {
		client = "pymysql"
	}
	return remote.Settings{Client: client, Dialect: g.dialect, Limit: spool.MinLimit, Params: map[string]string{
		"host": "127.0.0.1", "port": strconv.Itoa(g.Port), "user": g.user, "password": secret, "database": g.database,
	}}
}

func start(t *testing.T, s remote.Settings, dir string) *remote.Remote {
	t.Helper()
	r, err := remote.Open(s, remote.Options{Dir: dir, Zone: time.UTC, Linger: 5 * time.Second, Wait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func spoolDir(t *testing.T) string { return filepath.Join(t.TempDir(), "spool") }

// until waits for something that another goroutine or process does.
func until(t *testing.T, r *remote.Remote, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			if r != nil {
				t.Fatalf("not within two minutes: %s: %+v %+v", what, r.Status(), r.Notices())
			}
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

func delivered(t *testing.T, r *remote.Remote) {
	t.Helper()
	until(t, r, "everything is delivered", func() bool { return r.Status().Frames == 0 })
}

// client spools windows and delivers them until it is killed. It says how far it is.
func client(what string) {
	var dialect, dir, port, database string
	fmt.Sscan(what, &dialect, &dir, &port, &database)
	s := remote.Settings{Client: "psycopg", Dialect: dialect, Limit: 1 << 30, Params: map[string]string{"host": "127.0.0.1", "port": port, "user": database, "password": secret, "database": database}}
	r, err := remote.Open(s, remote.Options{Dir: dir, Zone: time.UTC, Wait: 100 * time.Millisecond})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	m := windows.New(windows.Shape{Programs: 20, Names: 50, Addresses: 100})
	n := int(r.Resume(windows.Stream).Batch)
	for {
		n++
		if err := r.Write(context.Background(), m.Window(n, perWindow)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(n)
		time.Sleep(2 * time.Millisecond)
	}
}

const perWindow = 200
