package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/recorder"
)

// feedLimit is how long the live feed may take to answer.
const feedLimit = 5 * time.Second

// Status asks the live feed of runDir for the state of the running instance. It needs no root, only the group of the
// folder. It returns ErrNotRunning when nobody listens there.
func Status(ctx context.Context, runDir string) (recorder.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, feedLimit)
	defer cancel()
	s, err := recorder.ReadStatus(ctx, filepath.Join(feedDir(runDir), "events.sock"))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return s, ErrNotRunning
	case errors.Is(err, os.ErrPermission):
		return s, fmt.Errorf("%w: ask as the user whose folder it is, or with sudo", err)
	}
	return s, err
}
