// Package desktop runs, for tests, what a desktop is made of: a private session bus, an X server that nobody sees, and a real
// notification server from a Debian package, any of which a test can kill, hang and start again. It touches no bus and no screen
// of whoever runs the tests.
package desktop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const patience = 20 * time.Second

// Need finds a program. As root it must be there; test/run installs it.
func Need(t testing.TB, program string, also ...string) string {
	t.Helper()
	for _, p := range append([]string{program}, also...) {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	if os.Getuid() == 0 {
		t.Fatalf("%s is missing: test/run installs it", program)
	}
	t.Skipf("needs %s", program)
	return ""
}

// Until waits for something.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// Process is a program that a test started.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func start(t testing.TB, cmd *exec.Cmd, as *syscall.Credential) *Process {
	t.Helper()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Process{cmd, make(chan struct{})}
	go func() { cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() && words.Len() > 0 {
			all := words.String()
			t.Logf("%s says: …%s", filepath.Base(cmd.Path), all[max(0, len(all)-500):])
		}
	})
	return p
}

// PID is its number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends it at once, with what it started, and waits.
func (p *Process) Kill() {
	syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.done
}

// Hang stops it, so that it answers nothing; Wake lets it go on.
func (p *Process) Hang() { syscall.Kill(p.PID(), syscall.SIGSTOP) }

// Wake lets it go on.
func (p *Process) Wake() { syscall.Kill(p.PID(), syscall.SIGCONT) }

// Bus is a session bus.
type Bus struct {
	*Process
	Path string // of its socket
	as   *syscall.Credential
}

// Address is what DBUS_SESSION_BUS_ADDRESS holds.
func (b *Bus) Address() string { return "unix:path=" + b.Path }

// StartBus starts a session bus in dir as a user; nil: as who runs the test. It starts no service by itself.
func StartBus(t testing.TB, dir string, as *syscall.Credential) *Bus {
	t.Helper()
	b := &Bus{Path: filepath.Join(dir, "bus"), as: as}
	b.Start(t)
	return b
}

// Start starts the bus again.
func (b *Bus) Start(t testing.TB) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "bus.conf")
	text := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=` + b.Path + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	open(t, config, text)
	os.Remove(b.Path)
	b.Process = start(t, exec.Command(Need(t, "dbus-daemon"), "--nofork", "--nopidfile", "--nosyslog", "--config-file="+config), b.as)
	Until(t, "the session bus", func() bool { _, err := os.Stat(b.Path); return err == nil })
}

// open writes a file that every user may read, with the directories above it.
func open(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return
		}
	}
}

// Screen is an X server.
type Screen struct {
	*Process
	Display string
}

// StartScreen starts an X server that nobody sees.
func StartScreen(t testing.TB) *Screen {
	t.Helper()
	return StartScreenOf(t, 640, 480)
}

// StartScreenOf starts one of a size in pixels.
func StartScreenOf(t testing.TB, width, height int) *Screen {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(Need(t, "Xvfb"), "-displayfd", "3", "-screen", "0", fmt.Sprintf("%dx%dx24", width, height), "-ac", "-nolisten", "tcp")
	cmd.ExtraFiles = []*os.File{w}
	p := start(t, cmd, nil)
	w.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("Xvfb: %v", err)
	}
	return &Screen{p, ":" + strings.TrimSpace(line)}
}

// Server is a notification server.
type Server struct {
	*Process
	bus *Bus
}

// Dunst starts dunst(1) on a bus and a screen. Its rules show everything, and keep it.
func Dunst(t testing.TB, bus *Bus, screen *Screen) *Server {
	t.Helper()
	config := filepath.Join(t.TempDir(), "dunstrc")
	open(t, config, `[global]
 width = 420
 height = 300
 origin = top-right
 offset = 10x10
 font = DejaVu Sans 10
 notification_limit = 20
 history_length = 1000
 idle_threshold = 0
 markup = full
 format = "<b>%s</b>\n%b"
 ellipsize = end
 icon_position = off
 frame_width = 1
 gap_size = 6
 padding = 10
 horizontal_padding = 12
 corner_radius = 6
[urgency_low]
 background = "#2b2f36"
 foreground = "#c8ccd4"
 frame_color = "#4b5263"
 timeout = 0
[urgency_normal]
 background = "#23272e"
 foreground = "#e6e6e6"
 frame_color = "#5c9ded"
 timeout = 0
[urgency_critical]
 background = "#2d1f23"
 foreground = "#ffffff"
 frame_color = "#e05561"
 timeout = 0
`)
	cmd := exec.Command(Need(t, "dunst"), "-conf", config)
	return serve(t, cmd, bus, screen)
}

// Serve starts another notification server by its path.
func Serve(t testing.TB, path string, bus *Bus, screen *Screen) *Server {
	t.Helper()
	return serve(t, exec.Command(Need(t, path)), bus, screen)
}

func serve(t testing.TB, cmd *exec.Cmd, bus *Bus, screen *Screen) *Server {
	home := t.TempDir()
	os.Chmod(home, 0o777)
	os.Chmod(filepath.Dir(home), 0o755)
	cmd.Env = []string{"DISPLAY=" + screen.Display, "DBUS_SESSION_BUS_ADDRESS=" + bus.Address(), "HOME=" + home, "PATH=/usr/bin:/bin", "XDG_RUNTIME_DIR=" + home, "LANG=C.UTF-8"}
	s := &Server{start(t, cmd, bus.as), bus}
	Until(t, "the notification server", func() bool { return bus.Has("org.freedesktop.Notifications") })
	return s
}

// as is a command of the bus's user on the bus.
func (b *Bus) run(name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DBUS_SESSION_BUS_ADDRESS="+b.Address())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.as}
	cmd.Dir = "/"
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, failed.Stderr)
	}
	return out, err
}

// Has reports whether somebody owns a name on the bus.
func (b *Bus) Has(name string) bool {
	out, err := b.run("dbus-send", "--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner", "string:"+name)
	return err == nil && strings.Contains(string(out), "true")
}

// Count is how many notices dunst got since its start.
func (s *Server) Count(t testing.TB) int {
	t.Helper()
	out, err := s.bus.run("dunstctl", "count")
	if err != nil {
		t.Fatalf("dunstctl: %v", err)
	}
	total := 0
	for line := range strings.Lines(string(out)) {
		_, n, _ := strings.Cut(line, ":")
		k, err := strconv.Atoi(strings.TrimSpace(n))
		if err != nil {
			t.Fatalf("dunstctl count: %q", out)
		}
		total += k
	}
	return total
}

// Press presses the only button of the newest notice.
func (s *Server) Press(t testing.TB) {
	t.Helper()
	if _, err := s.bus.run("dunstctl", "action", "0"); err != nil {
		t.Fatalf("dunstctl: %v", err)
	}
}

// Notice is one that dunst showed.
type Notice struct{ Summary, Body string }

// History closes what is shown and returns everything that dunst got, the newest first.
func (s *Server) History(t testing.TB) []Notice {
	t.Helper()
	if _, err := s.bus.run("dunstctl", "close-all"); err != nil {
		t.Fatalf("dunstctl: %v", err)
	}
	out, err := s.bus.run("dunstctl", "history")
	if err != nil {
		t.Fatalf("dunstctl: %v", err)
	}
	type field struct{ Data any }
	var all struct{ Data [][]map[string]field }
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("dunstctl history: %v: %q", err, out)
	}
	var list []Notice
	for _, part := range all.Data {
		for _, n := range part {
			list = append(list, Notice{fmt.Sprint(n["summary"].Data), fmt.Sprint(n["body"].Data)})
		}
	}
	return list
}

// Shot writes a picture of the screen, cut to what is on it.
func (s *Screen) Shot(t testing.TB, path string) {
	t.Helper()
	cmd := exec.Command(Need(t, "import"), "-window", "root", "-trim", "-bordercolor", "black", "-border", "6", "-strip", "+dither", "-colors", "48", "-depth", "8", "png8:"+path)
	cmd.Env = append(os.Environ(), "DISPLAY="+s.Display)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("import: %v: %s", err, out)
	}
	// import writes the root window once per visual that the screen has.
	base := strings.TrimSuffix(path, ".png")
	if os.Rename(base+"-0.png", path) == nil {
		os.Remove(base + "-1.png")
	}
}
