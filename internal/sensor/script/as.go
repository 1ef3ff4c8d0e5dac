package script

import (
	"bytes"
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// nobody is the group of a process whose groups are not known: that of nothing (nogroup, nobody).
const nobody = 65534

// rights are those with which a process opens files.
type rights struct {
	uid    uint32
	gid    int
	groups []int
}

// with runs do on a thread that has only r's rights to files: the names come from a stranger, who must not learn through root
// what it cannot see itself. setfsuid(2) takes CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from the thread until it is undone. If it
// cannot be undone the thread ends: its goroutine ends locked to it. Of root's own processes nothing is hidden.
func (r rights) with(do func()) error {
	if r.uid == 0 {
		do()
		return nil
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		undo, err := r.take()
		if err == nil {
			do()
		}
		if undo() == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// take gives the calling thread r's rights. x/sys's calls are those of one thread, unlike package syscall's.
func (r rights) take() (undo func() error, err error) {
	uid, gid := fsuid(), fsgid()
	before, err := unix.Getgroups()
	if err != nil {
		return func() error { return nil }, fmt.Errorf("getgroups: %w", err)
	}
	undo = func() error {
		_ = unix.Setfsuid(int(uid)) // tells nothing: see setfsuid(2)
		_ = unix.Setfsgid(int(gid))
		if fsuid() != uid || fsgid() != gid {
			return unix.EPERM
		}
		return unix.Setgroups(before)
	}
	if err := unix.Setgroups(r.groups); err != nil {
		return undo, fmt.Errorf("setgroups: %w", err)
	}
	_ = unix.Setfsgid(r.gid)
	_ = unix.Setfsuid(int(r.uid))
	if fsgid() != uint32(r.gid) || fsuid() != r.uid {
		return undo, fmt.Errorf("setfsuid: %w", unix.EPERM)
	}
	return undo, nil
}

// fsuid asks by setting what cannot be set.
func fsuid() uint32 {
	id, _ := unix.SetfsuidRetUid(-1)
	return uint32(id)
}

func fsgid() uint32 {
	id, _ := unix.SetfsgidRetGid(-1)
	return uint32(id)
}

// rightsOf are those of the user who started the process. Its groups count only as long as it has nothing but its user's rights:
// a setuid program in its place may have been given others.
func rightsOf(uid uint32, dir int, alive bool) rights {
	r := rights{uid: uid, gid: nobody}
	if uid == 0 || !alive {
		return r
	}
	fd, err := unix.Openat(dir, "status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return r
	}
	defer unix.Close(fd)
	var buf [8192]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil || n == len(buf) { // cut: as if it had no groups
		return r
	}
	if gid, groups, ok := groupsOf(uid, buf[:n]); ok {
		r.gid, r.groups = gid, groups
	}
	return r
}

// groupsOf reads /proc/PID/status. Its first line, the name, may hold anything but a line feed.
func groupsOf(uid uint32, status []byte) (gid int, groups []int, ok bool) {
	gid = -1
	plain := 0 // lines that show ordinary rights
	for line := range bytes.Lines(status) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		field := bytes.Fields(value)
		switch string(key) {
		case "Uid": // real, effective, saved, file system
			for _, f := range field {
				if string(f) != strconv.FormatUint(uint64(uid), 10) {
					return 0, nil, false
				}
			}
			plain++
		case "Gid":
			if len(field) == 4 {
				gid, _ = strconv.Atoi(string(field[0]))
			}
		case "Groups":
			for _, f := range field {
				g, err := strconv.Atoi(string(f))
				if err != nil {
					return 0, nil, false
				}
				groups = append(groups, g)
			}
		case "CapPrm":
			if len(field) != 1 || len(bytes.Trim(field[0], "0")) != 0 {
				return 0, nil, false
			}
			plain++
		}
	}
	return gid, groups, gid > 0 && plain == 2
}
