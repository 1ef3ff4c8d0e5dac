package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/test/desktop"
)

// atOnce is a config.json without the digest of the first minutes.
const atOnce = `"Notify first digest (minutes)": 0`

// A bus lets in only users that the machine knows: these two are on every Debian, and of one group.
const (
	nobodyID = 65534 // nobody
	syncID   = 4     // sync
)

// desktopWorld is a world of a user who may use a bus.
func desktopWorld(t *testing.T) Place {
	t.Helper()
	p := world(t)
	if err := os.Chown(p.Owner.Home, nobodyID, nobodyID); err != nil {
		t.Fatal(err)
	}
	p.Owner.UID, p.Owner.GID = nobodyID, nobodyID
	return p
}

func digit(n int) string {
	h := sha256.Sum256(fmt.Append(nil, n))
	return hex.EncodeToString(h[:])
}

// program makes a program use the network for the first time.
func (h *house) program(t *testing.T, n int, path string) {
	t.Helper()
	file := event.FileID{Device: 1, Inode: uint64(100 + n), Ctime: 1, Size: 1}
	id := event.ProcessID{PID: uint32(1_000_000 + n), Start: uint64(n) * 1e9, Exec: 1}
	name := path[strings.LastIndexByte(path, '/')+1:]
	now := time.Now().UnixNano()
	send(t, h.link, &event.Event{At: now, Process: &event.Process{ID: id, Path: path, Name: name, UID: nobodyID, File: file, Source: event.SourceExec}})
	send(t, h.link, &event.Event{At: now, Executable: &event.Executable{File: file, Path: path, SHA256: digit(n)}})
	send(t, h.link, &event.Event{At: now, Flow: &event.Flow{Process: id, UID: nobodyID, Family: "inet", Protocol: "tcp", Layer: event.LayerPayload, Remote: netip.MustParseAddrPort("192.0.2.7:443"), Sent: 1}})
	h.tick(t)
}

// changed makes a known program have another hash.
func (h *house) changed(t *testing.T, n int, path string) {
	t.Helper()
	h.program(t, n, path)
}

// lost makes the kernel lose something.
func (h *house) lost(t *testing.T) {
	t.Helper()
	h.batch++
	send(t, h.link, &event.Event{At: time.Now().UnixNano(), Ledger: &event.Ledger{Batch: h.batch, Lost: map[string]uint64{event.LostExec: 7}}})
}

// quick fails the test when the recorder does not take a batch at once: nothing that hangs elsewhere may hold it.
func (h *house) quick(t *testing.T, while string) {
	t.Helper()
	begin := time.Now()
	h.tick(t)
	until(t, "the batch", func() bool { return h.status(t).Batch == h.batch })
	if d := time.Since(begin); d > time.Second {
		t.Errorf("a batch took %v while %s", d, while)
	}
}

// TestNotices counts what arrives on a real notification server, and looks that capture goes on whatever happens there.
func TestNotices(t *testing.T) {
	p := desktopWorld(t)
	bus := login(t, p, nobodyID, nobodyID)
	other := login(t, p, syncID, nobodyID)
	screen := desktop.StartScreen(t)
	dunst, second := desktop.Dunst(t, bus, screen), desktop.Dunst(t, other, screen)
	h := settle(t, p, "{"+atOnce+"}")
	until(t, "the sessions", func() bool { return h.here(nobodyID)() && h.here(syncID)() })

	begin := time.Now()
	h.program(t, 1, `/opt/<b>one</b> & "two"`)
	until(t, "the notice", func() bool { return dunst.Count(t) == 1 })
	delay := time.Since(begin)
	t.Logf("from the first bytes to the notice: %v", delay.Round(time.Millisecond))
	if delay > 2*time.Second {
		t.Errorf("a notice took %v, at most 2 s", delay)
	}
	until(t, "the notice of the second user", func() bool { return second.Count(t) == 1 })

	// The server of the one hangs: the other's does not.
	dunst.Hang()
	h.program(t, 2, "/opt/two")
	until(t, "the second notice of the second user", func() bool { return second.Count(t) == 2 })
	h.quick(t, "a server hangs")
	dunst.Wake()
	until(t, "the notice after the hang", func() bool { return dunst.Count(t) == 2 })

	// The whole bus hangs, then dies; what comes meanwhile is delivered to the next one.
	bus.Hang()
	h.changed(t, 3, "/opt/two") // other kinds: too many of one are held back
	until(t, "the third notice of the second user", func() bool { return second.Count(t) == 3 })
	h.quick(t, "a bus hangs")
	dunst.Kill()
	bus.Kill()
	h.quick(t, "a bus is gone")
	bus.Start(t)
	dunst = desktop.Dunst(t, bus, screen)
	until(t, "the notice after the bus", func() bool { return dunst.Count(t) == 1 })
	if n := dunst.History(t); !strings.Contains(n[0].Body, "/opt/two") {
		t.Errorf("%+v", n)
	}

	// The session process hangs, and the recorder dies with the notice.
	pid := h.session(t, nobodyID, 0)
	stop(t, pid, true)
	h.lost(t)
	until(t, "the fourth notice of the second user", func() bool { return second.Count(t) == 4 })
	h.quick(t, "a session process hangs")
	stop(t, pid, false)
	until(t, "the notice after the hang of the session", func() bool { return dunst.Count(t) == 2 })
	if n := second.Count(t); n != 4 {
		t.Errorf("the second user has %d notices, want 4", n)
	}
	log, err := os.ReadFile(filepath.Join(p.Dir, "exe.log"))
	if err != nil || strings.Count(string(log), "(new name, exe)") != 2 || !strings.Contains(string(log), digit(3)[:16]) {
		t.Errorf("exe.log, %v: %s", err, log)
	}
}

// TestLateLogin: what was told while nobody was there waits, and comes as one when it is much.
func TestLateLogin(t *testing.T) {
	p := desktopWorld(t)
	h := settle(t, p, "{"+atOnce+"}")
	for n := range 3 {
		h.program(t, n, fmt.Sprintf("/opt/early%d", n))
	}
	time.Sleep(2 * time.Second)
	bus := login(t, p, nobodyID, nobodyID)
	dunst := desktop.Dunst(t, bus, desktop.StartScreen(t))
	until(t, "the notice from before", func() bool { return dunst.Count(t) == 1 })
	if all := dunst.History(t); !strings.Contains(all[0].Summary, "3 new programs") {
		t.Errorf("%+v", all)
	}
}

// TestCommand: it runs as the user, logged in or not, with hostile texts in its environment and nothing in its arguments, and is
// ended when it does not end.
func TestCommand(t *testing.T) {
	p := desktopWorld(t)
	out := filepath.Join(filepath.Dir(p.Owner.Home), "out")
	if err := os.Mkdir(out, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(out, 0o777)
	h := settle(t, p, `{`+atOnce+`, "Desktop notifications": false, "Notify command": ["/bin/sh", "-c", "echo $$ >`+out+`/pid; id -u >`+out+`/id; printf '%s|' \"$#\" \"$@\" \"$PICOSNITCH_KIND\" \"$PICOSNITCH_EXE\" \"$PICOSNITCH_TITLE\" >`+out+`/got; env >`+out+`/env; sleep 1000", "sh", "a b", "$(touch `+out+`/pwned)"]}`)
	hostile := `/opt/$(touch ` + out + `/pwned);x` + "`id`" + `'"<b>`
	h.program(t, 1, hostile)
	until(t, "the command", func() bool { b, _ := os.ReadFile(filepath.Join(out, "env")); return len(b) > 0 })
	id, _ := os.ReadFile(filepath.Join(out, "id"))
	if strings.TrimSpace(string(id)) != itoa(nobodyID) {
		t.Errorf("ran as %q", id)
	}
	got, _ := os.ReadFile(filepath.Join(out, "got"))
	if want := "2|a b|$(touch " + out + "/pwned)|new-program|" + hostile + "|"; !strings.HasPrefix(string(got), want) {
		t.Errorf("got %q, want %q…", got, want)
	}
	if _, err := os.Stat(filepath.Join(out, "pwned")); err == nil {
		t.Error("a text was executed")
	}
	until(t, "its end", func() bool {
		h.tick(t)
		log, _ := os.ReadFile(filepath.Join(p.Dir, "error.log"))
		return strings.Contains(string(log), "ran longer than 10 s")
	})
	text, _ := os.ReadFile(filepath.Join(out, "pid"))
	group, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the end of what it started", func() bool { return errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) })
	if w := h.status(t).Ways; len(w) != 1 || w[0].Name != "command" || w[0].Dropped != 1 {
		t.Errorf("ways %+v", w)
	}
}

// TestVirusTotal: from the first flow to record.json and the desktop; what was not answered is asked again after a restart; and the
// key is nowhere but in the question.
func TestVirusTotal(t *testing.T) {
	const secret = "d0not5howth15key"
	p := desktopWorld(t)
	bus := login(t, p, nobodyID, nobodyID)
	dunst := desktop.Dunst(t, bus, desktop.StartScreen(t))
	// A file that the recorder can read, one that only the user can, and one that nobody can.
	open, closed := filepath.Join(filepath.Dir(p.Owner.Home), "open"), filepath.Join(p.Owner.Home, "closed")
	if err := errors.Join(os.WriteFile(closed, []byte("of the user"), 0o700), os.Chown(closed, nobodyID, nobodyID)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(open, []byte("of everybody"), 0o755); err != nil {
		t.Fatal(err)
	}
	hashOf := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	var mu sync.Mutex
	var asked []string
	sent := map[string]bool{}
	broken := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		if r.Header.Get("x-apikey") != secret {
			t.Errorf("key %q", r.Header.Get("x-apikey"))
		}
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		switch {
		case broken:
			http.Error(w, secret, http.StatusServiceUnavailable)
		case r.Method == http.MethodPost:
			f, _, err := r.FormFile("file")
			if err != nil {
				http.Error(w, "", 400)
				return
			}
			data, _ := io.ReadAll(f)
			sent[string(data)] = true
			fmt.Fprintf(w, `{"data":{"id":"%s"}}`, hashOf(string(data)))
		case strings.HasPrefix(r.URL.Path, "/v3/analyses/"):
			fmt.Fprint(w, `{"data":{"attributes":{"status":"completed","stats":{"malicious":0,"suspicious":0,"undetected":70,"harmless":0}}}}`)
		case name == digit(1):
			fmt.Fprintf(w, `{"data":{"attributes":{"sha256":"%s","last_analysis_stats":{"malicious":9,"suspicious":0,"undetected":61,"harmless":0}}}}`, name)
		default:
			http.Error(w, `{"error":{"code":"NotFoundError"}}`, 404)
		}
	}))
	defer server.Close()
	h := settle(t, p, `{`+atOnce+`, "VT API key": "`+secret+`", "VT API url": "`+server.URL+`/v3", "VT file upload": true, "VT request limit (seconds)": 0}`)
	until(t, "the session", h.here(nobodyID))
	h.program(t, 1, "/opt/evil")
	until(t, "a failed question", func() bool {
		h.tick(t)
		mu.Lock()
		defer mu.Unlock()
		return len(asked) > 0
	})
	until(t, "the problem in error.log", func() bool {
		h.tick(t)
		log, _ := os.ReadFile(filepath.Join(p.Dir, "error.log"))
		return strings.Contains(string(log), "VirusTotal: the server says 503")
	})

	// The recorder dies before there was an answer.
	h.link.cmd.Process.Kill()
	<-h.link.ended
	mu.Lock()
	broken, asked = false, nil
	mu.Unlock()
	h.connect(t)
	result := func(path, sum string) string {
		data, _ := os.ReadFile(filepath.Join(p.Dir, "record.json"))
		var r struct {
			SHA256 map[string]map[string]string
		}
		json.Unmarshal(data, &r)
		return r.SHA256[path][sum]
	}
	until(t, "the notice", func() bool {
		h.tick(t)
		for _, n := range dunst.History(t) {
			if strings.HasPrefix(n.Summary, "VirusTotal: suspicious") && strings.HasPrefix(n.Body, "9 of 70") {
				return true
			}
		}
		return false
	})

	// Uploads: what the recorder may read, what only the user may, and not what became another file.
	for i, f := range []struct{ path, content string }{{open, "of everybody"}, {closed, "of the user"}, {open + "2", "gone"}} {
		file := event.FileID{Device: 1, Inode: uint64(500 + i), Ctime: 1, Size: 1}
		id := event.ProcessID{PID: uint32(2_000_000 + i), Start: uint64(i+1) * 1e9, Exec: 1}
		send(t, h.link, &event.Event{At: time.Now().UnixNano(), Process: &event.Process{ID: id, Path: f.path, Name: "up", UID: nobodyID, File: file, Source: event.SourceExec}})
		send(t, h.link, &event.Event{At: time.Now().UnixNano(), Executable: &event.Executable{File: file, Path: f.path, SHA256: hashOf(f.content)}})
		send(t, h.link, &event.Event{At: time.Now().UnixNano(), Flow: &event.Flow{Process: id, UID: nobodyID, Family: "inet", Protocol: "tcp", Layer: event.LayerPayload, Sent: 1}})
	}
	until(t, "the uploads", func() bool {
		h.tick(t)
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		return sent["of everybody"] && sent["of the user"]
	})
	hidden(t, p, h, secret)
	until(t, "nothing to ask any more", func() bool {
		h.tick(t)
		time.Sleep(50 * time.Millisecond)
		return h.status(t).VirusTotal.Waiting == 0
	})
	h.tick(t)
	time.Sleep(200 * time.Millisecond)
	h.link.Close() // writes record.json
	for _, c := range []struct{ path, sum, want string }{
		{"/opt/evil", digit(1), "9 of 70 scanners say malicious"},
		{open, hashOf("of everybody"), "0 of 70 scanners say malicious"},
		{closed, hashOf("of the user"), "0 of 70 scanners say malicious"},
		{open + "2", hashOf("gone"), "not sent"},
	} {
		if got := result(c.path, c.sum); !strings.Contains(got, c.want) {
			t.Errorf("record.json has %q for %s, want %q", got, c.path, c.want)
		}
	}
	out, err := exec.Command("sqlite3", "-readonly", filepath.Join(p.Dir, "snitch.db"), "SELECT sha256, verdict, malicious, undetected, uploaded FROM virustotal ORDER BY malicious DESC, uploaded DESC, sha256").CombinedOutput()
	rows := []string{hashOf("of everybody") + "|analysed|0|70|1", hashOf("of the user") + "|analysed|0|70|1"}
	slices.Sort(rows)
	want := digit(1) + "|analysed|9|61|0\n" + strings.Join(rows, "\n") + "\n" + hashOf("gone") + "|unknown|0|0|0\n"
	if err != nil || string(out) != want {
		t.Errorf("snitch.db has %v\n%s, want\n%s", err, out, want)
	}
	if len(sent) != 2 {
		t.Errorf("sent %v", sent)
	}
	hidden(t, p, h, secret)
}

// hidden looks for a secret where it must not be: files, arguments and environments, answers, words.
func hidden(t *testing.T, p Place, h *house, secret string) {
	t.Helper()
	look := func(where string, data []byte) {
		if strings.Contains(string(data), secret) {
			t.Errorf("the key is in %s", where)
		}
	}
	names, err := os.ReadDir(p.Dir)
	if err != nil || len(names) < 4 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, n := range names {
		if n.Name() != configName {
			data, _ := os.ReadFile(filepath.Join(p.Dir, n.Name()))
			look(n.Name(), data)
		}
	}
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, pid := range pids {
		if pid == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue
		}
		for _, f := range []string{"cmdline", "environ"} {
			data, _ := os.ReadFile(pid + "/" + f)
			look(pid+"/"+f, data)
		}
	}
	look("the words of the recorder", []byte(h.words.String()))
	if st, err := Status(t.Context(), p.RunDir); err == nil {
		data, _ := json.Marshal(st)
		look("status", data)
	}
}

// TestUpgradeOf500: a distribution's upgrade is one notice, or two.
func TestUpgradeOf500(t *testing.T) {
	p := desktopWorld(t)
	bus := login(t, p, nobodyID, nobodyID)
	dunst := desktop.Dunst(t, bus, desktop.StartScreen(t))
	h := settle(t, p, "{"+atOnce+"}")
	until(t, "the session", h.here(nobodyID))
	for n := range 500 {
		h.program(t, n, fmt.Sprintf("/opt/p%d", n))
	}
	until(t, "the new ones", func() bool { return dunst.Count(t) > 0 })
	time.Sleep(3 * time.Second)
	before := dunst.Count(t)
	if before > 2 {
		t.Errorf("500 new programs are %d notices", before)
	}
	for n := range 500 {
		h.program(t, 1000+n, fmt.Sprintf("/opt/p%d", n))
	}
	until(t, "the changed ones", func() bool { return dunst.Count(t) > before })
	time.Sleep(7 * time.Second)
	if n := dunst.Count(t) - before; n > 2 {
		t.Errorf("500 changed programs are %d notices", n)
	} else {
		t.Logf("500 new programs were %d notices, 500 changed ones %d", before, n)
	}
}
