package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/daemon"
)

const (
	startLimit = 30 * time.Second // until the live feed answers
	stopLimit  = 30 * time.Second // until the last window is written
)

func startNoDaemonCommand(env Env) *cobra.Command {
	var live, background bool
	var hooks string
	c := &cobra.Command{
		Use:   "start-no-daemon",
		Short: "run in the foreground, with a live line per flow on a terminal",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			if background {
				env.Stderr = &limited{to: env.Stderr, left: 1 << 20}
			}
			o := daemon.Options{Program: version(), HookSet: hooks, Getenv: env.Getenv, Stderr: env.Stderr, Logger: logger(env.Stderr)}
			if live || env.Getenv("PICOSNITCH_LIVE") == "1" || isTerminal(env.Stdout) {
				o.Live = env.Stdout
			}
			o.Ready = func(s daemon.Started) {
				fmt.Fprintf(env.Stdout, "picosnitch %s: hook set %s, self test %s, writing to %s (pid %d)\n", o.Program, because(s.Hello.HookSet, s.Hello.Why), s.Hello.SelfTest, s.Folder, os.Getpid())
				if background { // what `start` shows; in the foreground the recorder's words are on the terminal
					for _, n := range s.Notices {
						fmt.Fprintf(env.Stdout, "%s: %s (%s)\n", n.Level, n.Text, n.Hint)
					}
				}
			}
			// A monitor should be small before it is fast: half of Go's usual head room.
			debug.SetGCPercent(50)
			signal.Ignore(syscall.SIGPIPE) // `| head` ends the output, not the monitor
			var ctx context.Context
			var cancel context.CancelFunc
			if isTerminal(env.Stdin) {
				ctx, cancel = interruptible(env) // SIGHUP: the terminal went away
			} else {
				ctx, cancel = endsWith(env, false)
				o.Reopen = hangups()
			}
			defer cancel()
			return daemon.Run(ctx, o)
		},
	}
	c.Flags().BoolVar(&live, "live", false, "show a live line per flow, also when the output is no terminal")
	c.Flags().StringVar(&hooks, "hooks", "", "use this hook `SET` instead of the best one")
	c.Flags().BoolVar(&background, "background", false, "")
	if err := c.Flags().MarkHidden("background"); err != nil {
		panic(err) // the flag is defined one line above
	}
	return c
}

// limited ends an output that nobody cleans up: what is said is also in error.log.
type limited struct {
	to io.Writer
	mu sync.Mutex
	// left is how many bytes may still be written; guarded by mu.
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(p) > l.left {
		if l.left > 0 {
			l.left = 0
			fmt.Fprintln(l.to, "picosnitch: this file ends here; see error.log")
		}
		return len(p), nil
	}
	l.left -= len(p)
	return l.to.Write(p)
}

func startCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "start",
		Short: "start in the background",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			if done, err := offerSystemctl(env, "start"); done {
				return err
			}
			return start(env)
		},
	}
}

func stopCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "stop what runs in the background",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			if done, err := offerSystemctl(env, "stop"); done {
				return err
			}
			return stop(env)
		},
	}
}

func restartCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "restart",
		Short: "stop, and start again",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			if done, err := offerSystemctl(env, "restart"); done {
				return err
			}
			// A bad file must not cost the running instance.
			if _, _, err := daemon.ReadConfig(env.Getenv); err != nil {
				return fmt.Errorf("%w\nnothing was stopped", err)
			}
			if err := stop(env); err != nil && !errors.Is(err, daemon.ErrNotRunning) {
				return err
			}
			return start(env)
		},
	}
}

func stop(env Env) error {
	run, err := daemon.RunDir(env.Getenv)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	pid, err := daemon.Stop(ctx, run)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "picosnitch stopped (pid %d)\n", pid)
	return nil
}

// start runs start-no-daemon in a session of its own and waits until its live feed answers.
func start(env Env) error {
	run, err := daemon.RunDir(env.Getenv)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	switch pid, err := daemon.Holder(run); {
	case err == nil:
		return &daemon.RunningError{PID: pid, File: filepath.Join(run, "picosnitch.pid")}
	case !errors.Is(err, daemon.ErrNotRunning):
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	// What it says until it is up is shown here; what it says later (a panic, at worst) stays in the file.
	path := filepath.Join(run, "picosnitch.out")
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(exe, "start-no-daemon", "--background")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "PICOSNITCH_LIVE=") })
	cmd.Args[0] = "picosnitch"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			said, _ := os.ReadFile(path)
			fmt.Fprint(env.Stderr, string(said))
			if code := cmd.ProcessState.ExitCode(); code > 0 {
				return &codeError{code, errQuiet}
			}
			return fmt.Errorf("the daemon ended while it started: %v", err)
		case <-limit.C:
			return fmt.Errorf("pid %d runs, but its live feed does not answer: see %s, and error.log in the folder", cmd.Process.Pid, path)
		case <-tick.C:
			// The feed of a recorder that outlives an older sensor must not be taken for ours.
			if pid, err := daemon.Holder(run); err != nil || pid != cmd.Process.Pid {
				continue
			}
			if _, err := daemon.Status(context.Background(), run); err != nil {
				continue
			}
			said, _ := os.ReadFile(path)
			fmt.Fprint(env.Stdout, string(said))
			fmt.Fprintf(env.Stdout, "picosnitch started (pid %d)\n", cmd.Process.Pid)
			return nil
		}
	}
}

// units are where a service file may be; the first is the one that `picosnitch systemd` writes.
func units(env Env) []string {
	if u := env.Getenv("PICOSNITCH_UNIT"); u != "" {
		return []string{u}
	}
	return []string{"/usr/lib/systemd/system/picosnitch.service", "/etc/systemd/system/picosnitch.service", "/lib/systemd/system/picosnitch.service"}
}

// offerSystemctl asks, where a service file exists, whether the user meant systemctl. It reports whether the command is
// done with that.
func offerSystemctl(env Env, verb string) (bool, error) {
	found := ""
	for _, u := range units(env) {
		if _, err := os.Stat(u); err == nil {
			found = u
			break
		}
	}
	if found == "" {
		return false, nil
	}
	fmt.Fprintf(env.Stderr, "picosnitch: there is a systemd service, %s; this command does not use it\n", found)
	if !isTerminal(env.Stdin) {
		fmt.Fprintf(env.Stderr, "picosnitch: to use it, run: systemctl %s picosnitch\n", verb)
		return false, nil
	}
	fmt.Fprintf(env.Stderr, "Run `systemctl %s picosnitch` instead? (y/N) ", verb)
	var answer string
	fmt.Fscanln(env.Stdin, &answer)
	if !strings.HasPrefix(strings.ToLower(answer), "y") {
		return false, nil
	}
	cmd := exec.Command("systemctl", verb, "picosnitch")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = env.Stdin, env.Stdout, env.Stderr
	if err := cmd.Run(); err != nil {
		return true, fmt.Errorf("systemctl %s picosnitch: %w", verb, err)
	}
	return true, nil
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func recordCommand(env Env) *cobra.Command {
	var length time.Duration
	var hooks string
	c := &cobra.Command{
		Use:   "record FILE",
		Short: "write the stream of events to a file, for a bug report",
		Long: `Writes everything the sensor sees to FILE, as one JSON object per line, until
Ctrl-C. It can run beside a running picosnitch. The file holds program names,
arguments and addresses of this machine: look at it before you give it away.`,
		Args: oneFile("the FILE to write"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			ctx, cancel := interruptible(env)
			defer cancel()
			if length > 0 {
				ctx, cancel = context.WithTimeout(ctx, length)
				defer cancel()
			}
			o := daemon.Options{Program: version(), HookSet: hooks, Getenv: env.Getenv, Stderr: env.Stderr, Logger: logger(env.Stderr)}
			o.Ready = func(s daemon.Started) {
				fmt.Fprintf(env.Stderr, "picosnitch %s: hook set %s, self test %s, recording to %s\n", o.Program, because(s.Hello.HookSet, s.Hello.Why), s.Hello.SelfTest, args[0])
			}
			err := daemon.Record(ctx, args[0], o)
			if errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return err
		},
	}
	c.Flags().DurationVar(&length, "for", 0, "stop after this `TIME` (10s, 5m)")
	c.Flags().StringVar(&hooks, "hooks", "", "use this hook `SET` instead of the best one")
	return c
}

func replayCommand(env Env) *cobra.Command {
	var dir string
	var live bool
	c := &cobra.Command{
		Use:   "replay FILE",
		Short: "feed a recorded stream to a recorder; needs no root",
		Long: `Feeds FILE, written by picosnitch record, to a recorder in this process, which
writes snitch.db and its other files into the folder of --dir or PICOSNITCH_DIR,
by the settings of its config.json if there is one.`,
		Args: oneFile("the FILE that `picosnitch record` wrote"),
		RunE: func(_ *cobra.Command, args []string) error {
			if dir == "" {
				dir = env.Getenv("PICOSNITCH_DIR")
			}
			if dir == "" {
				return fmt.Errorf("%w: replay writes files: say where with --dir DIR", errUsage)
			}
			abs, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			var out io.Writer
			if live || env.Getenv("PICOSNITCH_LIVE") == "1" || isTerminal(env.Stdout) {
				out = env.Stdout
			}
			ctx, cancel := interruptible(env)
			defer cancel()
			return daemon.Replay(ctx, args[0], abs, daemon.Options{Program: version(), Getenv: env.Getenv, Live: out, Stderr: env.Stderr, Logger: logger(env.Stderr)})
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "write to the folder `DIR` (default $PICOSNITCH_DIR)")
	c.Flags().BoolVar(&live, "live", false, "show a live line per flow, also when the output is no terminal")
	return c
}
