// Package limits runs the real picosnitch with "Data limits" on a machine of its own: a network namespace with a modem, a wire, a container that
// it routes, one whose network a program makes, and a local network. Real programs move known bytes, and what is counted, told and
// remembered is compared. It needs root.
package limits

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// source is a program that sends datagrams of 1000 bytes, over a connected socket or not.
const source = `#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
int main(int n, char **v) {
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(9999) };
	static char b[1000];
	int s = socket(AF_INET, SOCK_DGRAM, 0), connected = n > 3;
	inet_pton(AF_INET, v[1], &a.sin_addr);
	if (connected && connect(s, (void *)&a, sizeof a))
		return 2;
	for (int i = atoi(v[2]); i > 0; i--)
		if ((connected ? send(s, b, sizeof b, 0) : sendto(s, b, sizeof b, 0, (void *)&a, sizeof a)) != sizeof b)
			return 3;
	return 0;
}
`

// script is the user's command: it writes down what it is told.
const script = `#!/bin/sh
echo "$PICOSNITCH_KIND|$PICOSNITCH_TITLE|$(echo "$PICOSNITCH_BODY" | tr '\n' ';')" >>"${0%/*}/told"
`

type machine struct {
	*testing.T
	folder, sender string
	m              *monitor.Monitor
}

func (s *machine) ip(args ...string) {
	s.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		s.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, out)
	}
}

// other makes another network namespace, and returns the pid of a process in it.
func (s *machine) other() string {
	s.Helper()
	c := exec.Command("unshare", "-n", "sleep", "300")
	if err := c.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	pid := strconv.Itoa(c.Process.Pid)
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		s.Fatal(err)
	}
	for range 500 {
		if ns, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil && ns != own {
			if name, _ := os.ReadFile("/proc/" + pid + "/comm"); string(name) == "sleep\n" {
				return pid
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.Fatal("unshare made no network namespace")
	return ""
}

func (s *machine) in(pid string, args ...string) {
	s.Helper()
	if out, err := exec.Command("nsenter", append([]string{"--net=/proc/" + pid + "/ns/net"}, args...)...).CombinedOutput(); err != nil {
		s.Fatalf("%s: %v %s", strings.Join(args, " "), err, out)
	}
}

// send moves so many kB to an address.
func (s *machine) send(program, to string, kB int, connected ...string) {
	s.Helper()
	if out, err := exec.Command(program, append([]string{to, strconv.Itoa(kB)}, connected...)...).CombinedOutput(); err != nil {
		s.Fatalf("send to %s: %v %s", to, err, out)
	}
}

type use struct {
	What     string `json:"what"`
	Used     uint64 `json:"used"`
	Percent  uint64 `json:"percent"`
	Since    int64  `json:"since"`
	Resets   int64  `json:"resets"`
	Unplaced uint64 `json:"unplaced"`
}

func (s *machine) status() (limits []use, recorder int, text string) {
	s.Helper()
	run := func(args ...string) []byte {
		c := exec.Command(s.m.Program, args...)
		c.Env = append(os.Environ(), "PICOSNITCH_DIR="+s.m.Dir, "PICOSNITCH_RUN_DIR="+s.m.RunDir)
		out, err := c.Output()
		if err != nil {
			return nil // a recorder that was killed: the next one answers
		}
		return out
	}
	var st struct {
		Limits   []use `json:"limits"`
		Recorder int   `json:"recorder_pid"`
	}
	if err := json.Unmarshal(run("status", "--json"), &st); err != nil {
		return nil, 0, ""
	}
	return st.Limits, st.Recorder, string(run("status"))
}

// used waits until the first limits have used so many kB, and a moment longer: more would be wrong.
func (s *machine) used(when string, want ...uint64) {
	s.Helper()
	var got []uint64
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got = nil
		limits, _, _ := s.status()
		for _, l := range limits[:min(len(limits), len(want))] {
			got = append(got, l.Used/1000)
		}
		if slices.Equal(got, want) {
			break
		}
		if time.Now().After(end) {
			s.Fatalf("%s: %d kB are used, want %d; %+v\n%s", when, got, want, limits, s.m.Output())
		}
	}
	time.Sleep(1200 * time.Millisecond)
	limits, _, _ := s.status()
	for i, l := range limits[:min(len(limits), len(want))] {
		if l.Used != want[i]*1000 {
			s.Fatalf("%s: %+v, want %d kB", when, l, want[i])
		}
	}
}

// told waits until the user's command was run for so many notices of limits, and gives them.
func (s *machine) told(n int) []string {
	s.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(s.folder, "told"))
		var all []string
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "data-limit|") {
				all = append(all, line)
			}
		}
		if len(all) >= n {
			return all
		}
		if time.Now().After(end) {
			s.Fatalf("%d notices of limits, want %d:\n%s\n%s", len(all), n, b, s.m.Output())
		}
	}
}

func (s *machine) config(limits ...map[string]any) map[string]any {
	return map[string]any{
		"Notify first digest (minutes)": 0, "DB write limit (seconds)": 1, "Desktop notifications": false,
		"Notify command": []string{filepath.Join(s.folder, "tell")}, "Data limits": limits, "Log ignore": []any{9998},
	}
}

// nobody is the user: the command is run as that.
const nobody = 65534

func newMachine(t *testing.T) *machine {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks and the namespaces do; run it as root")
	}
	if testing.Short() {
		t.Skip("takes a minute: run it without -short")
	}
	t.Setenv("SUDO_UID", strconv.Itoa(nobody))
	t.Setenv("SUDO_GID", strconv.Itoa(nobody))
	folder, err := os.MkdirTemp("", "limits")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	s := &machine{T: t, folder: folder, sender: filepath.Join(folder, "sender")}
	for _, f := range []struct{ path, text string }{{s.sender + ".c", source}, {filepath.Join(folder, "tell"), script}} {
		if err := os.WriteFile(f.path, []byte(f.text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(folder, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-O1", "-o", s.sender, s.sender+".c").CombinedOutput(); err != nil {
		t.Fatalf("gcc (apt-get install gcc libc6-dev): %v\n%s", err, out)
	}

	// This thread, and all that it starts, is the machine.
	runtime.LockOSThread() // and never unlocked: it ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	s.ip("link", "set", "lo", "up")
	return s
}

// pair lays a cable to another namespace.
func (s *machine) pair(pid, device, own, peer string) {
	s.Helper()
	s.ip("link", "add", device, "type", "veth", "peer", "name", device, "netns", pid)
	s.ip("addr", "add", own, "dev", device)
	s.ip("link", "set", device, "up")
	s.in(pid, "ip", "addr", "add", peer, "dev", device)
	s.in(pid, "ip", "link", "set", device, "up")
}

func TestDataLimits(t *testing.T) {
	s := newMachine(t)
	far, container, carried := s.other(), s.other(), s.other()
	s.pair(far, "wwan0", "203.0.113.1/24", "203.0.113.2/24")
	s.pair(far, "eth7", "198.51.100.1/24", "198.51.100.2/24")
	s.ip("addr", "add", "192.168.7.1/24", "dev", "eth7")
	s.in(far, "ip", "addr", "add", "192.168.7.2/24", "dev", "eth7")
	s.pair(container, "docker0", "172.17.0.1/16", "172.17.0.2/16")
	s.in(container, "ip", "route", "add", "default", "via", "172.17.0.1")
	s.in(carried, "ip", "link", "add", "tap0", "type", "veth", "peer", "name", "program") // as slirp4netns has it
	s.in(carried, "ip", "addr", "add", "10.0.2.100/24", "dev", "tap0")
	s.in(carried, "ip", "link", "set", "tap0", "up")
	s.in(carried, "ip", "link", "set", "program", "up")
	s.in(carried, "ip", "neigh", "add", "10.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "tap0")
	s.in(carried, "ip", "route", "add", "default", "dev", "tap0", "via", "10.0.2.2")
	// Somebody takes the datagrams, or the kernel would answer that nobody does: there and here.
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	there, err := os.Open("/proc/" + far + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	for _, ns := range []*os.File{there, own} {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 9999}); err != nil {
			t.Fatal(err)
		}
	}

	picosnitch, err := monitor.Build(s.folder, "./cmd/picosnitch")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"limit": "100 kB", "per": "day", "program": s.folder + "/*"} // and no other traffic of this machine
	modem := map[string]any{"limit": "50 kB", "per": "month", "interface": "wwan*", "program": s.folder + "/*"}
	local := map[string]any{"limit": "1 GB", "per": "day", "program": "sender", "direction": "sent", "local network": true}
	everything := map[string]any{"limit": "1 TB", "per": "month", "month starts on": 31}
	if s.m, err = monitor.Start(picosnitch, s.folder, s.config(all, modem, local, everything)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.m.Running() {
			s.m.Kill()
		}
	})
	_, _, text := s.status()
	t.Log(text)
	// Only what this test moves is checked of the one of everything: other programs may run here.
	base := func() uint64 {
		limits, _, _ := s.status()
		return limits[3].Used
	}
	used := func(when string, all, modem, local uint64) {
		t.Helper()
		s.used(when, all, modem, local)
	}
	used("nothing was moved", 0, 0, 0)
	before := base()

	s.send(s.sender, "203.0.113.2", 30) // the route says which interface
	used("over the modem", 30, 30, 30)
	s.send(s.sender, "198.51.100.2", 20, "connected")
	used("over the wire", 50, 30, 50)
	s.send(s.sender, "127.0.0.1", 40)
	s.send(s.sender, "203.0.113.1", 40, "connected")
	used("to this machine", 50, 30, 50)
	s.send(s.sender, "192.168.7.2", 7, "connected")
	used("to the local network", 50, 30, 57)
	s.in(container, s.sender, "203.0.113.2", "10", "connected")
	used("of a container", 60, 40, 67)
	if told := s.told(1); len(told) != 1 || !strings.Contains(told[0], "|Data limit: 80 % of 50 kB per month, "+s.folder[:5]) || !strings.Contains(told[0], "40.0 kB of 50 kB per month used;10.0 kB left until ") {
		t.Errorf("%q", told)
	}
	if got := base() - before; got != 60_000 {
		t.Errorf("the limit of everything has %d bytes more, want 60000", got)
	}
	// A network that a program makes: that program moves it once more, so only the limit of the container's program has it.
	s.in(carried, s.sender, "198.51.100.2", "2", "connected")
	used("of a network that a program makes, over a socket with an address", 62, 40, 69)
	s.in(carried, s.sender, "198.51.100.2", "1")
	used("of a network that a program makes", 63, 40, 70)
	if got := base() - before; got != 60_000 {
		t.Errorf("the limit of everything has %d bytes more, want 60000: it was counted once more", got)
	}

	// The recorder is killed while bytes move.
	_, recorder, _ := s.status()
	s.send(s.sender, "198.51.100.2", 10, "connected")
	if err := syscall.Kill(recorder, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.send(s.sender, "198.51.100.2", 10, "connected")
	for range 100 {
		if limits, pid, _ := s.status(); pid != recorder && len(limits) == 4 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	used("after a kill", 83, 40, 90)
	if told := s.told(2); len(told) != 2 || !strings.Contains(told[1], "|Data limit: 83 % of 100 kB per day, ") {
		t.Errorf("%q", told)
	}

	// All of it is restarted; then the rest is moved.
	if err := s.m.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.m.Restart(); err != nil {
		t.Fatal(err)
	}
	used("after a restart", 83, 40, 90)
	s.send(s.sender, "198.51.100.2", 17, "connected")
	used("all of it", 100, 40, 107)
	if told := s.told(3); len(told) != 3 || !strings.Contains(told[2], "|Data limit: 100 % of 100 kB per day, ") || !strings.Contains(told[2], "nothing is blocked; it begins anew on ") {
		t.Errorf("%q", told)
	}

	// A new limit has what the log has, one of an interface does not; a changed one is told anew, and only for all of it.
	if err := s.m.Stop(); err != nil {
		t.Fatal(err)
	}
	all["limit"] = "90 kB"
	month := map[string]any{"limit": "1 GB", "per": "month", "program": []string{s.sender, "nothing"}}
	wire := map[string]any{"limit": "1 GB", "per": "day", "interface": "eth7", "program": s.sender}
	b, err := json.Marshal(s.config(all, modem, month, wire))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.m.Dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.m.Restart(); err != nil {
		t.Fatal(err)
	}
	s.used("changed", 100, 40, 100, 0)
	limits, _, text := s.status()
	t.Log(text)
	if limits[3].Since == 0 || limits[0].Since == 0 {
		t.Errorf("it is not told since when is counted: %+v", limits)
	}
	if !strings.Contains(text, "data limit     "+s.folder+"/* over wwan*: 80 % of 50 kB per month: 40.0 kB used, 10.0 kB left until ") {
		t.Errorf("status:\n%s", text)
	}
	if told := s.told(4); len(told) != 4 || !strings.Contains(told[3], "|Data limit: 111 % of 90 kB per day, ") {
		t.Errorf("%q", told)
	}
	if err := s.m.Stop(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(s.m.Dir, "error.log")); err == nil && strings.Contains(string(b), "limit") {
		t.Errorf("error.log: %s", b)
	}
}
