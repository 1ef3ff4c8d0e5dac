package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/event"
)

// ErrConfig marks errors of config.json and of the way in which picosnitch was called: exit code 2.
var ErrConfig = errors.New("configuration")

const (
	configName = "config.json"
	spoolName  = "spool" // what waits for the SQL server: a directory
	dirMode    = 0o2750  // setgid: new files get the group of the user, who reads without root
	fileMode   = 0o640
)

// ourFiles are the names that picosnitch, or picosnitch 0.11 before it, writes in its folder.
func ourFiles() []string {
	files := []string{"record.json", ".record.journal", "exe.log", "exe.log.1", "error.log", "error.log.1", "mutes.json", "mutes.json.damaged", "limits.json", "conn.log", ".conn.log.position", "snitch.db", "snitch.db-wal", "snitch.db-shm", "snitch.db-journal"}
	for n := 1; n <= 9; n++ { // "DB text limit (MB)"
		files = append(files, fmt.Sprintf("conn.log.%d", n))
	}
	return files
}

// Folder is the open ~/.config/picosnitch. It is used through its descriptor only: its path runs through
// directories that a program of the user's can rename at any moment.
type Folder struct {
	path    string
	f       *os.File
	place   Place
	notices []event.Notice // what the user must know about the opening
}

// OpenFolder opens the folder of p, makes it and its config.json where they are missing, and gives it to the
// recorder. No symbolic link is followed below the user's home or, for PICOSNITCH_DIR, anywhere. It needs root.
func OpenFolder(p Place) (*Folder, error) {
	base, rest, mode := p.Owner.Home, ".config/picosnitch", uint32(0o700)
	if p.Custom {
		base, rest, mode = "/", strings.TrimPrefix(filepath.Clean(p.Dir), "/"), 0o755
	}
	if rest == "" {
		return nil, fmt.Errorf("%w: PICOSNITCH_DIR is /: give picosnitch a folder of its own", ErrConfig)
	}
	// The home itself may lie behind links (/home → /var/home): only root can change those.
	fd, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", base, err)
	}
	at := base
	for name := range strings.SplitSeq(rest, "/") {
		next, err := stepInto(fd, name, mode, p.Owner)
		unix.Close(fd)
		at = filepath.Join(at, name)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", at, err)
		}
		fd = next
	}
	f := &Folder{path: at, f: os.NewFile(uintptr(fd), at), place: p}
	if err := f.take(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// stepInto opens the directory name within dir, without following a link, and makes it if it is missing.
func stepInto(dir int, name string, mode uint32, o Account) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkdirat(dir, name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
		if fd, err = unix.Openat(dir, name, flags, 0); err == nil {
			if err := unix.Fchown(fd, int(o.UID), int(o.GID)); err != nil {
				unix.Close(fd)
				return -1, err
			}
		}
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return -1, fmt.Errorf("%w: it is a symbolic link or no directory, and is not followed: set PICOSNITCH_DIR to the real path", ErrConfig)
	}
	return fd, err
}

// take gives the folder and the files of earlier versions in it to the recorder.
func (f *Folder) take() error {
	fd := int(f.f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	names, err := f.f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.path, err)
	}
	if f.place.Custom && st.Uid != f.place.Recorder.UID {
		for _, n := range names {
			if n != configName && n != spoolName && !slices.Contains(ourFiles(), n) {
				return fmt.Errorf("%w: PICOSNITCH_DIR %s holds %s, which is not a file of picosnitch: give picosnitch a folder of its own", ErrConfig, f.path, event.Text([]byte(n)))
			}
		}
	}
	// First the folder, so that the user's programs cannot change it any more while its files are looked at.
	if err := unix.Fchown(fd, int(f.place.Recorder.UID), int(f.place.Owner.GID)); err != nil {
		return fmt.Errorf("give %s to the recorder: %w", f.path, err)
	}
	if err := unix.Fchmod(fd, dirMode); err != nil {
		return fmt.Errorf("set the mode of %s: %w", f.path, err)
	}
	for _, n := range ourFiles() {
		if err := f.adopt(n); err != nil {
			return fmt.Errorf("take over %s: %w", filepath.Join(f.path, n), err)
		}
	}
	if err := f.adoptSpool(); err != nil {
		return fmt.Errorf("take over %s: %w", filepath.Join(f.path, spoolName), err)
	}
	return nil
}

// adoptSpool gives what waits for the SQL server to the recorder, when it ran under its number before and has an account now. A
// spool of anybody else is not sent anywhere.
func (f *Folder) adoptSpool() error {
	dir := int(f.f.Fd())
	var st unix.Stat_t
	err := unix.Fstatat(dir, spoolName, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	own := int(f.place.Recorder.UID)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(own) && st.Uid != recorderNumber {
		aside := fmt.Sprintf("%s.not-ours-%d", spoolName, st.Ino)
		if err := unix.Renameat(dir, spoolName, dir, aside); err != nil {
			return err
		}
		f.notice("warning", fmt.Sprintf("%s was not picosnitch's: it was put aside as %s, and nothing of it is sent to the SQL server", spoolName, aside), "look at who made it")
		return nil
	}
	if st.Uid == uint32(own) {
		return nil
	}
	fd, err := unix.Openat(dir, spoolName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	spool := os.NewFile(uintptr(fd), spoolName)
	defer spool.Close()
	// First the folder, as in take.
	if err := unix.Fchown(fd, own, -1); err != nil {
		return err
	}
	names, err := spool.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := unix.Fchownat(fd, n, own, -1, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return nil
}

// adopt makes a file that somebody else owns the recorder's own, as a copy: a descriptor or a second name that a
// program holds keeps the old file, and can write to that only.
func (f *Folder) adopt(name string) error {
	dir := int(f.f.Fd())
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Uid == f.place.Recorder.UID && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		// A link could lead the log to a place that a program can write, or show the user a file of root's.
		aside := fmt.Sprintf("%s.not-ours-%d", name, st.Ino)
		if err := unix.Renameat(dir, name, dir, aside); err != nil {
			return err
		}
		f.notice("warning", fmt.Sprintf("%s was a link or no plain file: it was put aside as %s", name, aside), "look at who made it")
		return nil
	}
	if _, err := f.copyTo(name, int(f.place.Recorder.UID), -1); err != nil {
		return err
	}
	f.notice("info", fmt.Sprintf("%s belonged to uid %d: picosnitch took it over", name, st.Uid), "")
	return nil
}

// copyTo replaces the plain file name by a copy of it (of at most limit bytes, -1: of any size) that uid owns.
func (f *Folder) copyTo(name string, uid int, limit int64) ([]byte, error) {
	dir := int(f.f.Fd())
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	from := os.NewFile(uintptr(fd), name)
	defer from.Close()
	if limit >= 0 {
		data, err := io.ReadAll(io.LimitReader(from, limit))
		if err != nil {
			return nil, err
		}
		return data, f.create(name, uid, func(to *os.File) error { _, err := to.Write(data); return err })
	}
	return nil, f.create(name, uid, func(to *os.File) error { _, err := io.Copy(to, from); return err })
}

// create makes or replaces the file name in one step, so that a crash leaves the old or the new one.
func (f *Folder) create(name string, uid int, fill func(*os.File) error) error {
	dir := int(f.f.Fd())
	temp := name + ".new"
	if err := unix.Unlinkat(dir, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), temp)
	err = errors.Join(fill(to), unix.Fchown(fd, uid, int(f.place.Owner.GID)), unix.Fchmod(fd, fileMode), to.Sync(), to.Close())
	if err == nil {
		err = unix.Renameat(dir, temp, dir, name)
	}
	if err != nil {
		unix.Unlinkat(dir, temp, 0)
	}
	return err
}

// Config reads config.json, and writes the documented one where there is none. The file belongs to root, because it
// holds secrets and a list of what is not logged; one that belongs to a user is taken over and told.
func (f *Folder) Config() (config.Config, error) {
	dir := int(f.f.Fd())
	path := filepath.Join(f.path, configName)
	fd, err := unix.Openat(dir, configName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		err := f.create(configName, 0, func(to *os.File) error { _, err := to.Write(config.Document()); return err })
		if err != nil {
			return config.Config{}, fmt.Errorf("write %s: %w", path, err)
		}
		return config.Default(), nil
	case errors.Is(err, unix.ELOOP):
		return config.Config{}, fmt.Errorf("%w: %s is a symbolic link: picosnitch does not follow it; replace it by the file itself", ErrConfig, path)
	case err != nil:
		return config.Config{}, fmt.Errorf("open %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return config.Config{}, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return config.Config{}, fmt.Errorf("%w: %s is not a plain file: replace it", ErrConfig, path)
	case st.Nlink != 1:
		return config.Config{}, fmt.Errorf("%w: %s has %d names (hard links): picosnitch does not trust it; replace it by a copy", ErrConfig, path, st.Nlink)
	case st.Uid == f.place.Recorder.UID:
		return config.Config{}, fmt.Errorf("%w: %s belongs to the recorder, which never writes it: check its content, then run: chown root %[2]s", ErrConfig, path)
	}
	data, err := io.ReadAll(io.LimitReader(file, config.MaxSize+1))
	if err != nil {
		return config.Config{}, fmt.Errorf("read %s: %w", path, err)
	}
	if st.Uid != 0 {
		if len(data) <= config.MaxSize {
			if data, err = f.copyTo(configName, 0, config.MaxSize+1); err != nil {
				return config.Config{}, fmt.Errorf("take over %s: %w", path, err)
			}
		}
		f.notice("warning", fmt.Sprintf("config.json belonged to uid %d: it belongs to root now", st.Uid), "check its content; edit it with sudo from now on")
	} else if err := errors.Join(unix.Fchown(fd, 0, int(f.place.Owner.GID)), unix.Fchmod(fd, fileMode)); err != nil {
		return config.Config{}, fmt.Errorf("protect %s: %w", path, err)
	}
	c, err := config.Parse(data)
	if err != nil {
		return config.Config{}, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	return c, nil
}

func (f *Folder) notice(level, text, hint string) {
	f.notices = append(f.notices, event.Notice{Level: level, Text: text, Hint: hint})
}

// Path is where the folder was when it was opened: for messages only.
func (f *Folder) Path() string { return f.path }

// Moved reports, in words, that the path does not lead to the open folder any more, or "".
func (f *Folder) Moved() string {
	var open, now unix.Stat_t
	if err := unix.Fstat(int(f.f.Fd()), &open); err != nil {
		return err.Error()
	}
	err := unix.Lstat(f.path, &now)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "was moved or deleted"
	case err != nil:
		return "cannot be looked at: " + err.Error()
	case open.Dev != now.Dev || open.Ino != now.Ino:
		return "was moved, and something else took its place"
	}
	return ""
}

// Close closes the folder.
func (f *Folder) Close() error { return f.f.Close() }
