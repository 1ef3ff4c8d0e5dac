// Package tell runs the real picosnitch and real programs, and looks what is told of them on the live feed, in exe.log and in record.json: in
// time, once, and the right thing. It needs root.
package tell

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// source is a program that sends one datagram to a port of this machine.
const source = `#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
int main(int n, char **v) {
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(v[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	return sendto(s, v[1], 1, 0, (void *)&a, sizeof a) != 1;
}
`

// notice is a line of the live feed.
type notice struct {
	Level string `json:"level"`
	Text  string `json:"text"`
	Hint  string `json:"hint"`
	came  time.Time
}

// listener keeps the notices of a live feed.
type listener struct {
	mu  sync.Mutex
	got []notice
}

func listen(t *testing.T, m *monitor.Monitor) *listener {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(m.RunDir, "picosnitch", "events.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l := &listener{}
	go func() {
		lines := bufio.NewScanner(c)
		lines.Buffer(nil, 1<<21)
		for lines.Scan() {
			var e struct {
				Notice *notice `json:"notice"`
			}
			if json.Unmarshal(lines.Bytes(), &e) == nil && e.Notice != nil {
				e.Notice.came = time.Now()
				l.mu.Lock()
				l.got = append(l.got, *e.Notice)
				l.mu.Unlock()
			}
		}
	}()
	return l
}

// with gives the notices that have a text.
func (l *listener) with(text string) []notice {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []notice
	for _, n := range l.got {
		if strings.Contains(n.Text+"\n"+n.Hint, text) {
			all = append(all, n)
		}
	}
	return all
}

func (l *listener) wait(t *testing.T, text string, within time.Duration) notice {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		if all := l.with(text); len(all) > 0 {
			return all[0]
		}
		if time.Now().After(end) {
			t.Fatalf("no notice with %q within %v, but %+v", text, within, l.with(""))
		}
	}
}

type stage struct {
	*testing.T
	folder, picosnitch, program, port string
}

func newStage(t *testing.T) *stage {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks do; run it as root")
	}
	if testing.Short() {
		t.Skip("takes a minute: run it without -short")
	}
	folder, err := os.MkdirTemp("", "tell")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &stage{T: t, folder: folder, program: filepath.Join(folder, "sender")}
	if s.picosnitch, err = monitor.Build(folder, "./cmd/picosnitch"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.program+".c", []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-O1", "-o", s.program, s.program+".c").CombinedOutput(); err != nil {
		t.Fatalf("gcc (apt-get install gcc libc6-dev): %v\n%s", err, out)
	}
	// Somebody takes the datagrams, or the kernel would answer that nobody does.
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_, s.port, _ = net.SplitHostPort(c.LocalAddr().String())
	return s
}

// start starts picosnitch, without a digest of the first minutes.
func (s *stage) start(config map[string]any) *monitor.Monitor {
	s.Helper()
	if config == nil {
		config = map[string]any{}
	}
	config["Notify first digest (minutes)"] = 0
	m, err := monitor.Start(s.picosnitch, s.folder, config)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if s.Failed() {
			s.Log(m.Output())
		}
		if m.Running() {
			m.Kill()
		}
	})
	return m
}

// copy makes a program of its own, whose bytes end with tail. As package managers do, it puts a new file in the place of an old one.
func (s *stage) copy(path, tail string) {
	s.Helper()
	data, err := os.ReadFile(s.program)
	if err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path+".new", append(data, tail...), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.Fatal(err)
	}
}

// run runs a program, which sends one datagram.
func (s *stage) run(path string) {
	s.Helper()
	if out, err := exec.Command(path, s.port).CombinedOutput(); err != nil {
		s.Fatalf("%s: %v %s", path, err, out)
	}
}

func (s *stage) exeLog(m *monitor.Monitor) string {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(m.Dir, "exe.log"))
	if err != nil && !os.IsNotExist(err) { // the first line makes it
		s.Fatal(err)
	}
	return string(b)
}

// TestInTime: from the first packet to the notice in two seconds; then the same program, changed and not, restarted and not.
func TestInTime(t *testing.T) {
	s := newStage(t)
	m := s.start(nil)
	l := listen(t, m)
	s.copy(s.folder+"/warm-up", "")
	// A file that is written less than a clock tick before its program starts and ends may stay without a hash (README).
	const old = 50 * time.Millisecond
	time.Sleep(old)
	s.run(s.folder + "/warm-up")
	l.wait(t, "warm-up", 10*time.Second)
	var worst time.Duration
	for i := range 2 {
		time.Sleep(10500*time.Millisecond + time.Duration(i)*250*time.Millisecond)
		path := fmt.Sprintf("%s/in-time-%d", s.folder, i)
		s.copy(path, fmt.Sprint(i))
		time.Sleep(old)
		start := time.Now()
		s.run(path)
		n := l.wait(t, path, 10*time.Second)
		took := n.came.Sub(start)
		worst = max(worst, took)
		if !strings.HasPrefix(n.Text, "New program on the network: in-time-") || !strings.Contains(n.Hint, "sha256 ") || !strings.Contains(n.Hint, "of no package") || !strings.Contains(n.Hint, "127.0.0.1:"+s.port) {
			t.Errorf("%+v", n)
		}
	}
	t.Logf("first packet to notice: %v at worst", worst)
	if worst > 2*time.Second {
		t.Errorf("%v from the first packet to the notice, at most 2 s", worst)
	}
	path := s.folder + "/in-time-0"
	time.Sleep(1500 * time.Millisecond)
	s.copy(path, "changed")
	time.Sleep(old)
	start := time.Now()
	s.run(path)
	n := l.wait(t, "Program changed: in-time-0", 10*time.Second)
	t.Logf("first packet of the changed program to notice: %v", n.came.Sub(start))
	if n.came.Sub(start) > 2*time.Second {
		t.Errorf("%v", n.came.Sub(start))
	}
	// Written to in place.
	time.Sleep(1500 * time.Millisecond)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "more")
	f.Close()
	if n := l.wait(t, "Program modified in place: in-time-0", 5*time.Second); !strings.Contains(n.Hint, "written to by /") {
		t.Errorf("%+v", n)
	}
	if log := s.exeLog(m); !strings.Contains(log, path+" (modified)\n") || strings.Count(log, path+" (new hash)\n") != 2 {
		t.Errorf("exe.log:\n%s", log)
	}
}

// TestMany: 500 programs change at once; then both processes are killed, and nothing is told twice.
func TestMany(t *testing.T) {
	s := newStage(t)
	m := s.start(map[string]any{"DB write limit (seconds)": 2})
	l := listen(t, m)
	const many = 500
	round := func(tail string) time.Duration {
		for i := range many {
			s.copy(fmt.Sprintf("%s/many-%03d", s.folder, i), tail)
		}
		time.Sleep(50 * time.Millisecond)
		start := time.Now()
		for i := range many {
			s.run(fmt.Sprintf("%s/many-%03d", s.folder, i))
		}
		return time.Since(start)
	}
	lines := func(why string) (n int) {
		for line := range strings.Lines(s.exeLog(m)) {
			if strings.Contains(line, s.folder+"/many-") && strings.HasSuffix(line, why+"\n") {
				n++
			}
		}
		return n
	}
	settle := func(why string, want int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); lines(why) < want; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d lines of %q, want %d", lines(why), why, want)
			}
		}
	}
	round("1")
	settle("(new hash)", many)
	// A kill of the recorder while 500 programs change, and one of both processes afterwards. The feed keeps nothing for those who
	// come later, so the kill comes when the first notice is there.
	took := round("2")
	l.wait(t, "changed", 5*time.Second)
	st, err := m.Status()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(st.RecorderPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if now, err := m.Status(); err == nil && now.RecorderPID != st.RecorderPID {
			break
		} else if time.Now().After(end) {
			t.Fatal("the recorder does not come back")
		}
	}
	l2 := listen(t, m)
	settle("(new hash)", 2*many)
	var told []notice
	count := 0
	for end := time.Now().Add(70 * time.Second); count < many && time.Now().Before(end); time.Sleep(time.Second) {
		told, count = append(l.with("changed"), l2.with("changed")...), 0
		for _, n := range told {
			var k int
			if _, err := fmt.Sscanf(n.Text, "%d programs changed", &k); err != nil {
				k = 1
			}
			count += k
		}
	}
	t.Logf("500 programs changed within %v: %d notices", took, len(told))
	if len(told) > 2 || count != many {
		t.Errorf("%d notices for %d programs", len(told), count)
	}
	if a, b := lines("(new name, exe)")+lines("(new exe)"), lines("(new hash)"); a != many || b != 2*many {
		t.Errorf("exe.log has %d new programs, %d hashes", a, b)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	before := s.exeLog(m)
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	l3 := listen(t, m)
	round("2")
	time.Sleep(4 * time.Second)
	if got := s.exeLog(m); strings.Count(got, "/many-") != strings.Count(before, "/many-") || len(l3.with("/many-")) != 0 {
		t.Errorf("after a restart: %d lines more, told %+v", strings.Count(got, "/many-")-strings.Count(before, "/many-"), l3.with("/many-"))
	}
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	record, err := os.ReadFile(filepath.Join(m.Dir, "record.json"))
	if err != nil || strings.Count(string(record), "/many-499\"") != 3 {
		t.Errorf("record.json: %v, %d", err, strings.Count(string(record), "/many-499\""))
	}
}

// TestPackage: a program of a real package of this machine's, upgraded and tampered with.
func TestPackage(t *testing.T) {
	s := newStage(t)
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg: this is not Debian")
	}
	const name, path = "picosnitch-test-sender", "/opt/picosnitch-test/sender"
	install := func(version string) {
		dir := filepath.Join(s.folder, "deb"+version)
		for _, d := range []string{dir + "/DEBIAN", dir + filepath.Dir(path)} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s.copy(dir+path, version)
		control := "Package: " + name + "\nVersion: " + version + "\nArchitecture: all\nMaintainer: Test <test@example.com>\nDescription: a test of picosnitch\n"
		if err := os.WriteFile(dir+"/DEBIAN/control", []byte(control), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"dpkg-deb", "--root-owner-group", "-b", dir, dir + ".deb"}, {"dpkg", "-i", dir + ".deb"}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
		}
	}
	t.Cleanup(func() {
		os.Remove(path)
		if out, err := exec.Command("dpkg", "-P", name).CombinedOutput(); err != nil {
			t.Errorf("remove %s: %v\n%s", name, err, out)
		}
		os.Remove(filepath.Dir(path))
	})
	m := s.start(nil)
	l := listen(t, m)
	install("1.0")
	s.run(path)
	if n := l.wait(t, "New program on the network: sender", 5*time.Second); !strings.Contains(n.Hint, "from package "+name+" 1.0, unchanged") {
		t.Errorf("%+v", n)
	}
	install("1.1")
	start := time.Now()
	s.run(path)
	n := l.wait(t, "Changed by an upgrade: sender", 25*time.Second)
	t.Logf("an upgrade was told after %v: %s", n.came.Sub(start), n.Hint)
	if !strings.Contains(n.Hint, "from package "+name+" 1.1, unchanged") || n.Level != "info" || n.came.Sub(start) > 2*time.Second {
		t.Errorf("%+v after %v", n, n.came.Sub(start))
	}
	time.Sleep(11 * time.Second) // dpkg is idle
	s.copy(path, "evil")
	start = time.Now()
	s.run(path)
	n = l.wait(t, "Program is not what its package ships: sender", 10*time.Second)
	t.Logf("what no package did was told after %v", n.came.Sub(start))
	if !strings.Contains(n.Hint, "differs from package "+name+" 1.1") || n.Level != "error" || n.came.Sub(start) > 2*time.Second {
		t.Errorf("%+v after %v", n, n.came.Sub(start))
	}
}
