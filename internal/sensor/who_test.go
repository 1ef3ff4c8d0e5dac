package sensor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/script"
)

// listener takes connections and everything that comes over them; what it returns is its port.
func listener(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
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
				io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// spoke returns the process that a pid was when it last used the network, and waits for it and its digests.
func (r *running) spoke(t *testing.T, pid int) (event.Process, told) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		x := r.told()
		var id event.ProcessID
		for _, e := range r.events() {
			if e.Flow != nil && int(e.Flow.Process.PID) == pid && e.Flow.Family == "inet" {
				id = e.Flow.Process
			}
		}
		p, ok := x.processes[id]
		if ok && x.digests[p.File] != (event.Executable{}) && (p.ScriptFile.IsZero() || x.digests[p.ScriptFile] != (event.Executable{})) {
			return p, x
		}
		if time.Now().After(end) {
			t.Fatalf("process %d: told %+v, digest %+v, script's %+v", pid, p, x.digests[p.File], x.digests[p.ScriptFile])
		}
	}
}

func sum(b string) string {
	h := sha256.Sum256([]byte(b))
	return hex.EncodeToString(h[:])
}

// TestScripts starts interpreters in every way that is known; most have ended before anybody could look at them.
func TestScripts(t *testing.T) {
	r := runSensor(t, Options{Interval: 200 * time.Millisecond})
	port := listener(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	send := fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && printf x >&3\n", port)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	odd := "a\nb\x1b[31m\xff<b>'.sh"
	texts := map[string]string{
		"file.sh": "#!/bin/bash\n" + send, "env.sh": "#!/usr/bin/env -S bash -e\n" + send, odd: send + "# odd\n", "arg.sh": send,
		"slow.sh":    "sleep 0.4\n" + send,
		"changes.sh": "sleep 0.1; echo '# changed' >>\"$0\"\n" + send,
		"a.pl":       fmt.Sprintf("use Socket; socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in(%d, INADDR_LOOPBACK)) or die $!; syswrite S, 'x';\n", port),
		"mod.py":     fmt.Sprintf("import socket\nsocket.create_connection(('127.0.0.1', %d)).send(b'x')\n", port),
	}
	for name, text := range texts {
		write(name, text)
	}
	if err := os.Symlink("arg.sh", dir+"/link.sh"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * 25 * time.Millisecond) // see script.ReasonYoung
	young := write("young.sh", send)
	input := func(text string) func(*exec.Cmd) {
		return func(c *exec.Cmd) { c.Stdin = strings.NewReader(text) }
	}
	mounts := func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} }
	for _, c := range []struct {
		name    string
		argv    []string
		prepare func(*exec.Cmd)
		kind    string
		script  string
		text    string // the name of the text whose digest it must be; "": none
		reason  string
	}{
		{"file", []string{dir + "/file.sh"}, nil, event.ScriptFromFile, dir + "/file.sh", "file.sh", ""},
		{"file, relative", []string{"./file.sh"}, nil, event.ScriptFromFile, dir + "/file.sh", "file.sh", ""},
		{"file, by env", []string{dir + "/env.sh"}, nil, event.ScriptArgument, dir + "/env.sh", "env.sh", ""},
		{"argument", []string{"/bin/bash", dir + "/arg.sh"}, nil, event.ScriptArgument, dir + "/arg.sh", "arg.sh", ""},
		{"argument, relative", []string{"/bin/bash", "-e", "arg.sh", "-c"}, nil, event.ScriptArgument, dir + "/arg.sh", "arg.sh", ""},
		{"argument, by a link", []string{"/bin/bash", "link.sh"}, nil, event.ScriptArgument, dir + "/link.sh", "arg.sh", ""},
		{"argument, odd name", []string{"/bin/bash", odd}, nil, event.ScriptArgument, event.Text([]byte(dir + "/" + odd)), odd, ""},
		{"perl", []string{"/usr/bin/perl", "-w", "a.pl"}, nil, event.ScriptArgument, dir + "/a.pl", "a.pl", ""},
		{"command", []string{"/bin/bash", "-ec", send}, nil, event.ScriptCommand, "", "", ""},
		{"stdin", []string{"/bin/bash"}, input(send), event.ScriptStdin, "", "", ""},
		{"module", []string{"/usr/bin/python3", "-m", "mod"}, nil, event.ScriptModule, "mod", "", script.ReasonModule},
		{"python", []string{"/usr/bin/python3", "mod.py"}, nil, event.ScriptArgument, dir + "/mod.py", "mod.py", ""},
		{"another mount namespace, alive", []string{"/bin/bash", "slow.sh"}, mounts, event.ScriptArgument, dir + "/slow.sh", "slow.sh", ""},
		{"another mount namespace, ended", []string{"/bin/bash", "arg.sh"}, mounts, event.ScriptArgument, dir + "/arg.sh", "", script.ReasonEnded},
		{"written just now", []string{"/bin/bash", young}, func(*exec.Cmd) { write("young.sh", send) }, event.ScriptArgument, young, "", script.ReasonYoung},
		{"process substitution", []string{"/bin/bash", "-c", "exec /bin/bash <(echo '" + strings.TrimSpace(send) + "; sleep 1')"}, nil, event.ScriptArgument, "/dev/fd/63", "", script.ReasonNoFile},
		{"cut arguments", []string{"/bin/bash", "--rcfile", strings.Repeat("x", 5000), "arg.sh"}, nil, event.ScriptUnknown, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(c.argv[0], c.argv[1:]...)
			cmd.Dir = dir
			if c.prepare != nil {
				c.prepare(cmd)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			p, x := r.spoke(t, cmd.Process.Pid)
			if p.ScriptKind != c.kind || p.Script != c.script || p.ScriptReason != c.reason {
				t.Errorf("kind %q, script %q, reason %q; want %q, %q, %q", p.ScriptKind, p.Script, p.ScriptReason, c.kind, c.script, c.reason)
			}
			want := ""
			if c.text != "" {
				want = sum(texts[c.text])
			}
			if got := x.digests[p.ScriptFile].SHA256; p.ScriptFile.IsZero() != (want == "") || !p.ScriptFile.IsZero() && got != want {
				t.Errorf("digest %q (%+v), want %q", got, x.digests[p.ScriptFile], want)
			}
			if x.digests[p.File].SHA256 == "" {
				t.Errorf("the interpreter has no digest: %+v", x.digests[p.File])
			}
		})
	}
	// A script that writes to itself: what it was at the start, or a reason, never what it became.
	cmd := exec.Command("/bin/bash", "changes.sh")
	cmd.Dir = dir
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	p, x := r.spoke(t, cmd.Process.Pid)
	if d := x.digests[p.ScriptFile]; p.ScriptReason != script.ReasonChanged && d.Reason == "" && d.SHA256 != sum(texts["changes.sh"]) {
		t.Errorf("changed while it ran: reason %q, digest %+v", p.ScriptReason, d)
	}
	preloaded := exec.Command("/bin/bash", "arg.sh")
	preloaded.Dir, preloaded.Env = dir, []string{"LD_PRELOAD=/nowhere/x.so", "LD_AUDIT=/nowhere/y.so"}
	if err := preloaded.Run(); err != nil {
		t.Fatal(err)
	}
	if p, _ := r.spoke(t, preloaded.Process.Pid); p.Preload != "LD_PRELOAD=/nowhere/x.so LD_AUDIT=/nowhere/y.so" || p.PreloadCut {
		t.Errorf("preload %q, cut %v", p.Preload, p.PreloadCut)
	}
}

// TestBeforeUs: interpreters and preloads of programs that ran before the sensor.
func TestBeforeUs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	port := listener(t)
	dir := t.TempDir()
	text := fmt.Sprintf("read x; exec 3<>/dev/tcp/127.0.0.1/%d && printf x >&3; read x\n", port)
	if err := os.WriteFile(dir+"/old.sh", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/bash", "old.sh")
	cmd.Dir, cmd.Env = dir, []string{"A=1", "LD_PRELOAD=/nowhere/x.so"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	r := runSensor(t, Options{Interval: 200 * time.Millisecond})
	io.WriteString(in, "\n")
	p, x := r.spoke(t, cmd.Process.Pid)
	in.Close()
	cmd.Wait()
	if p.Source != event.SourceIterator || p.ScriptKind != event.ScriptArgument || p.Script != dir+"/old.sh" || x.digests[p.ScriptFile].SHA256 != sum(text) {
		t.Errorf("%+v, digest %+v", p, x.digests[p.ScriptFile])
	}
	if p.Preload != "LD_PRELOAD=/nowhere/x.so" {
		t.Errorf("preload %q", p.Preload)
	}
}

// TestWhoCalled: a program that daemonized twice still names the script that started it, and every one of its ancestors, which used
// no network and have ended, has its digest.
func TestWhoCalled(t *testing.T) {
	r := runSensor(t, Options{Interval: 200 * time.Millisecond})
	port := listener(t)
	dir := t.TempDir()
	note := dir + "/pid"
	text := fmt.Sprintf(`#!/bin/bash
( ( exec setsid /usr/bin/perl -e 'select undef, undef, undef, 0.5; open F, ">", "%s.new"; print F $$; close F; rename "%s.new", "%s"; exec "/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/%d && printf x >&3"' ) & ) &
`, note, note, note, port)
	path := dir + "/caller.sh"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	cmd := exec.Command("/usr/bin/env", "-i", path)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for end := time.Now().Add(5 * time.Second); pid == 0; time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(note); err == nil {
			fmt.Sscan(string(b), &pid)
		}
		if time.Now().After(end) {
			t.Fatal("the daemon did not start")
		}
	}
	p, x := r.spoke(t, pid)
	var chain []string
	for up := p; ; {
		line := up.Path
		if up.Script != "" {
			line += " › " + up.Script
		}
		chain = append(chain, line)
		if d := x.digests[up.File]; d.SHA256 == "" {
			t.Errorf("%s has no digest: %+v", up.Path, d)
		}
		if up.Script == path && x.digests[up.ScriptFile].SHA256 != sum(text) {
			t.Errorf("the script's digest is %+v", x.digests[up.ScriptFile])
		}
		if int(up.ID.PID) == os.Getpid() {
			break
		}
		next, ok := x.processes[up.Parent]
		if !ok {
			t.Fatalf("the chain ends: %q, parent %v", chain, up.Parent)
		}
		up = next
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bash, err := filepath.EvalSymlinks("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	caller := bash + " › " + path
	// bash forks its subshells; the last one executed setsid, perl and bash.
	want := []string{bash, caller, caller, self}
	if got := chain; strings.Join(got, "\n") != strings.Join(want, "\n") && strings.Join(got, "\n") != strings.Join([]string{bash, caller, self}, "\n") && strings.Join(got, "\n") != strings.Join([]string{bash, caller, caller, caller, self}, "\n") {
		t.Errorf("chain %q", got)
	}
}

// TestContainers makes the groups and the files of container engines by hand. The container lives for a moment only.
func TestContainers(t *testing.T) {
	const id = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
	root := t.TempDir()
	config := root + "/var/lib/docker/containers/" + id + "/config.v2.json"
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(`{"ID":"`+id+`","Name":"/we\u001b[31mb"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runSensor(t, Options{Interval: 200 * time.Millisecond, root: root})
	port := listener(t)
	groups := unified(t)
	run := func(path string) (event.Process, int) {
		dir := groups + path
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		cmd := exec.Command("/bin/bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && printf x >&3", port))
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		for d := dir; d != groups; d = filepath.Dir(d) {
			os.Remove(d) // before anybody looked at it; those above may be somebody else's
		}
		p, _ := r.spoke(t, cmd.Process.Pid)
		return p, cmd.Process.Pid
	}
	p, _ := run("/system.slice/docker-" + id + ".scope")
	if p.Place == nil || p.Place.Container != id || p.Place.Name != `we\u{1b}[31mb` || p.Place.Label() != `docker we\u{1b}[31mb` {
		t.Errorf("%+v", p.Place)
	}
	// Its name is written down after its first program started.
	late := strings.Repeat("0123456789abcdef", 4)
	p, pid := run("/docker/" + late)
	if p.Place == nil || p.Place.Container != late || p.Place.Name != "" {
		t.Errorf("%+v", p.Place)
	}
	config = root + "/var/lib/docker/containers/" + late + "/config.v2.json"
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(`{"Name":"/late"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); p.Place.Name == ""; time.Sleep(50 * time.Millisecond) {
		if p, _ = r.spoke(t, pid); time.Now().After(end) {
			t.Fatalf("the name that came late was not told: %+v", p.Place)
		}
	}
	if p.Place.Name != "late" {
		t.Errorf("%+v", p.Place)
	}
}

// unified is where cgroup2 is mounted.
func unified(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}
