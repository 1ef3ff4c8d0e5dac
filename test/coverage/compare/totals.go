package compare

import (
	"strings"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
)

// What Totals.Peer may be.
const (
	PeerRight = "yes"          // every byte stands at the address that it went to or came from
	PeerBare  = "address only" // the right address, but for some bytes no port
	PeerNone  = "partly none"  // no wrong address; some bytes, whose program did not ask for one, have none
	PeerWrong = "no"
	PeerFree  = "n/a" // the traffic has no address that is compared
)

// Totals sums one scenario up, over all its programs.
type Totals struct {
	Moved    claim.Bytes `json:"moved"`    // as the generators counted
	Expected claim.Bytes `json:"expected"` // the same, but for known limits
	Recorded claim.Bytes `json:"recorded"`
	Seen     bool        `json:"seen"` // every program that moved bytes has a row
	Peer     string      `json:"peer"`
	Identity bool        `json:"identity"`        // program, hash, parent and user are right
	Nameless uint64      `json:"nameless"`        // bytes in rows without an address, of programs that did not ask for it
	Limit    string      `json:"limit,omitempty"` // known limit that changes the bytes
	Note     string      `json:"note,omitempty"`  // known limit that does not
}

// Sum sums up the claims of one scenario and the records that belong to them. found are the differences that Compare told.
func Sum(claims []claim.Claim, s Source, found []Difference) Totals {
	t := Totals{Peer: PeerFree, Identity: true, Seen: true}
	seen := make(map[string]bool)
	programs := make(map[string]bool)
	for i := range s.Rows {
		seen[s.Rows[i].Exe] = true
	}
	portless, bare := false, false
	for _, c := range claims {
		portless = portless || c.Portless
		programs[c.Exe] = true
		e := c.Expected()
		t.Moved.Sent += c.Sent
		t.Moved.Received += c.Received
		t.Expected.Sent += e.Sent
		t.Expected.Received += e.Received
		if (e != claim.Bytes{Sent: c.Sent, Received: c.Received}) {
			t.Limit = c.Limit
		} else if c.Limit != "" {
			t.Note = c.Limit
		}
		if c.Remote != "" {
			t.Peer = PeerRight
		}
		if (c.Sent > 0 || c.Received > 0 || c.Conns > 0) && !seen[c.Exe] {
			t.Seen = false
		}
	}
	for i := range s.Rows {
		r := row{&s.Rows[i]}
		if !programs[r.Exe] {
			continue
		}
		t.Recorded.Sent += r.Sent
		t.Recorded.Received += r.Received
		bare = bare || portless && r.portless()
		if r.nameless() && t.Peer != PeerFree {
			t.Nameless += r.Sent + r.Received
		}
	}
	if t.Limit != "" && t.Recorded == t.Moved && len(found) == 0 {
		t.Limit, t.Expected = "", t.Moved // this hook set does not have it
	}
	switch {
	case t.Nameless > 0:
		t.Peer = PeerNone
	case bare:
		t.Peer = PeerBare
	}
	for _, d := range found {
		switch word := d.What[strings.LastIndexByte(d.What, ' ')+1:]; {
		case word == "sha256" || word == "name" || word == "uid" || word == "parent":
			t.Identity = false
		case t.Peer == PeerFree || word == "conns" || word == "local":
		default: // bytes at another flow, or a flow that nobody claimed
			t.Peer = PeerWrong
		}
	}
	return t
}
