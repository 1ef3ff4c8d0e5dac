package recorder

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
)

// TestSpoolIsTold: records that a full spool dropped, and such that a damaged one has, reach error.log, each as what it is.
func TestSpoolIsTold(t *testing.T) {
	s := newScript(t)
	s.process(1, 0, "/bin/nc", "nc")
	s.tcp(1, "192.0.2.1:1", 0, 1, 1)
	stream := s.end()
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		says   []string
		not    string
	}{
		{"full", func(*testing.T, string) {}, []string{"2000 records did not reach the SQL server and were dropped from its full spool", `"DB spool limit (MB)"`}, "damaged"},
		{"damaged", func(t *testing.T, dir string) {
			names, _ := filepath.Glob(filepath.Join(dir, "*.spool"))
			b, err := os.ReadFile(names[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(names[0], append([]byte("?"), b[1:]...), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"at least 2000 records in them will not reach the SQL server", "files whose beginning is damaged were renamed", ".damaged"}, "full spool"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t)
			o.Linger = 1
			o.Settings.Remote = &remote.Settings{Client: "postgres", Dialect: remote.Postgres, Limit: spool.MinLimit, Params: map[string]string{"host": "127.0.0.1", "port": "1", "user": "u", "database": "d"}}
			dir := filepath.Join(o.Dir, "spool")
			sp, err := spool.Open(dir, spool.MinLimit)
			if err != nil {
				t.Fatal(err)
			}
			// Two frames of nearly 1 MB make a segment, until there is no room for another window.
			for room := int64(1 << 20); room > 300; room = min(1<<20, spool.MinLimit-sp.Status().Bytes) {
				if err := sp.Append(spool.Frame{Count: spool.Count{Records: 1000}, Mark: []byte("x"), Payload: bytes.Repeat([]byte{9}, int(room-200))}); err != nil {
					t.Fatal(err)
				}
			}
			sp.Close()
			c.damage(t, dir)
			record(t, stream, o)
			text := errorText(t, o.Dir)
			for _, want := range c.says {
				if !strings.Contains(text, want) {
					t.Errorf("error.log lacks %q: %s", want, text)
				}
			}
			if strings.Contains(text, c.not) {
				t.Errorf("error.log has %q: %s", c.not, text)
			}
		})
	}
}
