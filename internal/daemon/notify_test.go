package daemon

import (
	"net"
	"path/filepath"
	"testing"
)

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "s"), "@picosnitch-test-" + filepath.Base(t.TempDir()) + "-" + t.Name()} {
		bind := name
		if name[0] == '@' {
			bind = "\x00" + name[1:]
		}
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: bind, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		notify(func(string) string { return name }, "READY=1")
		b := make([]byte, 64)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%s: %q, %v", name, b[:n], err)
		}
	}
	notify(func(string) string { return "" }, "READY=1")
	notify(func(string) string { return "/nowhere" }, "READY=1")
}
