package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder"
)

// Descriptors that a recorder starts with, besides the standard ones.
const (
	streamFD = 3 // its end of the stream
	doorFD   = 4 // where it gets its ends of the sessions
	folderFD = 5 // the folder; only until its rights are gone
)

// feedDir is where the live feed is, and below it, in "files", where the recorder finds the folder.
func feedDir(runDir string) string { return filepath.Join(runDir, "picosnitch") }

// spawner starts recorders.
type spawner struct {
	place    Place
	folder   *Folder
	settings []byte // first line of the stream; holds secrets
	board    *bulletin
	sessions *sessions
	o        Options
	live     io.Writer // nil: none
	stderr   *tail

	mu  sync.Mutex
	now *link // the recorder that runs, or ran last; guarded by mu
}

func newSpawner(p Place, f *Folder, c config.Config, board *bulletin, o Options) (*spawner, error) {
	var line bytes.Buffer
	if err := recorder.WriteSettings(&line, settings(c, p.Owner.UID)); err != nil {
		return nil, err
	}
	if err := makeFeedDir(p); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", feedDir(p.RunDir), err)
	}
	s := &spawner{place: p, folder: f, settings: line.Bytes(), board: board, sessions: newSessions(p, c, board, o), o: o, stderr: &tail{to: o.Stderr}}
	if o.Live != nil {
		s.live = newLive(o.Live)
	}
	return s, nil
}

// reopen makes the recorder open its files again. One that has just ended, or is not there yet, needs it not.
func (s *spawner) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return
	}
	if err := s.now.reopen(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.o.Logger.Warn("pass SIGHUP on to the recorder", "error", err)
	}
}

// makeFeedDir makes the directory of the live feed, which the recorder owns and the user's group may enter, and in it
// the place where the recorder finds the folder.
func makeFeedDir(p Place) error {
	dir := feedDir(p.RunDir)
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, int(p.Recorder.UID), int(p.Owner.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, dirMode); err != nil {
		return err
	}
	if err := unix.Mkdirat(fd, "files", 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// connect starts a recorder. It is the sensor's Connect.
func (s *spawner) connect(ctx context.Context) (io.ReadWriteCloser, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the recorder: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "stream"), os.NewFile(uintptr(pair[1]), "stream")
	conn, err := unixConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, fmt.Errorf("start the recorder: %w", err)
	}
	door, inner, err := s.makeDoor()
	if err != nil {
		conn.Close()
		theirs.Close()
		return nil, fmt.Errorf("start the recorder: %w", err)
	}
	defer inner.Close()
	// /proc/self/exe is the file that runs, also after an upgrade took its name.
	cmd := exec.Command("/proc/self/exe", s.childArgs()...)
	cmd.Args[0] = "picosnitch"
	cmd.Dir = "/"
	cmd.Env = environment(s.o.Getenv)
	cmd.ExtraFiles = []*os.File{theirs, inner, s.folder.f}
	cmd.Stderr = s.stderr
	if s.live != nil {
		// Through a pipe: a terminal in the recorder's hands could be read, and typed into with TIOCSTI.
		cmd.Args = append(cmd.Args, "--live")
		cmd.Stdout = s.live
	}
	// A session of its own: Ctrl-C must not reach it, it ends when the stream does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		conn.Close()
		door.Close()
		return nil, fmt.Errorf("start the recorder: %w", err)
	}
	l := &link{conn: conn, board: s.board, cmd: cmd, ended: make(chan struct{})}
	s.mu.Lock()
	s.now = l
	s.mu.Unlock()
	go func() {
		defer close(l.ended)
		if err := cmd.Wait(); err != nil {
			n := event.Notice{Level: "error", Text: fmt.Sprintf("the recorder (pid %d) ended: %v", cmd.Process.Pid, err), Hint: s.stderr.last()}
			s.board.post(n)
			tell(s.o.Logger, n)
		}
	}()
	// A recorder that never reads must not hold the sensor.
	err = conn.SetWriteDeadline(time.Now().Add(flushLimit))
	if err == nil {
		_, err = conn.Write(s.settings)
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		l.Close()
		door.Close()
		return nil, fmt.Errorf("start the recorder: %w: %s", err, s.stderr.last())
	}
	s.sessions.attach(door)
	return l, nil
}

// makeDoor makes the connection over which a recorder gets the sessions: our end and its.
func (s *spawner) makeDoor() (*errand.Door, *os.File, error) {
	ours, theirs, err := errand.Pair()
	if err != nil {
		return nil, nil, err
	}
	door, err := errand.NewDoor(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return door, theirs, nil
}

func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%T is no unix socket", c)
	}
	return u, nil
}

// environment is all that the recorder gets of ours: the time zone of its times, and Go's own limits.
func environment(getenv func(string) string) []string {
	env := []string{} // not nil: os/exec would pass on all of ours
	for _, k := range []string{"TZ", "GOMEMLIMIT", "GOGC", "GOTRACEBACK", "GOCOVERDIR"} {
		if v := getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// tail passes what the recorder says on and keeps the end of it, for the message when it ends.
type tail struct {
	to io.Writer
	mu sync.Mutex
	b  []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.b = append(t.b, p...)
	if len(t.b) > 4096 {
		t.b = append(t.b[:0], t.b[len(t.b)-4096:]...)
	}
	t.mu.Unlock()
	if t.to != nil {
		t.to.Write(p) // a closed standard error must not end the recorder
	}
	return len(p), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.b
	if len(b) > 300 {
		b = b[len(b)-300:]
	}
	if len(b) == 0 {
		return ""
	}
	return "its last words: " + string(b)
}
