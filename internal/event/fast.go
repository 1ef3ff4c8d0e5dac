package event

import (
	"bytes"
	"net/netip"
	"strconv"
)

// Flow lines are nearly all of a busy stream, and encoding/json takes six microseconds for each. decodeFlow reads the
// exact text that Append writes for a flow; for anything else it reports false, and encoding/json has the
// word. A test and a fuzzer keep the two equal.
func decodeFlow(line []byte, ev *Event) bool {
	s := scanner{b: line}
	if !s.skip(`{"at":`) {
		return false
	}
	negative := s.skip("-")
	at, ok := s.number(1<<63 - 1)
	if !ok || !s.skip(`,"flow":{"process":"`) {
		return false
	}
	ev.At = int64(at)
	if negative {
		ev.At = -ev.At
	}
	f := new(Flow)
	if !s.skip(`"`) && (!s.processID(&f.Process) || !s.skip(`"`)) {
		return false
	}
	if !s.skip(`,"uid":`) || !s.uint32(&f.UID) || !s.skip(`,"family":`) || !s.word(&f.Family) || !s.skip(`,"protocol":`) || !s.word(&f.Protocol) {
		return false
	}
	if s.skip(`,"direction":`) && !s.word(&f.Direction) {
		return false
	}
	if !s.skip(`,"layer":`) || !s.word(&f.Layer) {
		return false
	}
	if s.skip(`,"local":`) && !s.addrPort(&f.Local) {
		return false
	}
	if s.skip(`,"remote":`) && !s.addrPort(&f.Remote) {
		return false
	}
	if s.skip(`,"peer":`) && !s.word(&f.Peer) {
		return false
	}
	if s.skip(`,"net_ns":`) && !s.uint32(&f.NetNS) {
		return false
	}
	if s.skip(`,"conns":`) && !s.uint32(&f.Conns) {
		return false
	}
	if s.skip(`,"sent":`) {
		if f.Sent, ok = s.number(1<<64 - 1); !ok {
			return false
		}
	}
	if s.skip(`,"received":`) {
		if f.Received, ok = s.number(1<<64 - 1); !ok {
			return false
		}
	}
	if !s.skip("}}") || len(s.b) > 0 {
		return false
	}
	ev.Flow = f
	return true
}

// scanner is what is left of a line.
type scanner struct{ b []byte }

func (s *scanner) skip(text string) bool {
	if len(s.b) < len(text) || string(s.b[:len(text)]) != text {
		return false
	}
	s.b = s.b[len(text):]
	return true
}

// number reads decimal digits as JSON has them: no sign, no leading zero, no fraction.
func (s *scanner) number(most uint64) (uint64, bool) {
	var n uint64
	i := 0
	for ; i < len(s.b) && s.b[i]-'0' <= 9; i++ {
		d := uint64(s.b[i] - '0')
		if n > (most-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	if i == 0 || (i > 1 && s.b[0] == '0') {
		return 0, false
	}
	s.b = s.b[i:]
	return n, true
}

func (s *scanner) uint32(p *uint32) bool {
	n, ok := s.number(1<<32 - 1)
	*p = uint32(n)
	return ok
}

func (s *scanner) processID(id *ProcessID) bool {
	var ok bool
	if !s.uint32(&id.PID) || !s.skip(":") {
		return false
	}
	if id.Start, ok = s.number(1<<64 - 1); !ok || !s.skip(":") {
		return false
	}
	return s.uint32(&id.Exec)
}

// text reads a string that holds nothing that JSON escapes, and nothing but ASCII.
func (s *scanner) text() ([]byte, bool) {
	if !s.skip(`"`) {
		return nil, false
	}
	end := bytes.IndexByte(s.b, '"')
	if end < 0 || end > 64 {
		return nil, false
	}
	t := s.b[:end]
	for _, c := range t {
		if c < 0x20 || c >= 0x7f || c == '\\' {
			return nil, false
		}
	}
	s.b = s.b[end+1:]
	return t, true
}

// word reads one of the few words that flows are described with; the known ones need no memory.
func (s *scanner) word(p *string) bool {
	t, ok := s.text()
	if !ok {
		return false
	}
	switch string(t) {
	case "":
		*p = ""
	case "inet":
		*p = "inet"
	case "inet6":
		*p = "inet6"
	case "packet":
		*p = "packet"
	case "tcp":
		*p = "tcp"
	case "udp":
		*p = "udp"
	case "icmp":
		*p = "icmp"
	case Outbound:
		*p = Outbound
	case Inbound:
		*p = Inbound
	case LayerPayload:
		*p = LayerPayload
	case LayerIP:
		*p = LayerIP
	case LayerFrame:
		*p = LayerFrame
	case PeerSocket:
		*p = PeerSocket
	case PeerMessage:
		*p = PeerMessage
	default:
		*p = string(t)
	}
	return true
}

// addrPort reads an address and port; the usual 1.2.3.4:5 without memory.
func (s *scanner) addrPort(p *netip.AddrPort) bool {
	t, ok := s.text()
	if !ok {
		return false
	}
	if ipv4Port(t, p) {
		return true
	}
	a, err := netip.ParseAddrPort(string(t))
	if err != nil {
		return false
	}
	*p = a
	return true
}

func ipv4Port(t []byte, p *netip.AddrPort) bool {
	s := scanner{b: t}
	var a [4]byte
	for i := range a {
		if i > 0 && !s.skip(".") {
			return false
		}
		n, ok := s.number(255)
		if !ok {
			return false
		}
		a[i] = byte(n)
	}
	if !s.skip(":") {
		return false
	}
	port, err := strconv.ParseUint(string(s.b), 10, 16)
	if err != nil || len(s.b) > 5 || s.b[0] == '+' || s.b[0] == '-' {
		return false
	}
	*p = netip.AddrPortFrom(netip.AddrFrom4(a), uint16(port))
	return true
}
