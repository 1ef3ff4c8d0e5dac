package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/recorder"
)

// ChildOptions are the arguments of the hidden command `recorder`.
type ChildOptions struct {
	Prepare  bool   // drop all rights first
	UID, GID uint32 // who to become
	Dir      string // the folder
	Feed     string // directory of the live feed
	Live     bool
	Try      bool // reach for the folder, and end
}

// Child is the recorder's process. It has two stages: with Prepare it runs as root just long enough to see the
// folder, drops every right and executes itself again, so that nothing of root's memory or descriptors is left; then
// it records until the stream ends.
func Child(o ChildOptions) error {
	if o.Prepare {
		return prepare(o)
	}
	if o.Try {
		return reach(o.Dir, o.Feed)
	}
	return recordStream(o)
}

// prepare only returns on failure. All calls but the mounts change one thread; execve(2) makes its state the process's.
func prepare(o ChildOptions) error {
	runtime.LockOSThread()
	if o.UID == 0 || o.GID == 0 {
		return errors.New("the recorder must not be root")
	}
	dir, err := mountFolder(o.Feed)
	if err != nil {
		// Without the right to mount the recorder can still write where the path lets it through.
		fmt.Fprintf(os.Stderr, "picosnitch: the recorder has no mount namespace of its own (%v) and uses %s by its path\n", err, o.Dir)
		dir = o.Dir
	}
	exe, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/self/exe: %w", err)
	}
	if err := dropRights(o.UID, o.GID); err != nil {
		return fmt.Errorf("%w: %s", err, rightsHint)
	}
	unix.Umask(0o027)
	keep := []int{streamFD, doorFD}
	if o.Try {
		keep = []int{2}
	}
	if err := keepOnly(keep...); err != nil {
		return err
	}
	args := []string{"picosnitch", "recorder", "--dir", dir, "--feed", o.Feed}
	if o.Live {
		args = append(args, "--live")
	}
	if o.Try {
		args = append(args, "--try")
	}
	err = execveat(exe, args, os.Environ())
	if errors.Is(err, unix.ENOENT) {
		// Tomoyo looks the program up as /dev/fd/N (tomoyo_find_next_domain in Linux 5.10, where Debian has it on).
		return fmt.Errorf("execute picosnitch as uid %d: %w: this kernel needs /dev/fd for it: ln -s /proc/self/fd /dev/fd", o.UID, err)
	}
	return fmt.Errorf("execute picosnitch as uid %d: %w: the file of the program must be executable for everybody (chmod 755)", o.UID, err)
}

// keepOnly lets the standard descriptors and keep, which follow them, survive the exec; everything else closes with it.
func keepOnly(keep ...int) error {
	first := keep[len(keep)-1] + 1
	if err := unix.CloseRange(uint(first), ^uint(0)>>1&0xffffffff, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		for fd := first; fd < 1024; fd++ {
			unix.CloseOnExec(fd)
		}
	}
	for _, fd := range keep {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// nameProcess: after execveat the name would be the number of a descriptor.
func nameProcess() {
	name := append([]byte("picosnitch"), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

// mountFolder makes the folder of descriptor folderFD appear at feed/files, in a mount namespace of our own: neither
// the modes nor the links of the directories on the way to it matter then.
func mountFolder(feed string) (string, error) {
	// Before unshare: a mount can be copied only from the namespace that it is in.
	tree, err := unix.OpenTree(folderFD, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return "", fmt.Errorf("copy the folder's mount: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return "", fmt.Errorf("unshare the mount namespace: %w", err)
	}
	// Slave, not private: an unmount on the host must reach us, or we would keep a removed disk busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return "", fmt.Errorf("separate the mounts: %w", err)
	}
	// The recorder owns feed, so nothing in it may be followed.
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	parent, err := unix.Open(feed, flags, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", feed, err)
	}
	defer unix.Close(parent)
	target, err := unix.Openat(parent, "files", flags, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", filepath.Join(feed, "files"), err)
	}
	defer unix.Close(target)
	// Linux 5.12; no_new_privs gives the same before.
	_ = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("mount the folder: %w", err)
	}
	return filepath.Join(feed, "files"), nil
}

// dropRights makes the calling thread uid and gid, for good. capabilities(7).
func dropRights(uid, gid uint32) error {
	for c := uintptr(0); c <= 63; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the kernel's last capability
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	// The raw calls change this thread only, which is the one that executes the recorder.
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return fmt.Errorf("drop groups: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return fmt.Errorf("become gid %d: %w", gid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return fmt.Errorf("become uid %d: %w", uid, e)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// execveat executes an open file: its path may lead through directories that only root can enter.
func execveat(fd int, args, env []string) error {
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	envv, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	empty := [1]byte{}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return e
}

// recordStream runs the recorder on the stream of descriptor streamFD.
func recordStream(o ChildOptions) error {
	// Not readable, not traceable and no core file, also for another process of the same uid.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protect the recorder: %w", err)
	}
	// It ends when the stream does, and with nothing else: its last window is still to be written then.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE)
	nameProcess()

	stream := os.NewFile(streamFD, "stream")
	if stream == nil {
		return errors.New("no stream: this command is only for picosnitch itself")
	}
	defer stream.Close()
	set, in, err := recorder.ReadSettings(ending{stream})
	if err != nil {
		return fmt.Errorf("%w: this command is only for picosnitch itself", err)
	}
	door, err := errand.NewDoor(os.NewFile(doorFD, "door"))
	if err != nil {
		return fmt.Errorf("%w: this command is only for picosnitch itself", err)
	}
	defer door.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	reopen := make(chan struct{}, 1)
	go func() {
		for range hup {
			select {
			case reopen <- struct{}{}:
			default: // one is under way
			}
		}
	}()
	var mu sync.Mutex
	options := recorder.Options{
		Dir:      o.Dir,
		FeedDir:  o.Feed,
		Settings: set,
		Door:     door,
		Logger:   log,
		Reopen:   reopen,
		Tool:     packageTool,
		Machine:  true,
		Past:     past(filepath.Join(o.Dir, "snitch.db")),
		Ack: func(batch uint64) error {
			mu.Lock()
			defer mu.Unlock()
			_, err := stream.Write(strconv.AppendUint([]byte(`{"ack":`), batch, 10))
			if err == nil {
				_, err = stream.Write([]byte("}\n"))
			}
			return err
		},
	}
	if o.Live {
		options.Live = os.Stdout
	}
	return recorder.Run(context.Background(), in, options)
}

// ending makes the end of a sensor that was killed with unread acks an end of the stream: everything that it had
// written was read before the kernel reports the reset.
type ending struct{ r io.Reader }

func (e ending) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if errors.Is(err, unix.ECONNRESET) {
		err = io.EOF
	}
	return n, err
}
