package session

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	chunk    = 256 << 10
	stall    = 30 * time.Second // without a byte, a file system is given up
	longest  = 5 * time.Minute  // for a file: one that comes byte by byte does not keep the others waiting
	maxStuck = 8                // readers that hang; with more, this process ends and a fresh one is started
	maxSize  = 4 << 30          // bytes that are hashed

	tick = 10_000_000 // ns: the unit of the start time in /proc/PID/stat
)

func uid() string { return strconv.Itoa(os.Getuid()) }

var (
	errStalled = errors.New("its file system does not answer")
	errSlow    = errors.New("its file system is too slow")
)

// hashes does the errands that need a file, one after the other.
func (s *session) hashes(ctx context.Context) {
	var stuck atomic.Int32
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.files:
			if stuck.Load() >= maxStuck {
				s.done(ctx, &errand.Done{N: e.N, Reason: "too many file systems do not answer"})
				continue
			}
			s.file(ctx, e, &stuck)
		}
	}
}

// file hashes or opens one file. Its file system belongs to a program of the user's, which may never answer: the reader is
// left behind then.
func (s *session) file(ctx context.Context, e fileErrand, stuck *atomic.Int32) {
	var progress atomic.Int64
	type result struct {
		sum  string
		file *os.File
		err  error
	}
	answer := make(chan result, 1)
	go func() {
		f, err := s.open(e.File)
		r := result{err: err}
		switch {
		case err != nil:
		case e.open:
			r.file = f
		default:
			r.sum, r.err = sum(f, e.Size, &progress, longest)
			f.Close()
		}
		answer <- r
	}()
	look := time.NewTicker(stall)
	defer look.Stop()
	for before := int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case r := <-answer:
			d := &errand.Done{N: e.N, SHA256: r.sum}
			if r.err != nil {
				d.Reason = r.err.Error()
			}
			if r.file == nil {
				s.done(ctx, d)
				return
			}
			for ctx.Err() == nil {
				if err := s.conn.Send(errand.Message{Done: d}, r.file, sendWait); !isTimeout(err) {
					break
				}
			}
			r.file.Close()
			return
		case <-look.C:
			if now := progress.Load(); now != before {
				before = now
				continue
			}
			stuck.Add(1)
			go func() {
				if r := <-answer; r.file != nil {
					r.file.Close()
				}
				stuck.Add(-1)
			}()
			s.done(ctx, &errand.Done{N: e.N, Reason: errStalled.Error()})
			return
		}
	}
}

// open opens the file that the process executes or, when that is gone, what its path leads to now.
func (s *session) open(e *errand.File) (*os.File, error) {
	if dir, ok := s.process(e); ok {
		defer unix.Close(dir)
		if f, err := regular(dir, "exe", e); err == nil {
			return f, nil
		}
	}
	path, ok := event.Raw(e.Path)
	if !ok || len(path) == 0 || path[0] != '/' || bytes.IndexByte(path, 0) >= 0 {
		return nil, errors.New("its process is gone, and its path is not known")
	}
	return regular(unix.AT_FDCWD, string(path), e)
}

// process opens /proc/PID if that is still the process that was meant.
func (s *session) process(e *errand.File) (int, bool) {
	if e.PID == 0 {
		return -1, false
	}
	dir, err := unix.Open(s.o.Proc+"/"+strconv.FormatUint(uint64(e.PID), 10), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false
	}
	if start, err := startTime(dir); err != nil || start != e.Start/tick {
		unix.Close(dir)
		return -1, false
	}
	return dir, true
}

// startTime is field 22 of dir/stat: proc_pid_stat(5).
func startTime(dir int) (uint64, error) {
	fd, err := unix.Openat(dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), "stat")
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything, also parentheses; nothing after it does.
	field := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(field) < 20 {
		return 0, errors.New("unexpected format")
	}
	return strconv.ParseUint(string(field[19]), 10, 64)
}

// regular opens a file if it is the one that was meant, first as a reference: opening a device or a pipe has effects.
func regular(dir int, path string, e *errand.File) (*os.File, error) {
	ref, err := unix.Openat(dir, path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("could not be opened: %w", err)
	}
	defer unix.Close(ref)
	var st unix.Stat_t
	if err := unix.Fstat(ref, &st); err != nil {
		return nil, fmt.Errorf("could not be opened: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("not a regular file")
	case e.Inode != 0 && (st.Ino != e.Inode || st.Size != e.Size):
		return nil, errors.New("replaced before it could be opened")
	case st.Size > maxSize:
		return nil, errors.New("too large to hash")
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(ref), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("could not be opened: %w", err)
	}
	return os.NewFile(uintptr(fd), "executable"), nil
}

// sum hashes size bytes: more or less of them is a file that changed. It ends with the first read after the limit.
func sum(f *os.File, size int64, progress *atomic.Int64, limit time.Duration) (string, error) {
	start := time.Now()
	h := sha256.New()
	buf := make([]byte, chunk)
	total := int64(0)
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		total += int64(n)
		progress.Add(int64(n) + 1)
		switch {
		case total > size || total > maxSize:
			return "", errors.New("changed while it was read")
		case err == io.EOF && total == size:
			return hex.EncodeToString(h.Sum(nil)), nil
		case err == io.EOF:
			return "", errors.New("changed while it was read")
		case err != nil:
			return "", fmt.Errorf("could not be read: %w", err)
		case time.Since(start) > limit:
			return "", errSlow
		}
	}
}
