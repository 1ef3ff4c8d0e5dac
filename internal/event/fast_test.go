package event

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// same fails unless decodeFlow leaves the line alone or gives what encoding/json does.
func same(t interface{ Fatalf(string, ...any) }, line []byte) (fast bool) {
	var got, want Event
	if !decodeFlow(line, &got) {
		return false
	}
	if err := json.Unmarshal(line, &want); err != nil {
		t.Fatalf("%q is taken, encoding/json says %v", line, err)
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Fatalf("%q: %s", line, diff)
	}
	return true
}

// drawAddress is any address with a port, or none.
func drawAddress(t *rapid.T, label string) netip.AddrPort {
	port := rapid.Uint16().Draw(t, label+" port")
	switch rapid.IntRange(0, 3).Draw(t, label) {
	case 0:
		return netip.AddrPort{}
	case 1:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label+" IPv4"))), port)
	case 2:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label+" IPv6"))), port)
	default:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1}).WithZone(rapid.SampledFrom([]string{"eth0", `"<\`, "é\x00"}).Draw(t, label+" zone")), port)
	}
}

// drawFlow is any flow.
func drawFlow(t *rapid.T) Event {
	word := func(label string, words ...string) string {
		return rapid.OneOf(rapid.SampledFrom(words), rapid.SampledFrom(words), rapid.String()).Draw(t, label)
	}
	return Event{At: rapid.Int64().Draw(t, "at"), Flow: &Flow{
		Process: ProcessID{rapid.Uint32().Draw(t, "pid"), rapid.Uint64().Draw(t, "start"), rapid.Uint32().Draw(t, "exec")},
		UID:     rapid.Uint32().Draw(t, "uid"), Family: word("family", "inet", "inet6", "packet", "vsock"), Protocol: word("protocol", "tcp", "udp", "icmp", "ip-2", ""),
		Direction: word("direction", Outbound, Inbound, ""), Layer: word("layer", LayerPayload, LayerIP, LayerFrame), Local: drawAddress(t, "local"), Remote: drawAddress(t, "remote"),
		Peer: word("peer", PeerSocket, PeerMessage, PeerPacket, ""), NetNS: rapid.Uint32().Draw(t, "net_ns"), Conns: rapid.Uint32().Draw(t, "conns"),
		Sent: rapid.Uint64().Draw(t, "sent"), Received: rapid.Uint64().Draw(t, "received"),
	}}
}

func TestDecodeFlowAsJSON(t *testing.T) {
	fast, all := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		ev := drawFlow(t)
		line, err := Append(nil, &ev)
		if err != nil {
			t.Fatal(err)
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		all++
		if same(t, line) {
			fast++
		}
		// One byte changed, lost or added.
		i := rapid.IntRange(0, len(line)-1).Draw(t, "place")
		b := rapid.SampledFrom([]byte(`0123456789-+.:"{},\ eE[]x`+"\x00\xff")).Draw(t, "byte")
		for _, bad := range [][]byte{
			bytes.Join([][]byte{line[:i], {b}, line[i+1:]}, nil),
			bytes.Join([][]byte{line[:i], line[i+1:]}, nil),
			bytes.Join([][]byte{line[:i], {b}, line[i:]}, nil),
		} {
			same(t, bad)
		}
	})
	if fast < all/10 {
		t.Errorf("only %d of %d lines were read fast", fast, all)
	}
}

func TestDecodeFlowIsUsed(t *testing.T) {
	for _, text := range []string{
		`{"at":1,"flow":{"process":"1:2:3","uid":0,"family":"inet","protocol":"tcp","layer":"payload"}}`,
		`{"at":1,"flow":{"process":"","uid":0,"family":"inet","protocol":"tcp","direction":"out","layer":"payload","local":"1.2.3.4:5","remote":"[::1]:6","peer":"socket","net_ns":1,"conns":2,"sent":3,"received":4}}`,
	} {
		if !same(t, []byte(text)) {
			t.Errorf("%s is not read fast", text)
		}
	}
}

func FuzzDecodeFlow(f *testing.F) {
	for _, ev := range samples() {
		if ev.Flow != nil {
			line, err := Append(nil, &ev)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(bytes.TrimSuffix(line, []byte("\n")))
		}
	}
	for _, n := range []string{"0", "00", "01", "-1", "-01", "1.0", "1e3", "4294967296", "18446744073709551616", "\"1\""} {
		f.Add([]byte(`{"at":` + n + `,"flow":{"process":"","uid":0,"family":"inet","protocol":"tcp","layer":"payload"}}`))
		f.Add([]byte(`{"at":1,"flow":{"process":"","uid":` + n + `,"family":"inet","protocol":"tcp","layer":"payload"}}`))
		f.Add([]byte(`{"at":1,"flow":{"process":"` + n + `:1:1","uid":1,"family":"inet","protocol":"tcp","layer":"payload","sent":` + n + `}}`))
	}
	f.Add([]byte(`{"at":-0,"flow":{"process":"","uid":0,"family":"inet","protocol":"tcp","layer":"payload","local":"1.2.3.4:05"}}`))
	f.Fuzz(func(t *testing.T, line []byte) { same(t, line) })
}
