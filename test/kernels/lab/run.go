package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Job is what the guest's first process gets to do.
type Job struct {
	Nonce string `json:"nonce"` // of the lines that count: a step's own output cannot forge them
	Port  string `json:"port"`  // the serial line to tell it on
	Steps []Step `json:"steps"`
	// Systemd makes systemd the first process; the steps run as a service of it.
	Systemd bool `json:"systemd,omitempty"`
}

// Message is one line that the guest tells.
type Message struct {
	Nonce  string        `json:"nonce"`
	Booted time.Duration `json:"booted,omitempty"` // first message: the kernel's uptime
	Step   string        `json:"step,omitempty"`
	Output []byte        `json:"output,omitempty"` // a piece of the step's output
	Ended  bool          `json:"ended,omitempty"`
	Code   int           `json:"code,omitempty"`
	Late   bool          `json:"late,omitempty"` // ended by its limit
	Took   time.Duration `json:"took,omitempty"`
	File   string        `json:"file,omitempty"` // that the steps left in /out
	Data   []byte        `json:"data,omitempty"`
	Done   bool          `json:"done,omitempty"` // last message
}

// ErrDied is returned when the guest ended without having done all its steps.
var ErrDied = errors.New("the guest died")

// Run boots the guest and waits for its end. What the steps print goes to live as it comes, if not nil. The result is valid as far
// as it goes also with an error.
func (l *Lab) Run(ctx context.Context, g Guest, live io.Writer) (Result, error) {
	r, err := l.run(ctx, g, live)
	if g.Retry && errors.Is(err, ErrDied) && ctx.Err() == nil && (r.Boot == 0 || strings.Contains(r.Console, "double fault")) {
		r, err = l.run(ctx, g, live)
	}
	return r, err
}

func (l *Lab) run(ctx context.Context, g Guest, live io.Writer) (Result, error) {
	begin := time.Now()
	r := Result{Outcomes: map[string]Outcome{}, Files: map[string][]byte{}}
	program, args, version, err := l.version(ctx)
	if err != nil {
		return r, err
	}
	r.QEMU = version
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	job := Job{Nonce: rand.Text(), Port: "/dev/ttyS1", Steps: g.Steps, Systemd: g.Systemd}
	machine, console := []string{}, "ttyS0"
	limit := 90 * time.Second // to boot and to power off
	if g.Kernel.Arch == "arm64" {
		// One serial line is on the board, the other is a PCI card.
		machine, console, job.Port = []string{"-machine", "virt"}, "ttyAMA0", "/dev/ttyS0"
		limit *= 2
	}
	for _, s := range g.Steps {
		limit += s.Limit
	}
	b, err := json.Marshal(job)
	if err != nil {
		return r, err
	}
	initrd := filepath.Join(dir, "initrd")
	if r.Missing, err = l.initrd(g, initrd, b); err != nil {
		return r, err
	}
	memory := max(g.Memory, 1024)
	args = append(args, machine...)
	args = append(args, "-accel", "tcg,thread=multi", "-cpu", processor(g.Kernel, version), "-smp", "2", "-m", fmt.Sprint(memory),
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-kernel", filepath.Join(g.Kernel.Folder, "vmlinuz"), "-initrd", initrd,
		"-append", "console="+console+" quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on "+g.Append,
		"-serial", "file:"+filepath.Join(dir, "console"))
	if g.Kernel.Arch == "arm64" {
		args = append(args, "-chardev", "stdio,id=told,signal=off", "-device", "pci-serial,chardev=told")
	} else {
		args = append(args, "-serial", "stdio")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = 5 * time.Second
	var problems bytes.Buffer
	cmd.Stderr = &problems
	told, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, fmt.Errorf("start QEMU: %w", err)
	}
	done := r.listen(job, told, live)
	err = cmd.Wait()
	if b, e := os.ReadFile(filepath.Join(dir, "console")); e == nil {
		r.Console = strings.ReplaceAll(string(b), "\r", "")
	}
	r.Took = time.Since(begin)
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("%w: %s is not done after %v\n%s%s", ErrDied, g.Kernel.Release, limit, tail(r.Console), problems.String())
	case !done:
		return r, fmt.Errorf("%w: %s ended without a word (%v)\n%s%s", ErrDied, g.Kernel.Release, err, tail(r.Console), problems.String())
	}
	return r, nil
}

// tail is the end of a text.
func tail(s string) string {
	lines := strings.SplitAfter(s, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// listen reads what the guest tells, to its end, and reports whether it said that it was done.
func (r *Result) listen(job Job, from io.Reader, live io.Writer) bool {
	done := false
	for _, s := range job.Steps {
		r.Outcomes[s.Name] = Outcome{Code: -1}
	}
	lines := bufio.NewReaderSize(from, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		var m Message
		// Anything else is noise of the firmware.
		if i := bytes.IndexByte(line, '{'); i >= 0 && json.Unmarshal(line[i:], &m) == nil && m.Nonce == job.Nonce {
			done = done || m.Done
			r.take(m, live)
		}
		if err != nil {
			return done
		}
	}
}

func (r *Result) take(m Message, live io.Writer) {
	if m.Booted != 0 {
		r.Boot = m.Booted
	}
	if m.File != "" {
		r.Files[m.File] = slices.Concat(r.Files[m.File], m.Data)
	}
	if m.Step == "" {
		return
	}
	o := r.Outcomes[m.Step]
	o.Output += string(m.Output)
	if m.Ended {
		o.Code, o.TimedOut, o.Took = m.Code, m.Late, m.Took
	}
	r.Outcomes[m.Step] = o
	if live != nil {
		live.Write(m.Output)
	}
}
