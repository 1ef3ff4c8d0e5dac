// Package page keeps the results of the coverage suite and writes them as JSON and as the Markdown of docs/coverage.md. It
// measures nothing.
package page

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/compare"
	"github.com/picosnitch/picosnitch/test/coverage/suite"
)

// What Row.Result may be.
const (
	Equal   = "equal"   // everything is equal in every trial
	Limited = "limit"   // a known limit shows what is documented; the bytes differ
	Skipped = "skipped" // bytes lack because the kernel skipped runs of the hooks, which picosnitch counted and told: a limit that is known, too
	Differs = "differs" // a miss, with its reason
	Failed  = "failed"  // the generator itself failed
	Lacks   = "lacks"   // this kernel does not offer it
)

// Machine is where scenarios were played.
type Machine struct {
	Name    string   `json:"name"`   // "native", "guest"
	Kernel  string   `json:"kernel"` // release and architecture
	HookSet string   `json:"hook_set"`
	Trials  int      `json:"trials"`
	PSS     int64    `json:"pss_bytes"`        // of sensor and recorder, after the last trial
	Broken  []string `json:"broken,omitempty"` // what kept a whole trial from running
}

// Row is one scenario on one machine, over all trials.
type Row struct {
	ID       string      `json:"id"`
	Kernel   string      `json:"kernel"`
	HookSet  string      `json:"hook_set"`
	Result   string      `json:"result"`
	Trials   int         `json:"trials"`
	Equal    int         `json:"trials_equal"`
	Seen     bool        `json:"seen"`
	Moved    claim.Bytes `json:"moved"`    // as the generators counted, sum of the trials
	Expected claim.Bytes `json:"expected"` // what must be shown: as moved, but for known limits
	Recorded claim.Bytes `json:"recorded"`
	Nameless uint64      `json:"bytes_without_address"`
	Peer     string      `json:"peer"`
	Identity bool        `json:"identity"`
	Reason   string      `json:"reason,omitempty"` // of a limit, a miss or a lack
}

// Report is everything.
type Report struct {
	Date     string    `json:"date,omitempty"`
	Machines []Machine `json:"machines"`
	Rows     []Row     `json:"rows"`
}

// Add adds one trial of a machine. All trials of a machine come one after the other.
func (r *Report) Add(machine Machine, run suite.Run) {
	if len(r.Machines) == 0 || r.Machines[len(r.Machines)-1].Kernel != machine.Kernel || r.Machines[len(r.Machines)-1].HookSet != machine.HookSet {
		r.Machines = append(r.Machines, machine)
	}
	m := &r.Machines[len(r.Machines)-1]
	m.Trials++
	m.PSS = run.Cost.PSS
	for _, s := range run.Scenarios {
		r.add(m, s, run.Status.Lost["skipped"])
	}
}

func (r *Report) add(m *Machine, s suite.Scenario, skipped uint64) {
	at := slices.IndexFunc(r.Rows, func(x Row) bool { return x.ID == s.Name && x.Kernel == m.Kernel && x.HookSet == m.HookSet })
	if at < 0 {
		at = len(r.Rows)
		r.Rows = append(r.Rows, Row{ID: s.Name, Kernel: m.Kernel, HookSet: m.HookSet, Result: Equal, Seen: true, Identity: true, Peer: compare.PeerFree})
	}
	x := &r.Rows[at]
	x.Trials++
	switch {
	case s.Outcome.Lack != "":
		x.Result, x.Reason, x.Seen, x.Identity = Lacks, s.Outcome.Lack, false, false
		return
	case s.Outcome.Err != nil:
		x.Result, x.Reason = Failed, oneLine(s.Outcome.Err.Error())
		return
	}
	t := s.Totals
	add(&x.Moved, t.Moved)
	add(&x.Expected, t.Expected)
	add(&x.Recorded, t.Recorded)
	x.Nameless += t.Nameless
	x.Seen, x.Identity = x.Seen && t.Seen, x.Identity && t.Identity
	if rank(t.Peer) > rank(x.Peer) {
		x.Peer = t.Peer
	}
	if len(s.Differences) == 0 {
		x.Equal++
	} else if x.Result != Failed {
		result, reason := Differs, told(s.Differences)
		if excused(s.Differences, t, skipped) {
			result = Skipped
			reason = fmt.Sprintf("the kernel skipped %d runs of the hooks in this trial, which picosnitch counted and told as lost: ", skipped) + reason
		}
		if x.Result != Differs && x.Result != result { // what is worse says why
			x.Result, x.Reason = result, reason
		}
	}
	if x.Result == Equal {
		x.Reason = t.Note
	}
	if x.Result == Equal && t.Limit != "" {
		x.Result, x.Reason = Limited, t.Limit
	}
}

// most is what one run of a hook may count in a scenario: a large write, or a datagram.
const most = 64 << 10

// excused reports whether skipped runs explain the differences: nothing but bytes and connections that lack, and not more
// than so many runs can count.
func excused(d []compare.Difference, t compare.Totals, skipped uint64) bool {
	if !t.Identity || t.Recorded.Sent > t.Expected.Sent || t.Recorded.Received > t.Expected.Received ||
		t.Expected.Sent-t.Recorded.Sent+t.Expected.Received-t.Recorded.Received > skipped*most {
		return false
	}
	return skipped > 0 && !slices.ContainsFunc(d, func(x compare.Difference) bool {
		word := x.What[strings.LastIndexByte(x.What, ' ')+1:]
		got, err := strconv.ParseUint(x.Got, 10, 64)
		want, err2 := strconv.ParseUint(x.Want, 10, 64)
		return !slices.Contains([]string{"sent", "received", "conns"}, word) || err != nil || err2 != nil || got > want
	})
}

// rank orders peers from good to bad.
func rank(peer string) int {
	return slices.Index([]string{compare.PeerFree, compare.PeerRight, compare.PeerBare, compare.PeerNone, compare.PeerWrong}, peer)
}

func add(to *claim.Bytes, b claim.Bytes) {
	to.Sent += b.Sent
	to.Received += b.Received
}

// told names the first differences.
func told(d []compare.Difference) string {
	var all []string
	for _, x := range d[:min(len(d), 2)] {
		all = append(all, fmt.Sprintf("%s: %s %s: %s, not %s", x.Source, x.Program, x.What, x.Got, x.Want))
	}
	if len(d) > 2 {
		all = append(all, fmt.Sprintf("and %d more", len(d)-2))
	}
	return oneLine(strings.Join(all, "; "))
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

// Best takes for each scenario the first machine that offers it, in the order of the machines.
func (r *Report) Best() []Row {
	var order []string
	best := make(map[string]Row)
	for _, x := range r.Rows {
		old, ok := best[x.ID]
		if !ok {
			order = append(order, x.ID)
		}
		if !ok || old.Result == Lacks && x.Result != Lacks {
			best[x.ID] = x
		}
	}
	var all []Row
	for _, id := range order {
		all = append(all, best[id])
	}
	return all
}

// Lacking names the scenarios that no machine so far offers.
func (r *Report) Lacking() []string {
	var all []string
	for _, x := range r.Best() {
		if x.Result == Lacks {
			all = append(all, x.ID)
		}
	}
	return all
}

// Bad names the rows that are neither equal, nor a documented limit, nor lacking. What skipped runs explain is a documented limit.
func Bad(rows []Row) []string {
	var all []string
	for _, x := range rows {
		if x.Result == Differs || x.Result == Failed {
			all = append(all, fmt.Sprintf("%s on %s (%s): %s: %s", x.ID, x.Kernel, x.HookSet, x.Result, x.Reason))
		}
	}
	return all
}
