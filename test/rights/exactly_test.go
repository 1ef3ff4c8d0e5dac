package rights

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestExactly: with the capabilities of the service and no other, programs that live for a moment have their path, bytes and hash, also one that is
// unlinked at once, one in a folder that nobody but its owner may enter, and one of another user's that nobody else may read.
func TestExactly(t *testing.T) {
	picosnitch := program(t)
	peer, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	shell, err := os.ReadFile("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "picosnitch-rights-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	private := filepath.Join(dir, "private")
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(private, 0o700), os.Chown(private, 61001, 61001)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	send := fmt.Sprintf("printf hello > /dev/udp/127.0.0.1/%d", peer.LocalAddr().(*net.UDPAddr).Port)
	programs := []struct {
		path string
		mode os.FileMode
		gone bool
	}{{filepath.Join(dir, "plain"), 0o755, false}, {filepath.Join(dir, "unlinked"), 0o755, true}, {filepath.Join(private, "hidden"), 0o500, false}}
	sums := map[string]string{}
	all, err := exec.Command("setpriv", "--list-caps").Output()
	if err != nil {
		t.Fatal(err)
	}
	list, service := "", granted(t, picosnitch)
	for c := range strings.FieldsSeq(string(all)) {
		if !slices.Contains(service, c) {
			list += ",-" + c
		}
	}
	list = list[1:]
	o := run(t, picosnitch, list, func(env []string) {
		for i, p := range programs {
			own := fmt.Appendf(bytes.Clone(shell), "%d", i)
			sums[p.path] = fmt.Sprintf("%x", sha256.Sum256(own))
			if err := os.WriteFile(p.path, own, p.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(p.path, 61001, 61001); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond) // as programs are: not written just now
			if out, err := exec.Command("setpriv", "--reuid", "61001", "--regid", "61001", "--clear-groups", p.path, "-c", send).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", p.path, err, out)
			}
			if p.gone {
				if err := os.Remove(p.path); err != nil {
					t.Fatal(err)
				}
			}
		}
		var told string
		for end := time.Now().Add(start); len(sums) > 0 && time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
			export := exec.Command(picosnitch, "export", "--format", "json")
			export.Env = env
			out, err := export.Output()
			if err != nil {
				continue
			}
			told = string(out)
			for line := range bytes.Lines(out) {
				var row struct {
					Exe, SHA256 string
					Sent        int
				}
				if err := json.Unmarshal(line, &row); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				if want, ok := sums[row.Exe]; ok && row.SHA256 != "" {
					if row.SHA256 != want || row.Sent != len("hello") {
						t.Errorf("%s", line)
					}
					delete(sums, row.Exe)
				}
			}
		}
		if len(sums) > 0 {
			t.Errorf("without a hash: %v; told: %s", sums, told)
		}
	})
	if !o.ready || o.code != 0 || strings.Contains(o.errors, "runs without") || strings.Contains(o.errors, "not to be had") {
		t.Errorf("ready %t, code %d: %s", o.ready, o.code, o.errors)
	}
	t.Logf("%s", o.errors)
}
