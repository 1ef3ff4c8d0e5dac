package recorder

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// BenchmarkRun is the whole way from the stream's text to rows on disk. An operation is one second of a machine with the given number of
// flow lines; "lines/s" is what is survived.
func BenchmarkRun(b *testing.B) {
	const lines = 40_000
	for _, kind := range []struct {
		name   string
		remote func(i int) netip.AddrPort
		local  func(i int) netip.AddrPort
	}{
		// The same 400 connections, again and again.
		{"busy", func(i int) netip.AddrPort { return peer(i % 400) }, func(i int) netip.AddrPort { return near(i % 400) }},
		// Every line is a connection of its own to one of 100 servers.
		{"connections", func(i int) netip.AddrPort { return peer(i % 100) }, func(i int) netip.AddrPort { return near(i) }},
		// Every line goes to an address of its own.
		{"scan", peer, near},
	} {
		b.Run(kind.name, func(b *testing.B) {
			s := newScript(b)
			s.b.Reset()
			for p := 1; p <= 100; p++ {
				s.process(p, p/2, fmt.Sprintf("/usr/bin/program-%d", p), "program", "--with", "arguments")
			}
			s.hash("/usr/bin/program-1", 1)
			head := s.b.Len()
			for i := range lines {
				s.flow(event.Flow{Process: id(1 + i%100), UID: 1000, Direction: event.Outbound, Local: kind.local(i), Remote: kind.remote(i), Peer: event.PeerSocket, NetNS: 4026531840, Conns: 1, Sent: 100, Received: 1000})
			}
			body := append([]byte(nil), s.b.Bytes()[head:]...)
			s.b.Truncate(head)
			b.ReportAllocs()
			b.ResetTimer()
			dir := b.TempDir()
			for n := range b.N {
				b.StopTimer()
				one := newScript(b)
				one.b.Reset()
				one.add(event.Event{Hello: &event.Hello{Version: 1, Stream: fmt.Sprint("s", n)}})
				hello := bytes.Clone(one.b.Bytes())
				one.b.Reset()
				one.close(true)
				stream := bytes.Join([][]byte{hello, s.b.Bytes()[:head], body, one.b.Bytes()}, nil)
				b.StartTimer()
				o := Options{Dir: dir, Settings: Defaults(), Hosts: os.DevNull}
				if err := Run(b.Context(), bytes.NewReader(stream), o); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			var conns int64
			if err := openDB(b, dir).QueryRow("SELECT sum(conns) FROM records").Scan(&conns); err != nil || conns != int64(b.N)*lines {
				b.Fatalf("%d connections on disk, want %d (%v)", conns, b.N*lines, err)
			}
			i, err := os.Stat(filepath.Join(dir, "snitch.db"))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(lines)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
			b.ReportMetric(float64(i.Size())/float64(b.N)/lines, "db-bytes/line")
		})
	}
}

func peer(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}), 443)
}

func near(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(20000+i%40000))
}
