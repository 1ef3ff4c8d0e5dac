package script

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestFindWithTheRightsOfItsUser: nobody learns through root what is in a file or a folder that it cannot read.
func TestFindWithTheRightsOfItsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it opens files as other users")
	}
	root := t.TempDir()
	const user, group = 4242, 4343
	for _, c := range []struct {
		name     string
		mode     os.FileMode
		uid, gid int
	}{
		{"open", 0o755 | os.ModeDir, 0, 0},
		{"open/world", 0o644, 0, 0},
		{"open/own", 0o600, user, 0},
		{"open/secret", 0o600, 0, 0},
		{"open/group", 0o640, 0, group},
		{"open/roots", 0o640, 0, 0},
		{"closed", 0o700 | os.ModeDir, 0, 0},
		{"closed/world", 0o644, 0, 0},
	} {
		p := root + "/" + c.name
		var err error
		if c.mode.IsDir() {
			err = os.Mkdir(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(c.name), 0o600)
		}
		if err == nil {
			err = os.Chown(p, c.uid, c.gid)
		}
		if err == nil {
			err = os.Chmod(p, c.mode.Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/closed/world", root+"/open/link"); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Second).UnixNano()
	find := func(name string, uid uint32, id event.ProcessID) File {
		f := Finder{Proc: "/proc", Root: root}.Find(Question{
			Process: id, UID: uid, Started: later, Machine: true, Meaning: Meaning{Kind: event.ScriptArgument, Name: name},
		})
		if f.FD >= 0 {
			unix.Close(f.FD)
		}
		return f
	}
	for _, c := range []struct {
		name   string
		uid    uint32
		reason string
	}{
		{"/open/world", user, ""},
		{"/open/own", user, ""},
		{"/open/secret", user, ReasonDenied},
		{"/open/secret", 0, ""},
		{"/open/roots", user, ReasonDenied},
		{"/open/group", user, ReasonDenied}, // its groups are not known
		{"/open/none", user, ReasonGone},
		{"/closed/world", user, ReasonDenied},
		{"/closed/none", user, ReasonDenied}, // as if it were there
		{"/closed/none", 0, ReasonGone},
		{"/open/link", user, ReasonDenied},
		{"/closed/../open/world", user, ReasonDenied},
		{"/open/secret", nobody, ReasonDenied},
	} {
		got := find(c.name, c.uid, event.ProcessID{})
		if got.Reason != c.reason || got.ID.IsZero() != (c.reason != "") || (got.FD >= 0) != (c.reason == "") {
			t.Errorf("%s as %d: %+v, want reason %q", c.name, c.uid, got, c.reason)
		}
	}
	// The thread got everything back.
	if fsuid() != 0 || fsgid() != 0 {
		t.Errorf("left as %d:%d", fsuid(), fsgid())
	}

	// A process that lives has its groups; root's only, if it is root.
	cmd := exec.Command("/bin/sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: nobody - 1, Groups: []uint32{group}}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	id := idOf(t, cmd.Process.Pid)
	if got := find("/open/group", user, id); got.Reason != "" {
		t.Errorf("a file of its group: %+v", got)
	}
	if got := find("/open/roots", user, id); got.Reason != ReasonDenied {
		t.Errorf("a file of root's group: %+v", got)
	}
	if got := find("/open/group", user+1, id); got.Reason != ReasonDenied {
		t.Errorf("a process that became another user: %+v", got)
	}
}

// TestDescriptorOfAStranger: a descriptor that cannot be read (O_PATH) does not become one that can.
func TestDescriptorOfAStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it opens files as other users")
	}
	secret := t.TempDir() + "/secret"
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/bin/sleep", "60")
	cmd.ExtraFiles = []*os.File{f} // 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4242}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for uid, want := range map[uint32]string{4242: ReasonDenied, 0: ""} {
		got := Finder{Proc: "/proc", Root: "/"}.Find(Question{
			Process: idOf(t, cmd.Process.Pid), UID: uid, Meaning: Meaning{Kind: event.ScriptArgument, Name: "/dev/fd/3"},
		})
		if got.Reason != want {
			t.Errorf("as %d: %+v, want reason %q", uid, got, want)
		}
		if got.FD >= 0 {
			unix.Close(got.FD)
		}
	}
}

// idOf is the identity of a process that lives. Start returns when the child has executed, so it is what it will be.
func idOf(t *testing.T, pid int) event.ProcessID {
	t.Helper()
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	start, err := startTime(fd)
	if err != nil {
		t.Fatal(err)
	}
	return event.ProcessID{PID: uint32(pid), Start: start * tick}
}

func TestGroupsOf(t *testing.T) {
	t.Parallel()
	const plain = "Name:\tGroups: 0\nUid:\t7\t7\t7\t7\nGid:\t8\t9\t9\t9\nGroups:\t10 11 \nCapPrm:\t0000000000000000\n"
	if gid, groups, ok := groupsOf(7, []byte(plain)); !ok || gid != 8 || !slices.Equal(groups, []int{10, 11}) {
		t.Errorf("%d %v %v", gid, groups, ok)
	}
	for name, status := range map[string]string{
		"a setuid program": strings.Replace(plain, "7\t7\t7\t7", "7\t0\t0\t0", 1),
		"another user":     strings.ReplaceAll(plain, "\t7", "\t6"),
		"capabilities":     strings.Replace(plain, "0000\n", "0040\n", 1),
		"group of root":    strings.Replace(plain, "Gid:\t8", "Gid:\t0", 1),
		"no group":         strings.Replace(plain, "Gid:", "Gud:", 1),
		"odd groups":       strings.Replace(plain, "10 11", "10 x", 1),
		"nothing":          "",
	} {
		if gid, groups, ok := groupsOf(7, []byte(status)); ok {
			t.Errorf("%s: %d %v", name, gid, groups)
		}
	}
}
