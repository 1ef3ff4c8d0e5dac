package page

import (
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/compare"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
	"github.com/picosnitch/picosnitch/test/coverage/suite"
)

// Only bytes that lack, and not more than the skipped runs that were told can have counted, are a known limit.
func TestSkippedRuns(t *testing.T) {
	lacks := []compare.Difference{
		{What: "inet udp out 10.0.0.2:5 sent", Want: "1200000", Got: "1192800"},
		{What: "inet udp in 10.0.0.1:5 received", Want: "1200000", Got: "1194000"},
	}
	right := compare.Totals{Identity: true, Expected: claim.Bytes{Sent: 1200000, Received: 1200000}, Recorded: claim.Bytes{Sent: 1192800, Received: 1194000}}
	change := func(f func(*compare.Totals)) compare.Totals {
		c := right
		f(&c)
		return c
	}
	for _, c := range []struct {
		name    string
		found   []compare.Difference
		totals  compare.Totals
		skipped uint64
		want    string
	}{
		{"told", lacks, right, 11, Skipped},
		{"nothing lacks", nil, right, 11, Equal},
		{"not told", lacks, right, 0, Differs},
		{"more than those runs count", lacks, change(func(t *compare.Totals) { t.Recorded.Sent = 0 }), 11, Differs},
		{"too much", []compare.Difference{{What: "inet udp out 10.0.0.2:5 sent", Want: "1200", Got: "2400"}}, change(func(t *compare.Totals) { t.Recorded.Sent = 1200001 }), 11, Differs},
		{"one flow too much", append([]compare.Difference{{What: "inet udp out 10.0.0.3:5 sent", Want: "1200", Got: "2400"}}, lacks...), right, 11, Differs},
		{"another program", lacks, change(func(t *compare.Totals) { t.Identity = false }), 11, Differs},
		{"a wrong peer", append([]compare.Difference{{What: "unexpected record inet udp out 10.0.0.9:5", Got: "sent 1"}}, lacks...), right, 11, Differs},
		{"a wrong user", append([]compare.Difference{{What: "inet udp out uid", Want: "1000", Got: "0"}}, lacks...), right, 11, Differs},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Report
			r.Add(Machine{Kernel: "7.2"}, suite.Run{
				Scenarios: []suite.Scenario{{Name: "s04", Differences: c.found, Totals: c.totals}},
				Status:    monitor.Status{Lost: map[string]uint64{"skipped": c.skipped}},
			})
			x := r.Rows[0]
			if x.Result != c.want || (len(Bad(r.Rows)) > 0) != (c.want == Differs) {
				t.Errorf("%s (%s), bad %v; not %s", x.Result, x.Reason, Bad(r.Rows), c.want)
			}
			if c.want == Skipped && !strings.Contains(x.Reason, "skipped 11 runs") {
				t.Errorf("reason %q", x.Reason)
			}
		})
	}
}

// Over several trials the worst counts, and says why.
func TestSkippedInOneTrial(t *testing.T) {
	d := []compare.Difference{{What: "inet udp out 10.0.0.2:5 sent", Want: "2", Got: "1"}}
	totals := compare.Totals{Identity: true, Expected: claim.Bytes{Sent: 2}, Recorded: claim.Bytes{Sent: 1}}
	run := func(skipped uint64, d []compare.Difference) suite.Run {
		return suite.Run{Scenarios: []suite.Scenario{{Name: "s04", Differences: d, Totals: totals}}, Status: monitor.Status{Lost: map[string]uint64{"skipped": skipped}}}
	}
	var r Report
	for i, want := range []string{Skipped, Skipped, Differs, Differs} {
		r.Add(Machine{Kernel: "7.2"}, []suite.Run{run(1, d), run(0, nil), run(0, d), run(1, d)}[i])
		if got := r.Rows[0].Result; got != want {
			t.Errorf("trial %d: %s, not %s", i+1, got, want)
		}
	}
	if strings.Contains(r.Rows[0].Reason, "skipped") {
		t.Errorf("reason %q", r.Rows[0].Reason)
	}
}
