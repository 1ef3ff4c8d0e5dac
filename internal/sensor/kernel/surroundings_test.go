package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// run starts a program that ends at once and returns its exec report.
func run(t *testing.T, h *Hooks, c *collector, prepare func(*exec.Cmd)) event.Process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = ends()
	prepare(cmd)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Processes(c); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.execs {
		if int(p.ID.PID) == cmd.Process.Pid {
			return p
		}
	}
	t.Fatalf("no exec of %d", cmd.Process.Pid)
	return event.Process{}
}

// TestSurroundings runs with bpf_loop() and with the plain loops of kernels that have none.
func TestSurroundings(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			h := load(t, Options{Bandwidth: true, Plain: plain})
			if err := h.Found(func(event.Process) {}); err != nil {
				t.Fatal(err)
			}
			t.Run("preload", func(t *testing.T) { preload(t, h) })
			t.Run("working directory", func(t *testing.T) { workingDirectory(t, h) })
			t.Run("root", func(t *testing.T) { otherRoot(t, h) })
			t.Run("control groups", func(t *testing.T) { controlGroups(t, h) })
		})
	}
}

func preload(t *testing.T, h *Hooks) {
	c := newCollector()
	many := func(n int) (env []string) {
		for i := range n {
			env = append(env, fmt.Sprintf("V%d=%d", i, i))
		}
		return env
	}
	long := strings.Repeat("x", 100000)
	for name, w := range map[string]struct {
		env  []string
		want string
		cut  bool
	}{
		"none":                 {nil, "", false},
		"preload":              {[]string{"A=1", "LD_PRELOAD=/tmp/x.so:/tmp/y.so", "B=2"}, "LD_PRELOAD=/tmp/x.so:/tmp/y.so", false},
		"audit":                {[]string{"LD_AUDIT=/a.so"}, "LD_AUDIT=/a.so", false},
		"both":                 {[]string{"LD_AUDIT=a", "LD_PRELOAD=b"}, "LD_AUDIT=a LD_PRELOAD=b", false},
		"last of 200":          {append(many(200), "LD_PRELOAD=x"), "LD_PRELOAD=x", false},
		"behind a long one":    {[]string{"L=" + long, "LD_PRELOAD=x"}, "LD_PRELOAD=x", false},
		"within a long one":    {[]string{"L=" + strings.Repeat("y", 4093) + "LD_PRELOAD=x"}, "", false},
		"empty":                {[]string{"LD_PRELOAD=", "LD_AUDIT="}, "", false},
		"other names":          {[]string{"LD_PRELOADS=x", "LD_PRELOAD", "XLD_PRELOAD=x", "LD_AUDITS=y", "LD_PRELO=x"}, "", false},
		"hostile":              {[]string{"LD_PRELOAD=\n\x1b[31m\xff<b>'"}, `LD_PRELOAD=\u{a}\u{1b}[31m\xff<b>'`, false},
		"longer than is taken": {[]string{"LD_PRELOAD=" + strings.Repeat("z", 1000)}, "LD_PRELOAD=" + strings.Repeat("z", 244), true},
	} {
		p := run(t, h, c, func(cmd *exec.Cmd) {
			// The program of the test is static, so that nothing is loaded really.
			cmd.Env = append(cmd.Env, w.env...)
		})
		if p.Preload != w.want || p.PreloadCut != w.cut {
			t.Errorf("%s: %q, cut %v; want %q, %v", name, p.Preload, p.PreloadCut, w.want, w.cut)
		}
	}
	// More than is looked through: it is said.
	p := run(t, h, c, func(cmd *exec.Cmd) { cmd.Env = append(append(cmd.Env, many(20000)...), "LD_PRELOAD=x") })
	if p.Preload == "" && !p.PreloadCut {
		t.Errorf("20000 variables before it: %q, cut %v", p.Preload, p.PreloadCut)
	}
}

func workingDirectory(t *testing.T, h *Hooks) {
	c := newCollector()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(dir, "a\nb\xff")
	deep := filepath.Join(dir, strings.Repeat("d/", 40))
	huge := filepath.Join(dir, strings.Repeat(strings.Repeat("x", 250)+"/", 5))
	gone := filepath.Join(dir, "gone")
	for _, d := range []string{odd, deep, huge, gone} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for want, d := range map[string]string{"/": "/", event.Text([]byte(odd)): odd, deep: deep, "": huge} {
		if p := run(t, h, c, func(cmd *exec.Cmd) { cmd.Dir = d }); p.Cwd != want || p.Apart {
			t.Errorf("%.200q: %.200q, apart %v", d, p.Cwd, p.Apart)
		}
	}
}

// otherRoot: a process in a chroot or in a mount namespace of its own sees other files.
func otherRoot(t *testing.T, h *Hooks) {
	c := newCollector()
	if p := run(t, h, c, func(*exec.Cmd) {}); p.Apart {
		t.Errorf("a plain process is apart: %+v", p)
	}
	// Where the test is dynamic, /usr has all that /usr/bin/true needs, at the same places; else it runs itself.
	root, program := "/usr", "/bin/true"
	if _, err := os.Stat(root + program); err != nil {
		root, program = t.TempDir(), "/program"
		if err := os.Link(os.Args[0], root+program); err != nil {
			b, err := os.ReadFile("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root+program, b, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := run(t, h, c, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args, cmd.Dir = program, []string{"true"}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	})
	if !p.Apart || p.Path != program || p.Cwd != "/" {
		t.Errorf("chroot: apart %v, %s in %s", p.Apart, p.Path, p.Cwd)
	}
	p = run(t, h, c, func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} })
	if !p.Apart {
		t.Error("a process in a mount namespace of its own is not apart")
	}
}

// groupRoot is where a hierarchy is mounted; "" if it is not.
func groupRoot(t *testing.T, fstype, option string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[2] == fstype && (option == "" || slices.Contains(strings.Split(f[3], ","), option)) {
			return f[1]
		}
	}
	return ""
}

// group makes a control group, and removes it after the test.
func group(t *testing.T, root, path string) string {
	t.Helper()
	dir := root
	for part := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		dir += "/" + part
		if err := os.Mkdir(dir, 0o755); os.IsExist(err) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir) })
	}
	return dir
}

// controlGroups makes the groups of container engines and of systemd by hand, as they do, and looks at a program that ends at once.
func controlGroups(t *testing.T, h *Hooks) {
	const id = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
	unified := groupRoot(t, "cgroup2", "")
	pids := groupRoot(t, "cgroup", "pids")
	if unified == "" {
		t.Fatal("no cgroup2 is mounted")
	}
	c := newCollector()
	in := func(cmd *exec.Cmd, dir string) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	}
	deep := "/" + strings.TrimSuffix(strings.Repeat("d/", 20), "/")
	for _, w := range []struct {
		path string
		want event.Place
	}{
		{"/system.slice/docker-" + id + ".scope", event.Place{Kind: event.PlaceContainer, Runtime: "docker", Container: id, Unit: "docker-" + id + ".scope"}},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.mozilla.firefox-1.scope", event.Place{Kind: event.PlaceApp, Runtime: "flatpak", App: "org.mozilla.firefox", Owner: "1000", Unit: "user@1000.service", UserUnit: "app-flatpak-org.mozilla.firefox-1.scope"}},
		{"/user.slice/user-1000.slice/session-3.scope", event.Place{Kind: event.PlaceSession, Session: "3", Unit: "session-3.scope"}},
		{"/lxc.payload.web/system.slice/nginx.service", event.Place{Kind: event.PlaceContainer, Runtime: "lxc", Container: "web"}},
		{"/a\tb\x1b\xff'<b>.service", event.Place{Kind: event.PlaceService, Unit: `a\u{9}b\u{1b}\xff'<b>.service`}},
		{"/" + strings.Repeat("n", 255), event.Place{}},
		{deep, event.Place{}},
	} {
		dir := group(t, unified, w.path)
		p := run(t, h, c, func(cmd *exec.Cmd) { in(cmd, dir) })
		w.want.Path = event.Text([]byte(w.path))
		if p.Place == nil || *p.Place != w.want {
			t.Errorf("%s:\n got %+v\nwant %+v", w.path, p.Place, w.want)
		}
		if again := run(t, h, c, func(cmd *exec.Cmd) { in(cmd, dir) }); again.Place != p.Place {
			t.Error("the place is not shared")
		}
	}
	// A hybrid machine: the engine leaves the unified hierarchy alone, and makes groups in all others.
	if pids == "" {
		t.Log("no cgroup v1 here: the hybrid case is not tested")
		return
	}
	dir := group(t, pids, "/docker/"+id)
	p := run(t, h, c, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$1"`, dir, os.Args[0]}
	})
	// The shell's own exec comes first, in the root.
	if p.Place != nil && p.Place.Kind != "" {
		t.Errorf("before it moved: %+v", p.Place)
	}
	for _, later := range c.execs { // others execute, too
		if later.ID.PID == p.ID.PID && later.ID.Start == p.ID.Start {
			p = later
		}
	}
	if p.Place == nil || p.Place.Runtime != "docker" || p.Place.Container != id || p.Place.Path != "/docker/"+id {
		t.Errorf("hybrid: %+v", p.Place)
	}
	// And both: a service in the unified one, nothing that tells more in the other.
	unit := group(t, unified, "/system.slice/nginx.service")
	p = run(t, h, c, func(cmd *exec.Cmd) { in(cmd, unit) })
	if p.Place == nil || p.Place.Unit != "nginx.service" {
		t.Errorf("%+v", p.Place)
	}
}

// TestDeepControlGroups: names that did not fit prove nothing, and it is said that some are missing.
func TestDeepControlGroups(t *testing.T) {
	unified := groupRoot(t, "cgroup2", "")
	h := load(t, Options{Bandwidth: true})
	dir := group(t, unified, "/system.slice/real.service/"+strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 200)+"/", 19), "/")+"/docker-4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970.scope/y")
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p := run(t, h, newCollector(), func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd} })
	if p.Place == nil || !strings.HasPrefix(p.Place.Path, "…") || p.Place.Kind != "" {
		t.Errorf("%+v", p.Place)
	}
}
