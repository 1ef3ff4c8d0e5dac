package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func holdLock(dir string) {
	if _, err := TakeLock(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	select {}
}

func TestLock(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	if _, err := Holder(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no file: %v", err)
	}
	// A file that was left behind, with the pid of somebody else: no obstacle, and nobody is stopped for it.
	if err := os.WriteFile(pidFile(dir), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Stop(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stale file: %v", err)
	}
	lock, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	check(t, pidFile(dir), 0, 0, 0o600)
	var running *RunningError
	if _, err := TakeLock(dir); !errors.As(err, &running) || running.PID != os.Getpid() {
		t.Errorf("second lock: %v", err)
	}
	if pid, err := Holder(dir); pid != os.Getpid() || err != nil {
		t.Errorf("holder: %d, %v", pid, err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pidFile(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pid file is still there: %v", err)
	}
}

func TestStop(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	hold := exec.Command("/proc/self/exe", "hold", dir)
	out, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- hold.Wait() }()
	// Somebody else's pid in a locked file: refused, and the somebody lives.
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stranger.Process.Kill(); stranger.Wait() }()
	write := func(pid int) {
		if err := os.WriteFile(pidFile(dir), fmt.Appendf(nil, "%d\n", pid), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(stranger.Process.Pid)
	if _, err := Stop(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "nothing was stopped") {
		t.Errorf("stranger: %v", err)
	}
	write(os.Getpid()) // the right program, but not the holder
	if _, err := Stop(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "nothing was stopped") {
		t.Errorf("not the holder: %v", err)
	}
	write(hold.Process.Pid)
	if pid, err := Stop(t.Context(), dir); pid != hold.Process.Pid || err != nil {
		t.Errorf("stop: %d, %v", pid, err)
	}
	<-ended
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger is gone: %v", err)
	}
}
