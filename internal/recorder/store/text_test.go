package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

func openText(t *testing.T, path string, o TextOptions) *Text {
	t.Helper()
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	s, err := OpenText(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestTextRotation: no file grows beyond its limit by more than a window, nine old ones are kept, and no line is lost or
// torn on the way.
func TestTextRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conn.log")
	s := openText(t, path, TextOptions{Limit: 2000})
	const windows, records = 60, 5
	for n := range windows {
		if err := s.Write(t.Context(), window(n, records)); err != nil {
			t.Fatal(err)
		}
		if n == 30 { // the position survives a rotation, and a new process goes on
			s.Close()
			s = openText(t, path, TextOptions{Limit: 2000})
			if got := s.Resume("s"); got.Batch != 30 {
				t.Errorf("position %+v", got)
			}
		}
	}
	lines, last := 0, windows
	for n := range 12 {
		name := path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		b, err := os.ReadFile(name)
		if n > keptTexts {
			if err == nil {
				t.Errorf("%s is there", name)
			}
			continue
		}
		if err != nil || len(b) == 0 || len(b) > 2000+records*200 {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
		if i, _ := os.Stat(name); i.Mode().Perm() != 0o640 {
			t.Errorf("%s: mode %v", name, i.Mode())
		}
		for line := range strings.Lines(string(b)) {
			if strings.Count(line, ",") != 15 {
				t.Fatalf("%s: %q", name, line)
			}
			lines++
		}
		// The port is the number of the window: newer ones are in files of a smaller number.
		f := strings.Split(strings.SplitN(string(b), "\n", 2)[0], ",")
		var port int
		fmt.Sscan(f[7], &port)
		if port >= last {
			t.Errorf("%s begins with window %d, the file before it with %d", name, port, last)
		}
		last = port
	}
	if want := (windows - last) * records; lines != want {
		t.Errorf("%d lines from window %d on, want %d", lines, last, want)
	}
}

// TestTextReopen: after Reopen the moved file is let go of, so that logrotate may compress it.
func TestTextReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conn.log")
	s := openText(t, path, TextOptions{})
	if err := s.Write(t.Context(), window(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Reopen(); err != nil {
		t.Fatal(err)
	}
	ours, err := s.f.Stat()
	now, err2 := os.Stat(path)
	if err != nil || err2 != nil || !os.SameFile(ours, now) {
		t.Errorf("another file is open than %s: %v %v", path, err, err2)
	}
	if err := s.Write(t.Context(), window(2, 1)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + ".1"} {
		if b, _ := os.ReadFile(name); bytes.Count(b, []byte("\n")) != 1 {
			t.Errorf("%s: %q", name, b)
		}
	}
}

// TestTextJSON: one object per line with every field, also for texts that strangers chose.
func TestTextJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conn.log")
	s := openText(t, path, TextOptions{JSON: true})
	w := window(1, 2)
	w.Hello.Host = "host"
	w.Records[0].Remote = netip.MustParseAddrPort("[fe80::1%eth0]:53")
	p := w.Records[1].Program
	evil := `a,"b\n<script>` + "\x00\n\x1b[2J\u2028\xff}é"
	w.Records[1].Program = &flow.Program{Executable: p.Executable, Name: evil, Cmdline: evil, Parent: p}
	w.Records[1].Domain = &flow.Domain{Name: evil}
	if err := s.Write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %q", len(lines), b)
	}
	var got [2]map[string]any
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &got[i]); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if len(got[i]) != len(Fields()) {
			t.Errorf("%d fields, want %d", len(got[i]), len(Fields()))
		}
	}
	for k, want := range map[string]any{"exe": "/bin/nc", "ip": "fe80::1%eth0", "port": 53.0, "contime": "1970-01-01T00:00:20Z", "start": "1970-01-01T00:00:10Z", "host": "host", "direction": "out", "send": 10.0, "pexe": "/sbin/init", "gexe": "", "domain_source": "dns"} {
		if got[0][k] != want {
			t.Errorf("%s is %v, want %v", k, got[0][k], want)
		}
	}
	if want := strings.ToValidUTF8(evil, "\ufffd"); got[1]["name"] != want || got[1]["domain"] != want || got[1]["gexe"] != "/sbin/init" {
		t.Errorf("%q", got[1])
	}
}
