package rollup

import (
	"math"
	"math/rand/v2"
	"testing"
)

// BenchmarkRead reads an hour of a busy machine.
func BenchmarkRead(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	size := func(mean, deviation float64) uint64 { return uint64(math.Exp(mean + deviation*r.NormFloat64())) }
	var entries []Entry
	for range 1142 {
		entries = append(entries, Entry{1 + r.Int64N(1+r.Int64N(1800)), 443, r.Int64N(1 + r.Int64N(20000)), r.Int64N(1 + r.Int64N(5000)), Sum{r.Uint64N(2), size(7, 1.5), size(9, 2)}})
	}
	actors, peers, _, err := Encode(Merge(entries))
	if err != nil {
		b.Fatal(err)
	}
	var a Actors
	var p Peers
	b.SetBytes(int64(len(actors) + len(peers)))
	rows := 0
	for b.Loop() {
		if err := a.Read(actors); err != nil {
			b.Fatal(err)
		}
		n, err := p.Read(peers, len(a.Actor), Want{true, true, true})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.ReadSums(nil); err != nil {
			b.Fatal(err)
		}
		rows += n
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/row")
}
