// Package daemon starts and joins the processes of picosnitch: it finds and opens the folder, takes the instance
// lock, starts the recorder without any rights, and runs the sensor into it. It is the only package that knows both
// wings, and does nothing else: what a byte means is decided in them, what the user reads about it in cli.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor"
)

// folderCheck is how often the path of the folder is compared with the open folder.
const folderCheck = 2 * time.Second

// Options of Run, Record and Doctor.
type Options struct {
	Program string              // version of picosnitch
	HookSet string              // "" chooses the best
	Getenv  func(string) string // os.Getenv
	Live    io.Writer           // readable live lines; nil: none. A slow one loses lines (counted), never data
	Stderr  io.Writer           // what the recorder says on its standard error
	Logger  *slog.Logger
	Reopen  <-chan struct{} // pass SIGHUP on to the recorder: conn.log was moved away; nil: never
	Ready   func(Started)   // called once, when the first hooks are on and the self test ran; may be nil
}

// Started is what is known when picosnitch has started.
type Started struct {
	Hello   event.Hello
	Folder  string
	RunDir  string
	Notices []event.Notice // what the user must know, also in error.log
}

// Run is picosnitch until ctx is done: config, folder, lock, recorder, sensor, in the order of the data's way back.
func Run(ctx context.Context, o Options) error {
	place, err := FindPlace(o.Getenv)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	lock, err := TakeLock(place.RunDir)
	if err != nil {
		return err
	}
	defer lock.Release()
	folder, err := OpenFolder(place)
	if err != nil {
		return unrecorded(err)
	}
	defer folder.Close()
	c, err := folder.Config()
	if err != nil {
		return unrecorded(err)
	}
	board := &bulletin{}
	board.post(folder.notices...)
	board.post(lacking()...)
	if err := setNoFile(c.NoFile); err != nil {
		board.post(event.Notice{Level: "warning", Text: fmt.Sprintf("%q: %d: %v", config.KeyNoFile, c.NoFile, err), Hint: "choose a smaller number, or null"})
	}
	spawn, err := newSpawner(place, folder, c, board, o)
	if err != nil {
		return unrecorded(err)
	}
	if err := spawn.try(ctx); err != nil {
		return err
	}
	begun := board.peek() // the recorder prints them, too: it logs every notice

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchFolder(ctx, folder, board)
	}()
	reopened := make(chan struct{})
	go func() {
		defer close(reopened)
		for {
			select {
			case <-ctx.Done():
				return
			case <-o.Reopen:
				spawn.reopen()
			}
		}
	}()
	desktops := make(chan struct{})
	go func() {
		defer close(desktops)
		spawn.sessions.run(ctx)
	}()
	ready := false
	err = sensor.Run(ctx, sensor.Options{
		Program:   o.Program,
		Bandwidth: c.Bandwidth,
		EveryExe:  c.EveryExe,
		RingPages: c.RingPages,
		HookSet:   o.HookSet,
		Logger:    o.Logger.With("component", "sensor"),
		Connect:   spawn.connect,
		OnReady: func(h event.Hello) {
			if ready {
				return
			}
			ready = true
			notify(o.Getenv, "READY=1\nSTATUS=hook set "+h.HookSet+", self test "+h.SelfTest)
			if o.Ready != nil {
				o.Ready(Started{Hello: h, Folder: folder.Path(), RunDir: place.RunDir, Notices: begun})
			}
		},
	})
	cancel()
	<-watched
	<-reopened
	<-desktops
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// unrecorded marks an error that is not the configuration's as one that leaves the recorder without a place to write.
func unrecorded(err error) error {
	if errors.Is(err, ErrConfig) {
		return err
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w: %s", ErrRecorder, err, rightsHint)
	}
	return fmt.Errorf("%w: %w", ErrRecorder, err)
}

// watchFolder tells once per change that the path of the folder does not lead to the open folder any more: what is
// written is safe, but nobody finds it.
func watchFolder(ctx context.Context, f *Folder, board *bulletin) {
	tick := time.NewTicker(folderCheck)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := f.Moved()
		if now == last {
			continue
		}
		n := event.Notice{Level: "error", Text: fmt.Sprintf("the folder %s %s while picosnitch is writing to it", f.Path(), now), Hint: "find out who did that; picosnitch keeps writing to the folder that it opened. Restart it to use the path again"}
		if now == "" {
			n = event.Notice{Level: "info", Text: fmt.Sprintf("the folder %s is back in its place", f.Path())}
		}
		last = now
		board.post(n)
	}
}

func tell(log *slog.Logger, n event.Notice) {
	level := slog.LevelInfo
	switch n.Level {
	case "error":
		level = slog.LevelError
	case "warning":
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, n.Text, "hint", n.Hint)
}

// Doctor examines this machine: see sensor.Doctor.
func Doctor(ctx context.Context, o Options) (sensor.Report, error) {
	return sensor.Doctor(ctx, sensor.Options{Program: o.Program, Bandwidth: true, RingPages: config.Default().RingPages, HookSet: o.HookSet, Logger: o.Logger.With("component", "sensor")})
}

// ReadConfig reads the config.json of this environment without changing anything: the defaults when there is none.
func ReadConfig(getenv func(string) string) (config.Config, string, error) {
	place, err := FindPlace(getenv)
	if err != nil {
		return config.Config{}, "", fmt.Errorf("%w: %w", ErrConfig, err)
	}
	path := place.Dir + "/" + configName
	c, err := readConfigFile(path)
	return c, path, err
}

func readConfigFile(path string) (config.Config, error) {
	// Not blocked by a fifo and not led by a link to a file of root's, whose lines an error would show.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return config.Default(), nil
	}
	if err != nil {
		return config.Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return config.Config{}, fmt.Errorf("%w: %s is not a plain file", ErrConfig, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, config.MaxSize+1))
	if err != nil {
		return config.Config{}, err
	}
	c, err := config.Parse(data)
	if err != nil {
		return config.Config{}, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	return c, nil
}
