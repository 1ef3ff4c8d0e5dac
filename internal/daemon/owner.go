package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Account is a line of passwd(5).
type Account struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Numbers of accounts.
const (
	firstHuman = 1000  // login.defs(5) UID_MIN
	lastHuman  = 60000 // login.defs(5) UID_MAX

	// recorderNumber is the recorder's uid and gid where no package made the account "picosnitch": from the end of
	// systemd's range for dynamic users (61184–65519), which no distribution gives to people.
	recorderNumber = 63147
	recorderName   = "picosnitch"
)

// accounts reads passwd(5) and skips lines that are none.
func accounts(r io.Reader) ([]Account, error) {
	var all []Account
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Split(s.Text(), ":")
		if len(f) != 7 || strings.HasPrefix(f[0], "#") {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		all = append(all, Account{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5]})
	}
	return all, s.Err()
}

func passwd() ([]Account, error) {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return accounts(f)
}

// owner says whose folder it is, as the mission's original does: the user behind sudo, else the first human account
// that has a home, else root.
func owner(all []Account, getenv func(string) string, isDir func(string) bool) (Account, error) {
	if v := getenv("SUDO_UID"); v != "" && v != "0" {
		for _, a := range all {
			if strconv.FormatUint(uint64(a.UID), 10) == v {
				return a, nil
			}
		}
		return Account{}, fmt.Errorf("SUDO_UID is %q, which is no account of /etc/passwd: set PICOSNITCH_DIR to the folder to use and run without SUDO_UID", v)
	}
	if v := getenv("SUDO_USER"); v != "" && v != "root" {
		for _, a := range all {
			if a.Name == v {
				return a, nil
			}
		}
		return Account{}, fmt.Errorf("SUDO_USER is %q, which is no account of /etc/passwd: set PICOSNITCH_DIR to the folder to use and run without SUDO_USER", v)
	}
	first := Account{Name: "root", Home: "/root"}
	for _, a := range all {
		human := a.UID >= firstHuman && a.UID <= lastHuman && isDir(a.Home)
		if human && (first.UID == 0 || a.UID < first.UID) {
			first = a
		}
		if a.UID == 0 && first.UID == 0 && a.Home != "" {
			first = a
		}
	}
	return first, nil
}

// recorderAccount is who the recorder runs as.
func recorderAccount(all []Account) (Account, error) {
	for _, a := range all {
		if a.Name == recorderName {
			if a.UID == 0 || a.UID >= firstHuman && a.UID <= lastHuman {
				return Account{}, fmt.Errorf("account %q has uid %d: it must be a system account, neither root nor a person", recorderName, a.UID)
			}
			return a, nil
		}
	}
	for _, a := range all {
		if a.UID == recorderNumber {
			return Account{}, fmt.Errorf("uid %d belongs to %q: make a system account %q for the recorder (useradd --system %[3]s)", recorderNumber, a.Name, recorderName)
		}
	}
	return Account{Name: recorderName, UID: recorderNumber, GID: recorderNumber}, nil
}

// Place is where an instance lives.
type Place struct {
	Owner    Account // whose programs may read the files
	Recorder Account // who owns the files
	Dir      string  // the folder with config.json and snitch.db
	Custom   bool    // Dir was given by PICOSNITCH_DIR
	RunDir   string  // pid file and live feed: $RunDir/picosnitch.pid, $RunDir/picosnitch/events.sock
}

// RunDir is $PICOSNITCH_RUN_DIR, or /run.
func RunDir(getenv func(string) string) (string, error) {
	d := getenv("PICOSNITCH_RUN_DIR")
	if d == "" {
		return "/run", nil
	}
	return absolute("PICOSNITCH_RUN_DIR", d)
}

// FindPlace says where the instance of this environment lives. It needs no rights and changes nothing.
func FindPlace(getenv func(string) string) (Place, error) {
	all, err := passwd()
	if err != nil {
		return Place{}, fmt.Errorf("find the folder's owner: %w", err)
	}
	p := Place{}
	if p.RunDir, err = RunDir(getenv); err != nil {
		return Place{}, err
	}
	if p.Recorder, err = recorderAccount(all); err != nil {
		return Place{}, err
	}
	if uid := os.Getuid(); uid != 0 {
		p.Owner = Account{UID: uint32(uid), GID: uint32(os.Getgid()), Home: getenv("HOME")}
	} else if p.Owner, err = owner(all, getenv, isDir); err != nil {
		return Place{}, err
	}
	if d := getenv("PICOSNITCH_DIR"); d != "" {
		p.Custom = true
		p.Dir, err = absolute("PICOSNITCH_DIR", d)
		return p, err
	}
	if !strings.HasPrefix(p.Owner.Home, "/") {
		return Place{}, errors.New("no home directory: set PICOSNITCH_DIR to the folder to use")
	}
	p.Dir = p.Owner.Home + "/.config/picosnitch"
	return p, nil
}

func absolute(name, dir string) (string, error) {
	if !strings.HasPrefix(dir, "/") || strings.ContainsAny(dir, "\x00\n") {
		return "", fmt.Errorf("%s is %q: it must be an absolute path", name, dir)
	}
	return dir, nil
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
