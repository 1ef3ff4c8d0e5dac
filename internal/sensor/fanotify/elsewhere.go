package fanotify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// walks look at the mounts of other mount namespaces. Who makes such a namespace chooses what lies on the way to its mount points, also
// a FUSE file system that never answers, or one that takes as long as it may: a goroutine of its own walks there, and may hang for ever.
// The namespaces of root have walkers of their own, that nobody else can hold up with however many user ids (subuid(5)).
type walks struct {
	own   uint32                     // our mount namespace
	walk  func(walk) error           // by a walker
	owner func(pid, ns uint32) owner // never waits for a file system
	slow  time.Duration              // after it a walker is replaced
	late  time.Duration              // who waited that long is given up

	mu      sync.Mutex // guards all below; never held while a file system is asked
	met     map[uint32]time.Time
	root    *lane
	users   *lane // of everybody else
	swept   time.Time
	given   uint64 // up: they waited too long
	refused uint64 // there was no room for them
}

// walk is a mount namespace to look at, through a process in it.
type walk struct {
	pid, ns uint32
	owner   owner
	since   time.Time
}

// owner is the user whose namespaces these are, however deep he nested them; 0 is root.
type owner uint32

// unknown stands for all that could not be asked whose it is. It is nobody's user id (chown(2)).
const unknown = ^owner(0)

const (
	// metAgain is after how long a namespace is looked at again: it has other mounts now, or its number is that of another.
	metAgain = time.Second
	metMax   = 4096
	// walksMax bounds the namespaces of root that wait, and those of all others; userWalks bounds those of one user.
	walksMax  = 1024
	userWalks = 256
	// walkers walk at once for root, and as many for all others. One that is slow is replaced, as long as fewer than walkersHung are.
	walkers     = 2
	walkersHung = 16
	walkSlow    = 2 * time.Second
	walkLate    = 10 * time.Second
	// userHung is how many of them one user may have at once: whoever makes file systems that do not answer loses his own programs' hashes.
	userHung = 4
)

func newWalks(f func(walk) error) *walks {
	k := &walks{
		walk: f, owner: ownerOf, slow: walkSlow, late: walkLate, met: map[uint32]time.Time{},
		root: newLane(walksMax, walkers+walkersHung), users: newLane(userWalks, userHung),
	}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/mnt", &st) == nil {
		k.own = uint32(st.Ino)
	}
	return k
}

// Elsewhere asks for the file systems of another mount namespace: that of a process, as far as it can be reached. It does not wait:
// they are asked for a moment later.
func (w *Watch) Elsewhere(pid, ns uint32) {
	if k := w.walks; ns != k.own && k.meet(ns, time.Now()) {
		k.add(walk{pid: pid, ns: ns, owner: k.owner(pid, ns)})
	}
}

// meet reports whether a namespace is to be looked at.
func (k *walks) meet(ns uint32, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.met[ns]) < metAgain || k.root.hangs(ns) || k.users.hangs(ns) {
		return false
	}
	if len(k.met) >= metMax {
		clear(k.met)
	}
	k.met[ns] = now
	return true
}

func (k *walks) add(this walk) {
	this.since = time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if this.owner == unknown {
		delete(k.met, this.ns) // the process may have ended: the next one can be asked
	}
	if !k.laneOf(this.owner).add(this) {
		k.refused++
		delete(k.met, this.ns) // the next exec in it asks again
	}
	k.tend(this.since)
}

func (k *walks) laneOf(o owner) *lane {
	if o == 0 {
		return k.root
	}
	return k.users
}

// tend gives up what waited too long, and starts walkers. k.mu is held.
func (k *walks) tend(now time.Time) {
	sweep := now.Sub(k.swept) > k.late/16 // not at every exec
	if sweep {
		k.swept = now
	}
	for _, l := range []*lane{k.root, k.users} {
		if sweep {
			for _, late := range l.giveUp(now.Add(-k.late)) {
				k.given++
				delete(k.met, late.ns) // the next exec in it asks again
			}
		}
		for n := min(l.slow(now.Add(-k.slow)), walkersHung) + walkers - len(l.begun); n > 0; n-- {
			next := l.next()
			if next == nil {
				break
			}
			l.begun[next] = now
			go k.run(l, next)
		}
	}
}

func (k *walks) run(l *lane, this *walk) {
	err := k.walk(*this)
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		delete(k.met, this.ns) // another process in it may last longer
	}
	delete(l.begun, this)
	k.tend(now)
}

// hung is how many walkers are slow, now.
func (k *walks) hung() int {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tend(now)
	return k.root.slow(now.Add(-k.slow)) + k.users.slow(now.Add(-k.slow))
}

// missed counts the namespaces that were not looked at.
func (k *walks) missed() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.given + k.refused
}

// ownerOf asks who made the outermost user namespace around a mount namespace (ioctl_ns(2)), through a process in it.
func ownerOf(pid, ns uint32) owner {
	dir, err := openProcess(pid)
	if err != nil {
		return unknown
	}
	defer unix.Close(dir)
	return ownerIn(dir, ns)
}

// openProcess returns a descriptor of the folder of a process in /proc: in it nothing is found of another process that gets its number.
func openProcess(pid uint32) (int, error) {
	return unix.Open("/proc/"+strconv.FormatUint(uint64(pid), 10), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// ownerIn is ownerOf, through the folder of the process.
func ownerIn(dir int, ns uint32) owner {
	fd, err := unix.Openat(dir, "ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unknown
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil || uint32(st.Ino) != ns {
		unix.Close(fd)
		return unknown
	}
	user, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	unix.Close(fd)
	if err != nil {
		return unknown
	}
	of := owner(0)
	for {
		parent, err := unix.IoctlRetInt(user, unix.NS_GET_PARENT)
		if err != nil {
			unix.Close(user)
			if !errors.Is(err, unix.EPERM) { // there is none: it is the initial one, or ours
				return unknown
			}
			return of
		}
		uid, err := unix.IoctlGetUint32(user, unix.NS_GET_OWNER_UID)
		unix.Close(user)
		if err != nil {
			unix.Close(parent)
			return unknown
		}
		of, user = owner(uid), parent
	}
}

// Hung tells what does not answer, if there is something.
func (w *Watch) Hung() string {
	if w.groups[layered].hangs() {
		return "an overlay file system does not answer: no program on any of them is handed over"
	}
	w.mounts.mu.Lock()
	unread := w.mounts.unread
	w.mounts.mu.Unlock()
	if unread != nil {
		return fmt.Sprintf("the mounts cannot be read: no program on file systems that are mounted now is handed over: %v", unread)
	}
	if n := w.walks.hung(); n > 0 {
		return fmt.Sprintf("%d mount namespaces have a file system that does not answer", n)
	}
	return ""
}

var errEnded = errors.New("the process ended")

// visit asks for the file systems in the mount namespace of a process. The process, or another that has its number since, may have gone
// to a namespace of another owner, who would hold up walkers that are not his: the way starts at what was the root when that was checked.
func (m *mounts) visit(to walk) error {
	dir, err := openProcess(to.pid)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if to.owner != ownerIn(dir, to.ns) && to.owner != unknown {
		return errEnded
	}
	root, err := unix.Openat(dir, "root", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	gone := func() bool {
		var st unix.Stat_t
		err := unix.Fstatat(dir, "ns/mnt", &st, 0)
		return err != nil || uint32(st.Ino) != to.ns
	}
	if gone() {
		return errEnded
	}
	b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(dir) + "/mountinfo")
	if err != nil {
		return err
	}
	m.add(b, "/proc/self/fd/"+strconv.Itoa(root), gone)
	// Of an ended process' namespace no mount point can be reached.
	if gone() {
		return errEnded
	}
	return nil
}

// fits reports whether what was opened is on a file system of the kind that mountinfo told: another may be mounted there since, and
// the local group must never wait for a server.
func (k kind) fits(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	return k.fitsType(fs.Type)
}

var errOther = errors.New("a file system of another kind is mounted there")

func (k kind) fitsType(magic int64) error {
	switch magic & 0xffffffff {
	case unix.OVERLAYFS_SUPER_MAGIC:
		if k == layered {
			return nil
		}
		return errOther
	case unix.FUSE_SUPER_MAGIC, unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.NCP_SUPER_MAGIC, cephMagic:
		return errOther
	}
	if k == layered {
		return errOther
	}
	return nil
}

// cephMagic is CEPH_SUPER_MAGIC.
const cephMagic = 0x00c36400
