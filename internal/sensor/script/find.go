package script

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Reasons for which a script's file is not known; they are shown to the user.
const (
	ReasonModule    = "a module: which file it is, only the interpreter knows"
	ReasonFolder    = "where its interpreter was started is not known"
	ReasonGone      = "not there when it was looked for"
	ReasonEnded     = "its interpreter had ended, in another root or mount namespace"
	ReasonChanged   = "changed, renamed or put there after its interpreter was started"
	ReasonYoung     = "written just when its interpreter was started: which version ran cannot be proven"
	ReasonNoFile    = "not a regular file"
	ReasonDenied    = "unreadable for its user: permission denied"
	ReasonRights    = "could not be opened with the rights of its user" // followed by the system's words
	ReasonPrivate   = "a name that means something to its interpreter only"
	ReasonCut       = "its path is longer than 1022 bytes: only the beginning is known"
	ReasonName      = "its name cannot be a path"
	ReasonFiles     = "too many open files: raise \"Set RLIMIT_NOFILE\""
	ReasonErrno     = "could not be opened" // followed by the system's words
	ReasonBusy      = "too many scripts at once"
	ReasonStalled   = "its file system did not answer in time"
	ReasonArguments = "the arguments of its interpreter could not be read"
)

// young is how close to the start a change may be: change times are cut to a tick of the kernel's coarse clock (10 ms with HZ=100;
// before Linux 6.13), and the wall clock of the start is computed.
const young = 20 * time.Millisecond

// Question is which file an interpreter was started to run.
type Question struct {
	Process event.ProcessID
	UID     uint32 // its real user (initial user namespace), with whose rights the file is opened
	Started int64  // wall clock of the exec, ns since 1970; 0: long ago, everything that is there was there
	Meaning Meaning
	// Folder is the working directory at exec as the process's root saw it, safe text; "" if not known.
	Folder string
	// Machine is true when the process saw the files that we see: its scripts can be found when it has ended, too.
	Machine bool
}

// File is the answer.
type File struct {
	Path   string       // as the process's root sees it, before links are followed; safe text
	ID     event.FileID // zero: not known, see Reason
	FD     int          // open for reading, or -1; who gets it closes it
	Waits  bool         // whoever closes FD may wait for its file system
	Reason string
}

// Finder looks for scripts.
type Finder struct {
	Proc string // where proc is mounted
	Root string // the machine's root
}

// tick is the unit of the start time in /proc/PID/stat.
const tick = 10_000_000

// Find opens the file that q means, with the rights of its user: it follows symbolic links below the process's root, but none
// of proc's. A file that was written, renamed or made after the interpreter started is not returned: its change time tells, and
// that of the links which stood in its place. That a folder above it, or a link in the place of one, was exchanged is not noticed. It may block in a file system.
func (f Finder) Find(q Question) File {
	out := File{FD: -1, Path: Path(q.Meaning, q.Folder)}
	raw, ok := event.Raw(out.Path)
	if !ok || bytes.IndexByte(raw, 0) >= 0 || len(raw) >= unix.PathMax {
		out.Reason = ReasonName
		return out
	}
	name := string(raw)
	if !path.IsAbs(name) {
		out.Reason = ReasonFolder
		return out
	}
	dir, alive := f.process(q.Process)
	if alive {
		defer unix.Close(dir)
	} else {
		dir = -1
	}
	from, why := f.from(q, name, dir)
	if why != "" {
		out.Reason = why
		return out
	}
	defer unix.Close(from.fd)
	if err := rightsOf(q.UID, dir, alive).with(func() { from.open(q, &out) }); err != nil {
		out.Reason = ReasonRights + ": " + err.Error()
	}
	return out
}

// open fills in out. It runs with the rights of the process's user.
func (s start) open(q Question, out *File) {
	ref, changed := s.fd, int64(0)
	if s.name != "" {
		var name string
		var err error
		if ref, name, err = s.look(q.Meaning.Suffixes); err != nil {
			out.Reason = reason(err)
			return
		}
		defer unix.Close(ref)
		// After the file was opened: who exchanges a link between the two gives it a new change time.
		if changed, err = s.newestLink(name); err != nil {
			out.Reason = reason(err)
			return
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(ref, &st); err != nil {
		out.Reason = reason(err)
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		out.Reason = ReasonNoFile
		return
	}
	if q.Started != 0 {
		switch after := time.Duration(max(changed, st.Ctim.Nano()) - q.Started); {
		case after > young:
			out.Reason = ReasonChanged
			return
		case after > -young:
			out.Reason = ReasonYoung
			return
		}
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(ref), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		out.Reason = reason(err)
		return
	}
	out.FD, out.Waits = fd, waits(fd)
	out.ID = event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}
}

// waits reports whether close(2) of what was only read asks who serves the file: FUSE does, and what may lie on it.
func waits(fd int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return true
	}
	return fs.Type == unix.FUSE_SUPER_MAGIC || fs.Type == unix.OVERLAYFS_SUPER_MAGIC || fs.Type == unix.ECRYPTFS_SUPER_MAGIC
}

// Path is where a script was meant to be, as the process's root saw it: safe text. Without a folder it is what was
// given. Links may lead out of what ".." seems to undo, so it stays.
func Path(m Meaning, folder string) string {
	name := m.Name
	for strings.HasPrefix(name, "./") {
		name = strings.TrimLeft(name[2:], "/")
	}
	for _, f := range []string{m.Folder, folder} {
		if f != "" && !path.IsAbs(name) {
			name = strings.TrimRight(f, "/") + "/" + name
		}
	}
	return name
}

// start is where the way to a file begins.
type start struct {
	fd   int    // a mere reference to the root; or to the file
	name string // below the root; "": fd is the file
}

// from returns the root of the process, or its own descriptor, or why there is none. dir is its folder in proc, -1 when it has ended.
func (f Finder) from(q Question, name string, dir int) (start, string) {
	if rest, ok := descriptor(name); ok {
		if dir < 0 {
			return start{}, ReasonEnded
		}
		return begin("", dir, rest, 0)
	}
	switch {
	case strings.HasPrefix(name, "/proc/"):
		return start{}, ReasonPrivate // self is another one there
	case q.Machine:
		return begin(name, unix.AT_FDCWD, f.Root, unix.O_DIRECTORY)
	case dir >= 0:
		return begin(name, dir, "root", unix.O_DIRECTORY)
	}
	return start{}, ReasonEnded
}

func begin(name string, dir int, at string, flags int) (start, string) {
	fd, err := unix.Openat(dir, at, flags|unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return start{}, reason(err)
	}
	return start{fd: fd, name: name}, ""
}

// look returns a mere reference to the file, and the name that it has.
func (s start) look(suffixes []string) (ref int, name string, err error) {
	for _, suffix := range append([]string{""}, suffixes...) {
		name = s.name + suffix
		if ref, err = s.at(name, 0); err == nil {
			return ref, name, nil
		}
	}
	return -1, "", err
}

// at opens a mere reference to what name is below the root.
func (s start) at(name string, flags uint64) (int, error) {
	return unix.Openat2(s.fd, name, &unix.OpenHow{
		Flags: flags | unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// newestLink is the latest change time of the links that name's last part and theirs lead through; 0: there are none. Links in the place of
// folders are not looked at.
func (s start) newestLink(name string) (newest int64, err error) {
	for range linksMax {
		ref, err := s.at(name, unix.O_NOFOLLOW)
		if err != nil {
			return 0, err
		}
		to, changed, err := readLink(ref)
		unix.Close(ref)
		if err != nil || to == "" {
			return newest, err
		}
		newest = max(newest, changed)
		if !path.IsAbs(to) {
			to = name[:strings.LastIndexByte(strings.TrimRight(name, "/"), '/')+1] + to
		}
		name = to
	}
	return 0, unix.ELOOP
}

// linksMax is the kernel's own limit: MAXSYMLINKS in linux/namei.h.
const linksMax = 40

// readLink returns where a link leads and when it was changed; "" if ref is none.
func readLink(ref int) (to string, changed int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(ref, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", 0, err
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(ref, "", buf[:])
	if err != nil {
		return "", 0, err
	}
	return string(buf[:n]), st.Ctim.Nano(), nil
}

// descriptor tells names of a process's own descriptors: what `bash <(command)` and execveat(2) give.
func descriptor(name string) (string, bool) {
	for _, prefix := range []string{"/dev/fd/", "/proc/self/fd/"} {
		if n, ok := strings.CutPrefix(name, prefix); ok && n != "" && len(n) < 8 && strings.Trim(n, "0123456789") == "" {
			return "fd/" + n, true
		}
	}
	if name == "/dev/stdin" {
		return "fd/0", true
	}
	return "", false
}

func reason(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOTDIR):
		return ReasonGone
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return ReasonDenied
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return ReasonFiles
	case errors.Is(err, unix.ELOOP):
		return ReasonPrivate
	}
	return ReasonErrno + ": " + err.Error()
}

// process opens /proc/PID if it is still that process: what is opened below it later belongs to it or fails.
func (f Finder) process(id event.ProcessID) (int, bool) {
	dir, err := unix.Open(filepath.Join(f.Proc, strconv.FormatUint(uint64(id.PID), 10)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
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
	// The name in parentheses may hold anything; nothing after it does.
	field := bytes.Fields(buf[bytes.LastIndexByte(buf[:n], ')')+1 : n])
	if len(field) < 20 {
		return 0, os.ErrInvalid
	}
	return strconv.ParseUint(string(field[19]), 10, 64)
}
