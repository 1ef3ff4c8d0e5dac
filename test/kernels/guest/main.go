//go:build linux

// Command guest is the first process of a guest (package lab): it makes the system's folders, loads the kernel's modules, runs
// the steps of /job.json one after the other, tells over a serial line what became of them, and powers the machine off.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/picosnitch/picosnitch/test/kernels/lab"
	"golang.org/x/sys/unix"
)

func main() {
	// Whatever happens, the machine must go off: the host waits for it.
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: power off:", err)
	}
}

func run() error {
	first := os.Getpid() == 1
	if first {
		if err := system(); err != nil {
			return err
		}
	}
	var job lab.Job
	b, err := os.ReadFile("/job.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &job); err != nil {
		return err
	}
	if first && job.Systemd {
		return systemd()
	}
	port, err := openPort(job.Port)
	if err != nil {
		return err
	}
	defer port.Close()
	t := teller{nonce: job.Nonce, to: port}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return err
	}
	t.tell(lab.Message{Booted: time.Duration(up.Nano())})
	for _, s := range job.Steps {
		t.run(s)
		t.files()
	}
	t.tell(lab.Message{Done: true})
	// A serial line is slow: what is queued would be cut off by the end of the machine.
	if err := unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1); err != nil {
		return fmt.Errorf("wait for the serial line: %w", err)
	}
	return t.err
}

// system makes what programs expect of a machine.
func system() error {
	var errs []error
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
		{"tmpfs", "/root"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"bpf", "/sys/fs/bpf"},
		{"tracefs", "/sys/kernel/tracing"},
		{"debugfs", "/sys/kernel/debug"},
		{"securityfs", "/sys/kernel/security"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			errs = append(errs, err)
		} else if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err))
		}
	}
	// As on every system. Tomoyo, which is on in Debian's kernels, looks in 5.10 the program of an execveat(2) up as /dev/fd/N.
	errs = append(errs, os.Chmod("/tmp", 0o1777), os.Symlink("/proc/self/fd", "/dev/fd"))
	paths, err := filepath.Glob("/modules/*.ko")
	errs = append(errs, err)
	slices.Sort(paths)
	for _, p := range paths {
		if err := load(p); err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Fprintf(os.Stderr, "guest: load %s: %v\n", p, err) // a codec of another CPU: no error
		}
	}
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("install busybox: %w: %s", err, out))
	}
	errs = append(errs, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 65536, Max: 65536}), os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), os.Setenv("HOME", "/root"))
	if out, err := exec.Command("/bin/busybox", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("set lo up: %w: %s", err, out))
	}
	return errors.Join(errs...)
}

// systemd becomes systemd, which starts this program again, as a service that runs the steps.
func systemd() error {
	const unit = `[Unit]
Description=steps of a test
After=basic.target
Requires=basic.target
FailureAction=poweroff-force
[Service]
ExecStart=/init
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
WorkingDirectory=/
LimitNOFILE=65536
StandardOutput=null
StandardError=tty
TTYPath=/dev/console
`
	for _, err := range []error{
		os.MkdirAll("/etc/systemd/system", 0o755),
		os.WriteFile("/etc/systemd/system/steps.service", []byte(unit), 0o644),
		os.WriteFile("/etc/machine-id", []byte("0123456789abcdef0123456789abcdef\n"), 0o444),
	} {
		if err != nil {
			return err
		}
	}
	return unix.Exec("/lib/systemd/systemd", []string{"/lib/systemd/systemd", "--unit=steps.service"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb"})
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// openPort opens a serial line on which bytes arrive as they are written.
func openPort(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag = 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// teller tells the host.
type teller struct {
	nonce string
	to    io.Writer
	err   error
}

func (t *teller) tell(m lab.Message) {
	m.Nonce = t.nonce
	b, err := json.Marshal(m)
	if err == nil {
		_, err = t.to.Write(append(b, '\n'))
	}
	t.err = errors.Join(t.err, err)
}

// run runs one step in a process group of its own, and ends what it leaves behind.
func (t *teller) run(s lab.Step) {
	m := lab.Message{Step: s.Name, Ended: true}
	begin := time.Now()
	r, w, err := os.Pipe()
	if err != nil {
		t.tell(lab.Message{Step: s.Name, Output: []byte(err.Error()), Ended: true, Code: 126})
		return
	}
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Dir = cmp.Or(s.Dir, "/root")
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		r.Close()
		t.tell(lab.Message{Step: s.Name, Output: []byte(err.Error() + "\n"), Ended: true, Code: 127})
		return
	}
	w.Close()
	piped := make(chan struct{})
	go func() {
		defer close(piped)
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				t.tell(lab.Message{Step: s.Name, Output: bytes.Clone(buf[:n])})
			}
			if err != nil {
				return
			}
		}
	}()
	var late atomic.Bool
	limit := time.AfterFunc(s.Limit, func() {
		late.Store(true)
		// A killed Go test says nothing; asked to quit it shows where it hangs.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT)
		time.Sleep(2 * time.Second)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	_ = cmd.Wait() // how it ended is in its state
	limit.Stop()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	select {
	case <-piped:
	case <-time.After(5 * time.Second): // somebody holds the pipe
	}
	r.Close()
	<-piped
	m.Code = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		m.Code = 128 + int(ws.Signal())
	}
	m.Took, m.Late = time.Since(begin), late.Load()
	t.tell(m)
	reap()
}

// reap waits for the orphans: they are this process's children.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return
		}
	}
}

// files tells what the step left in /out.
func (t *teller) files() {
	entries, err := os.ReadDir("/out")
	t.err = errors.Join(t.err, err)
	for _, e := range entries {
		path := filepath.Join("/out", e.Name())
		b, err := os.ReadFile(path)
		t.err = errors.Join(t.err, err, os.Remove(path))
		for chunk := range slices.Chunk(b, 32<<10) {
			t.tell(lab.Message{File: strings.TrimSpace(e.Name()), Data: chunk})
		}
	}
}
