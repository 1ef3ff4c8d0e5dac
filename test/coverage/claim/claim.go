// Package claim is what a traffic generator says about its own traffic: the reference that the monitor is
// measured against. A generator prints its claims as one line of JSON; the tests read it. It measures nothing
// itself and knows nothing of picosnitch.
package claim

import (
	"encoding/json"
	"fmt"
)

// NotStated as Claim.Conns means that the generator does not know how many connections are right.
const NotStated = -1

// Claim is what one process image moved over one pair of addresses, counted from the return values of its own
// system calls.
type Claim struct {
	Role   string `json:"role"`
	PID    int    `json:"pid"`              // in the pid namespace of the process itself
	Exe    string `json:"exe"`              // as the process's own root sees it
	File   string `json:"file"`             // where the test can read the same file
	Parent string `json:"parent,omitempty"` // executable that started the process; "": not checked
	UID    uint32 `json:"uid"`

	Family    string `json:"family"`              // "inet", "inet6", "packet"
	Protocol  string `json:"protocol"`            // "tcp", "udp", …; "" for families without
	Direction string `json:"direction,omitempty"` // "out" or "in"; "": not checked
	Local     string `json:"local,omitempty"`     // address:port; "": not checked
	Remote    string `json:"remote,omitempty"`    // address:port; "": any, the sum over all remotes is compared

	Sent     uint64 `json:"sent"`     // bytes
	Received uint64 `json:"received"` // bytes
	Conns    int    `json:"conns"`    // connections opened, or NotStated

	// Kernel says that no program moved the bytes: there is no file, no user and no parent to compare.
	Kernel bool `json:"kernel,omitempty"`
	// Unproved says that the program's file was removed right after its end, or run right after it was written, so
	// that a hash may be impossible. The monitor must then give the right one or none.
	Unproved bool `json:"unproved,omitempty"`
	// Vague says that the program did not ask for the addresses of its datagrams. The monitor must then give the
	// right one or none.
	Vague bool `json:"vague,omitempty"`

	// Portless says that the monitor may show the remote address without its port.
	Portless bool `json:"portless,omitempty"`

	// Unsure says that the program left the monitor no room to remember who opened the socket. Direction and own port
	// must then be the right ones or none.
	Unsure bool `json:"unsure,omitempty"`

	// Limit names a known limit of the monitor. Expect is then what the monitor must show instead.
	Limit  string `json:"limit,omitempty"`
	Expect *Bytes `json:"expect,omitempty"`
	// Either says that some hook sets of the monitor do not have the limit, and show what was moved.
	Either bool `json:"either,omitempty"`
}

// Bytes is a pair of totals.
type Bytes struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// Expected is what the monitor must show: what was moved, unless a known limit says otherwise.
func (c Claim) Expected() Bytes {
	if c.Expect != nil {
		return *c.Expect
	}
	return Bytes{Sent: c.Sent, Received: c.Received}
}

// Decode reads the line that a generator printed.
func Decode(line []byte) ([]Claim, error) {
	var c []Claim
	if err := json.Unmarshal(line, &c); err != nil {
		return nil, fmt.Errorf("decode claims %.200q: %w", line, err)
	}
	return c, nil
}
