package daemon

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// loggedIn finds the users with a session bus, and their groups. systemd-logind makes base, which is root's, and in it a
// directory for each of them; only names and owners are looked at. A user can mount a file system of his own there, and root must not ask
// it: one that never answers would hold picosnitch up, and could not even be killed (fuse: request_wait_answer). So everything is looked at
// through descriptors that ask nobody (O_PATH, AT_STATX_DONT_SYNC), and only below a mount that is base's own or in memory.
func loggedIn(base string) map[uint32]uint32 {
	here := map[uint32]uint32{}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	root, err := unix.Open(base, flags, 0)
	if err != nil {
		return here
	}
	defer unix.Close(root)
	st, ok := unasked(root, "")
	if !ok || st.Uid != 0 || st.Mode&0o022 != 0 {
		return here // what others may write to says nothing about who is there
	}
	mount := st.Mnt_id
	entries, err := os.ReadDir(base)
	if err != nil {
		return here
	}
	var mounts []byte // read once, when one is met
	for _, e := range entries {
		uid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		fd, err := unix.Openat(root, e.Name(), flags, 0)
		if err != nil {
			continue
		}
		dir, ok := unasked(fd, "")
		if ok && dir.Mnt_id != mount {
			if mounts == nil {
				mounts, _ = os.ReadFile("/proc/self/mountinfo") // empty: nobody is there
			}
			ok = inMemory(mounts, dir.Mnt_id)
		}
		if ok && uint64(dir.Uid) == uid {
			if bus, ok := unasked(fd, "bus"); ok && bus.Mode&unix.S_IFMT == unix.S_IFSOCK && uint64(bus.Uid) == uid {
				here[uint32(uid)] = dir.Gid
			}
		}
		unix.Close(fd)
	}
	return here
}

// unasked looks at name in dir, or at dir itself for "", without asking its file system for news.
func unasked(dir int, name string) (unix.Statx_t, bool) {
	var st unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st) // STATX_MNT_ID: Linux 5.8
	return st, err == nil && st.Mask&unix.STATX_MNT_ID != 0
}

// inMemory reports whether a mount with a number is of a file system that the kernel itself is: proc_pid_mountinfo(5).
func inMemory(mountinfo []byte, id uint64) bool {
	for line := range bytes.Lines(mountinfo) {
		first, rest, _ := bytes.Cut(line, []byte(" "))
		if n, err := strconv.ParseUint(string(first), 10, 64); err != nil || n != id {
			continue
		}
		_, rest, _ = bytes.Cut(rest, []byte(" - ")) // blanks in paths are escaped
		kind, _, _ := bytes.Cut(rest, []byte(" "))
		return string(kind) == "tmpfs" || string(kind) == "ramfs"
	}
	return false
}
