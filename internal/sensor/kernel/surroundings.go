package kernel

import (
	"bytes"
	"slices"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/sensor/place"
)

// surroundings are what exec reports are compared with, and what they have in common.
type surroundings struct {
	places map[string]*event.Place // by the names of both groups as the kernel tells them
	// own and init are what the sensor and init take for the root; zero: not known, and nobody's. A hardened service has mounts of its
	// own (ProtectSystem=), over the same root.
	own, init root
}

// root is what a process takes for "/".
type root struct {
	device  uint32
	inode   uint64
	mountNS uint32
}

func rootOf(r *bpfExecReport) root { return root{r.RootDevice, r.RootInode, r.MountNs} }

// apart reports whether a process sees other files than the sensor does.
func (s *surroundings) apart(r *bpfExecReport) bool {
	at := rootOf(r)
	same := at == s.own || at == s.init && at.device == s.own.device && at.inode == s.own.inode
	return r.Flags&flagKernel == 0 && !same
}

// placesMax bounds the places that are shared: a machine that starts containers all day has had many.
const placesMax = 4096

// place returns the shared place of control groups.
func (s *surroundings) place(unified, other []byte, cut bool) *event.Place {
	if len(unified) == 0 && len(other) == 0 {
		return nil
	}
	key := string(unified) + "/" + string(other)
	if p := s.places[key]; p != nil {
		return p
	}
	if len(s.places) >= placesMax || s.places == nil {
		s.places = make(map[string]*event.Place)
	}
	var p *event.Place
	if cut {
		p = place.Cut(groupPath(append(slices.Clone(unified), other...)))
	} else {
		p = place.Best(groupPath(unified), groupPath(other))
	}
	s.places[key] = p
	return p
}

// groupPath turns names, each ended by NUL, the nearest first, into a path.
func groupPath(names []byte) string {
	if len(names) == 0 {
		return "/"
	}
	parts := bytes.Split(bytes.TrimSuffix(names, []byte{0}), []byte{0})
	slices.Reverse(parts)
	return "/" + string(bytes.Join(parts, []byte{'/'}))
}
