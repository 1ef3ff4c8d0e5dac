package daemon

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/config"
)

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func check(t *testing.T, path string, uid, gid, mode uint32) {
	t.Helper()
	st := stat(t, path)
	if st.Uid != uid || st.Gid != gid || st.Mode&0o7777 != mode {
		t.Errorf("%s: uid %d gid %d mode %04o, want %d %d %04o", path, st.Uid, st.Gid, st.Mode&0o7777, uid, gid, mode)
	}
}

func open(t *testing.T, p Place) (*Folder, config.Config) {
	t.Helper()
	f, err := OpenFolder(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	c, err := f.Config()
	if err != nil {
		t.Fatal(err)
	}
	return f, c
}

func userFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := os.Chown(p, userID, groupID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFolderFirstRun(t *testing.T) {
	p := world(t)
	f, c := open(t, p)
	check(t, filepath.Join(p.Owner.Home, ".config"), userID, groupID, 0o700)
	check(t, p.Dir, recorderNumber, groupID, dirMode)
	check(t, filepath.Join(p.Dir, configName), 0, groupID, fileMode)
	if c.WriteLimit != 10 {
		t.Errorf("first run does not use the defaults: %+v", c)
	}
	if data, err := os.ReadFile(filepath.Join(p.Dir, configName)); err != nil || !bytes.Equal(data, config.Document()) {
		t.Errorf("config.json is not the documented block: %v", err)
	}
	if len(f.notices) != 0 {
		t.Errorf("notices on a first run: %v", f.notices)
	}
	open(t, p) // and again
}

func TestFolderTakesOverEarlierFiles(t *testing.T) {
	p := world(t)
	db := filepath.Join(p.Dir, "snitch.db")
	userFile(t, db, "old rows")
	userFile(t, filepath.Join(p.Dir, configName), `{"DB write limit (seconds)": 3}`)
	// The user's program keeps a descriptor: it must not reach the file that picosnitch writes.
	held, err := os.OpenFile(db, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	f, c := open(t, p)
	if c.WriteLimit != 3 {
		t.Errorf("the user's setting is gone: %d", c.WriteLimit)
	}
	if _, err := held.WriteString("FORGED"); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(db); err != nil || string(data) != "old rows" {
		t.Errorf("snitch.db holds %q, %v", data, err)
	}
	check(t, db, recorderNumber, groupID, fileMode)
	check(t, filepath.Join(p.Dir, configName), 0, groupID, fileMode)
	if len(f.notices) != 2 {
		t.Errorf("want two notices, got %v", f.notices)
	}
}

func TestFolderTrustsNoLinks(t *testing.T) {
	secret := func(p Place) string {
		s := filepath.Join(filepath.Dir(p.Owner.Home), "secret")
		if err := os.WriteFile(s, []byte("root's secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("hard link as a log", func(t *testing.T) {
		p := world(t)
		userFile(t, filepath.Join(p.Dir, "exe.log"), "")
		os.Remove(filepath.Join(p.Dir, "exe.log"))
		if err := os.Link(secret(p), filepath.Join(p.Dir, "exe.log")); err != nil {
			t.Fatal(err)
		}
		f, _ := open(t, p)
		if _, err := os.Lstat(filepath.Join(p.Dir, "exe.log")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the link is still there: %v", err)
		}
		check(t, secret(p), 0, 0, 0o600)
		if len(f.notices) != 1 {
			t.Errorf("notices: %v", f.notices)
		}
	})
	t.Run("symbolic link as the database", func(t *testing.T) {
		p := world(t)
		userFile(t, filepath.Join(p.Dir, "x"), "")
		os.Symlink(secret(p), filepath.Join(p.Dir, "snitch.db"))
		open(t, p)
		if _, err := os.Lstat(filepath.Join(p.Dir, "snitch.db")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the link is still there: %v", err)
		}
	})
	for _, name := range []string{"symbolic", "hard"} {
		t.Run(name+" link as config.json", func(t *testing.T) {
			p := world(t)
			userFile(t, filepath.Join(p.Dir, "x"), "")
			link := map[string]func(a, b string) error{"symbolic": os.Symlink, "hard": os.Link}[name]
			if err := link(secret(p), filepath.Join(p.Dir, configName)); err != nil {
				t.Fatal(err)
			}
			f, err := OpenFolder(p)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Config(); !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "root's secret") {
				t.Errorf("error %v", err)
			}
			check(t, secret(p), 0, 0, 0o600)
		})
	}
	t.Run("directory on the way", func(t *testing.T) {
		p := world(t)
		elsewhere := filepath.Join(filepath.Dir(p.Owner.Home), "elsewhere")
		os.Mkdir(elsewhere, 0o755)
		os.Symlink(elsewhere, filepath.Join(p.Owner.Home, ".config"))
		if _, err := OpenFolder(p); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("error %v", err)
		}
		check(t, elsewhere, 0, 0, 0o755)
	})
	t.Run("fifo as config.json", func(t *testing.T) {
		p := world(t)
		userFile(t, filepath.Join(p.Dir, "x"), "")
		unix.Mkfifo(filepath.Join(p.Dir, configName), 0o644)
		f, err := OpenFolder(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Config(); !errors.Is(err, ErrConfig) {
			t.Errorf("error %v", err)
		}
	})
}

func TestCustomFolderOfSomebodyElse(t *testing.T) {
	p := world(t)
	p.Custom, p.Dir = true, p.Owner.Home
	userFile(t, filepath.Join(p.Owner.Home, "a", "letter.txt"), "")
	if _, err := OpenFolder(p); !errors.Is(err, ErrConfig) {
		t.Errorf("took a folder with foreign files: %v", err)
	}
	check(t, p.Owner.Home, userID, groupID, 0o700)
}

func TestFolderMoved(t *testing.T) {
	p := world(t)
	f, _ := open(t, p)
	if m := f.Moved(); m != "" {
		t.Errorf("not moved: %q", m)
	}
	if err := os.Rename(p.Dir, p.Dir+"2"); err != nil {
		t.Fatal(err)
	}
	if m := f.Moved(); !strings.Contains(m, "moved or deleted") {
		t.Errorf("moved: %q", m)
	}
	if err := os.Mkdir(p.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if m := f.Moved(); !strings.Contains(m, "took its place") {
		t.Errorf("replaced: %q", m)
	}
}
