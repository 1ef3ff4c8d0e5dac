package flow

import (
	"errors"
	"fmt"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Ignore is the list of what is left out of the log. The zero value leaves nothing out.
type Ignore struct {
	hashes  map[string]struct{}
	domains []string
	ports   map[int]struct{}
}

// NewIgnore makes the list. A hash (sha256, hexadecimal) matches exactly; a domain, in reverse notation, is the beginning of one
// (com.example matches com.example.www). Ports match the remote port, for an inbound flow also the
// local one, exactly.
func NewIgnore(hashes, domains []string, ports []int) (Ignore, error) {
	ig := Ignore{hashes: make(map[string]struct{}), ports: make(map[int]struct{})}
	for _, h := range hashes {
		h = strings.ToLower(h)
		if len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
			return Ignore{}, fmt.Errorf(`"Log ignore": %q is no sha256: use 64 hexadecimal digits`, h)
		}
		ig.hashes[h] = struct{}{}
	}
	for _, d := range domains {
		if d == "" {
			return Ignore{}, errors.New(`"Log ignore": an empty text would match every domain: remove it`)
		}
		ig.domains = append(ig.domains, strings.ToLower(d))
	}
	for _, p := range ports {
		if p < -1 || p > 65535 {
			return Ignore{}, fmt.Errorf(`"Log ignore": %d is no port: use 0 to 65535`, p)
		}
		ig.ports[p] = struct{}{}
	}
	return ig, nil
}

// Flow reports whether a flow is left out for its port or domain. Both are known when the flow comes.
func (ig *Ignore) Flow(f *event.Flow, d Domain) bool {
	if len(ig.ports) > 0 {
		port := int(f.Remote.Port())
		if f.Family == event.FamilyExec {
			port = event.PortExec
		}
		if _, ok := ig.ports[port]; ok {
			return true
		}
		if f.Direction == event.Inbound {
			if _, ok := ig.ports[int(f.Local.Port())]; ok {
				return true
			}
		}
	}
	if d.Name != "" {
		for _, prefix := range ig.domains {
			if strings.HasPrefix(d.Name, prefix) {
				return true
			}
		}
	}
	return false
}

// Program reports whether the flows of a program are left out for its hash, as far as that is known now.
func (ig *Ignore) Program(p *Program) bool {
	if len(ig.hashes) == 0 || p.Executable.Digest.SHA256 == "" {
		return false
	}
	_, ok := ig.hashes[p.Executable.Digest.SHA256]
	return ok
}
