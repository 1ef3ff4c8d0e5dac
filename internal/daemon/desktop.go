package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/session"
)

// SessionOptions are the arguments of the hidden command `session`.
type SessionOptions struct {
	Prepare  bool   // drop all rights first
	UID, GID uint32 // who to become
	Bus      string // the socket of the user's session bus
}

// commandLimit is how long a command of the user's may run.
const commandLimit = 10 * time.Second

// Session is the process of a desktop user. Like the recorder it has two stages: with Prepare it drops root's rights and
// executes itself again, so that nothing of root's is left in it.
func Session(o SessionOptions) error {
	if o.Prepare {
		return prepareSession(o)
	}
	// Programs of the user may end it, and no more: not look into it, and not speak in its name.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protect the session process: %w", err)
	}
	nameProcess()
	f := os.NewFile(streamFD, "recorder")
	if f == nil {
		return errors.New("no connection: this command is only for picosnitch itself")
	}
	conn, err := errand.NewConn(f)
	if err != nil {
		return fmt.Errorf("%w: this command is only for picosnitch itself", err)
	}
	defer conn.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	return session.Run(ctx, conn, session.Options{
		Bus:    o.Bus,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Start:  runCommand,
	})
}

// prepareSession only returns on failure.
func prepareSession(o SessionOptions) error {
	runtime.LockOSThread()
	if o.UID == 0 {
		return errors.New("the session process must not be root")
	}
	exe, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/self/exe: %w", err)
	}
	// The service keeps the log alive under pressure; what runs as the user is the user's.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	if err := dropRights(o.UID, o.GID); err != nil {
		return err
	}
	unix.Umask(0o077)
	if err := keepOnly(streamFD); err != nil {
		return err
	}
	args := []string{"picosnitch", "session", "--bus", o.Bus}
	err = execveat(exe, args, os.Environ())
	return fmt.Errorf("execute picosnitch as uid %d: %w: the file of the program must be executable for everybody (chmod 755)", o.UID, err)
}

// runCommand runs a command of the user's: no shell, nothing on its standard streams, an end after commandLimit with all that it
// started. What it was told is in its environment.
func runCommand(ctx context.Context, argv, fields []string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	for _, k := range []string{"PATH", "HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "TZ"} {
		if v, ok := os.LookupEnv(k); ok {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, fields...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() == context.DeadlineExceeded {
		return errors.New("it ran longer than " + strconv.Itoa(int(commandLimit/time.Second)) + " s and was ended")
	}
	return err
}
