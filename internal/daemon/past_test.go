package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/reader/query"
	"github.com/picosnitch/picosnitch/internal/recorder"
)

// TestPast: what the log has of a limit, each byte once however its program is found, and without what stays here.
func TestPast(t *testing.T) {
	dir := t.TempDir()
	at := time.Now().Add(-2 * time.Hour)
	var b strings.Builder
	line := func(after time.Duration, format string, args ...any) {
		fmt.Fprintf(&b, "{\"at\":%d,%s}\n", at.Add(after).UnixNano(), fmt.Sprintf(format, args...))
	}
	line(0, `"hello":{"version":1,"stream":"s","bandwidth":true}`)
	for i, p := range []struct{ path, script, name string }{{"/usr/bin/curl", "", "curl"}, {"/usr/bin/python3", "/home/me/curl", "curl"}, {"/opt/\\\\u{1b}x", "", "x|y"}, {"/bin/nc", "", "nc"}} {
		script := ""
		if p.script != "" {
			script = fmt.Sprintf(`,"script":%q,"script_kind":"file"`, p.script)
		}
		line(time.Second, `"process":{"id":"%d:1:1","path":"%s","name":%q,"source":"exec","file":{"dev":1,"ino":%d,"ctime":1,"size":1}%s}`, i+1, p.path, p.name, i+1, script)
	}
	sent := 1
	for hour := range 2 {
		for pid := 1; pid <= 4; pid++ {
			for _, remote := range []string{"8.8.8.8:443", "192.168.1.1:443", "127.0.0.1:443", "[2a00::1]:443"} {
				family := "inet"
				if remote[0] == '[' {
					family = "inet6"
				}
				line(time.Duration(hour)*time.Hour+2*time.Second, `"flow":{"process":"%d:1:1","family":%q,"protocol":"tcp","layer":"payload","local":"192.0.2.1:1","remote":%q,"sent":%d,"received":1}`, pid, family, remote, sent)
			}
			sent *= 10
		}
		line(time.Duration(hour)*time.Hour+2*time.Second, `"flow":{"process":"1:1:1","family":"packet","layer":"frame","sent":5,"received":5}`)
		line(time.Duration(hour)*time.Hour+3*time.Second, `"ledger":{"batch":%d,"final":%t}`, hour+1, hour == 1)
	}
	file := filepath.Join(dir, "stream")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Replay(t.Context(), file, dir, Options{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	ask := past(filepath.Join(dir, "snitch.db"))
	for _, c := range []struct {
		programs []string
		local    bool
		since    time.Duration
		want     event.Bytes
	}{
		{nil, false, -time.Hour, event.Bytes{Sent: 2 * 11111111, Received: 16}},
		{nil, true, -time.Hour, event.Bytes{Sent: 3 * 11111111, Received: 24}},
		{nil, false, time.Minute, event.Bytes{Sent: 2 * 11110000, Received: 8}},
		{[]string{"curl"}, false, -time.Hour, event.Bytes{Sent: 2 * 110011, Received: 8}},
		{[]string{"/usr/bin/curl", "curl", "/home/**"}, false, -time.Hour, event.Bytes{Sent: 2 * 110011, Received: 8}},
		{[]string{"/home/me/curl"}, false, -time.Hour, event.Bytes{Sent: 2 * 100010, Received: 4}},
		{[]string{"x|y"}, false, -time.Hour, event.Bytes{Sent: 2 * 1000100, Received: 4}},
		{[]string{"/opt/\x1bx"}, false, -time.Hour, event.Bytes{Sent: 2 * 1000100, Received: 4}},
		{[]string{"nothing", "' OR 1=1 --"}, false, -time.Hour, event.Bytes{}},
	} {
		got, from, err := ask(t.Context(), recorder.Limit{Programs: c.programs, Local: c.local}, at.Add(c.since))
		want := at.Add(max(c.since, 0)).Unix()
		if err != nil || got != c.want || from.Unix() < want || from.Unix() > want+11 {
			t.Errorf("%q from %v: %+v from %s, %v; want %+v", c.programs, c.since, got, from, err, c.want)
		}
	}
	if _, _, err := past(filepath.Join(dir, "missing.db"))(t.Context(), recorder.Limit{}, at); err == nil {
		t.Error("a missing database is no error")
	}
}

// TestPastOfMany: what a program moved that is not among the greatest ones of the log is not known. It is not 0.
func TestPastOfMany(t *testing.T) {
	dir := t.TempDir()
	at := time.Now().Add(-2 * time.Hour)
	var b strings.Builder
	line := func(format string, args ...any) {
		fmt.Fprintf(&b, "{\"at\":%d,%s}\n", at.UnixNano(), fmt.Sprintf(format, args...))
	}
	line(`"hello":{"version":1,"stream":"s","bandwidth":true}`)
	for i := range query.MaxRows + 1 {
		name, sent := fmt.Sprint("n", i), 10
		if i == 0 {
			name, sent = "curl", 5
		}
		line(`"process":{"id":"%d:1:1","path":"/bin/x","name":%q,"source":"exec","file":{"dev":1,"ino":1,"ctime":1,"size":1}}`, i+1, name)
		line(`"flow":{"process":"%d:1:1","family":"inet","protocol":"tcp","layer":"payload","local":"192.0.2.1:1","remote":"8.8.8.8:443","sent":%d,"received":0}`, i+1, sent)
	}
	line(`"ledger":{"batch":1,"final":true}`)
	file := filepath.Join(dir, "stream")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Replay(t.Context(), file, dir, Options{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	got, _, err := past(filepath.Join(dir, "snitch.db"))(t.Context(), recorder.Limit{Programs: []string{"curl"}}, at.Add(-time.Hour))
	if want := fmt.Sprintf("the log has %d different values of name", query.MaxRows+1); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%+v, %v; want an error with %q", got, err, want)
	}
}
