package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Builder compiles programs and tests of this module, static, for the architecture of the guests. It is to be used in the module's
// root.
type Builder struct {
	Folder string // for what it makes
	Arch   string
	Tags   string
}

// Program compiles a program and returns its path.
func (b Builder) Program(ctx context.Context, pkg string) (string, error) {
	return b.run(ctx, filepath.Base(pkg), pkg, "build", "-trimpath", "-ldflags=-s -w")
}

// Test compiles the tests of a package and returns the path, or "" if the package has none.
func (b Builder) Test(ctx context.Context, pkg string) (string, error) {
	path, err := b.run(ctx, filepath.Base(pkg)+".test", pkg, "test", "-c")
	if _, e := os.Stat(path); err == nil && e != nil {
		return "", nil
	}
	return path, err
}

func (b Builder) run(ctx context.Context, name, pkg string, args ...string) (string, error) {
	path := filepath.Join(b.Folder, b.Arch+b.Tags+"-"+name)
	args = append(args, "-tags", b.Tags, "-o", path, pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+b.Arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	// A program that ran within the tick in which it was written may not be hashed after its end.
	time.Sleep(50 * time.Millisecond)
	return path, nil
}
