package procfs

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	maxStat   = 4096  // 52 numbers and a comm of at most 63 bytes (kernel workers have long ones)
	maxStatus = 16384 // the list of groups may be long, but comes after the uids
	// kernelThread is PF_KTHREAD of include/linux/sched.h.
	kernelThread = 0x00200000
)

// stat is what is used of /proc/PID/stat.
type stat struct {
	pid   uint32
	comm  []byte // task_struct.comm: may hold any byte but NUL
	state byte
	ppid  uint32
	flags uint64
	start uint64 // ticks since boot
	// envEnd is where the environment ends in memory: 0 while an exec goes on, for what has no memory (any more), and for a process of another user when
	// this is not root (proc_pid_stat(5)).
	envEnd uint64
}

func (s stat) kernel() bool { return s.flags&kernelThread != 0 }
func (s stat) zombie() bool { return s.state == 'Z' || s.state == 'X' }

// parseStat parses "pid (comm) state ppid … flags … start …" (fields 1, 2, 3, 4, 9, 22, 51). The comm may hold
// parentheses, spaces and newlines; nothing after it does, so it ends at the last parenthesis.
func parseStat(b []byte) (stat, error) {
	open, last := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 2 || last < open || b[open-1] != ' ' {
		return stat{}, fmt.Errorf("no (comm): %w", ErrFormat)
	}
	var s stat
	pid, err := strconv.ParseUint(string(b[:open-1]), 10, 32)
	if err != nil {
		return stat{}, fmt.Errorf("pid: %w", ErrFormat)
	}
	s.pid, s.comm = uint32(pid), b[open+1:last]
	field := bytes.Fields(b[last+1:]) // from field 3
	if len(field) < 20 || len(field[0]) != 1 {
		return stat{}, fmt.Errorf("%d fields after (comm): %w", len(field), ErrFormat)
	}
	s.state = field[0][0]
	ppid, err := strconv.ParseUint(string(field[1]), 10, 32)
	if err != nil {
		return stat{}, fmt.Errorf("parent: %w", ErrFormat)
	}
	s.ppid = uint32(ppid)
	if s.flags, err = strconv.ParseUint(string(field[6]), 10, 64); err != nil {
		return stat{}, fmt.Errorf("flags: %w", ErrFormat)
	}
	s.start, err = strconv.ParseUint(string(field[19]), 10, 64)
	if err != nil || s.start > 1<<63/Tick {
		return stat{}, fmt.Errorf("start time: %w", ErrFormat)
	}
	if len(field) > 48 {
		if s.envEnd, err = strconv.ParseUint(string(field[48]), 10, 64); err != nil {
			return stat{}, fmt.Errorf("end of the environment: %w", ErrFormat)
		}
	}
	return s, nil
}

// parseUID returns the real uid from /proc/PID/status: "Uid:\treal\teffective\t…". The name line comes before it, but
// the kernel escapes newlines there.
func parseUID(b []byte) (uint32, error) {
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte("Uid:"))
		if !ok {
			continue
		}
		if field := bytes.Fields(rest); len(field) == 4 {
			if uid, err := strconv.ParseUint(string(field[0]), 10, 32); err == nil {
				return uint32(uid), nil
			}
		}
		break
	}
	return 0, fmt.Errorf("no uid: %w", ErrFormat)
}

// parseNamespace returns the inode number in "mnt:[4026531841]", or 0.
func parseNamespace(link string) uint32 {
	_, rest, _ := strings.Cut(link, ":[")
	number, ok := strings.CutSuffix(rest, "]")
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// maxPadding is how many empty arguments at the end are believed.
const maxPadding = 16

// parseCmdline splits arguments, each of which ends with NUL. A program that rewrote them may have left out the
// last NUL, or have filled the rest with NULs: more than maxPadding are taken for that and left out.
func parseCmdline(b []byte, cut bool) []string {
	if len(b) == 0 {
		return nil
	}
	if text := bytes.TrimRight(b, "\x00"); len(b)-len(text) > maxPadding+1 {
		b = text
	} else if !cut {
		b = bytes.TrimSuffix(b, []byte{0})
	}
	part := bytes.Split(b, []byte{0})
	argv := make([]string, len(part))
	for i := range part {
		argv[i] = event.Text(part[i])
	}
	return argv
}
