package recorder

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

const killedEnv = "RECORDER_TEST_BE_KILLED"

// beKilled is a recorder in a process of its own; its acknowledgements go to standard output.
func beKilled(dir string) {
	debug.SetMemoryLimit(MemoryLimit) // as the hidden command does
	s := Defaults()
	s.WriteLimit = 1
	s.TextLog = true
	s.Limits = limitsOfKilled()
	err := Run(context.Background(), os.Stdin, Options{Dir: dir, Settings: s, Hosts: os.DevNull, Ways: []notify.Way{fileWay{filepath.Join(dir, "told")}}, Ack: func(n uint64) error {
		_, err := fmt.Println(n)
		return err
	}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestKilled kills the recorder at random moments and, like the sensor, starts another one that is sent again what was not
// acknowledged. Nothing may be missing at the end, nothing twice in the database, and in conn.log no more than what a kill
// interrupted; after every kill the database opens and holds everything that was acknowledged.
func TestKilled(t *testing.T) {
	const (
		rounds  = 40
		perPack = 500
	)
	dir := t.TempDir()
	pack := func(batch uint64) []byte {
		s := &script{t: t, at: epoch*1e9 + int64(batch)*1e9}
		for i := range perPack {
			s.flow(event.Flow{Process: id(1), Remote: peer(i), Conns: 1, Sent: batch, Received: 1})
		}
		s.add(event.Event{Ledger: &event.Ledger{Batch: batch, Unattributed: event.Bytes{Sent: batch}, Lost: map[string]uint64{"exec": batch}}})
		return s.b.Bytes()
	}
	acked, kills := uint64(0), 0
	seed := rand.Uint64()
	t.Log("seed", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), killedEnv+"="+dir)
		c.Stderr = os.Stderr
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		last := round == rounds-1
		go func(first uint64) {
			defer in.Close()
			s := &script{t: t, at: epoch*1e9 + int64(first)*1e9}
			s.add(event.Event{Hello: &event.Hello{Version: 1, Stream: "s", Batch: first}})
			s.process(1, 0, "/bin/nc", "nc")
			if _, err := in.Write(s.b.Bytes()); err != nil {
				return
			}
			for batch := first; !last || batch < first+3; batch++ {
				if _, err := in.Write(pack(batch)); err != nil {
					return // killed
				}
			}
		}(acked + 1)
		// The kill comes some time after the n-th acknowledgement.
		n := dice.IntN(4)
		lines := bufio.NewScanner(out)
		for !last && n > 0 && lines.Scan() {
			fmt.Sscan(lines.Text(), &acked)
			n--
		}
		if !last {
			time.AfterFunc(time.Duration(dice.IntN(30_000))*time.Microsecond, func() { c.Process.Kill() })
			kills++
		}
		for lines.Scan() {
			fmt.Sscan(lines.Text(), &acked)
		}
		if err := c.Wait(); last && err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "snitch.db")); err == nil {
			// A kill at the very start leaves an empty file.
			var batch uint64
			if db := openDB(t, dir); rows(t, db, "SELECT count(*) > 0 FROM sqlite_schema") == "1\n" {
				fmt.Sscan(rows(t, db, "SELECT coalesce(max(batch), 0) FROM positions"), &batch)
			}
			if batch < acked {
				t.Fatalf("round %d: acknowledged %d, on disk %d", round, acked, batch)
			}
		}
	}
	db := openDB(t, dir)
	if got := strings.TrimSpace(rows(t, db, "PRAGMA integrity_check")); got != "ok" {
		t.Error(got)
	}
	// Every peer was sent 1+2+…+acked bytes.
	want := fmt.Sprintf("%d|%d|%d|%d\n", perPack, acked*(acked+1)/2, acked*(acked+1)/2, acked)
	got := rows(t, db, "SELECT count(*), min(s), max(s), max(r) FROM (SELECT sum(sent) AS s, sum(received) AS r FROM records GROUP BY remote)")
	if got != want {
		t.Errorf("after %d kills and %d batches: peers, least sent, most sent, most received: got %s, want %s", kills, acked, got, want)
	}
	want = fmt.Sprintf("%d|%d\n", acked, acked)
	if got := rows(t, db, "SELECT (SELECT sum(count) FROM losses), sum(unattributed_sent) FROM windows"); got != want {
		t.Errorf("losses and unattributed bytes: got %s, want %s", got, want)
	}
	checkLimitsOfKilled(t, dir, perPack*(acked*(acked+1)/2+acked), kills)
	text, err := os.ReadFile(filepath.Join(dir, "conn.log"))
	if err != nil {
		t.Fatal(err)
	}
	conns, bytes, torn := make(map[string]int), make(map[string]uint64), 0 // by remote address
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ",")
		if len(f) != 16 {
			torn++
			continue
		}
		n, _ := strconv.Atoi(f[13])
		sent, _ := strconv.ParseUint(f[14], 10, 64)
		conns[f[6]] += n
		bytes[f[6]] += sent
	}
	twice := 0
	for i := range perPack {
		a := peer(i).Addr().String()
		if conns[a] < int(acked) || bytes[a] < acked*(acked+1)/2 {
			t.Fatalf("conn.log has %d connections and %d bytes of %s, want %d and %d at least", conns[a], bytes[a], a, acked, acked*(acked+1)/2)
		}
		twice += conns[a] - int(acked)
	}
	// A window holds two batches at most, the one that a kill interrupts.
	if twice > 2*kills*perPack || torn > kills {
		t.Errorf("conn.log has %d connections twice and %d half lines after %d kills", twice, torn, kills)
	}
	t.Logf("conn.log: %d connections twice, %d half lines", twice, torn)
	if entries, _ := filepath.Glob(filepath.Join(dir, "*corrupt*")); len(entries) > 0 {
		t.Errorf("set aside: %v", entries)
	}
	t.Logf("%d kills, %d batches", kills, acked)
}
