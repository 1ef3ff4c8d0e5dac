package kernel

import (
	"net"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestDrainLosesNothingToAnError: the kernel has forgotten what a drain took, so it must come out whatever goes wrong beside it. Here no process
// report can be read any more, of a socket that was closed, one that is open, and one that two addresses were sent to from.
func TestDrainLosesNothingToAnError(t *testing.T) { eachSet(t, drainLosesNothing) }

func drainLosesNothing(t *testing.T, set string) {
	h := load(t, Options{HookSet: set, Bandwidth: true})
	before, err := h.Tally()
	if err != nil {
		t.Fatal(err)
	}
	sink := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, b := sink(), sink()
	const size = 1000
	dial := func() net.Conn {
		c, err := net.Dial("udp4", a.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	dial().Close()
	defer dial().Close()
	for _, to := range []*net.UDPConn{a, b} {
		if _, err := a.WriteTo(make([]byte, size), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.processes.Close(); err != nil {
		t.Fatal(err)
	}
	var got totals
	if err := h.Drain(newCollector(), got.add); err == nil {
		t.Error("the error was not told")
	}
	if got.bytes.Sent != 4*size {
		t.Errorf("%d of %d bytes came out", got.bytes.Sent, 4*size)
	}
	after, err := h.Tally()
	if err != nil {
		t.Fatal(err)
	}
	if seen := after.Seen.Sent - before.Seen.Sent; seen < 4*size || after.Lost != (event.Bytes{}) {
		t.Errorf("the kernel saw %d bytes, and lost %+v", seen, after.Lost)
	}
}
