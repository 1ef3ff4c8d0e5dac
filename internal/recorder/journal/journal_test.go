package journal

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

func hostile() notify.Notice {
	return notify.Notice{
		Kind: notify.Suspicious, Count: 2, Urgency: notify.Critical, Title: "VirusTotal: suspicious: a=b", Body: "/bin/x\nPRIORITY=7\n_UID=0",
		Name: "x\ny", Path: "/tmp/=\\x\u202e", SHA256: strings.Repeat("a", 64),
	}
}

// TestRealJournal: systemd-journald itself understands every field, and no text makes one of its own.
func TestRealJournal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give a journal a /run of its own")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "send.test")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal /run/log/journal
/lib/systemd/systemd-journald & pid=$!
trap 'kill $pid' EXIT
n=0; while ! [ -S /run/systemd/journal/socket ]; do n=$((n+1)); [ $n -lt 200 ]; sleep 0.05; done
JOURNAL_SEND=1 "$0" -test.run '^TestSend$' >&2
n=0; while ! journalctl --sync >/dev/null 2>&1 && [ $n -lt 20 ]; do n=$((n+1)); sleep 0.1; done
sleep 0.5
journalctl -D /run/log/journal -o json SYSLOG_IDENTIFIER=picosnitch`
	cmd := exec.Command("timeout", "30", "unshare", "--mount", "--propagation", "private", "sh", "-c", script, bin)
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &words)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 1 {
		t.Fatalf("%d entries: %s %s", len(lines), out, &words)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
		t.Fatal(err)
	}
	n := hostile()
	for key, want := range map[string]string{
		"MESSAGE": n.Title + "\n" + n.Body, "PRIORITY": "2", "PICOSNITCH_KIND": "suspicious", "PICOSNITCH_COUNT": "2",
		"PICOSNITCH_NAME": n.Name, "PICOSNITCH_EXE": n.Path, "PICOSNITCH_SHA256": n.SHA256, "MESSAGE_ID": messageID,
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

// TestSend sends one notice to the real journal of the namespace that TestRealJournal made.
func TestSend(t *testing.T) {
	if os.Getenv("JOURNAL_SEND") == "" {
		return
	}
	w := New(Socket)
	w.Offer(hostile())
	if w.Dropped() != 0 {
		t.Error("dropped")
	}
}

func TestNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	w := New(path)
	w.Offer(hostile())
	if w.Dropped() != 1 {
		t.Errorf("without a journal: %d dropped", w.Dropped())
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := time.Now()
	for range 5000 {
		w.Offer(hostile())
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("5000 notices took %v", d)
	}
	dropped := w.Dropped()
	if dropped < 100 {
		t.Errorf("%d dropped although nobody reads", dropped)
	}
	got := 0
	l.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	for buf := make([]byte, 64<<10); ; got++ {
		if _, err := l.Read(buf); err != nil {
			break
		}
	}
	if uint64(got)+dropped != 5001 {
		t.Errorf("%d arrived and %d were dropped of 5001", got, dropped)
	}
}
