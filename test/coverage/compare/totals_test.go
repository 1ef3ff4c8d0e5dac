package compare

import (
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// Each kind of error must show in the column where a reader looks for it.
func TestSum(t *testing.T) {
	const exe, peer, other = "/no/such/program", "192.0.2.1:443", "192.0.2.9:443"
	c := claim.Claim{Exe: exe, File: exe, Family: "inet", Protocol: "udp", Direction: "out", Remote: peer, Sent: 1000, Conns: claim.NotStated, Unproved: true}
	vague, portless, limited := c, c, c
	vague.Vague, portless.Portless = true, true
	limited.Limit, limited.Expect = "known", &claim.Bytes{}
	row := monitor.Row{Exe: exe, Name: "program", Family: "inet", Protocol: "udp", Direction: "out", Remote: peer, Sent: 1000}
	change := func(f func(*monitor.Row)) []monitor.Row {
		r := row
		f(&r)
		return []monitor.Row{r}
	}
	bare := change(func(r *monitor.Row) { r.Remote = "192.0.2.1:0" })
	nameless := change(func(r *monitor.Row) { r.Remote = ":0" })
	for name, x := range map[string]struct {
		claim    claim.Claim
		rows     []monitor.Row
		peer     string
		sent     uint64
		seen     bool
		identity bool
	}{
		"right":            {c, []monitor.Row{row}, PeerRight, 1000, true, true},
		"nothing":          {c, nil, PeerWrong, 0, false, true},
		"somebody else's":  {c, change(func(r *monitor.Row) { r.Exe = "/other" }), PeerWrong, 0, false, true},
		"a byte too few":   {c, change(func(r *monitor.Row) { r.Sent-- }), PeerWrong, 999, true, true},
		"counted twice":    {c, []monitor.Row{row, row}, PeerWrong, 2000, true, true},
		"wrong address":    {c, change(func(r *monitor.Row) { r.Remote = other }), PeerWrong, 1000, true, true},
		"no address":       {c, nameless, PeerWrong, 1000, true, true},
		"allowed to lack":  {vague, nameless, PeerNone, 1000, true, true},
		"but not to lie":   {vague, change(func(r *monitor.Row) { r.Remote = other }), PeerWrong, 1000, true, true},
		"port may lack":    {portless, bare, PeerBare, 1000, true, true},
		"port may not":     {c, bare, PeerWrong, 1000, true, true},
		"wrong user":       {c, change(func(r *monitor.Row) { r.UID = 7 }), PeerRight, 1000, true, false},
		"limit that holds": {limited, change(func(r *monitor.Row) { r.Sent = 0; r.Conns = 1 }), PeerRight, 0, true, true},
	} {
		s := Source{Name: "test", Rows: x.rows}
		found := New().Compare("test", []claim.Claim{x.claim}, s)
		got := Sum([]claim.Claim{x.claim}, s, found)
		if got.Peer != x.peer || got.Recorded.Sent != x.sent || got.Seen != x.seen || got.Identity != x.identity {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
