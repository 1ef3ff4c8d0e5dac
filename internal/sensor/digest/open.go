package digest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Magic numbers of statfs(2): file systems whose device in stat is not that of the kernel's inode.
const (
	magicFUSE    = unix.FUSE_SUPER_MAGIC
	magicOverlay = unix.OVERLAYFS_SUPER_MAGIC
	magicBtrfs   = unix.BTRFS_SUPER_MAGIC
)

// young is the greatest difference between an exec and a change time of the same tick (10 ms with HZ=100), with
// some room for the error of the wall clock.
const young = 20 * time.Millisecond

// pathMax is PATH_MAX of linux/limits.h.
const pathMax = 4096

// tick is the unit of the start time in /proc/PID/stat.
const tick = 10_000_000

// problem is why a file was not hashed.
type problem struct {
	reason string // a Reason… constant
	detail error  // the system's words, or nil
}

func (p *problem) Error() string {
	if p.detail == nil {
		return p.reason
	}
	return p.reason + ": " + p.detail.Error()
}

func because(reason string) *problem { return &problem{reason: reason} }

// opened is a file that may be read.
type opened struct {
	fd    int
	stat  unix.Stat_t
	exact bool   // it is the file that the kernel named
	doubt string // if it is not exact: the reason
	held  bool   // fd is the asker's, from fanotify
}

// unchanged reports whether a file is as it was. Of a held descriptor the change time may move, as unlink and rename move it:
// whether it was written to is told by fanotify.
func (o *opened) unchanged(before, after *unix.Stat_t) bool {
	b, a := identity(before), identity(after)
	if o.held && b.Ctime != a.Ctime {
		o.exact, o.doubt = false, ReasonTouched
		b.Ctime, a.Ctime = before.Mtim.Nano(), after.Mtim.Nano()
	}
	return a == b
}

// open returns the file that p executes. Of several failures the one that tells the user most is returned.
func (d *Digester) open(a *asker) (*opened, *problem) {
	p := &a.Process
	if o := d.given(a); o != nil {
		return o, nil
	}
	if !p.ScriptFile.IsZero() && p.ScriptFile == p.File {
		// Its user may have led its path elsewhere since, and root would look there. What its user could open is held since it was found.
		if p.File.Size > d.o.MaxSize {
			return nil, because(ReasonSize)
		}
		return nil, because(ReasonScript)
	}
	path, plain := rawPath(p.Path)
	plain = plain && !p.File.IsZero() // without an identity nothing but the process can tell which file is meant
	if p.ID.PID == 0 && p.Path == "" {
		return nil, because(ReasonUnknown)
	}
	worst := because(ReasonGone)
	if plain && isYoung(p) {
		// Written, executed, ended and written again within one tick of the coarse clock: the change time may be
		// the same. While the program runs it cannot be written to.
		plain, worst = false, because(ReasonYoung)
	}
	note := func(why *problem) {
		if worst.reason == ReasonGone || worst.reason == ReasonYoung && why.reason != ReasonGone {
			worst = why
		}
	}
	if dir, ok := d.processDir(p.ID); ok {
		defer unix.Close(dir)
		o, why := d.through(p.File, true, func() (int, error) { return unix.Openat(dir, "exe", unix.O_PATH|unix.O_CLOEXEC, 0) })
		if o != nil {
			return o, nil
		}
		note(why)
		if plain {
			root, err := unix.Openat(dir, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err == nil {
				defer unix.Close(root)
				o, why = d.through(p.File, false, func() (int, error) { return openPath(root, path) })
				if o != nil {
					return o, nil
				}
				note(why)
			}
		}
	}
	if plain {
		o, why := d.through(p.File, false, func() (int, error) { return openPath(unix.AT_FDCWD, path) })
		if o != nil {
			return o, nil
		}
		note(why)
	}
	if worst.reason == ReasonGone && strings.HasPrefix(p.Path, "/memfd:") {
		worst = because(ReasonMemory)
	}
	return nil, worst
}

// OpenMemory opens what a process executes from memory (memfd_create(2)): fanotify tells nothing of it, so it must be had while the
// process runs. It never waits for a file system.
func (d *Digester) OpenMemory(p event.Process) (Descriptor, bool) {
	if !strings.HasPrefix(p.Path, "/memfd:") || !p.Deleted {
		return None(), false
	}
	dir, ok := d.processDir(p.ID)
	if !ok {
		return None(), false
	}
	defer unix.Close(dir)
	ref, err := unix.Openat(dir, "exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return None(), false
	}
	defer unix.Close(ref)
	if !inMemory(ref) {
		return None(), false
	}
	o, _ := d.through(p.File, true, func() (int, error) { return unix.FcntlInt(uintptr(ref), unix.F_DUPFD_CLOEXEC, 0) })
	if o == nil {
		return None(), false
	}
	return Descriptor{FD: o.fd, Vouched: o.exact, Since: time.Now()}, true
}

// inMemory reports whether what fd refers to is of memfd_create(2). Anybody can name a file so; only those are on the mount that the
// kernel keeps to itself. No file system is asked, because any but that one may never answer.
func inMemory(fd int) bool {
	id := mountID(fd)
	for _, flags := range []int{0, unix.MFD_HUGETLB} {
		mem, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|flags)
		if err != nil {
			continue // no such pages
		}
		same := id != "" && mountID(mem) == id
		unix.Close(mem)
		if same {
			return true
		}
	}
	return false
}

// mountID is that of a descriptor (proc_pid_fdinfo(5)); "" if it is not to be had.
func mountID(fd int) string {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// isYoung reports whether a file was changed so short before its exec that a change after it may have the same time.
func isYoung(p *event.Process) bool {
	age := p.Started - p.File.Ctime
	return age > -int64(young) && age < int64(young)
}

// given is the descriptor that came with the question, if it is of the file in question.
func (d *Digester) given(a *asker) *opened {
	if a.fd < 0 {
		return nil
	}
	o := &opened{fd: a.fd, held: true}
	var fs unix.Statfs_t
	if unix.Fstat(a.fd, &o.stat) != nil || o.stat.Mode&unix.S_IFMT != unix.S_IFREG || o.stat.Size > d.o.MaxSize {
		return nil
	}
	// Which file system it is matters only where its numbers are not the kernel's.
	if o.stat.Dev == a.File.Device && o.stat.Ino == a.File.Inode || unix.Fstatfs(a.fd, &fs) != nil {
		fs.Type = 0
	}
	switch compare(a.File, &o.stat, fs.Type) {
	case same:
		// Within one tick a write may have left the same change time.
		o.exact, o.doubt = a.file.Vouched || a.file.Own || !isYoung(&a.Process), ReasonYoung
	case moved:
		o.doubt = ReasonTouched
	default:
		return nil
	}
	return o
}

// through opens a file, first as a reference: opening a device or a pipe for reading has effects, and a stranger chose
// the path.
func (d *Digester) through(want event.FileID, running bool, open func() (int, error)) (*opened, *problem) {
	ref, err := open()
	if err != nil {
		return nil, errno(ReasonErrno, err)
	}
	defer unix.Close(ref)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(ref, &fs); err != nil {
		fs.Type = 0
	}
	o := &opened{fd: -1, doubt: ReasonTouched}
	if err := unix.Fstat(ref, &o.stat); err != nil {
		return nil, denied(errno(ReasonErrno, err), fs.Type)
	}
	switch compare(want, &o.stat, fs.Type) {
	case same:
		o.exact = true
	case moved:
		if !running {
			return nil, because(ReasonReplaced)
		}
		if (fs.Type == magicOverlay && o.stat.Ctim.Nano() != want.Ctime) || fs.Type == magicFUSE || fs.Type == unix.NFS_SUPER_MAGIC {
			// The bytes may be changed behind the file that runs.
			return nil, because(ReasonTouched)
		}
	default:
		return nil, because(ReasonReplaced)
	}
	if o.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, because(ReasonNoFile)
	}
	if o.stat.Size > d.o.MaxSize {
		return nil, because(ReasonSize)
	}
	// A process may not be able to open its own descriptors through a foreign proc: this is always our own.
	o.fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(ref), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, denied(errno(ReasonErrno, err), fs.Type)
	}
	return o, nil
}

// What compare found.
const (
	other = iota
	moved // the same inode and size, but the change time differs
	same
)

// compare tells whether a file is the one that the kernel named. On btrfs and overlayfs stat may tell a device of its own;
// there inode, size and change time must do. On overlayfs the inode may differ, too: the kernel named the file of the layer, and
// stat keeps the number that a file had before it was copied up. A zero identity is met by every file.
func compare(want event.FileID, st *unix.Stat_t, magic int64) int {
	switch {
	case want.IsZero():
		return same
	case want.Size != st.Size:
		return other
	case want.Inode != st.Ino && magic == magicOverlay && want.Ctime == st.Ctim.Nano():
		return moved
	case want.Inode != st.Ino:
		return other
	case want.Device != st.Dev && magic != magicBtrfs && magic != magicOverlay:
		return other
	case want.Ctime == st.Ctim.Nano():
		return same
	case want.Device != st.Dev:
		return other // only the change time could have told files of two subvolumes apart
	}
	return moved
}

// identity is the FileID of a file as stat tells it.
func identity(st *unix.Stat_t) event.FileID {
	return event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}
}

// processDir opens /proc/PID if it is still the process of id: what is opened below it later belongs to that
// process or fails, even when the pid is used again.
func (d *Digester) processDir(id event.ProcessID) (int, bool) {
	if id.PID == 0 {
		return -1, false
	}
	dir, err := unix.Open(filepath.Join(d.o.Proc, strconv.FormatUint(uint64(id.PID), 10)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false
	}
	start, err := startTime(dir)
	if err != nil || start != id.Start/tick {
		unix.Close(dir)
		return -1, false
	}
	return dir, true
}

// startTime is field 22 of dir/stat, in ticks since boot.
func startTime(dir int) (uint64, error) {
	fd, err := unix.Openat(dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything, also parentheses; nothing after it does.
	field := bytes.Fields(buf[bytes.LastIndexByte(buf[:n], ')')+1 : n])
	if len(field) < 20 {
		return 0, errors.New("unexpected format")
	}
	return strconv.ParseUint(string(field[19]), 10, 64)
}

// openPath opens an absolute path below root as a reference. The kernel walked it from directory entries, so it has
// no symbolic links: whoever puts one there is not followed.
func openPath(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	if root != unix.AT_FDCWD {
		how.Resolve |= unix.RESOLVE_IN_ROOT
	}
	fd, err := unix.Openat2(root, path, &how)
	if errors.Is(err, unix.EACCES) {
		// Root is refused the search: the folder that is still to be had tells whose fault it is.
		for up := filepath.Dir(path); ; up = filepath.Dir(up) {
			dir, failed := unix.Openat2(root, up, &how)
			if failed != nil && up != "/" {
				continue
			}
			var fs unix.Statfs_t
			if failed == nil && unix.Fstatfs(dir, &fs) == nil && fs.Type == magicFUSE {
				err = errFUSE
			}
			unix.Close(dir)
			return -1, err
		}
	}
	if errors.Is(err, unix.ENOSYS) { // a seccomp filter: every kernel that we run on has it
		if root != unix.AT_FDCWD {
			return -1, unix.ENOENT
		}
		return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	}
	return fd, err
}

// errFUSE is EACCES from a FUSE mount.
var errFUSE = errors.New("only the user of the mount may read it")

// errno makes a problem of a system error.
func errno(reason string, err error) *problem {
	switch {
	case errors.Is(err, errFUSE):
		return because(ReasonFUSE)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOTDIR):
		return because(ReasonGone)
	case errors.Is(err, unix.ELOOP):
		return because(ReasonReplaced)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return because(ReasonDenied)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return because(ReasonFiles)
	}
	return &problem{reason: reason, detail: err}
}

// denied tells apart the one refusal that root meets on a usual desktop.
func denied(p *problem, magic int64) *problem {
	if p.reason == ReasonDenied && magic == magicFUSE {
		return because(ReasonFUSE)
	}
	return p
}

// rawPath undoes event.Text. False: it is not a path that can be opened.
func rawPath(text string) (string, bool) {
	raw, ok := event.Raw(text)
	if !ok || len(raw) == 0 || raw[0] != '/' || bytes.IndexByte(raw, 0) >= 0 || len(raw) >= pathMax {
		return "", false
	}
	return string(raw), true
}
