package desktop

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/test/fuse"
)

// nobody is a user that every Debian has: a bus lets in only those that the machine knows.
const nobody = 65534

// TestDaemon is the whole: the real daemon with its hooks, a desktop, and a program on a file system that root may not read. It is told
// on the desktop, with the hash that the user's session process gave, and the row says whose word that is.
func TestDaemon(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	base, err := os.MkdirTemp("", "picosnitch-desktop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	user := &syscall.Credential{Uid: nobody, Gid: nobody}
	runtime := filepath.Join(base, "run/user", strconv.Itoa(nobody))
	for _, err := range []error{os.Chmod(base, 0o755), os.MkdirAll(runtime, 0o755), os.Chown(runtime, nobody, nobody), os.Chmod(runtime, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(base, "picosnitch")
	build := exec.Command("go", "build", "-o", bin, "../../cmd/picosnitch")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bus := StartBus(t, runtime, user)
	dunst := Dunst(t, bus, StartScreen(t))

	content, err := os.ReadFile(Need(t, "curl"))
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(content)
	prog := filepath.Join(fuse.Mount(t, nobody, content, false), "prog")
	if f, err := os.Open(prog); err == nil {
		f.Close()
		t.Fatal("root can read it: the test shows nothing")
	}
	hold := make(chan struct{}) // the program must live until it was hashed: only it leads to its file
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-hold }))
	defer server.Close()
	defer close(hold)

	dir := filepath.Join(base, "pico")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"Notify first digest (minutes)": 0, "DB write limit (seconds)": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(bin, "start-no-daemon")
	daemon.Env = []string{"PICOSNITCH_DIR=" + dir, "PICOSNITCH_RUN_DIR=" + filepath.Join(base, "run"), "SUDO_UID=" + strconv.Itoa(nobody), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var words bytes.Buffer
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	daemon.Stderr = &words
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { daemon.Wait(); close(ended) }()
	t.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			daemon.Process.Kill()
			t.Error("the daemon did not end")
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Logf("%s\n%s", &words, log)
		}
	})
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatalf("the daemon did not start: %v: %s", err, &words)
	}

	// The shell executes it, not this test: exec stops the threads of the one that calls it, and this one must serve the file.
	curl := exec.Command("/bin/sh", "-c", `exec "$0" -s --noproxy '*' "$1"`, prog, server.URL)
	curl.Dir = "/"
	curl.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	begin := time.Now()
	if err := curl.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { curl.Process.Kill(); curl.Wait() })
	got := ""
	Until(t, "the row", func() bool {
		rows, _ := exec.Command("sqlite3", "-readonly", filepath.Join(dir, "snitch.db"), "SELECT sha256 || '|' || reason FROM executables WHERE path = '"+prog+"' AND sha256 != ''").Output()
		got = strings.TrimSpace(string(rows))
		return got != ""
	})
	t.Logf("the row had its hash %v after the start of the program", time.Since(begin).Round(100*time.Millisecond))
	if got != hex.EncodeToString(want[:])+"|by the word of uid 65534, who alone can read the file" {
		t.Errorf("row %q", got)
	}
	var all []Notice
	Until(t, "the notice", func() bool {
		all = dunst.History(t)
		for _, n := range all {
			if strings.Contains(n.Body, prog) && strings.Contains(n.Body, "sha256 "+hex.EncodeToString(want[:8])) {
				return true
			}
		}
		return false
	})
	status := exec.Command(bin, "status")
	status.Env = daemon.Env
	if text, err := status.CombinedOutput(); err != nil || !strings.Contains(string(text), "uid 65534: shown by dunst") {
		t.Errorf("status: %v\n%s", err, text)
	}
}
