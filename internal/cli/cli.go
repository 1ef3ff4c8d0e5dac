// Package cli is picosnitch's command line: it parses arguments, calls daemon, and turns what comes back into words
// and an exit code. It decides nothing about the data, and holds no state between calls.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/picosnitch/picosnitch/internal/daemon"
	"github.com/picosnitch/picosnitch/internal/recorder"
	"github.com/picosnitch/picosnitch/internal/sensor"
)

// Exit codes, as help and README.md document them.
const (
	ExitOK          = 0
	ExitFailure     = 1 // something failed; the message says what
	ExitUsage       = 2 // config.json, an environment variable or the command line is wrong
	ExitState       = 3 // start: already running; stop, restart, status: not running
	ExitUnsupported = 4 // the kernel lacks what picosnitch needs
	ExitNotRoot     = 5 // the command needs root
	ExitRecorder    = 6 // nothing can be recorded: the folder, or a right to give it to the recorder, is missing
	ExitInterrupted = 130
)

// Env is what a command sees of the outside.
type Env struct {
	Stdin          *os.File
	Stdout, Stderr io.Writer
	Getenv         func(string) string

	args []string // the command line
}

var (
	errNotRoot = errors.New("needs root")
	errUsage   = errors.New("usage")
	errQuiet   = errors.New("already told")
)

// codeError carries an exit code that the error itself does not tell.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// Run runs one command line and returns the exit code.
func Run(args []string, env Env) int {
	env.args = args
	root := commands(env)
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return ExitOK
	}
	if !errors.Is(err, errQuiet) {
		text := strings.TrimPrefix(err.Error(), errUsage.Error()+": ")
		text = strings.TrimPrefix(text, daemon.ErrConfig.Error()+": ")
		fmt.Fprintf(env.Stderr, "picosnitch: %s\n", text)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	var code *codeError
	var running *daemon.RunningError
	switch {
	case errors.As(err, &code):
		return code.code
	case errors.Is(err, errUsage), errors.Is(err, daemon.ErrConfig):
		return ExitUsage
	case errors.As(err, &running), errors.Is(err, daemon.ErrNotRunning):
		return ExitState
	case errors.Is(err, sensor.ErrHooks), errors.Is(err, errors.ErrUnsupported):
		return ExitUnsupported
	case errors.Is(err, errNotRoot):
		return ExitNotRoot
	case errors.Is(err, daemon.ErrRecorder):
		return ExitRecorder
	}
	return ExitFailure
}

func commands(env Env) *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use:           "picosnitch",
		Short:         "which program sent or received which bytes, to whom",
		Long:          long,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknown(c, args[:1])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			if showVersion {
				return printVersion(env)
			}
			c.SetOut(env.Stderr)
			c.Help()
			return &codeError{ExitUsage, errQuiet}
		},
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w: see `%s --help`", errUsage, err, c.CommandPath())
	})
	root.SuggestionsMinimumDistance = 2
	root.Flags().BoolVar(&showVersion, "version", false, "show the version and where things are")
	root.SetUsageTemplate(usageTemplate(root))
	root.SetHelpCommand(helpCommand())
	root.AddCommand(
		startCommand(env), startNoDaemonCommand(env), stopCommand(env), restartCommand(env),
		statusCommand(env), reportCommand(env), exportCommand(env), dbCommand(env), doctorCommand(env), recordCommand(env), replayCommand(env),
		systemdCommand(env), versionCommand(env), mutesCommand(env), unmuteCommand(env), recorderCommand(), sessionCommand(),
	)
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args = noArguments
		}
		args := c.Args
		c.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return fmt.Errorf("%w: %w: see `%s --help`", errUsage, err, c.CommandPath())
			}
			return nil
		}
	}
	return root
}

// interruptible gives a context that ends with SIGINT, SIGTERM or, when the terminal goes away, SIGHUP; the second signal leaves
// at once.
func interruptible(env Env) (context.Context, context.CancelFunc) {
	return endsWith(env, !signal.Ignored(syscall.SIGHUP)) // nohup(1) did not ask for more
}

// hangups gives a value for every SIGHUP: what a daemon takes as "your files were moved".
func hangups() <-chan struct{} {
	signals, out := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for range signals {
			out <- struct{}{}
		}
	}()
	return out
}

func endsWith(env Env, hangup bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if hangup {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		<-signals
		cancel()
		// timeout(1) and some shells send the first one twice: to the process and to its group.
		for first := time.Now(); time.Since(first) < 500*time.Millisecond; {
			<-signals
		}
		fmt.Fprintln(env.Stderr, "picosnitch: left at once: the last window may be lost")
		os.Exit(ExitInterrupted)
	}()
	return ctx, cancel
}

func logger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, nil))
}

// version is what the build knows about itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && len(s.Value) >= 12:
				v += "-" + s.Value[:12]
			case s.Key == "vcs.modified" && s.Value == "true":
				v += "+dirty"
			}
		}
	}
	return v
}

func versionCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "show the version and where things are",
		RunE:  func(*cobra.Command, []string) error { return printVersion(env) },
	}
}

func printVersion(env Env) error {
	_, err := fmt.Fprintf(env.Stdout, "picosnitch %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if p, e := daemon.FindPlace(env.Getenv); e == nil && err == nil {
		_, err = fmt.Fprintf(env.Stdout, "folder: %s\nrun directory: %s\n", p.Dir, p.RunDir)
	}
	return err
}

func recorderCommand() *cobra.Command {
	var o daemon.ChildOptions
	c := &cobra.Command{
		Use:    "recorder",
		Hidden: true,
		Short:  "picosnitch's own child process",
		RunE: func(*cobra.Command, []string) error {
			debug.SetMemoryLimit(recorder.MemoryLimit)
			return daemon.Child(o)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Prepare, "prepare", false, "")
	f.Uint32Var(&o.UID, "uid", 0, "")
	f.Uint32Var(&o.GID, "gid", 0, "")
	f.StringVar(&o.Dir, "dir", "", "")
	f.StringVar(&o.Feed, "feed", "", "")
	f.BoolVar(&o.Live, "live", false, "")
	f.BoolVar(&o.Try, "try", false, "")
	return c
}

func sessionCommand() *cobra.Command {
	var o daemon.SessionOptions
	c := &cobra.Command{
		Use:    "session",
		Hidden: true,
		Short:  "picosnitch's own child process",
		RunE: func(*cobra.Command, []string) error {
			// It does next to nothing: it should be next to nothing.
			debug.SetMemoryLimit(8 << 20)
			debug.SetGCPercent(20)
			return daemon.Session(o)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Prepare, "prepare", false, "")
	f.Uint32Var(&o.UID, "uid", 0, "")
	f.Uint32Var(&o.GID, "gid", 0, "")
	f.StringVar(&o.Bus, "bus", "", "")
	return c
}
