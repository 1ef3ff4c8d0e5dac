// Package logrotate runs the real logrotate(8), with the snippet that packagers install, on the text log of the real picosnitch while it
// writes: no line may be lost, torn or there twice. It needs root.
package logrotate

import (
	"compress/gzip"
	"encoding/csv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// account is the recorder's, as sysusers.d/picosnitch.conf would make it: here for this test's processes only.
const account = "picosnitch:x:63147:65534::/:/usr/sbin/nologin\n"

// source sends a datagram of 1000 bytes every millisecond from a socket of its own until its input ends, and says how many.
const source = `#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	static char b[1000];
	long n = 0;
	struct pollfd end = { .fd = 0 };
	end.events = POLLIN;
	while (poll(&end, 1, 1) == 0) {
		int s = socket(AF_INET, SOCK_DGRAM, 0);
		if (sendto(s, b, sizeof b, 0, (void *)&a, sizeof a) == sizeof b)
			n++;
		close(s);
	}
	printf("%ld\n", n);
	return 0;
}
`

func TestLogrotate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks and logrotate do; run it as root")
	}
	if testing.Short() {
		t.Skip("takes half a minute: run it without -short")
	}
	for tool, pkg := range map[string]string{"logrotate": "logrotate", "setfacl": "acl", "gcc": "gcc libc6-dev"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: apt-get install %s", tool, pkg)
		}
	}
	t.Setenv("SUDO_UID", "65534")
	t.Setenv("SUDO_GID", "65534")
	folder, err := os.MkdirTemp("", "logrotate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	sender := filepath.Join(folder, "sender")
	run("gcc", "-O1", "-o", sender, write("sender.c", source, 0o644))

	// The account is in /etc/passwd for this thread and what it starts.
	runtime.LockOSThread() // and never unlocked: it ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(write("passwd", string(passwd)+account, 0o644), "/etc/passwd", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}

	picosnitch, err := monitor.Build(folder, "./cmd/picosnitch")
	if err != nil {
		t.Fatal(err)
	}
	m, err := monitor.Start(picosnitch, folder, map[string]any{"DB text log": true, "DB write limit (seconds)": 1, "Desktop notifications": false})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.Running() {
			m.Kill()
		}
	})
	snippet, err := os.ReadFile("../../packaging/logrotate.d/picosnitch")
	if err != nil {
		t.Fatal(err)
	}
	replace := strings.NewReplacer("/home/USER/.config/picosnitch", m.Dir, "su picosnitch USER", "su picosnitch nogroup", "/run/picosnitch.pid", filepath.Join(m.RunDir, "picosnitch.pid"))
	conf, state := write("conf", replace.Replace(string(snippet)), 0o644), filepath.Join(folder, "state")
	log := filepath.Join(m.Dir, "conn.log")

	// A closed home: logrotate says so, and changes nothing.
	home := filepath.Dir(m.Dir)
	if out, err := exec.Command("logrotate", "-f", "-s", state, conf).CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("%v %s", err, out)
	}
	run("setfacl", "-m", "u:picosnitch:x", home)

	c := exec.Command(sender)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var sent strings.Builder
	c.Stdout = &sent
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { in.Close(); c.Wait() })
	t.Cleanup(end)
	const rounds = 4
	for range rounds {
		time.Sleep(2500 * time.Millisecond)
		if out := run("logrotate", "-f", "-s", state, conf); out != "" {
			t.Errorf("logrotate: %s", out)
		}
	}
	end()
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	datagrams, err := strconv.Atoi(strings.TrimSpace(sent.String()))
	if err != nil || datagrams < 1000 {
		t.Fatalf("%d datagrams, %v", datagrams, err)
	}

	files, err := filepath.Glob(log + "*")
	if err != nil {
		t.Fatal(err)
	}
	lines, conns, bytes := 0, 0, 0
	for _, file := range files {
		if file == log+".1" {
			t.Errorf("%s is not compressed", file)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var r io.Reader = f
		if strings.HasSuffix(file, ".gz") {
			if r, err = gzip.NewReader(f); err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			field := strings.Split(strings.TrimSuffix(line, "\n"), ",")
			if len(field) != 16 || !strings.HasSuffix(line, "\n") {
				t.Errorf("%s has half a line: %q", file, line)
				continue
			}
			if field[0] == sender {
				n, _ := strconv.Atoi(field[13])
				b, _ := strconv.Atoi(field[14])
				lines, conns, bytes = lines+1, conns+n, bytes+b
			}
		}
	}
	t.Logf("%d files, %d lines, %d datagrams", len(files), lines, datagrams)
	if len(files) != rounds+1 {
		t.Errorf("files: %v", files)
	}
	if bytes != datagrams*1000 {
		t.Errorf("%d bytes in the logs, %d were sent", bytes, datagrams*1000)
	}
	r := exec.Command(picosnitch, "report", "--by", "exe", "--where", "exe="+sender, "--format", "csv")
	r.Env = append(os.Environ(), "PICOSNITCH_DIR="+m.Dir)
	out, err := r.Output()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(string(out))).ReadAll()
	if err != nil || len(rows) != 2 || rows[1][1] != strconv.Itoa(conns) || rows[1][2] != strconv.Itoa(bytes) {
		t.Errorf("snitch.db: %v %v, the logs: %d connections, %d bytes", rows, err, conns, bytes)
	}
	if b, err := os.ReadFile(filepath.Join(m.Dir, "error.log")); err == nil {
		t.Errorf("error.log: %s", b)
	}
}
