// Package script runs the program as a user does: each file of testdata is a session on the command line, with the files
// it needs and what must come out. The test binary is picosnitch itself (testscript.Main), so no build is needed.
package script

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite" // the reader's side of snitch.db

	"github.com/picosnitch/picosnitch/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"picosnitch": func() {
			os.Exit(cli.Run(os.Args[1:], cli.Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}))
		},
		// The generator of the scripts: it sends known bytes to itself and says how many.
		"talk": func() {
			if err := talk(os.Args[1]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		},
	})
}

// talk sends n bytes over a TCP connection of its own on the loopback.
func talk(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	in, err := l.Accept()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		_, err := out.Write(make([]byte, n))
		done <- errors.Join(err, out.Close())
	}()
	got := 0
	for b := make([]byte, 4096); ; {
		k, err := in.Read(b)
		got += k
		if err != nil {
			break
		}
	}
	if got != n {
		return fmt.Errorf("received %d of %d bytes", got, n)
	}
	return <-done
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(c string) (bool, error) {
			switch c {
			case "root":
				return os.Geteuid() == 0, nil
			case "systemd-analyze":
				_, err := exec.LookPath("systemd-analyze")
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", c)
		},
		Setup: func(e *testscript.Env) error {
			// The recorder's account must find the run directory: temporary ones are closed to others.
			if os.Geteuid() == 0 {
				if err := errors.Join(os.Chmod(e.WorkDir, 0o755), os.Chmod(filepath.Dir(e.WorkDir), 0o755)); err != nil {
					return err
				}
			}
			e.Values[serverKey{}] = &serverHolder{}
			e.Setenv("PICOSNITCH_DIR", filepath.Join(e.WorkDir, "pico"))
			e.Setenv("PICOSNITCH_RUN_DIR", filepath.Join(e.WorkDir, "run"))
			e.Setenv("PICOSNITCH_UNIT", filepath.Join(e.WorkDir, "picosnitch.service"))
			e.Setenv("GORACE", os.Getenv("GORACE"))
			for _, k := range []string{"SUDO_UID", "SUDO_USER", "PICOSNITCH_LIVE", "NOTIFY_SOCKET"} {
				e.Setenv(k, "")
			}
			if os.Geteuid() == 0 {
				e.Defer(func() { stopLeftover(t, filepath.Join(e.WorkDir, "run/picosnitch.pid")) })
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":  code,
			"query": query,
			"retry": retry,

			"retry-file": retryFile,
			"sqlserver":  sqlServer,
			"retry-sql":  retrySQL,
			"waitstatus": waitStatus,
		},
	})
}

// stopLeftover ends a daemon that a failed script left behind.
func stopLeftover(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if self, _ := os.Readlink("/proc/self/exe"); err != nil || exe != self {
		return
	}
	t.Logf("the script left picosnitch %d behind", pid)
	if p, err := os.FindProcess(pid); err == nil {
		p.Kill()
	}
}

// code N COMMAND…: the command must end with exit code N.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// query DB SQL: prints the rows, columns separated by |.
func query(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: query file sql")
	}
	out, err := rows(ts.MkAbs(args[0]), args[1])
	ts.Check(err)
	_, err = fmt.Fprint(ts.Stdout(), out)
	ts.Check(err)
}

// retry DB SQL TEXT: asks until a row is TEXT, for at most 30 s.
func retry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: retry file sql text")
	}
	last := ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		out, err := rows(ts.MkAbs(args[0]), args[1])
		last = fmt.Sprint(out, err)
		if err == nil && strings.TrimSpace(out) == args[2] {
			return
		}
	}
	all, err := rows(ts.MkAbs(args[0]), "SELECT contime, exe, port, conns, send, recv FROM connections")
	told, _ := os.ReadFile(filepath.Join(filepath.Dir(ts.MkAbs(args[0])), "error.log"))
	ts.Fatalf("no row %q within 30 s; last answer: %s; all rows: %v\n%s\nerror.log:\n%s", args[2], last, err, all, told)
}

// retry-file FILE TEXT: waits until the file holds TEXT, for at most 30 s.
func retryFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: retry-file file text")
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if data, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(data), args[1]) {
			return
		}
	}
	ts.Fatalf("%s does not hold %q within 30 s", args[0], args[1])
}

// waitstatus: waits until picosnitch status answers, for at most 30 s.
func waitStatus(ts *testscript.TestScript, _ bool, _ []string) {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ts.Exec("picosnitch", "status") == nil {
			return
		}
	}
	ts.Fatalf("no status within 30 s")
}

func rows(file, text string) (string, error) {
	db, err := sql.Open("sqlite", "file:"+file+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return "", err
	}
	defer db.Close()
	r, err := db.QueryContext(context.Background(), text)
	if err != nil {
		return "", err
	}
	defer r.Close()
	names, err := r.Columns()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for r.Next() {
		values, to := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range values {
			to[i] = &values[i]
		}
		if err := r.Scan(to...); err != nil {
			return "", err
		}
		for i, v := range values {
			if i > 0 {
				b.WriteByte('|')
			}
			b.WriteString(v.String)
		}
		b.WriteByte('\n')
	}
	return b.String(), r.Err()
}
