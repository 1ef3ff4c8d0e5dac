//go:build linux

// Command unit runs picosnitch as a service of a systemd that is the machine's first process, in a guest (test/kernels): the unit
// that `picosnitch systemd` writes, with its capabilities and its sandbox, must start, see, hash, reload, come back after a kill, stop,
// and give up when it always fails. It changes the machine, and so runs in guests only.
//
//	unit run PICOSNITCH OUT   the results go to OUT as JSON
//	unit move BYTES           send bytes to itself over TCP, and end
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Check is one thing that must be, and what was.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Said string `json:"said"`
}

// moved is how many bytes the recorded program sends.
const moved = 3_000_000

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "run":
		err = run(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "move":
		err = move(os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: unit run PICOSNITCH OUT | unit move BYTES")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "unit:", err)
		os.Exit(1)
	}
}

// move sends n bytes to itself.
func move(n string) error {
	size, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(io.Discard, c, int64(size))
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, size)); err != nil {
		return err
	}
	return <-done
}

// service is the installed unit, and what was found about it.
type service struct {
	picosnitch string
	folder     string
	free       string // the hook set that a start from a shell takes
	checks     []Check
}

func (s *service) check(name string, ok bool, said string) {
	s.checks = append(s.checks, Check{name, ok, strings.Join(strings.Fields(said), " ")})
	fmt.Printf("%-5t %s: %s\n", ok, name, said)
}

// call runs a command and returns what it says.
func call(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// show asks systemd for properties of the service.
func show(properties string) map[string]string {
	out, _ := call("systemctl", "show", "picosnitch", "-p", properties)
	m := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		m[k] = v
	}
	return m
}

// until waits until the service is in a state, and returns how long that took.
func until(state string, limit time.Duration) (time.Duration, bool) {
	for start := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		if show("ActiveState")["ActiveState"] == state {
			return time.Since(start), true
		}
		if time.Since(start) > limit {
			return limit, false
		}
	}
}

// journal is the end of what the service said.
func journal() string {
	out, _ := call("journalctl", "-u", "picosnitch", "-n", "12", "-o", "cat", "--no-pager")
	return out
}

// hookSet asks what a start from a shell takes, "" if nothing works.
func (s *service) hookSet() string {
	var r struct {
		HookSet string `json:"hook_set"`
	}
	out, _ := exec.Command(s.picosnitch, "doctor", "--json").Output() // an answer that is missing is told by the check
	_ = json.Unmarshal(out, &r)
	return r.HookSet
}

func run(picosnitch, out string) error {
	s := service{picosnitch: picosnitch, folder: filepath.Join(os.Getenv("HOME"), ".config/picosnitch")}
	for _, step := range []func(){s.starts, s.sees, s.reloads, s.returns, s.refuses, s.givesUp, s.stops} {
		step()
	}
	bad := 0
	for _, c := range s.checks {
		if !c.OK {
			bad++
		}
	}
	text, err := json.Marshal(s.checks)
	if err == nil {
		err = os.WriteFile(out, text, 0o644)
	}
	if err == nil && bad > 0 {
		fmt.Println(journal())
		err = fmt.Errorf("%d of %d checks failed", bad, len(s.checks))
	}
	return err
}

// starts: installed and started as the README says, all hooks are on under the unit's capabilities and sandbox, fanotify too.
func (s *service) starts() {
	s.free = s.hookSet()
	said, err := call(s.picosnitch, "systemd")
	s.check("`picosnitch systemd` writes the unit", err == nil, said)
	said, err = call("systemctl", "enable", "--now", "picosnitch")
	s.check("`systemctl enable --now picosnitch`", err == nil, said)
	_, active := until("active", time.Minute)
	version, _ := call("systemctl", "--version")
	version, _, _ = strings.Cut(version, "\n")
	s.check("it is active", active, version)
	if !active {
		s.check("journal", false, journal())
	}
	var status struct {
		HookSet  string `json:"hook_set"`
		Why      string `json:"hook_set_why"`
		SelfTest string `json:"self_test"`
		Hooks    []struct {
			Name     string `json:"name"`
			Attached bool   `json:"attached"`
			Waits    bool   `json:"waits"`
			Spare    bool   `json:"spare"`
			Error    string `json:"error"`
		} `json:"hooks"`
	}
	// It is ready when its hooks are on; its recorder answers a moment later.
	for start := time.Now(); ; time.Sleep(time.Second) {
		var text []byte
		text, err = exec.Command(s.picosnitch, "status", "--json").Output()
		err = errors.Join(err, json.Unmarshal(text, &status))
		if err == nil || time.Since(start) > time.Minute {
			break
		}
	}
	var off []string
	fanotify := false
	for _, h := range status.Hooks {
		if !h.Attached && !h.Waits && !h.Spare {
			off = append(off, h.Name+": "+h.Error)
		}
		fanotify = fanotify || h.Name == "fanotify" && h.Attached
	}
	s.check("every hook is on, and fanotify", err == nil && len(off) == 0 && fanotify && status.SelfTest == "ok", fmt.Sprintf("hook set %s, self test %s, %d hooks, not on: %q %v", status.HookSet, status.SelfTest, len(status.Hooks), off, errText(err)))
	s.check("the sandbox does not change the choice of the hook set", status.HookSet != "" && status.HookSet == s.free, fmt.Sprintf("%q as a service (%s), %q without", status.HookSet, status.Why, s.free))
	pid := show("MainPID")["MainPID"]
	proc, err := os.ReadFile("/proc/" + pid + "/status")
	facts := map[string]string{}
	for line := range strings.Lines(string(proc)) {
		k, v, _ := strings.Cut(line, ":")
		facts[k] = strings.TrimSpace(v)
	}
	bound, _ := strconv.ParseUint(facts["CapBnd"], 16, 64)
	s.check("it has the unit's capabilities only", err == nil && bound != 0 && bound&(1<<unix.CAP_SYS_MODULE|1<<unix.CAP_NET_RAW|1<<unix.CAP_SYS_RAWIO) == 0 && facts["CapEff"] == facts["CapBnd"] && facts["NoNewPrivs"] == "1" && facts["Seccomp"] == "2",
		fmt.Sprintf("CapEff %s, CapBnd %s, NoNewPrivs %s, Seccomp %s", facts["CapEff"], facts["CapBnd"], facts["NoNewPrivs"], facts["Seccomp"]))
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// sees: a program's bytes and hash are in the log, and `report` reads it.
func (s *service) sees() {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		s.check("bytes and hash are recorded", false, err.Error())
		return
	}
	path := "/root/moves"
	if err := os.WriteFile(path, own, 0o755); err != nil {
		s.check("bytes and hash are recorded", false, err.Error())
		return
	}
	time.Sleep(100 * time.Millisecond) // else it is as young as its change time
	said, err := call(path, "move", strconv.Itoa(moved))
	if err != nil {
		s.check("bytes and hash are recorded", false, said+err.Error())
		return
	}
	sum := sha256.Sum256(own)
	digest := hex.EncodeToString(sum[:])
	for start := time.Now(); ; time.Sleep(time.Second) {
		said, err = call(s.picosnitch, "export", "--format", "json")
		var sent, received int64
		hashed := true
		for line := range strings.Lines(said) {
			var row struct {
				Exe      string `json:"exe"`
				SHA256   string `json:"sha256"`
				Sent     int64  `json:"sent"`
				Received int64  `json:"received"`
			}
			if json.Unmarshal([]byte(line), &row) == nil && row.Exe == path {
				sent, received = sent+row.Sent, received+row.Received
				hashed = hashed && row.SHA256 == digest
			}
		}
		if ok := sent == moved && received == moved && hashed; ok || time.Since(start) > 30*time.Second {
			s.check("bytes and hash are recorded", ok, fmt.Sprintf("sent %d, received %d of %d; hash right %t %s", sent, received, moved, hashed, errText(err)))
			return
		}
	}
}

// reloads: `systemctl reload` reaches it, and it goes on.
func (s *service) reloads() {
	before := show("MainPID")["MainPID"]
	said, err := call("systemctl", "reload", "picosnitch")
	time.Sleep(time.Second)
	now := show("MainPID,ActiveState")
	s.check("`systemctl reload picosnitch`", err == nil && now["MainPID"] == before && now["ActiveState"] == "active", fmt.Sprintf("pid %s → %s, %s %s", before, now["MainPID"], now["ActiveState"], said))
}

// returns: killed, it is started again, and its recorder went with it.
func (s *service) returns() {
	pid := show("MainPID")["MainPID"]
	_, err := call("kill", "-9", pid)
	for start := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		now := show("MainPID,ActiveState,NRestarts")
		if ok := now["ActiveState"] == "active" && now["MainPID"] != pid && now["NRestarts"] == "1"; ok || time.Since(start) > time.Minute {
			s.check("killed, it comes back", err == nil && ok, fmt.Sprintf("after %v: pid %s → %s, %s restart", time.Since(start).Round(100*time.Millisecond), pid, now["MainPID"], now["NRestarts"]))
			return
		}
	}
}

// refuses: what trying again does not mend is not tried again.
func (s *service) refuses() {
	config := filepath.Join(s.folder, "config.json")
	good, err := os.ReadFile(config)
	if err != nil {
		s.check("a wrong config.json ends it for good", false, err.Error())
		return
	}
	_, _ = call("systemctl", "stop", "picosnitch")
	_, _ = call("systemctl", "reset-failed", "picosnitch")
	err = os.WriteFile(config, []byte("{\"Bandwidth monitor\": 7}"), 0o600)
	_, _ = call("systemctl", "start", "picosnitch")
	_, failed := until("failed", 30*time.Second)
	time.Sleep(7 * time.Second) // more than RestartSec
	now := show("ActiveState,NRestarts,ExecMainStatus")
	s.check("a wrong config.json ends it for good", err == nil && failed && now["ActiveState"] == "failed" && now["NRestarts"] == "0" && now["ExecMainStatus"] == "2",
		fmt.Sprintf("%s, exit code %s, %s restarts", now["ActiveState"], now["ExecMainStatus"], now["NRestarts"]))
	if err := os.WriteFile(config, good, 0o600); err != nil {
		s.check("mend config.json", false, err.Error())
	}
}

// givesUp: what always fails ends in "failed" after five starts, costs next to nothing, and can be started again when it is mended.
func (s *service) givesUp() {
	_, _ = call("systemctl", "reset-failed", "picosnitch")
	err := errors.Join(unix.Mount(s.folder, s.folder, "", unix.MS_BIND, ""), unix.Mount("", s.folder, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	begin := time.Now()
	_, _ = call("systemctl", "start", "picosnitch")
	for ; time.Since(begin) < 4*time.Minute; time.Sleep(time.Second) {
		// Between two starts it is "activating": "failed" is for good.
		if now := show("ActiveState"); now["ActiveState"] == "failed" || now["ActiveState"] == "active" {
			break
		}
	}
	took := time.Since(begin)
	now := show("ActiveState,Result,NRestarts,ExecMainStatus,CPUUsageNSec")
	time.Sleep(15 * time.Second)
	later := show("ActiveState,NRestarts")
	text, _ := call("journalctl", "-u", "picosnitch", "-o", "cat", "--no-pager", "--since", fmt.Sprintf("@%d", begin.Unix()))
	last := ""
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "picosnitch: ") {
			last = strings.TrimSpace(line)
		}
	}
	s.check("a crash loop ends in \"failed\" after the limit", err == nil && now["ActiveState"] == "failed" && now["ExecMainStatus"] == "6" && later["ActiveState"] == "failed" && later["NRestarts"] == now["NRestarts"] && last != "",
		fmt.Sprintf("%s (%s) %v after the first start, %s restarts, exit code %s, the last start took %s ns of CPU; it said: %s", now["ActiveState"], now["Result"], took.Round(time.Second), now["NRestarts"], now["ExecMainStatus"], now["CPUUsageNSec"], last))
	err = unix.Unmount(s.folder, 0)
	_, _ = call("systemctl", "reset-failed", "picosnitch")
	said, e := call("systemctl", "start", "picosnitch")
	_, active := until("active", time.Minute)
	s.check("mended, it starts", errors.Join(err, e) == nil && active, said)
}

// stops: it ends with the last window written, without complaint.
func (s *service) stops() {
	said, err := call("systemctl", "stop", "picosnitch")
	now := show("ActiveState,Result,ExecMainStatus")
	whole, e := call(s.picosnitch, "db", "check")
	s.check("`systemctl stop picosnitch`", err == nil && e == nil && now["ActiveState"] == "inactive" && now["Result"] == "success" && now["ExecMainStatus"] == "0", fmt.Sprintf("%s, %s, exit code %s; db check: %s %s", now["ActiveState"], now["Result"], now["ExecMainStatus"], whole, said))
}
