package fanotify

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// shortQueue makes the kernel's queues of groups that are made from now on hold n events.
func shortQueue(t testing.TB, n int) {
	t.Helper()
	const file = "/proc/sys/fs/fanotify/max_queued_events"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(file, before, 0) })
	if err := os.WriteFile(file, fmt.Append(nil, n), 0); err != nil {
		t.Fatal(err)
	}
}

// What the kernel drops because its queue is full is told, and leaves no file watched: the next exec of each is met as if it were the first.
func TestOverflow(t *testing.T) {
	needRoot(t)
	shortQueue(t, 128)
	known := 0
	w, err := New(Options{Bounded: true, Known: func(Identity) bool { known++; return true }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	dir := t.TempDir()
	first := filepath.Join(dir, "first")
	id := program(t, first)
	claim := func() Opened {
		t.Helper()
		o := claimed(t, w, first, id)
		if o.FD >= 0 {
			unix.Close(o.FD)
		}
		return o
	}
	before := claim()
	if o := claim(); o.FD >= 0 || known != 1 || o.Version != before.Version {
		t.Fatalf("executed again, %+v; asked %d times whether it is known", o, known)
	}
	for i := range 200 { // nobody reads
		path := filepath.Join(dir, fmt.Sprint(i))
		program(t, path)
		run(t, path)
	}
	if err := w.Drain(); err != nil {
		t.Fatal(err)
	}
	if s := w.Stats(); s.Overflows != 1 || s.Execs > 200 {
		t.Fatalf("%+v; want one overflow", s)
	}
	known = 0
	if o := claim(); o.FD < 0 || known != 0 || o.Version == before.Version {
		t.Errorf("after an overflow: %+v; asked %d times whether it is known", o, known)
	}
}

// Without descriptors nothing can be handed over: that is counted, says why, and is over when there are some again.
func TestNoDescriptorsLeft(t *testing.T) {
	w := start(t, Options{})
	dir := t.TempDir()
	var names []string
	for i := range 60 {
		names = append(names, filepath.Join(dir, fmt.Sprint(i)))
		program(t, names[i])
	}
	shell := exec.Command("sh", "-c", "read go; for p; do $p; done; echo done; read go; exit 0", "sh")
	shell.Args = append(shell.Args, names...)
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// The shell keeps its own limit.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(descriptors(t)) + 20, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = in.Write([]byte("\n"))
	answer := make([]byte, 16)
	n, failed := out.Read(answer)
	drained := w.Drain()
	if err := errors.Join(err, failed, drained, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)); err != nil || strings.TrimSpace(string(answer[:n])) != "done" {
		t.Fatalf("%v, the shell said %q", err, answer[:n])
	}
	in.Close()
	if err := shell.Wait(); err != nil {
		t.Fatal(err)
	}
	s := w.Stats()
	if s.Failed < 20 || s.Waiting < 5 || s.Execs+s.Failed < 60 {
		t.Errorf("%+v; want most of 60 programs counted as not to be had", s)
	}
	if err := w.Failure(); !errors.Is(err, unix.EMFILE) {
		t.Errorf("why: %v", err)
	}
	path := filepath.Join(dir, "again")
	id := program(t, path)
	o := claimed(t, w, path, id)
	unix.Close(o.FD)
}
