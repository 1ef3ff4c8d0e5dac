package remote

import (
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// TestMixedWidths: a record that needs more rows for one column has the right sums in all of them.
func TestMixedWidths(t *testing.T) {
	widths := map[string]int64{"conns": math.MaxInt16, "send": math.MaxInt64, "recv": math.MaxInt32}
	var there []found
	for _, f := range store.Fields()[:store.MissionFields] {
		c := found{name: f.Name, kind: columnText}
		if most := widths[f.Name]; most > 0 {
			c.kind, c.max = columnNumber, most
		}
		there = append(there, c)
	}
	p, err := newPlan("connections", there, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	var r flow.Record
	r.Program = &flow.Program{Executable: &flow.Executable{Digest: new(flow.Digest)}}
	r.Conns = 5
	for _, sent := range []uint64{0, 1000, math.MaxInt64} {
		for _, received := range []uint64{0, math.MaxInt32, math.MaxInt32 + 1, 7 << 30} {
			r.Sent, r.Received = sent, received
			sums := make(map[string]uint64)
			for part := range p.rows(&flow.Window{}, &r) {
				for _, i := range p.counted {
					b, _ := p.value(nil, i, &flow.Window{}, &r, part)
					n, err := strconv.ParseUint(string(b), 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					sums[p.columns[i].field.Name] += n
				}
			}
			if sums["send"] != sent || sums["recv"] != received || sums["conns"] != 5 {
				t.Errorf("sent %d, received %d: the rows have %v", sent, received, sums)
			}
		}
	}
}

type cutting struct {
	server
	counts map[string]uint64
}

func (c cutting) cut() map[string]uint64 { return c.counts }

// TestCutIsKept: values that were cut are counted since the start, over all connections.
func TestCutIsKept(t *testing.T) {
	r := &Remote{opt: Options{Clock: time.Now}}
	told := ""
	first := cutting{counts: map[string]uint64{"cmdline": 5}}
	for range 2 { // a second delivery over the same connection cuts nothing
		r.succeed(first, &told, time.Now())
	}
	r.succeed(cutting{counts: map[string]uint64{}}, &told, time.Now())
	r.succeed(cutting{counts: map[string]uint64{"exe": 2}}, &told, time.Now())
	if r.status.Cut != 7 {
		t.Errorf("%d values were cut, want 7", r.status.Cut)
	}
	if n := len(r.Notices()); n != 1 {
		t.Errorf("it is told %d times", n)
	}
}
