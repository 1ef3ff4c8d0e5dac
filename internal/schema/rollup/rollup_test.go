package rollup

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func entries() *rapid.Generator[[]Entry] {
	number := func(most int64) *rapid.Generator[int64] { return rapid.Int64Range(0, most) }
	amount := rapid.OneOf(rapid.Uint64Range(0, 200), rapid.Uint64Range(0, math.MaxInt64/100))
	return rapid.SliceOf(rapid.Custom(func(t *rapid.T) Entry {
		return Entry{
			Actor: number(5).Draw(t, "actor") + number(1).Draw(t, "far")*1<<40, Port: rapid.Int64Range(-1, 3).Draw(t, "port"), Remote: number(3).Draw(t, "remote"), Domain: number(300).Draw(t, "domain"),
			Sum: Sum{amount.Draw(t, "conns"), amount.Draw(t, "sent"), amount.Draw(t, "received")},
		}
	}))
}

// TestSameSums: what is read is what was written, summed up; no column is needed for another, and the parts have the same sum.
func TestSameSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := entries().Draw(t, "entries")
		want := map[Entry]Sum{}
		var all Sum
		for _, e := range in {
			k := e
			k.Sum = Sum{}
			s := want[k]
			s.Add(e.Sum)
			want[k] = s
			all.Add(e.Sum)
		}
		actors, peers, total, err := Encode(Merge(in))
		if err != nil {
			t.Fatal(err)
		}
		if total != all {
			t.Fatalf("total %v, want %v", total, all)
		}
		out, err := Entries(actors, peers)
		if err != nil || len(out) != len(want) {
			t.Fatal(len(out), len(want), err)
		}
		for _, e := range out {
			k := e
			k.Sum = Sum{}
			if want[k] != e.Sum {
				t.Fatalf("%v: want %v", e, want[k])
			}
		}
		var a Actors
		if err := errors.Join(a.Read(actors), a.ReadSums(nil)); err != nil {
			t.Fatal(err)
		}
		var sum Sum
		for i := range a.Actor {
			sum.Add(Sum{a.Conns[i], a.Sent[i], a.Received[i]})
		}
		if sum != all {
			t.Fatalf("by actor %v, want %v", sum, all)
		}
		var p, q Peers
		if n, err := p.Read(peers, len(a.Actor), Want{Domain: true}); err != nil || n != len(want) {
			t.Fatal(n, err)
		}
		if n, err := q.Read(peers, len(a.Actor), Want{Key: true, Remote: true, Domain: true}); err != nil || n != len(want) {
			t.Fatal(n, err)
		}
		if err := errors.Join(p.ReadSums(nil), q.ReadSums(nil)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(q.Domain, p.Domain) + cmp.Diff(q.Sent, p.Sent); d != "" || len(p.Key)+len(p.Remote) != 0 {
			t.Fatal(d)
		}
	})
}

// TestColumns: numbers of any widths come back, and take no more than as many bits as the widest has, for each of them.
func TestColumns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		widths := rapid.SliceOfN(rapid.IntRange(0, 63), 1, 6).Draw(t, "widths")
		values := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) uint64 {
			return rapid.Uint64Range(0, 1<<rapid.SampledFrom(widths).Draw(t, "width")-1).Draw(t, "value")
		}), 1, 300).Draw(t, "values")
		b := pack(len(values), values, []uint64{})
		widest := bits.Len64(slices.Max(values))
		if most := 9 + padding + (len(values)*widest+7)/8; widest <= maxWidth && len(b) > most {
			t.Fatalf("%d bytes, %d at most", len(b), most)
		}
		r := open(b)
		if d := cmp.Diff(values, read(&r, []uint64{9}, nil)); d != "" || r.err != nil {
			t.Fatal(d, r.err)
		}
		groups := rapid.SliceOfN(rapid.SampledFrom([]int32{0, 0, 0, 0, 1}), len(values), len(values)).Draw(t, "groups")
		r = open(b)
		got := read(&r, []uint64{9}, groups)
		for i, g := range groups {
			if g != 0 && got[i] != values[i] {
				t.Fatalf("%d: %d, want %d", i, got[i], values[i])
			}
		}
	})
}

// TestVarints: BLOBs of the first version are still read.
func TestVarints(t *testing.T) {
	var actors, peers []byte
	for _, c := range []struct {
		b       *[]byte
		columns [][]uint64
	}{
		{&actors, [][]uint64{{7, 0, 3}, {zigzag(443), zigzag(-1), zigzag(80)}, {1, 2, 3}, {1, 300, 70000}, {1 << 40, 0, 5}}},
		{&peers, [][]uint64{{0, 1, 1}, {1, 0, 300}, {2, 2, 2}, {1, 2, 3}, {1, 300, 70000}, {1 << 40, 0, 5}}},
	} {
		*c.b = []byte{versionVarints, 3}
		for _, values := range c.columns {
			var column []byte
			for _, v := range values {
				column = binary.AppendUvarint(column, v)
			}
			*c.b = append(binary.AppendUvarint(*c.b, uint64(len(column))), column...)
		}
	}
	got, err := Entries(actors, peers)
	want := []Entry{{7, 443, 1, 2, Sum{1, 1, 1 << 40}}, {7, -1, 0, 2, Sum{2, 300, 0}}, {10, 80, 300, 2, Sum{3, 70000, 5}}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestServicePort(t *testing.T) {
	for _, c := range []struct {
		direction           string
		local, remote, want int64
	}{
		{"out", 40000, 443, 443},
		{"out", 80, 40000, 40000},
		{"in", 443, 40000, 443},
		{"", 40000, 53, 53},
		{"", 53, 40000, 53},
		{"", 0, 53, 53},
		{"", 53, 0, 53},
		{"in", 443, -1, -1},
	} {
		if got := ServicePort(c.direction, c.local, c.remote); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// FuzzRead: whatever a damaged file holds, reading ends with an error or with columns of one length.
func FuzzRead(f *testing.F) {
	actors, peers, _, err := Encode(Merge([]Entry{{1, 443, 2, 3, Sum{1, 2, 3}}, {1, 80, 0, 0, Sum{1, 200, 30000}}, {9, -1, 1, 0, Sum{}}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(actors, peers)
	f.Add([]byte{version, 200, 1}, []byte{version})
	f.Add([]byte{version, 3, 5, 1, 0, 60, 7, 255}, []byte{versionVarints, 1, 1, 0})
	f.Add([]byte{}, []byte{2})
	f.Fuzz(func(t *testing.T, a, p []byte) {
		var x Actors
		if x.Read(a) == nil && x.ReadSums(nil) == nil && (len(x.Port) != len(x.Actor) || len(x.Received) != len(x.Actor)) {
			t.Error("columns of different length")
		}
		Entries(a, p)
	})
}

// TestTooManyEntriesAreRefused: what Encode takes is read again to the last row, and it takes no more.
func TestTooManyEntriesAreRefused(t *testing.T) {
	t.Parallel()
	many := make([]Entry, maxRows+1)
	for i := range many {
		many[i] = Entry{Actor: int64(i), Sum: Sum{Conns: 1}}
	}
	actors, peers, total, err := Encode(many[:maxRows])
	if err != nil || total.Conns != maxRows {
		t.Fatal(total, err)
	}
	if out, err := Entries(actors, peers); err != nil || !slices.Equal(out, many[:maxRows]) {
		t.Errorf("%d entries read of %d, %v", len(out), maxRows, err)
	}
	if actors, peers, _, err := Encode(many); !errors.Is(err, ErrRows) || actors != nil || peers != nil {
		t.Errorf("one more: %d and %d bytes, %v; want %v", len(actors), len(peers), err, ErrRows)
	}
}
