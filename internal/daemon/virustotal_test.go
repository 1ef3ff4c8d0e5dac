package daemon

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestVirusTotalInTrouble: whatever the server does, the log goes on and its end waits for nothing; the trouble is told once.
func TestVirusTotalInTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, gone <-chan struct{})
		told   string // "": nothing yet
	}{
		"hang": {func(_ http.ResponseWriter, gone <-chan struct{}) { <-gone }, ""},
		"quota": {func(w http.ResponseWriter, _ <-chan struct{}) {
			w.WriteHeader(429)
			io.WriteString(w, `{"error":{"code":"QuotaExceededError","message":"x"}}`)
		}, "429 (QuotaExceededError)"},
		"key": {func(w http.ResponseWriter, _ <-chan struct{}) {
			w.WriteHeader(401)
			io.WriteString(w, `{"error":{"code":"WrongCredentialsError","message":"x"}}`)
		}, "refused the key"},
		"huge": {func(w http.ResponseWriter, gone <-chan struct{}) {
			block := bytes.Repeat([]byte("{"), 1<<20)
			for range 2048 {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}, "the answer has more than"},
	} {
		t.Run(name, func(t *testing.T) {
			p := world(t)
			gone := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { c.answer(w, gone) }))
			defer server.Close()
			defer close(gone)
			h := settle(t, p, `{`+atOnce+`, "VT API key": "k", "VT API url": "`+server.URL+`", "VT request limit (seconds)": 0, "DB write limit (seconds)": 1}`)
			h.program(t, 1, "/opt/one")
			log := func() string { b, _ := os.ReadFile(filepath.Join(p.Dir, "error.log")); return string(b) }
			until(t, "a question", func() bool {
				h.tick(t)
				return h.status(t).VirusTotal.Waiting == 1 && strings.Contains(log(), c.told)
			})
			for n := 2; n < 5; n++ {
				h.program(t, n, "/opt/more")
				h.quick(t, "VirusTotal is in trouble")
			}
			begin := time.Now()
			h.link.Close()
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("the end took %v", d)
			}
			out, err := exec.Command("sqlite3", "-readonly", filepath.Join(p.Dir, "snitch.db"), "SELECT count(*) FROM connections").CombinedOutput()
			if err != nil || string(out) != "4\n" {
				t.Errorf("rows: %s, %v", out, err)
			}
			want := 1
			if c.told == "" {
				want = 0
			}
			if n := strings.Count(log(), "VirusTotal"); n != want {
				t.Errorf("told %d times, want %d:\n%s", n, want, log())
			}
		})
	}
}
