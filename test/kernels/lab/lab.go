// Package lab boots Linux kernels in QEMU, without KVM, and runs programs in them. A guest is an archive in memory: the
// kernel's modules, busybox, and whatever the caller puts there; its first process (test/kernels/guest) runs the steps
// one after the other and tells over a serial line what became of each. The package knows nothing of picosnitch.
package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Kernel is one fetched kernel.
type Kernel struct {
	Name    string // as it was asked for: "5.10", "newest"
	Arch    string // "amd64" or "arm64"
	Release string // as uname tells it
	Folder  string // has vmlinuz and lib/modules/RELEASE
}

// Lab is what Fetch got.
type Lab struct {
	Kernels []Kernel
	arch    string
	busybox string
	// userland is a folder of unpacked packages.
	userland string
	qemu     string // folder of an unpacked QEMU, "" for the installed one
}

// ErrUnreachable is returned when this machine cannot reach the packages.
var ErrUnreachable = errors.New("the kernel packages cannot be reached from here")

// unreachable is fetch.sh's exit code for it.
const unreachable = 3

// Fetch gets kernels and what runs them; see fetch.sh, which must be in folder. What it says goes to standard error.
func Fetch(ctx context.Context, folder, arch string, names ...string) (*Lab, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(folder, "fetch.sh"), append([]string{arch}, names...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == unreachable {
		err = fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %s kernels %v: %w", arch, names, err)
	}
	l := &Lab{arch: arch}
	s := bufio.NewScanner(strings.NewReader(string(out)))
	for s.Scan() {
		f := strings.Fields(s.Text())
		switch {
		case len(f) == 3 && f[0] == "kernel":
			l.Kernels = append(l.Kernels, Kernel{Name: f[1], Arch: arch, Folder: f[2], Release: filepath.Base(f[2])})
		case len(f) == 2 && f[0] == "busybox":
			l.busybox = f[1]
		case len(f) == 2 && f[0] == "userland":
			l.userland = f[1]
		case len(f) == 2 && f[0] == "qemu":
			l.qemu = f[1]
		}
	}
	if len(l.Kernels) != len(names) || l.busybox == "" || l.userland == "" {
		return nil, fmt.Errorf("fetch %s kernels %v: got %q", arch, names, out)
	}
	return l, nil
}

// Step is one program that runs in the guest.
type Step struct {
	Name  string        `json:"name"`
	Args  []string      `json:"args"` // the program first, as the guest sees it
	Env   []string      `json:"env,omitempty"`
	Dir   string        `json:"dir,omitempty"` // "" is /root
	Limit time.Duration `json:"limit"`
}

// Outcome is what became of a step.
type Outcome struct {
	Code     int // exit code; 128 + signal, as a shell has it; -1 if it never ended
	TimedOut bool
	Output   string        // both streams
	Took     time.Duration // in the guest
}

// Guest is one machine to boot.
type Guest struct {
	Kernel  Kernel
	Init    string            // test/kernels/guest, built for the kernel's architecture
	Files   map[string]string // path in the guest → file or folder here
	Modules []string          // to load; what they need is added, what the kernel lacks is told in Result.Missing
	// Userland adds Debian's own programs (see fetch.sh), which come before busybox's.
	Userland bool
	Systemd  bool   // systemd is the first process; needs Userland
	Append   string // more words for the kernel's command line
	Memory   int    // MiB; 0 is 1024
	Steps    []Step
	Retry    bool // boot once more when the guest dies before it said a word, or by QEMU 7.2's double fault
}

// Result is what a guest did.
type Result struct {
	Boot     time.Duration // from the kernel's start to the first step, in the guest's time
	Took     time.Duration // of the whole, here
	QEMU     string        // its version
	Missing  []string      // modules that this kernel does not have
	Outcomes map[string]Outcome
	Files    map[string][]byte // what the steps wrote to /out
	Console  string            // what the kernel and the guest's init said
}

// version returns the program, its arguments for an unpacked QEMU, and its version.
func (l *Lab) version(ctx context.Context) (program string, args []string, version string, err error) {
	program = map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[l.arch]
	if l.qemu != "" {
		program = filepath.Join(l.qemu, "usr/bin", program)
		args = []string{"-L", filepath.Join(l.qemu, "usr/share/qemu"), "-L", filepath.Join(l.qemu, "usr/share/seabios")}
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", nil, "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	m := regexp.MustCompile(`version (\d+\.\d+(\.\d+)?)`).FindStringSubmatch(string(out))
	if m == nil {
		return "", nil, "", fmt.Errorf("ask QEMU for its version: it says %.100q", out)
	}
	return program, args, m[1], nil
}

// processor chooses the CPU model. QEMU before 10 miscompiles cmpxchg16b; kernels from 6.15 on cannot do without it
// (kmalloc_nolock, which BPF's local storage uses, then always fails), older ones can.
func processor(k Kernel, qemu string) string {
	if k.Arch == "arm64" {
		return "max,pauth-impdef=on"
	}
	major, _ := strconv.Atoi(strings.Split(qemu, ".")[0])
	if major < 10 && !atLeast(k.Release, 6, 15) {
		return "max,la57=off,cx16=off"
	}
	return "max,la57=off"
}

// atLeast compares the version that a release begins with.
func atLeast(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
