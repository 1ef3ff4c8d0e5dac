package daemon

import (
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// notify tells systemd our state: sd_notify(3). Without systemd it does nothing; a failure is systemd's to notice.
func notify(getenv func(string) string, state string) {
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:] // the abstract name space: unix(7)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte(state))
}

// setNoFile sets RLIMIT_NOFILE to n, raising the hard limit where that is allowed; 0 leaves it.
func setNoFile(n uint64) error {
	if n == 0 {
		return nil
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: max(n, now.Max)})
}
