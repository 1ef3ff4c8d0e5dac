package stress

import (
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/play"
)

// storm opens, uses and closes connections for six seconds.
const storm = "stress-30000-exchanges"

// stopUnderFire: a stop while sockets are opened, used and closed tells no loss: what moved until the end of the hooks is
// attributed and on disk, and no byte comes out twice. How much that is nobody can know, so no sum is compared.
func (b bench) stopUnderFire(t *testing.T) {
	folder := filepath.Join(b.generator.Folder, "stop-under-fire")
	for round := range 2 {
		b.generator.Folder = filepath.Join(folder, strconv.Itoa(round))
		m := b.start(t, 1)
		done := make(chan play.Outcome, 1)
		go func() { done <- b.generator.Run(storm, nil, nil) }()
		for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			s, err := m.Status()
			if err != nil {
				t.Fatal(err)
			}
			if s.Seen.Sent > 100_000 {
				break
			}
			if time.Since(start) > 10*time.Second {
				t.Fatalf("no traffic 10 s after the start: %+v", s)
			}
		}
		stop(t, m)
		select {
		case o := <-done:
			t.Fatalf("round %d: the generator ended before the monitor, so that nothing was proved: %v %s", round, o.Err, o.Lack)
		default:
		}
		b.unharmed(t, m)
		if o := <-done; o.Err != nil || o.Lack != "" {
			t.Errorf("generator: %v %s", o.Err, o.Lack)
		}
	}
}

// unharmed demands that the files are whole, hold something, and hold no loss of a byte or of a program.
func (b bench) unharmed(t *testing.T, m *monitor.Monitor) {
	t.Helper()
	if err := monitor.Intact(m.Database()); err != nil {
		t.Error(err)
	}
	sums, err := monitor.Sums(m.Database())
	if err != nil {
		t.Fatal(err)
	}
	if got := sums[filepath.Join(b.generator.Folder, storm, "gen-client")]; got.Sent == 0 {
		t.Errorf("nothing of the generator is on disk: %+v", got)
	}
	db, err := monitor.OpenDB(m.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var sent, received int64
	if err := db.QueryRow(`SELECT coalesce(sum(unattributed_sent), 0), coalesce(sum(unattributed_received), 0) FROM windows`).Scan(&sent, &received); err != nil {
		t.Fatal(err)
	}
	if sent != 0 || received != 0 {
		t.Errorf("unattributed on disk: sent %d received %d", sent, received)
	}
	rows, err := db.Query(`SELECT reason, sum(count) FROM losses GROUP BY reason`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var reason string
		var count int64
		if err := rows.Scan(&reason, &count); err != nil {
			t.Fatal(err)
		}
		t.Logf("losses: %s: %d", reason, count)
		switch reason {
		case "peer", "baseline", "flow_detail", "argv", "exit", "digest", "script":
			continue // details, also of other people's programs: no byte is missing
		}
		t.Errorf("loss on disk: %s: %d", reason, count)
	}
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
}
