package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// Bounds of a tool of a package manager.
const (
	toolTime   = 5 * time.Second
	toolOutput = 16 << 20 // bytes
)

// packageTool runs a tool of a package manager for the recorder, with the recorder's rights, which are none: it says which package
// a file is from. It is an origin.Tool.
func packageTool(ctx context.Context, path string, args ...string) ([]byte, int, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	// A session of its own: what it starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out := &bounded{left: toolOutput}
	cmd.Stdout = out
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, 0, fmt.Errorf("%s gave no answer within %v", path, toolTime)
	case out.left < 0:
		return nil, 0, fmt.Errorf("%s said more than %d bytes", path, toolOutput)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return out.b.Bytes(), exit.ExitCode(), nil
	case err != nil:
		return nil, 0, err
	}
	return out.b.Bytes(), 0, nil
}

// bounded keeps what fits.
type bounded struct {
	b    bytes.Buffer
	left int // negative: something did not fit
}

func (o *bounded) Write(p []byte) (int, error) {
	if o.left -= len(p); o.left >= 0 {
		o.b.Write(p)
	}
	return len(p), nil
}
