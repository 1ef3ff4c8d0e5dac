package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// deletedSuffix is what the kernel appends to the name of a file that has none any more (d_path), and what
// any file may really be called.
const deletedSuffix = " (deleted)"

func (f FS) path(pid uint32, name string) string {
	return f.root + "/" + strconv.FormatUint(uint64(pid), 10) + "/" + name
}

// read returns at most limit bytes of a file of pid, and whether there is more.
func (f FS) read(pid uint32, name string, limit int) ([]byte, bool, error) {
	return readFile(f.path(pid, name), limit)
}

func readFile(path string, limit int) (b []byte, cut bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, false, gone(err)
	}
	defer file.Close() // only read
	b, err = io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, false, gone(err)
	}
	if len(b) > limit {
		return b[:limit], true, nil
	}
	return b, false, nil
}

// gone makes ErrGone of the two ways in which /proc says it: no such file before the open, no such process after.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return ErrGone
	}
	return err
}

func (f FS) stat(pid uint32) (stat, error) {
	b, _, err := f.read(pid, "stat", maxStat)
	if err != nil {
		return stat{}, err
	}
	s, err := parseStat(b)
	if err != nil {
		return stat{}, fmt.Errorf("process %d: stat: %w", pid, err)
	}
	if s.pid != pid {
		return stat{}, fmt.Errorf("process %d: stat of %d: %w", pid, s.pid, ErrFormat)
	}
	return s, nil
}

func (f FS) id(pid uint32) (event.ProcessID, error) {
	s, err := f.stat(pid)
	if err != nil {
		return event.ProcessID{}, err
	}
	return event.ProcessID{PID: pid, Start: s.start * Tick}, nil
}

func (f FS) process(pid uint32) (event.Process, error) {
	// A process may exec, or end and leave its pid to another, between two reads: what was the same before and
	// after belongs together.
	for range 3 {
		p, err := f.once(pid)
		if !errors.Is(err, errMoved) {
			return p, err
		}
	}
	return event.Process{}, ErrGone
}

// errMoved is returned by once when the process changed while it was read.
var errMoved = errors.New("process changed while it was read")

func (f FS) once(pid uint32) (event.Process, error) {
	before, err := f.stat(pid)
	if err != nil {
		return event.Process{}, err
	}
	p := event.Process{
		ID:      event.ProcessID{PID: pid, Start: before.start * Tick},
		Name:    event.Text(before.comm),
		Kernel:  before.kernel(),
		Source:  event.SourceProcfs,
		Started: int64(before.start*Tick) + f.offset,
	}
	if before.ppid != 0 {
		p.Parent, err = f.id(before.ppid)
		if err != nil && !errors.Is(err, ErrGone) {
			return event.Process{}, err
		}
	}
	var links uint64
	if !p.Kernel {
		if p.File, links, err = f.file(pid); err != nil {
			return event.Process{}, err
		}
		if p.Path, p.Deleted, err = f.exe(pid, p.File, links); err != nil {
			return event.Process{}, err
		}
		if p.Argv, p.ArgvCut, err = f.cmdline(pid); err != nil {
			return event.Process{}, err
		}
	}
	status, _, err := f.read(pid, "status", maxStatus)
	if err != nil {
		return event.Process{}, err
	}
	if p.UID, err = parseUID(status); err != nil {
		return event.Process{}, fmt.Errorf("process %d: status: %w", pid, err)
	}
	if ns, err := os.Readlink(f.path(pid, "ns/mnt")); err == nil { // zombies have none
		p.MountNS = parseNamespace(ns)
	}
	after, err := f.stat(pid)
	if err != nil {
		return event.Process{}, err
	}
	file, _, err := f.file(pid)
	if err != nil {
		return event.Process{}, err
	}
	p.Name = event.Text(after.comm) // an exec that was going on before gave it another one
	// A zombie loses its file; what it was is still right.
	same := file == p.File || file.IsZero() && after.zombie()
	if after.start != before.start || !same && !p.Kernel {
		return event.Process{}, errMoved
	}
	return p, nil
}

// file is the identity of the executable that pid maps; zero for zombies and kernel threads.
func (f FS) file(pid uint32) (id event.FileID, links uint64, err error) {
	var st unix.Stat_t
	err = unix.Stat(f.path(pid, "exe"), &st)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return event.FileID{}, 0, nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EIO), errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ESTALE):
		// A FUSE mount of another user, or a file system whose server died: the path is still worth telling.
		return event.FileID{}, 0, nil
	case err != nil:
		return event.FileID{}, 0, fmt.Errorf("process %d: stat exe: %w", pid, err)
	}
	return event.FileID{Device: st.Dev, Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}, uint64(st.Nlink), nil
}

// exe is the path of the executable as the process's own root sees it.
func (f FS) exe(pid uint32, file event.FileID, links uint64) (path string, deleted bool, err error) {
	link, err := os.Readlink(f.path(pid, "exe"))
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENAMETOOLONG):
		// A zombie, a process of another user when this is not root, or a path longer than the kernel tells.
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("process %d: read exe: %w", pid, err)
	}
	root, err := os.Readlink(f.path(pid, "root"))
	if err == nil && root != "/" {
		// The kernel tells the path as this reader's root sees it.
		if rest, ok := strings.CutPrefix(link, root); ok && strings.HasPrefix(rest, "/") {
			link = rest
		}
	}
	if name, ok := strings.CutSuffix(link, deletedSuffix); ok {
		// A file with no name left has been given the suffix. One with names left has been given it when only this
		// name is gone; else it is really called so, and is there.
		if links == 0 || !f.isAt(pid, link, file) {
			link, deleted = name, true
		}
	}
	return event.Text([]byte(link)), deleted, nil
}

// isAt reports whether the file is at path in the process's root.
func (f FS) isAt(pid uint32, path string, file event.FileID) bool {
	var st unix.Stat_t
	if err := unix.Lstat(f.path(pid, "root")+path, &st); err != nil {
		return false
	}
	return st.Dev == file.Device && st.Ino == file.Inode
}

func (f FS) cmdline(pid uint32) ([]string, bool, error) {
	b, cut, err := f.read(pid, "cmdline", MaxCmdline)
	if err != nil {
		return nil, false, err
	}
	if len(b) == 0 {
		// An exec gives the process its new memory and file before it puts the arguments there (begin_new_exec and create_elf_tables in the kernel): nothing is
		// read then, which is not "no arguments". Nobody waits for the end of it, because a user's file system can make that last.
		s, err := f.stat(pid)
		if err != nil {
			return nil, false, err
		}
		cut = !s.kernel() && !s.zombie() && s.envEnd == 0
	}
	return parseCmdline(b, cut), cut, nil
}

// maxPreload is how many bytes of one value are told, as the kernel side does.
const maxPreload = 255

func (f FS) preload(pid uint32) (string, bool) {
	b, cut, err := f.read(pid, "environ", MaxEnviron)
	if err != nil {
		return "", true
	}
	var found [][]byte
	for v := range bytes.SplitSeq(b, []byte{0}) {
		name, value, ok := bytes.Cut(v, []byte{'='})
		if !ok || len(value) == 0 || string(name) != "LD_PRELOAD" && string(name) != "LD_AUDIT" {
			continue
		}
		if len(v) > maxPreload || len(found) == 4 {
			cut = true
		}
		if len(found) < 4 {
			found = append(found, v[:min(len(v), maxPreload)])
		}
	}
	return event.Text(bytes.Join(found, []byte{' '})), cut
}

func (f FS) processes() iter.Seq2[event.Process, error] {
	return func(yield func(event.Process, error) bool) {
		pids, err := f.pids()
		if err != nil {
			yield(event.Process{}, err)
			return
		}
		for _, pid := range pids {
			p, err := f.process(pid)
			if errors.Is(err, ErrGone) {
				continue
			}
			if err != nil {
				p = event.Process{ID: event.ProcessID{PID: pid}}
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

func (f FS) pids() ([]uint32, error) {
	dir, err := os.Open(f.root)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close() // only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	pids := make([]uint32, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.ParseUint(name, 10, 32); err == nil && pid > 0 {
			pids = append(pids, uint32(pid))
		}
	}
	slices.Sort(pids)
	return pids, nil
}

func (f FS) bootID() (string, error) {
	b, _, err := readFile(f.root+"/sys/kernel/random/boot_id", 64)
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := strings.TrimSuffix(string(b), "\n")
	if len(id) != 36 || strings.Trim(id, "0123456789abcdef-") != "" {
		return "", fmt.Errorf("boot id %q: %w", event.Text(b), ErrFormat)
	}
	return id, nil
}

func (f FS) hostname() (string, error) {
	b, _, err := readFile(f.root+"/sys/kernel/hostname", 256)
	if err != nil {
		return "", fmt.Errorf("read host name: %w", err)
	}
	return event.Text([]byte(strings.TrimSuffix(string(b), "\n"))), nil
}
