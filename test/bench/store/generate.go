package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

// The shape of the data: a year of a busy desktop.
const (
	days      = 365
	programs  = 300
	domains   = 5000
	addresses = 20_000
	window    = 10 // seconds
)

// end is the last instant of the data; it is a fixed one, so that the data is always the same.
var end = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC).Unix()

// zipf draws numbers below n; the k-th is drawn with a weight of 1/k^s.
type zipf []float64

func newZipf(n int, s float64) zipf {
	z, sum := make(zipf, n), 0.0
	for k := range z {
		sum += math.Pow(float64(k+1), -s)
		z[k] = sum
	}
	return z
}

func (z zipf) draw(r *rand.Rand) int {
	x := r.Float64() * z[len(z)-1]
	lo, hi := 0, len(z)-1
	for lo < hi {
		if mid := (lo + hi) / 2; z[mid] < x {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// world is who talks to whom. A name has four addresses, a quarter of them IPv6. Programs and names are drawn independently of each
// other, so that almost every row of an hour has another combination: the worst case for roll-ups.
type world struct {
	r        *rand.Rand
	programs []*flow.Program
	uids     []uint32
	domains  []*flow.Domain
	remote   []netip.Addr
	local    [2]netip.Addr
	kinds    map[string]*flow.Kind
	exe, dns zipf
}

func newWorld() *world {
	w := &world{r: rand.New(rand.NewPCG(1, 2)), kinds: map[string]*flow.Kind{}, exe: newZipf(programs, 1), dns: newZipf(domains, 0.9)}
	shell := &flow.Program{Executable: &flow.Executable{Path: "/usr/bin/bash", File: event.FileID{Device: 1, Inode: 1, Ctime: 1}, Digest: &flow.Digest{SHA256: w.hash()}}, Name: "bash", Cmdline: "-bash"}
	for i := range programs {
		name := fmt.Sprintf("program-%03d", i)
		w.programs = append(w.programs, &flow.Program{
			Executable: &flow.Executable{Path: "/usr/lib/" + strings.Repeat("x", 1+w.r.IntN(10)) + "/" + name, File: event.FileID{Device: 1, Inode: uint64(100 + i), Ctime: 1}, Digest: &flow.Digest{SHA256: w.hash()}},
			Name:       name, Cmdline: name + " --" + strings.Repeat("option ", 4+w.r.IntN(10)), Parent: shell, Cgroup: uint64(1 + i%40),
		})
		w.uids = append(w.uids, []uint32{1000, 1000, 1000, 0, 33}[w.r.IntN(5)])
	}
	for i := range domains {
		w.domains = append(w.domains, &flow.Domain{Name: fmt.Sprintf("com.%s.host-%04d", strings.Repeat("n", 1+w.r.IntN(10)), i), Source: "dns"})
		for range addresses / domains {
			if w.r.IntN(4) == 0 {
				w.remote = append(w.remote, netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, byte(i >> 8), byte(i), 0, 0, byte(w.r.Uint32()), byte(w.r.Uint32()), 0, 0, byte(w.r.Uint32()), byte(w.r.Uint32()), byte(w.r.Uint32()), byte(len(w.remote))}))
			} else {
				w.remote = append(w.remote, netip.AddrFrom4([4]byte{byte(20 + len(w.remote)%180), byte(w.r.Uint32()), byte(len(w.remote) >> 8), byte(len(w.remote))}))
			}
		}
	}
	w.local = [2]netip.Addr{netip.MustParseAddr("192.168.1.20"), netip.MustParseAddr("2001:db8:ffff::20")}
	return w
}

func (w *world) hash() string {
	return fmt.Sprintf("%016x%016x%016x%016x", w.r.Uint64(), w.r.Uint64(), w.r.Uint64(), w.r.Uint64())
}

func (w *world) kind(family, protocol, direction string) *flow.Kind {
	k := family + protocol + direction
	if w.kinds[k] == nil {
		w.kinds[k] = &flow.Kind{Family: family, Protocol: protocol, Direction: direction, Layer: "payload", Peer: "socket"}
	}
	return w.kinds[k]
}

// record draws one row.
func (w *world) record() flow.Record {
	p, d := w.exe.draw(w.r), w.dns.draw(w.r)
	remote := w.remote[d*(addresses/domains)+w.r.IntN(addresses/domains)]
	family, local := "inet", w.local[0]
	if remote.Is6() {
		family, local = "inet6", w.local[1]
	}
	protocol, direction, port, ephemeral := "tcp", "out", uint16(443), uint16(32768+w.r.IntN(28000))
	switch x := w.r.IntN(100); {
	case x < 8:
		protocol = "udp"
	case x < 12:
		port = 80
	case x < 15:
		port = uint16(1024 + w.r.IntN(8000))
	case x < 20:
		direction, port, ephemeral = "in", ephemeral, 22
	}
	return flow.Record{
		Key: flow.Key{
			Program: w.programs[p], Kind: w.kind(family, protocol, direction), UID: w.uids[p], NetNS: 4026531840, Domain: w.domains[d],
			Local: netip.AddrPortFrom(local, ephemeral), Remote: netip.AddrPortFrom(remote, port),
		},
		Conns: uint64(w.r.IntN(2)), Sent: w.bytes(7, 1.5), Received: w.bytes(9, 2),
	}
}

func (w *world) bytes(mean, deviation float64) uint64 {
	return uint64(math.Exp(mean + deviation*w.r.NormFloat64()))
}

// generate writes the rows as the recorder does, in the order of time, with the roll-ups made beside it.
func generate(ctx context.Context, s *store.SQLite, w *world, rows int) error {
	begin := end - days*86400
	windows := days * 86400 / window
	var batch []*flow.Window
	left := rows
	for i := range windows {
		// The rows are spread evenly, and by chance within that.
		n := left / (windows - i)
		if w.r.IntN(windows-i) < left%(windows-i) {
			n++
		}
		left -= n
		at := begin + int64(i)*window
		x := &flow.Window{Hello: event.Hello{Stream: "bench", Boot: "boot"}, Start: at, End: at + window, Position: flow.Position{Stream: "bench", Batch: uint64(i + 1)}}
		for range n {
			x.Records = append(x.Records, w.record())
		}
		if batch = append(batch, x); len(batch) == 1000 || i == windows-1 {
			if err := s.WriteAll(ctx, batch...); err != nil {
				return err
			}
			batch = batch[:0]
			if _, err := s.Care(ctx, x.End, time.Hour); err != nil {
				return err
			}
		}
	}
	return nil
}
