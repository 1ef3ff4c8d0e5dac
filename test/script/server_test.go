package script

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/picosnitch/picosnitch/test/servers"
)

// serverKey finds a script's server.
type serverKey struct{}

type serverHolder struct{ s *servers.Server }

// sqlServer KIND [PASSWORD] | kill | start: a throw-away SQL server with a database and an account "pico", which may CREATE, INSERT and
// SELECT in it. It sets PORT, CA and SOCKET.
func sqlServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: sqlserver postgres|mariadb password, sqlserver kill, sqlserver start")
	}
	h, ok := ts.Value(serverKey{}).(*serverHolder)
	if !ok {
		ts.Fatalf("no place for a server")
	}
	switch args[0] {
	case "kill":
		h.s.Kill()
		return
	case "start":
		ts.Check(h.s.Start())
		return
	}
	var err error
	if args[0] == "postgres" {
		h.s, err = servers.StartPostgres()
	} else {
		h.s, err = servers.StartMariaDB()
	}
	ts.Check(err)
	ts.Defer(h.s.Remove)
	statements := []string{"CREATE DATABASE pico", "CREATE USER pico@'%' IDENTIFIED BY '" + args[1] + "'", "GRANT CREATE, INSERT, SELECT ON pico.* TO pico@'%'"}
	if args[0] == "postgres" {
		statements = []string{"CREATE ROLE pico LOGIN PASSWORD '" + args[1] + "'", "CREATE DATABASE pico", "ALTER DATABASE pico OWNER TO pico"}
	}
	for _, q := range statements {
		_, err := h.s.SQL("", q)
		ts.Check(err)
	}
	ts.Setenv("PORT", fmt.Sprint(h.s.Port))
	ts.Setenv("CA", h.s.CA())
	ts.Setenv("SOCKET", h.s.Socket)
}

// retrySQL SQL TEXT: asks the server until the answer is TEXT (columns separated by |), for at most 60 s.
func retrySQL(ts *testscript.TestScript, neg bool, args []string) {
	h, ok := ts.Value(serverKey{}).(*serverHolder)
	if neg || len(args) != 2 || !ok {
		ts.Fatalf("usage: retry-sql sql text")
	}
	var out string
	err := errors.New("not asked")
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		out, err = h.s.SQL("pico", args[0])
		if err == nil && strings.ReplaceAll(strings.TrimSpace(out), "\t", "|") == args[1] {
			return
		}
	}
	all, _ := h.s.SQL("pico", "SELECT contime, exe, send, recv FROM connections WHERE name NOT IN ('picosnitch', 'postgres', 'mariadbd')")
	told, _ := os.ReadFile(ts.MkAbs("pico/error.log"))
	ts.Fatalf("no answer %q within 60 s; the last: %q %v; all rows:\n%s\nerror.log:\n%s", args[1], out, err, all, told)
}
