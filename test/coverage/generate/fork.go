package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func uintptrOf(p *byte) uintptr { return uintptr(unsafe.Pointer(p)) }

// forkRaw forks without exec and lets the child send n bytes by raw calls, in a grandchild if deep. A forked Go
// program has one thread and no scheduler, so the child makes system calls only and never returns. It exits
// with 0 if all calls did what they should.
//
//go:noinline
//go:norace
func forkRaw(fd, n int, buf []byte, deep bool) (int, syscall.Errno) {
	p, size, flags := uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), uintptr(unix.SIGCHLD)
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	code := uintptr(0)
	if deep {
		pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, flags, 0, 0, 0, 0, 0)
		if errno != 0 {
			code = 1
		}
		if errno != 0 || pid != 0 {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
		}
	}
	for left := n; left > 0; {
		w, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), p, min(size, uintptr(left)))
		if errno != 0 {
			code = 1
			break
		}
		left -= int(w)
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// forkRole sends its half and forks; the child sends the other half. Both are the same program.
func forkRole(r *role) { forked(r, false) }

// doubleFork does so from a grandchild whose parent is gone.
func doubleFork(r *role) { forked(r, true) }

func forked(r *role, deep bool) {
	fd := dial(r)
	at := endsOf(fd)
	sent := sendStream(fd, "", half)
	pid, errno := forkRaw(fd, half, make([]byte, chunk), deep)
	if errno != 0 {
		check("fork", errno)
	}
	var status unix.WaitStatus
	_, err := unix.Wait4(pid, &status, 0, nil)
	check("wait for child", err)
	if status.ExitStatus() != 0 {
		fail("child", fmt.Errorf("status %d", status))
	}
	r.stream(at, "out", sent, 0, 1)
	// The child is the same program, started by itself.
	r.p.Parent = r.p.File
	r.stream(at, "out", half, 0, 0)
}

func forkScenarios() []scenario {
	same := func(role string) func(*stage) {
		return func(s *stage) {
			srv := s.start("gen-server", "stream-server", param{})
			s.take(s.start("gen-client", role, param{Addr: srv.ready()}), srv)
		}
	}
	return []scenario{
		{"process-fork", same("fork")},
		{"process-double-fork", same("double-fork")},
		{"process-orphan", orphan},
		{"process-reused-number", reusedNumber},
	}
}

// orphan lets a program be started by one that ends at once: its parent must still be known.
func orphan(s *stage) {
	srv := s.start("gen-server", "stream-server", param{})
	middle, last := s.copy("gen-middle"), s.copy("gen-last")
	read, write, err := os.Pipe()
	check("make pipe", err)
	gate, open, err := os.Pipe()
	check("make pipe", err)
	p := param{Addr: srv.ready(), Bytes: 12_345, File: last, Parent: middle, Gate: true}
	first := s.start("gen-middle", "start-and-leave", param{Next: last, Peers: []string{p.encode()}}, withFiles(gate, write))
	first.wait()
	check("close own end", write.Close())
	fmt.Fprintln(open, "go")
	s.claims = append(s.claims, readClaims("orphan", bufio.NewReader(read))...)
	s.take(srv)
}

// startAndLeave starts the next program and ends without waiting for it.
func startAndLeave(r *role) {
	in, out := os.NewFile(inherited, "gate"), os.NewFile(inherited+1, "claims")
	_, err := os.StartProcess(r.p.Next, []string{r.p.Next, "role", "stream-client", r.p.Peers[0]},
		&os.ProcAttr{Files: []*os.File{in, out, os.Stderr}})
	check("start next", err)
}

// reusedNumber runs two different programs one after the other with the same process number.
func reusedNumber(s *stage) {
	srv := s.start("gen-server", "stream-server", param{Count: 2})
	at := srv.ready()
	first := s.start("gen-first", "stream-client", param{Addr: at, Bytes: 1111})
	want := first.cmd.Process.Pid
	s.take(first)
	second := s.copy("gen-second")
	for range 100 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(want-1)), 0); err != nil {
			lack("set next process number", err.Error())
		}
		a := s.startAt(second, "stream-client", param{Addr: at, Bytes: 2222, Gate: true})
		if a.cmd.Process.Pid == want {
			a.release()
			s.take(a, srv)
			return
		}
		// Others start programs too: the number was taken in between. This one has not connected yet.
		check("end process", a.cmd.Process.Kill())
		a.cmd.Wait()
	}
	lack("no process got the number again", "tried 100 times")
}
