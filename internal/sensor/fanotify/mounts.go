package fanotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// kindOf sorts file systems by the name that /proc/PID/mountinfo has for them.
func kindOf(fstype string) kind {
	switch name, _, _ := strings.Cut(fstype, "."); name {
	case "overlay":
		return layered
	case "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "jfs", "reiserfs", "nilfs2", "tmpfs", "ramfs", "rootfs", "devtmpfs",
		"squashfs", "erofs", "vfat", "msdos", "exfat", "ntfs3", "hfs", "hfsplus", "iso9660", "udf", "minix", "romfs", "cramfs", "ufs", "hugetlbfs":
		return local
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "bpf", "tracefs", "debugfs", "securityfs", "pstore", "configfs", "autofs", "nsfs",
		"binfmt_misc", "fusectl", "rpc_pipefs", "efivarfs", "selinuxfs", "smackfs", "resctrl", "nfsd", "functionfs":
		return pseudo
	}
	return foreign // FUSE, network file systems, and whatever we do not know
}

// mounts knows which file systems are asked for.
type mounts struct {
	groups []*group

	mu      sync.Mutex         // never held while a file system is asked
	layers  bool               // there were some of that kind
	systems map[string]*system // by "major:minor", the superblock's
	unread  error              // why the mounts could not be read the last time
}

// system is a file system.
type system struct {
	device, fstype, point string
	kind                  kind
	err                   error // why it is not asked for
	fromElsewhere         bool  // found in another mount namespace: not forgotten when ours does not have it
}

func newMounts(groups []*group) *mounts {
	return &mounts{groups: groups, systems: map[string]*system{}}
}

// readAgain is after how long mounts are read again when they could not be.
const readAgain = time.Second

// read asks for the file systems that the file names and that were not asked for yet.
func (m *mounts) read(file string) error {
	b, err := os.ReadFile(file)
	m.mu.Lock()
	m.unread = err
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	seen := m.add(b, "", nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	for device, s := range m.systems {
		// Device numbers are used again: a file system that is mounted later must be asked for anew.
		if !seen[device] && !s.fromElsewhere {
			delete(m.systems, device)
		}
	}
	return nil
}

// elsewhereMax bounds the file systems that only other mount namespaces have.
const elsewhereMax = 1024

// add is for the lines of a mountinfo file, of mount points below root. It returns the devices that it met. m.mu is not held while a
// mount point is reached. Of another mount namespace, gone tells that the process through which it is reached ended, or left it.
func (m *mounts) add(mountinfo []byte, root string, gone func() bool) map[string]bool {
	elsewhere := gone != nil
	seen, done := map[string]bool{}, map[string]bool{}
	for line := range bytes.Lines(mountinfo) {
		id, device, point, fstype, ok := parseMount(string(line))
		if !ok {
			continue
		}
		seen[device] = true
		if done[device] || !m.wants(device, fstype, point, elsewhere) {
			continue
		}
		// One mount of it that can be reached is enough.
		kind := kindOf(fstype)
		err := m.mark(kind, id, root+point)
		done[device] = err == nil
		if err != nil && elsewhere && gone() {
			err = errEnded
		}
		m.mu.Lock()
		if s := m.systems[device]; s != nil && s.fstype == fstype {
			s.err = err
			if err == nil {
				s.point = point
				m.layers = m.layers || kind == layered
			}
		}
		m.mu.Unlock()
	}
	return seen
}

// wants reports whether a file system is to be asked for. One that was found in another mount namespace always is: nobody tells when it
// is gone and its number is that of another. To ask twice changes nothing.
func (m *mounts) wants(device, fstype, point string, elsewhere bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.systems[device]
	switch {
	case s == nil || s.fstype != fstype:
		if elsewhere && len(m.systems) > elsewhereMax {
			m.forgetElsewhere()
		}
		s = &system{device: device, fstype: fstype, point: point, kind: kindOf(fstype), fromElsewhere: elsewhere}
		m.systems[device] = s
	case !s.fromElsewhere && s.err == nil:
		return false
	case !elsewhere:
		s.fromElsewhere = false
	}
	return s.kind < kinds
}

func (m *mounts) forgetElsewhere() {
	for device, s := range m.systems {
		if s.fromElsewhere {
			delete(m.systems, device) // the mark stays; if the file system is met again it is set again, which changes nothing
		}
	}
}

var errCovered = errors.New("another mount lies over it")

func (m *mounts) mark(k kind, id uint64, path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return err
	}
	if st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id != id {
		return errCovered
	}
	if err := k.fits(fd); err != nil {
		return err
	}
	// A reference is not enough for the kernel: it wants a path.
	return m.groups[k].watchSystem(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd))
}

// follow reads the mounts again whenever they change (proc_pid_mountinfo(5): poll).
func (m *mounts) follow(ctx context.Context, file string, stop int) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("follow mounts: %w", err)
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		// What changed between the first reading and the opening is read here, what changes later wakes us.
		again := -1
		if err := m.read(file); err != nil {
			again = int(readAgain / time.Millisecond) // there may be descriptors again by then
		}
		if _, err := unix.Poll(poll, again); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("follow mounts: %w", err)
		}
		if poll[1].Revents != 0 {
			return nil
		}
	}
	return nil
}

// marked counts the file systems that are asked for.
func (m *mounts) marked() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.systems {
		if s.kind < kinds && s.err == nil {
			n++
		}
	}
	return n
}

// err is why one was refused.
func (m *mounts) err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.systems {
		if s.kind < kinds && s.err != nil {
			return fmt.Errorf("%s on %s: %w", s.fstype, s.point, s.err)
		}
	}
	return errors.New("no file system is mounted")
}

// State tells, as hooks, that executed files are handed over, and of which file systems they are not.
func (w *Watch) State() []event.Hook {
	state := []event.Hook{{Name: "fanotify", Attached: true}}
	var refused []event.Hook
	if why := w.Hung(); why != "" {
		refused = append(refused, event.Hook{Name: "fanotify, what does not answer", Error: why, Cost: costOf("it")})
	}
	m := w.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.systems {
		if s.kind < kinds && s.err != nil && !errors.Is(s.err, errCovered) && !errors.Is(s.err, errEnded) {
			refused = append(refused, event.Hook{
				Name: "fanotify " + event.Text([]byte(s.point)), Error: s.err.Error(), Cost: costOf(s.fstype + " on " + s.point),
			})
		}
	}
	slices.SortFunc(refused, func(a, b event.Hook) int { return strings.Compare(a.Name, b.Name) })
	return append(state, refused...)
}

// Off is the state when New failed.
func Off(err error) []event.Hook {
	return []event.Hook{{Name: "fanotify", Error: err.Error(), Cost: costOf("any file system")}}
}

func costOf(where string) string {
	return event.Text([]byte("the hash of programs on " + where + " that end at once; a change of an executable is noticed by its change time only"))
}

// parseMount reads one line of proc_pid_mountinfo(5).
func parseMount(line string) (id uint64, device, point, fstype string, ok bool) {
	left, right, ok := strings.Cut(line, " - ")
	field := strings.Split(left, " ") // other white space is part of a name
	if !ok || len(field) < 6 {
		return 0, "", "", "", false
	}
	id, err := strconv.ParseUint(field[0], 10, 64)
	fstype, _, found := strings.Cut(right, " ")
	if err != nil || !found {
		return 0, "", "", "", false
	}
	return id, field[2], unescape(field[4]), fstype, true
}

// unescape undoes the octal escapes of mountinfo: space, tab, newline, backslash, #.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
