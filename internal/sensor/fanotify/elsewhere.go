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
// a FUSE file system that never answers: a goroutine of its own walks there, and may hang for ever.
type walks struct {
	own   uint32                 // our mount namespace
	walk  func(walk) error       // by a walker
	owner func(pid uint32) owner // never waits for a file system

	mu     sync.Mutex // guards all below; never held while a file system is asked
	met    map[uint32]time.Time
	queue  []walk
	begun  map[*walk]time.Time // by walkers, now
	missed uint64
}

// walk is a mount namespace to look at, through a process in it.
type walk struct {
	pid, ns uint32
	owner   owner // known when a walker has begun
}

// owner is the user whose namespaces these are, however deep he nested them; 0 is root.
type owner uint32

const (
	// metAgain is after how long a namespace is looked at again: it has other mounts now, or its number is that of another.
	metAgain = time.Second
	metMax   = 4096
	// walksMax bounds the namespaces that wait.
	walksMax = 1024
	// walkers walk at once. One that is slow is replaced, as long as fewer than walkersHung are.
	walkers     = 2
	walkersHung = 16
	walkSlow    = 2 * time.Second
	// userHung is how many of them one user may hold up: whoever makes file systems that do not answer loses his own programs' hashes.
	userHung = 4
)

func newWalks(f func(walk) error) *walks {
	k := &walks{walk: f, owner: ownerOf, met: map[uint32]time.Time{}, begun: map[*walk]time.Time{}}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/mnt", &st) == nil {
		k.own = uint32(st.Ino)
	}
	return k
}

// Elsewhere asks for the file systems of another mount namespace: that of a process, as far as it can be reached. It does not wait:
// they are asked for a moment later.
func (w *Watch) Elsewhere(pid, ns uint32) {
	k := w.walks
	if ns == k.own {
		return
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.met[ns]) < metAgain {
		return
	}
	for b := range k.begun {
		if b.ns == ns {
			return // it hangs there
		}
	}
	if len(k.queue) >= walksMax {
		k.missed++
		return // the next exec in it asks again
	}
	if len(k.met) >= metMax {
		clear(k.met)
	}
	k.met[ns] = now
	k.queue = append(k.queue, walk{pid: pid, ns: ns})
	k.tend(now)
}

// tend starts walkers. k.mu is held.
func (k *walks) tend(now time.Time) {
	for n := min(k.slow(now), walkersHung) + walkers - len(k.begun); n > 0 && len(k.queue) > 0; n-- {
		next := k.queue[0]
		k.queue = k.queue[1:]
		k.begun[&next] = now
		go k.run(&next)
	}
}

func (k *walks) slow(now time.Time) (n int) {
	for _, at := range k.begun {
		if now.Sub(at) > walkSlow {
			n++
		}
	}
	return n
}

func (k *walks) run(this *walk) {
	var err error
	if of := k.owner(this.pid); k.admit(this, of) {
		err = k.walk(*this)
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		delete(k.met, this.ns) // another process in it may last longer
	}
	delete(k.begun, this)
	k.tend(now)
}

// admit reports whether a walker may go to namespaces of that user. If not, it is counted, and the next exec there asks again.
func (k *walks) admit(this *walk, of owner) bool {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	this.owner = of
	hung := 0
	for b, at := range k.begun {
		if b.owner == of && now.Sub(at) > walkSlow {
			hung++
		}
	}
	if of == 0 || hung < userHung {
		return true
	}
	k.missed++
	return false
}

// ownerOf asks who made the outermost user namespace around the mount namespace of a process (ioctl_ns(2)). Of root, and of what cannot be
// asked, it is 0: that bounds nobody, and all walkers together are bounded still.
func ownerOf(pid uint32) owner {
	fd, err := unix.Open("/proc/"+strconv.FormatUint(uint64(pid), 10)+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	user, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	unix.Close(fd)
	of := owner(0)
	for err == nil {
		var parent int
		var uid uint32
		if parent, err = unix.IoctlRetInt(user, unix.NS_GET_PARENT); err == nil { // it is not the initial one
			if uid, err = unix.IoctlGetUint32(user, unix.NS_GET_OWNER_UID); err == nil {
				of = owner(uid)
			}
		}
		unix.Close(user)
		user = parent
		if err != nil && parent > 0 {
			unix.Close(parent)
		}
	}
	return of
}

// hung is how many walkers are slow, now.
func (k *walks) hung() int {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tend(now)
	return k.slow(now)
}

// Hung tells what does not answer, if there is something.
func (w *Watch) Hung() string {
	if w.groups[layered].hangs() {
		return "an overlay file system does not answer: no program on any of them is handed over"
	}
	if n := w.walks.hung(); n > 0 {
		return fmt.Sprintf("%d mount namespaces have a file system that does not answer", n)
	}
	return ""
}

var errEnded = errors.New("the process ended")

// ended reports whether nothing more can be reached through the root of a process.
func ended(root string) bool {
	_, err := os.Readlink(root)
	return err != nil
}

// visit asks for the file systems in the mount namespace of a process.
func (m *mounts) visit(to walk) error {
	dir := "/proc/" + strconv.FormatUint(uint64(to.pid), 10)
	b, err := os.ReadFile(dir + "/mountinfo")
	if err != nil {
		return err
	}
	m.add(b, dir+"/root", true)
	// Of an ended process no mount point can be reached; and its number may be another's.
	var st unix.Stat_t
	if err := unix.Stat(dir+"/ns/mnt", &st); err != nil || uint32(st.Ino) != to.ns {
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
