// Package stress drives the real picosnitch harder than a machine does in a normal life, kills it, and demands that
// the sums on disk still equal what the generators counted. It needs root.
package stress

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/play"
)

// bench is what every test needs.
type bench struct {
	folder, picosnitch string
	generator          play.Generator
}

func TestStress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hooks do; run it as root")
	}
	if testing.Short() {
		t.Skip("takes two minutes: run it without -short")
	}
	folder, err := os.MkdirTemp("", "stress")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	b := bench{folder: folder}
	if b.picosnitch, err = monitor.Build(folder, "./cmd/picosnitch"); err != nil {
		t.Fatal(err)
	}
	b.generator.Folder = filepath.Join(folder, "copies")
	if b.generator.Program, err = monitor.Build(folder, "./test/coverage/generate"); err != nil {
		t.Fatal(err)
	}
	t.Run("DrainUnderFire", b.drainUnderFire)
	t.Run("Connections", b.connections)
	t.Run("Peers", func(t *testing.T) { b.flows(t, "stress-250000-peers") })
	t.Run("Sockets", func(t *testing.T) { b.flows(t, "stress-250000-sockets") })
	t.Run("OnDiskWithinTwoWindows", b.onDisk)
	t.Run("StopUnderFire", b.stopUnderFire)
	t.Run("RecorderKilled", b.recorderKilled)
	t.Run("AllKilled", b.allKilled)
}

// start starts a monitor that ends with the test.
func (b bench) start(t *testing.T, window int) *monitor.Monitor {
	t.Helper()
	m, err := monitor.Start(b.picosnitch, b.folder, map[string]any{"DB write limit (seconds)": window})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(m.Output())
		}
		if m.Running() {
			m.Kill()
		}
	})
	return m
}

// play runs a scenario; lines of the generator go to the log.
func (b bench) play(t *testing.T, name string) []claim.Claim {
	t.Helper()
	o := b.generator.Run(name, nil, func(line string) { t.Log(line) })
	if o.Err != nil || o.Lack != "" {
		t.Fatalf("generator: %v %s", o.Err, o.Lack)
	}
	return o.Claims
}

// stop stops the monitor and returns the last status before.
func stop(t *testing.T, m *monitor.Monitor) monitor.Status {
	t.Helper()
	s, err := m.Status()
	if err != nil {
		t.Error(err)
	}
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("seen %+v, unattributed %+v, lost %v, unknown flows %d", s.Seen, s.Unattributed, s.Lost, s.UnknownFlows)
	if s.Unattributed != (monitor.Bytes{}) {
		t.Errorf("unattributed bytes: %+v", s.Unattributed)
	}
	return s
}

// byProgram sums up claims.
func byProgram(claims []claim.Claim) map[string]monitor.Row {
	sums := make(map[string]monitor.Row)
	for _, c := range claims {
		r := sums[c.Exe]
		r.Exe = c.Exe
		r.Sent += c.Sent
		r.Received += c.Received
		if c.Conns != claim.NotStated {
			r.Conns += uint64(c.Conns)
		}
		sums[c.Exe] = r
	}
	return sums
}

// equal compares sums by program: bytes, and connections where the generator states them.
func equal(t *testing.T, m *monitor.Monitor, claims []claim.Claim) {
	t.Helper()
	got, err := monitor.Sums(m.Database())
	if err != nil {
		t.Fatal(err)
	}
	for exe, want := range byProgram(claims) {
		g := got[exe]
		if want.Conns == 0 {
			g.Conns = 0
		}
		if g.Sent != want.Sent || g.Received != want.Received || g.Conns != want.Conns {
			t.Errorf("%s: recorded sent %d received %d conns %d, the generator counted sent %d received %d conns %d (ratios %.6f %.6f)", filepath.Base(exe),
				g.Sent, g.Received, g.Conns, want.Sent, want.Received, want.Conns, ratio(g.Sent, want.Sent), ratio(g.Received, want.Received))
		}
	}
}

func ratio(got, want uint64) float64 {
	if got == want {
		return 1
	}
	return float64(got) / float64(want)
}

// drainUnderFire: several programs hammer few flows, some of them shared, while the monitor drains every second.
func (b bench) drainUnderFire(t *testing.T) {
	m := b.start(t, 1)
	claims := b.play(t, "stress-hammer")
	stop(t, m)
	equal(t, m, claims)
}

// connections: as many connections as the machine makes, at most 20,000 a second for 10 s.
func (b bench) connections(t *testing.T) {
	m := b.start(t, 1)
	claims := b.play(t, "stress-200000-connections")
	stop(t, m)
	equal(t, m, claims)
}

// flows: 250,000 distinct flows. Addresses may be lost, if that is counted; bytes may not.
func (b bench) flows(t *testing.T, scenario string) {
	m := b.start(t, 1)
	claims := b.play(t, scenario)
	before, err := m.Status()
	if err != nil {
		t.Fatal(err)
	}
	stop(t, m)
	equal(t, m, claims)
	db, err := monitor.OpenDB(m.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var flows, lost sql.NullInt64
	if err := db.QueryRow(`SELECT count(DISTINCT ip || ' ' || port) FROM connections WHERE ip LIKE '127.9.%'`).Scan(&flows); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(`SELECT sum(count) FROM losses WHERE reason = 'flow_detail'`).Scan(&lost); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d distinct flows on disk, %d updates without detail on disk, status after the storm: %v", flows.Int64, lost.Int64, before.Lost)
	want := distinct(scenario)
	switch {
	case flows.Int64 < want && lost.Int64 == 0:
		t.Errorf("%d of %d flows have their address, and no loss of detail is on disk", flows.Int64, want)
	case flows.Int64 < want && flows.Int64+lost.Int64 < want:
		t.Errorf("%d of %d flows have their address, but only %d losses of detail are on disk", flows.Int64, want, lost.Int64)
	}
}

// distinct is the number of addresses that a scenario sends to: the two programs of one use the same.
func distinct(scenario string) int64 {
	if scenario == "stress-250000-sockets" {
		return 125_000
	}
	return 250_000
}

// onDisk: what was counted is on disk within two windows, while the monitor runs.
func (b bench) onDisk(t *testing.T) {
	const window = 2
	m := b.start(t, window)
	claims := b.play(t, "stress-2000-connections")
	want := byProgram(claims)
	start := time.Now()
	for {
		got, err := monitor.Sums(m.Database())
		if err != nil {
			t.Fatal(err)
		}
		missing := 0
		for exe, w := range want {
			if g := got[exe]; g.Sent != w.Sent || g.Received != w.Received {
				missing++
			}
		}
		took := time.Since(start)
		if missing == 0 {
			t.Logf("on disk %v after the last byte", took.Round(time.Millisecond))
			break
		}
		if took > 2*window*time.Second {
			t.Errorf("not on disk after two windows (%v): %+v, want %+v", took, got, want)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop(t, m)
	equal(t, m, claims)
}

// recorderKilled: the sensor sends again what a killed recorder had not written.
func (b bench) recorderKilled(t *testing.T) {
	m := b.start(t, 1)
	b.generator.Folder = filepath.Join(b.generator.Folder, "recorder-killed")
	done := make(chan []claim.Claim, 1)
	go func() {
		o := b.generator.Run("stress-steady", nil, nil)
		if o.Err != nil {
			t.Error(o.Err)
		}
		done <- o.Claims
	}()
	for range 3 {
		time.Sleep(time.Second + rand.N(1500*time.Millisecond))
		s, err := m.Status()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(s.RecorderPID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		for {
			if now, err := m.Status(); err == nil && now.RecorderPID != s.RecorderPID {
				t.Logf("another recorder %v after the kill", time.Since(killed).Round(time.Millisecond))
				break
			}
			if time.Since(killed) > 10*time.Second {
				t.Fatalf("no other recorder 10 s after the kill")
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	claims := <-done
	s := stop(t, m)
	if s.Lost["recorder"] != 3 {
		t.Errorf("status tells %d lost recorders, want 3", s.Lost["recorder"])
	}
	if err := monitor.Intact(m.Database()); err != nil {
		t.Error(err)
	}
	equal(t, m, claims)
}

// timeline is the progress that the generator tells.
type timeline struct {
	mu    sync.Mutex
	times []int64 // ns since 1970
	bytes []uint64
}

func (l *timeline) line(s string) {
	var at int64
	var n uint64
	if _, err := fmt.Sscanf(s, "progress %d %d", &at, &n); err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times, l.bytes = append(l.times, at), append(l.bytes, n)
}

// until is what had been sent for certain at a time.
func (l *timeline) until(at time.Time) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n uint64
	for i := range l.times {
		if l.times[i] <= at.UnixNano() {
			n = l.bytes[i]
		}
	}
	return n
}

// allKilled: a kill of everything costs at most the last window, and the next start goes on with the same files.
func (b bench) allKilled(t *testing.T) {
	const (
		window = time.Second
		batch  = time.Second // between two drains
		slack  = 700 * time.Millisecond
	)
	b.generator.Folder = filepath.Join(b.generator.Folder, "all-killed")
	var progress timeline
	m := b.start(t, 1)
	done := make(chan play.Outcome, 1)
	go func() { done <- b.generator.Run("stress-steady", nil, progress.line) }()
	var onDisk, base uint64
	for round := range 2 {
		time.Sleep(3*time.Second + rand.N(1500*time.Millisecond))
		killed := time.Now()
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := monitor.Intact(m.Database()); err != nil {
			t.Fatal(err)
		}
		sums, err := monitor.Sums(m.Database())
		if err != nil {
			t.Fatal(err)
		}
		got := sums[filepath.Join(b.generator.Folder, "stress-steady", "gen-client")].Sent
		least := progress.until(killed.Add(-window-batch-slack)) - base
		most := progress.until(time.Now()) + 1<<20 - base
		t.Logf("round %d: %d bytes on disk, %d sent until the last window, %d until the kill", round, got-onDisk, least, progress.until(killed)-base)
		if got-onDisk < least || got-onDisk > most {
			t.Errorf("round %d: %d bytes on disk, want %d to %d", round, got-onDisk, least, most)
		}
		onDisk = got
		if err := m.Restart(); err != nil {
			t.Fatal(err)
		}
		base = progress.until(time.Now())
	}
	if o := <-done; o.Err != nil {
		t.Error(o.Err)
	}
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
	if err := monitor.Intact(m.Database()); err != nil {
		t.Error(err)
	}
}
