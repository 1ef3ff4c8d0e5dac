package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// ErrRecorder marks what keeps the recorder from its work on this machine, found before anything else is started: a right that is
// missing, a folder that it cannot write. Exit code 6.
var ErrRecorder = errors.New("nothing can be recorded")

// tryLimit is how long the trial may take; a disk that is asleep needs some seconds.
const tryLimit = 20 * time.Second

// maxWords is how many lines of the trial are passed on.
const maxWords = 3

// try starts a recorder that only drops its rights, reaches for its folder and ends. What it lacks then ends picosnitch before a hook
// is loaded, with one message, instead of a recorder that is started again and again.
func (s *spawner) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", s.childArgs("--try")...)
	cmd.Args[0] = "picosnitch"
	cmd.Dir = "/"
	cmd.Env = environment(s.o.Getenv)
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &words, &words
	cmd.ExtraFiles = []*os.File{nil, nil, s.folder.f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(words.String(), "picosnitch: ", "")), "\n")
	said := event.Text([]byte(strings.Join(lines[:min(len(lines), maxWords)], "; "))) // a trial that panics has many
	switch {
	case ctx.Err() != nil:
		// The recorder itself is waited for without a limit, and what it is behind with is told.
		s.board.post(event.Notice{Level: "warning", Text: fmt.Sprintf("a trial of the recorder was not done after %s", tryLimit), Hint: "is the disk of " + s.folder.Path() + " slow, or its server away?"})
	case err != nil && said == "":
		return fmt.Errorf("%w: the recorder ends at once: %w", ErrRecorder, err)
	case err != nil:
		return fmt.Errorf("%w: %s", ErrRecorder, said)
	case said != "":
		s.board.post(event.Notice{Level: "warning", Text: said, Hint: "give picosnitch CAP_SYS_ADMIN; without it the log is lost when a directory above " + s.folder.Path() + " is closed to others"})
	}
	return nil
}

// childArgs are the arguments of a recorder that is to be started, after the program's name.
func (s *spawner) childArgs(more ...string) []string {
	return append([]string{
		"recorder", "--prepare", "--uid", strconv.FormatUint(uint64(s.place.Recorder.UID), 10), "--gid", strconv.FormatUint(uint64(s.place.Recorder.GID), 10),
		"--dir", s.folder.Path(), "--feed", feedDir(s.place.RunDir),
	}, more...)
}

// reach is the trial in the recorder's process, without rights: can it write in its folder? A folder below feed is the mount of its
// own.
func reach(dir, feed string) error {
	err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s cannot be written: %w", dir, err)
	case strings.HasPrefix(dir, feed+"/"):
		return fmt.Errorf("%s cannot be reached by uid %d: %w: every directory above it must let others enter: choose another PICOSNITCH_RUN_DIR", dir, os.Getuid(), err)
	}
	return fmt.Errorf("%s cannot be reached by uid %d: %w: give picosnitch CAP_SYS_ADMIN, or set PICOSNITCH_DIR to a folder below directories that let others enter", dir, os.Getuid(), err)
}
