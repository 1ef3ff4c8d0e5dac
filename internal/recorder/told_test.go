package recorder

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// running is a recorder that reads what a script writes, as it is written.
type running struct {
	t    *testing.T
	in   *io.PipeWriter
	done chan error
}

func (r *running) send(s *script) {
	if _, err := r.in.Write(s.b.Bytes()); err != nil {
		r.t.Fatal(err)
	}
	s.b.Reset()
}

// end ends the stream, in order or not.
func (r *running) end() {
	r.in.Close()
	if err := <-r.done; err != nil {
		r.t.Fatal(err)
	}
}

func runOn(t *testing.T, dir string, w notify.Way, change func(*Settings)) *running {
	out, in := io.Pipe()
	r := &running{t: t, in: in, done: make(chan error, 1)}
	o := Options{Dir: dir, Settings: Defaults(), Hosts: os.DevNull, Ways: []notify.Way{w}, Zone: time.UTC}
	if change != nil {
		change(&o.Settings)
	}
	go func() { r.done <- Run(t.Context(), out, o) }()
	return r
}

func (w *fakeWay) wait(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); len(w.all()) < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d notices, want %d", len(w.all()), n)
		}
	}
}

func readFile(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// TestToldByStream: from the lines of the stream to the notice, in time; and after the end of the recorder, in order or not, the same lines again give
// nothing new.
func TestToldByStream(t *testing.T) {
	dir := t.TempDir()
	w := &fakeWay{}
	// batch writes one, with everything that is to be told.
	stream := func() *script {
		s := newScript(t)
		s.process(1, 0, "/usr/bin/bash", "bash")
		s.process(2, 1, "/usr/bin/curl", "curl")
		s.hash("/usr/bin/bash", 1)
		s.hash("/usr/bin/curl", 2)
		s.tcp(2, "192.0.2.1:443", 1, 10, 10)
		s.ledger()
		return s
	}
	r := runOn(t, dir, w, nil)
	s := stream()
	start := time.Now()
	r.send(s)
	w.wait(t, 1)
	took := time.Since(start)
	t.Logf("from the line to the notice: %v", took)
	n := w.all()[0]
	if took > 2*time.Second || n.Kind != notify.NewProgram || n.Path != "/usr/bin/curl" || n.SHA256 != hash(2) || n.Remote != "192.0.2.1:443" || n.Parent != "/usr/bin/bash" {
		t.Errorf("%v: %+v", took, n)
	}
	log := readFile(t, dir, "exe.log")
	if strings.Count(log, "\n") != 4 || !strings.Contains(log, "2026-01-02 03:04:00 curl             /usr/bin/curl (new name, exe)\n") {
		t.Errorf("exe.log:\n%s", log)
	}
	r.end() // without its last ledger
	w.wait(t, 1)

	for _, final := range []bool{false, true} {
		r := runOn(t, dir, w, nil)
		s := stream()
		if final {
			s.close(true)
		}
		r.send(s)
		time.Sleep(700 * time.Millisecond)
		r.end()
	}
	if got := readFile(t, dir, "exe.log"); got != log {
		t.Errorf("exe.log after the same lines again:\n%s", got)
	}
	var kinds []notify.Kind
	for _, n := range w.all() {
		kinds = append(kinds, n.Kind)
	}
	for _, k := range kinds[1:] {
		if k != notify.Failure { // the stream that ended without its last ledger
			t.Errorf("told: %v", kinds)
		}
	}
	if r := readFile(t, dir, "record.json"); !strings.Contains(r, `"/usr/bin/curl": {`) || !strings.Contains(r, hash(2)) {
		t.Errorf("record.json:\n%s", r)
	}
}

// TestToldKinds: everything of a stream that is worth a word.
func TestToldKinds(t *testing.T) {
	dir := t.TempDir()
	w := &fakeWay{}
	r := runOn(t, dir, w, func(s *Settings) { s.NotifyIgnore = []string{"/opt/**", "hush"} })
	s := newScript(t)
	s.process(1, 0, "/usr/bin/bash", "bash")
	s.process(2, 1, "/usr/bin/curl", "curl")
	s.process(3, 1, "/opt/x/y", "y")
	s.process(4, 1, "/usr/bin/hush", "hush")
	s.process(6, 1, "/usr/bin/vi", "vi")
	s.hash("/usr/bin/bash", 1)
	s.tcp(2, "192.0.2.1:443", 1, 10, 10)
	s.tcp(3, "192.0.2.1:443", 1, 10, 10)
	s.tcp(4, "192.0.2.1:443", 1, 10, 10)
	s.ledger()
	r.send(s)
	time.Sleep(600 * time.Millisecond)
	if n := len(w.all()); n != 0 {
		t.Errorf("told before the hash: %+v", w.all())
	}
	s.hash("/usr/bin/curl", 2)
	s.ledger()
	r.send(s)
	w.wait(t, 1)
	// Another curl under the same path; a file that is written to; a loss; a message of the sensor.
	changed := file(inode("/usr/bin/curl"))
	changed.Ctime++
	s.add(event.Event{Process: &event.Process{ID: id(5), Parent: id(1), Path: "/usr/bin/curl", Name: "curl", File: changed, Source: event.SourceExec}})
	s.add(event.Event{Executable: &event.Executable{File: changed, Path: "/usr/bin/curl", SHA256: hash(3)}})
	s.tcp(5, "192.0.2.1:443", 1, 10, 10)
	s.add(event.Event{Modified: &event.Modified{File: changed, Path: "/usr/bin/curl", By: id(6)}})
	s.lost = map[string]uint64{event.LostExec: 3, event.LostPeer: 5}
	s.add(event.Event{Notice: &event.Notice{Level: "warning", Text: "something of the sensor's", Hint: "do this"}})
	s.ledger()
	r.send(s)
	w.wait(t, 5)
	time.Sleep(300 * time.Millisecond)
	r.end()
	byKind := map[notify.Kind]notify.Notice{}
	for _, n := range w.all() {
		byKind[n.Kind] = n
	}
	if len(w.all()) != 5 || len(byKind) != 5 {
		t.Errorf("%+v", w.all())
	}
	if n := byKind[notify.Changed]; n.Before != hash(2) || n.SHA256 != hash(3) || n.Path != "/usr/bin/curl" {
		t.Errorf("%+v", n)
	}
	if n := byKind[notify.Modified]; n.Detail != "written to by /usr/bin/vi" {
		t.Errorf("%+v", n)
	}
	if n := byKind[notify.Loss]; !strings.Contains(n.Detail, "program starts that the kernel did not report") || n.Urgency == notify.Low {
		t.Errorf("%+v", n)
	}
	if n := byKind[notify.Failure]; n.Detail != "something of the sensor's" || n.Hint != "do this" {
		t.Errorf("%+v", n)
	}
	// What is ignored is in the log all the same.
	log := readFile(t, dir, "exe.log")
	for _, want := range []string{"y                /opt/x/y (new name, exe)", "hush             /usr/bin/hush (new name, exe)", "(modified)", hash(3)[:16] + " /usr/bin/curl (new hash)"} {
		if !strings.Contains(log, want) {
			t.Errorf("exe.log lacks %q:\n%s", want, log)
		}
	}
}

// TestNoticesOnFeed: the live feed has every notice, of the sensor, of the recorder and about programs, and none when "Notify live feed" is
// off; everything else is there all the same.
func TestNoticesOnFeed(t *testing.T) {
	words := []string{"curl", "sensor says", "program starts that the kernel did not report"}
	for _, on := range []bool{true, false} {
		t.Run(fmt.Sprint(on), func(t *testing.T) {
			o := options(t)
			o.FeedDir = t.TempDir()
			o.Settings.Feed = on
			out, in := io.Pipe()
			done := make(chan error, 1)
			go func() { done <- Run(t.Context(), out, o) }()
			defer func() {
				in.Close()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			s := newScript(t)
			if _, err := in.Write(s.b.Bytes()); err != nil {
				t.Fatal(err)
			}
			s.b.Reset()
			c, err := net.Dial("unix", filepath.Join(o.FeedDir, "events.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			lines := bufio.NewScanner(c)
			if !lines.Scan() { // the greeting
				t.Fatal(lines.Err())
			}
			s.process(2, 0, "/usr/bin/curl", "curl")
			s.hash("/usr/bin/curl", 2)
			s.add(event.Event{Notice: &event.Notice{Level: "warning", Text: "sensor says"}})
			s.tcp(2, "192.0.2.1:443", 1, 10, 10)
			s.add(event.Event{Ledger: &event.Ledger{Batch: 1, Lost: map[string]uint64{event.LostExec: 7}}})
			if _, err := in.Write(s.b.Bytes()); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(2 * time.Second))
			all, flows := "", false
			for lines.Scan() {
				flows = flows || strings.Contains(lines.Text(), `"flow":`)
				if strings.Contains(lines.Text(), `"notice":`) {
					all += lines.Text() + "\n"
				}
			}
			if !flows {
				t.Error("no flow on the feed")
			}
			if !on && all != "" {
				t.Errorf("notices on the feed:\n%s", all)
			}
			for _, w := range words {
				if on && !strings.Contains(all, w) {
					t.Errorf("%q is not there:\n%s", w, all)
				}
			}
			if log := readFile(t, o.Dir, "error.log"); !strings.Contains(log, "sensor says") {
				t.Errorf("error.log: %s", log)
			}
		})
	}
}
