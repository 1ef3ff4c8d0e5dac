package daemon

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	sessionLook  = 2 * time.Second // between looks for logins
	sessionFirst = time.Second     // before a session process that ended is started again; doubled each time
	sessionLast  = 5 * time.Minute // at most
	sessionCalm  = time.Minute     // one that lived so long ended for a new reason
	sessionPass  = time.Second     // how long a recorder may take to take a session
	sessionEnd   = 2 * time.Second // how long a session process may take to end
	maxSessions  = 16              // users at once
)

// sessions starts the session process of every logged-in user who may read the log, and gives the recorder its ends. A
// user is logged in while there is a session bus: $RUN_DIR/user/UID/bus. Nothing of the user's is opened or read.
type sessions struct {
	place  Place
	board  *bulletin
	o      Options
	always bool // the owner has one without being logged in, to run a command

	mu   sync.Mutex
	door *errand.Door            // to the recorder of now; nil: none. Guarded by mu
	live map[uint32]*userSession // by uid; guarded by mu
}

// userSession is a user's session process. Its fields but cmd and end belong to the goroutine of sessions.run.
type userSession struct {
	uid, gid uint32
	home     string
	name     string
	cmd      *exec.Cmd // nil: none runs; set with sessions.mu held
	end      *os.File  // the recorder's end, kept for the next recorder; guarded by sessions.mu
	ended    chan struct{}
	words    *tail
	started  time.Time
	next     time.Time // not to be started before
	pause    time.Duration
}

func newSessions(p Place, c config.Config, board *bulletin, o Options) *sessions {
	always := len(c.Command) > 0
	if always && p.Owner.UID == 0 {
		board.post(event.Notice{Level: "warning", Text: fmt.Sprintf("%q is not run: there is no user but root to run it as", config.KeyCommand), Hint: "start picosnitch with sudo as the user who is to run it"})
	}
	return &sessions{place: p, always: always && p.Owner.UID != 0, board: board, o: o, live: map[uint32]*userSession{}}
}

// attach gives a new recorder all sessions that there are.
func (s *sessions) attach(door *errand.Door) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.door != nil {
		s.door.Close()
	}
	s.door = door
	for _, d := range s.live {
		s.pass(d)
	}
}

// pass is called with mu held.
func (s *sessions) pass(d *userSession) {
	if s.door == nil || d.end == nil {
		return
	}
	if err := s.door.Pass(d.uid, d.end, sessionPass); err != nil {
		// It is about to end, and the next one gets everything.
		s.o.Logger.Debug("pass a session to the recorder", "uid", d.uid, "error", err)
	}
}

// run looks for logins until ctx is done, and then ends the session processes.
func (s *sessions) run(ctx context.Context) {
	tick := time.NewTicker(sessionLook)
	defer tick.Stop()
	for {
		s.look(time.Now())
		select {
		case <-ctx.Done():
			s.stop()
			return
		case <-tick.C:
		}
	}
}

// look starts and ends session processes as users come and go.
func (s *sessions) look(now time.Time) {
	here := loggedIn(filepath.Join(s.place.RunDir, "user"))
	if _, ok := here[s.place.Owner.UID]; s.always && !ok {
		here[s.place.Owner.UID] = s.place.Owner.GID
	}
	for uid, gid := range here {
		s.mu.Lock()
		d := s.live[uid]
		s.mu.Unlock()
		if d == nil {
			if len(s.live) >= maxSessions || uid == 0 || uid == s.place.Recorder.UID {
				continue
			}
			account, may := s.reader(uid, gid)
			if !may {
				continue
			}
			d = &userSession{uid: uid, gid: gid, home: account.Home, name: account.Name}
			s.mu.Lock()
			s.live[uid] = d
			s.mu.Unlock()
		}
		s.tend(d, now)
	}
	for uid, d := range s.live {
		if _, ok := here[uid]; !ok {
			s.dismiss(d)
		}
	}
}

// tend starts the session process if it does not run.
func (s *sessions) tend(d *userSession, now time.Time) {
	if d.cmd != nil {
		select {
		case <-d.ended:
		default:
			return
		}
		if now.Sub(d.started) > sessionCalm {
			d.pause = 0
		}
		d.pause = min(max(2*d.pause, sessionFirst), sessionLast)
		d.next = now.Add(d.pause)
		s.board.post(event.Notice{
			Level: "warning", Text: fmt.Sprintf("the session process of uid %d (pid %d) ended: %s", d.uid, d.cmd.Process.Pid, d.cmd.ProcessState),
			Hint: event.Text([]byte(d.words.last())) + "; it is started again: meanwhile nothing is shown on that user's desktop, exe.log has everything",
		})
		s.drop(d)
	}
	if now.Before(d.next) {
		return
	}
	if err := s.start(d, now); err != nil {
		d.pause = min(max(2*d.pause, sessionFirst), sessionLast)
		d.next = now.Add(d.pause)
		s.board.post(event.Notice{Level: "warning", Text: fmt.Sprintf("start the session process of uid %d: %v", d.uid, err), Hint: "nothing is shown on that user's desktop; exe.log has everything"})
	}
}

func (s *sessions) start(d *userSession, now time.Time) error {
	ours, theirs, err := errand.Pair()
	if err != nil {
		return err
	}
	runtime := filepath.Join(s.place.RunDir, "user", strconv.FormatUint(uint64(d.uid), 10))
	cmd := exec.Command("/proc/self/exe", "session", "--prepare",
		"--uid", strconv.FormatUint(uint64(d.uid), 10), "--gid", strconv.FormatUint(uint64(d.gid), 10), "--bus", filepath.Join(runtime, "bus"))
	cmd.Args[0] = "picosnitch"
	cmd.Dir = "/"
	cmd.Env = append(environment(s.o.Getenv),
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME="+d.home, "USER="+d.name, "LOGNAME="+d.name,
		"XDG_RUNTIME_DIR="+runtime, "DBUS_SESSION_BUS_ADDRESS=unix:path="+filepath.Join(runtime, "bus"))
	cmd.ExtraFiles = []*os.File{theirs}
	d.words = &tail{}
	cmd.Stderr = d.words
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() // how it ended is in ProcessState
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	d.cmd, d.started, d.ended, d.end = cmd, now, ended, ours
	s.pass(d)
	return nil
}

// drop closes the recorder's end: what it holds is an answer of nobody.
func (s *sessions) drop(d *userSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.cmd = nil
	if d.end != nil {
		d.end.Close()
		d.end = nil
	}
}

// dismiss ends the session process of a user who is gone.
func (s *sessions) dismiss(d *userSession) {
	if d.cmd != nil {
		d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.ended:
		case <-time.After(sessionEnd):
			d.cmd.Process.Kill()
			<-d.ended
		}
	}
	s.drop(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, d.uid)
}

func (s *sessions) stop() {
	for _, d := range s.live {
		s.dismiss(d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.door != nil {
		s.door.Close()
		s.door = nil
	}
}

// reader reports whether a user may read the log: its owner, and the members of the owner's group.
func (s *sessions) reader(uid, gid uint32) (Account, bool) {
	account := Account{UID: uid, GID: gid, Home: "/"}
	all, err := passwd()
	if err != nil {
		s.o.Logger.Debug("look for the account of a session", "uid", uid, "error", err)
	}
	for _, a := range all {
		if a.UID == uid {
			account = a
		}
	}
	own := s.place.Owner
	if uid == own.UID || own.UID != 0 && (gid == own.GID || account.GID == own.GID) {
		return account, true
	}
	f, err := os.Open("/etc/group")
	if err != nil {
		return account, false
	}
	defer f.Close()
	return account, own.UID != 0 && account.Name != "" && member(f, own.GID, account.Name)
}

// member reports whether name is listed as a member of the group gid in group(5).
func member(groups io.Reader, gid uint32, name string) bool {
	for lines := bufio.NewScanner(groups); lines.Scan(); {
		f := strings.Split(lines.Text(), ":")
		if len(f) == 4 && f[2] == strconv.FormatUint(uint64(gid), 10) && slices.Contains(strings.Split(f[3], ","), name) {
			return true
		}
	}
	return false
}
