package spool

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const beKilled = "SPOOL_TEST_BE_KILLED"

// TestMain makes the test binary a writer that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(beKilled); dir != "" {
		s, err := Open(dir, MinLimit)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		n := 0
		fmt.Sscan(string(s.Mark()), &n)
		for {
			n++
			if err := s.Append(frame(n, 100+n%5000)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(n)
			if s.Status().Bytes > MinLimit*3/4 {
				select {}
			}
		}
	}
	os.Exit(m.Run())
}

func frame(n, size int) Frame {
	return Frame{Count: Count{uint64(n % 7), uint64(n), 1}, Mark: fmt.Append(nil, n), Payload: fmt.Appendf(nil, "%d:%s", n, bytes.Repeat([]byte("x"), size))}
}

func open(t *testing.T, dir string, limit int64) *Spool {
	t.Helper()
	s, err := Open(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func number(t *testing.T, f Frame) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscanf(string(f.Payload), "%d:", &n); err != nil {
		t.Fatalf("payload %q", f.Payload[:min(len(f.Payload), 40)])
	}
	return n
}

// drain delivers everything and returns the numbers of the frames.
func drain(t *testing.T, s *Spool) (all []int) {
	t.Helper()
	for {
		b := s.Read(1000, 1<<20)
		if b == nil {
			return all
		}
		if int(b.Last-b.First+1) != len(b.Frames) {
			t.Fatalf("batch %d–%d has %d frames", b.First, b.Last, len(b.Frames))
		}
		for _, f := range b.Frames {
			if len(f.Payload) > 0 || f.Lost == (Count{}) { // else it only tells of a loss
				all = append(all, number(t, f))
			}
		}
		s.Done(b)
	}
}

// TestOrder: what goes in comes out once and in order, over batches given back, skipped and shortened, and restarts; what was
// delivered leaves the disk.
func TestOrder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, 64<<20)
	server := map[string]uint64{} // last by chain: what a server knows
	var got []int
	const n = 3000
	for i := 1; i <= n; i++ {
		if err := s.Append(frame(i, 4000)); err != nil {
			t.Fatal(err)
		}
		if i%700 == 0 {
			s.Close()
			s = open(t, dir, 64<<20)
			if m := string(s.Mark()); m != fmt.Sprint(i) {
				t.Fatalf("mark %q after frame %d", m, i)
			}
		}
		if i%50 != 0 {
			continue
		}
		chain := s.Chain()
		s.Skip(chain, server[chain])
		b := s.Read(200, 1<<20)
		if b == nil {
			t.Fatal("nothing waits")
		}
		if len(b.Frames) > 3 {
			b.Keep(len(b.Frames) - 2)
		}
		if b.First != server[b.Chain]+1 {
			t.Fatalf("frame %d of the chain comes, the server has %d", b.First, server[b.Chain])
		}
		switch i % 3 {
		case 0: // not delivered
			s.Release(b)
		case 1: // delivered, and the answer was lost
			server[b.Chain] = b.Last
			for _, f := range b.Frames {
				got = append(got, number(t, f))
			}
			s.Release(b)
		default:
			server[b.Chain] = b.Last
			for _, f := range b.Frames {
				got = append(got, number(t, f))
			}
			s.Done(b)
		}
	}
	for s.Chain() != "" {
		chain := s.Chain()
		s.Skip(chain, server[chain])
		if s.Chain() != chain {
			continue
		}
		b := s.Read(1000, 1<<20)
		server[b.Chain] = b.Last
		for _, f := range b.Frames {
			got = append(got, number(t, f))
		}
		s.Done(b)
	}
	for i, v := range got {
		if v != i+1 {
			t.Fatalf("frame %d came as number %d", v, i+1)
		}
	}
	if st := s.Status(); len(got) != n || st.Waiting != (Count{}) || st.Frames != 0 || st.Dropped != (Count{}) || st.Bytes > 3<<20 {
		t.Errorf("%d frames of %d, %+v", len(got), n, st)
	}
	s.Close()
	s = open(t, dir, 64<<20)
	defer s.Close()
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 || string(s.Mark()) != fmt.Sprint(n) {
		t.Errorf("%v, mark %q", names, s.Mark())
	}
}

// TestBound: the oldest go when there is no room, and all of them are counted, also the losses that they told of; what is being
// delivered stays.
func TestBound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, MinLimit)
	var in, out, lost Count
	var held *Batch
	for i := 1; i <= 9000; i++ {
		f := frame(i, 10_000)
		in = in.Add(f.Count)
		if err := s.Append(f); err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.Bytes > MinLimit {
			t.Fatalf("%d bytes on disk", st.Bytes)
		}
		if i == 4000 {
			held = s.Read(50, 1<<20)
		}
		if i == 6000 {
			s.Done(held)
			out, lost = out.Add(held.Count()), lost.Add(held.Lost())
		}
	}
	dropped := s.Status().Dropped
	for {
		b := s.Read(1000, 1<<20)
		if b == nil {
			break
		}
		out, lost = out.Add(b.Count()), lost.Add(b.Lost())
		s.Done(b)
	}
	s.Close()
	if dropped.Records == 0 || lost != dropped || out.Add(dropped) != in {
		t.Errorf("in %+v, out %+v, dropped %+v, told %+v", in, out, dropped, lost)
	}
}

// TestDamage: a flipped bit costs the frame that it is in, a damaged header the rest of its segment; both are counted as unreadable, never as
// delivered or as dropped by a full spool, and once. What was cut off is told, and a file of another version is not touched.
func TestDamage(t *testing.T) {
	flip := func(at func(g *segment) int64) func(t *testing.T, g *segment) {
		return func(t *testing.T, g *segment) {
			f, err := os.OpenFile(g.f.Name(), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, at(g)); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{b[0] ^ 0x20}, at(g)); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(left func(g *segment) int64) func(t *testing.T, g *segment) {
		return func(t *testing.T, g *segment) {
			if err := os.Truncate(g.f.Name(), left(g)); err != nil {
				t.Fatal(err)
			}
		}
	}
	const all, payload = 10, 100
	size := func(n int) int64 { f := frame(n, payload); return frameSize(&f) }
	sum := func(from, to int) (c Count) {
		for n := from; n <= to; n++ {
			c = c.Add(frame(n, payload).Count)
		}
		return c
	}
	for _, c := range []struct {
		name       string
		do         func(t *testing.T, g *segment)
		remaining  int
		unreadable Count
		damaged    bool
		short      int
		aside      bool
		foreign    bool
	}{
		{name: "payload", do: flip(func(g *segment) int64 { return g.offset + frameHead + 50 }), remaining: 9, unreadable: sum(1, 1), damaged: true},
		{name: "mark", do: flip(func(g *segment) int64 { return g.offset + frameHead }), remaining: 9, unreadable: sum(1, 1), damaged: true},
		// The first frame's own count is in its header: it is gone, too.
		{name: "header", do: flip(func(g *segment) int64 { return g.offset + 3 }), unreadable: sum(2, all), damaged: true},
		{name: "later header", do: flip(func(g *segment) int64 { return g.offset + size(1) + size(2) + 70 }), remaining: 2, unreadable: sum(4, all), damaged: true},
		{name: "magic", do: flip(func(*segment) int64 { return 0 }), unreadable: sum(1, all), damaged: true, aside: true},
		{name: "length of the first mark", do: flip(func(*segment) int64 { return int64(len(magic)) + 19 }), unreadable: sum(1, all), damaged: true, aside: true},
		{name: "another version", do: func(t *testing.T, g *segment) {
			f, err := os.OpenFile(g.f.Name(), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteAt([]byte("picospl9"), 0)
		}, foreign: true},
		{name: "cut in a frame", do: cut(func(g *segment) int64 { return g.size - 30 }), remaining: 9, short: 1},
		{name: "cut between frames", do: cut(func(g *segment) int64 { return g.size - size(all) }), remaining: 9, short: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "spool")
			s := open(t, dir, MinLimit)
			for i := range all {
				if err := s.Append(frame(i+1, payload)); err != nil {
					t.Fatal(err)
				}
			}
			g := s.segments[0]
			s.Close()
			open(t, dir, MinLimit).Close() // one more segment, so that the first is not the last
			c.do(t, g)
			s = open(t, dir, MinLimit)
			n := 0
			for range 2 { // given back once: not counted twice
				b := s.Read(100, 1<<20)
				n = 0
				if b != nil {
					for _, f := range b.Frames {
						if len(f.Payload) > 0 {
							n++
						}
					}
					if b.Count() != sum(1, all).minus(s.Status().Unreadable).minus(b.Unreadable()) && n > 0 && c.damaged && c.name != "later header" {
						t.Errorf("the batch holds %+v", b.Count())
					}
					s.Release(b)
				}
			}
			if b := s.Read(100, 1<<20); b != nil {
				s.Done(b)
			}
			st := s.Status()
			if n != c.remaining || st.Unreadable != c.unreadable || st.Damaged > 0 != c.damaged || st.Short != c.short || st.Dropped != (Count{}) || len(st.Aside) > 0 != c.aside || len(st.Foreign) > 0 != c.foreign {
				t.Errorf("%d frames, %+v", n, st)
			}
			_, err := os.Stat(g.f.Name() + ".damaged")
			if (err == nil) != c.aside {
				t.Errorf("set aside: %v", err)
			}
			if _, err := os.Stat(g.f.Name()); c.foreign && err != nil {
				t.Error(err)
			}
			s.Close()
			// What can be used goes on.
			s = open(t, dir, MinLimit)
			defer s.Close()
			if err := s.Append(frame(all+1, payload)); err != nil {
				t.Fatal(err)
			}
			if got := drain(t, s); fmt.Sprint(got) != fmt.Sprintf("[%d]", all+1) {
				t.Errorf("then came %v", got)
			}
		})
	}
}

// TestDamageAtRest: a disk that goes bad while we run: what a frame's header said is still known, and nothing stands still for it.
func TestDamageAtRest(t *testing.T) {
	for _, skip := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "spool")
		s := open(t, dir, MinLimit)
		defer s.Close()
		for i := range 10 {
			if err := s.Append(frame(i+1, 100)); err != nil {
				t.Fatal(err)
			}
		}
		g := s.segments[0]
		if _, err := g.f.WriteAt([]byte("????"), g.offset); err != nil {
			t.Fatal(err)
		}
		if skip {
			s.Skip(s.Chain(), 3)
		} else if b := s.Read(100, 1<<20); b != nil {
			t.Fatalf("%+v", b)
		}
		var want Count
		for i := range 10 {
			want = want.Add(frame(i+1, 100).Count)
		}
		if st := s.Status(); st.Unreadable != want || st.Waiting != (Count{}) || st.Damaged == 0 {
			t.Errorf("%+v", st)
		}
		if err := s.Append(frame(11, 100)); err != nil {
			t.Fatal(err)
		}
		b := s.Read(100, 1<<20)
		if b == nil || b.Lost() != want || len(b.Frames) != 2 || len(b.Frames[0].Payload) > 0 || number(t, b.Frames[1]) != 11 {
			t.Errorf("no frame tells of it: %+v", b)
		}
	}
}

// TestDiskFull: a frame that does not fit is refused whole, and the next one that does comes in order.
func TestDiskFull(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, MinLimit)
	defer s.Close()
	if err := s.Append(frame(1, 10)); err != nil {
		t.Fatal(err)
	}
	g := s.segments[len(s.segments)-1]
	whole := g.f
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	g.f = full
	if err := s.Append(frame(2, 10)); err == nil {
		t.Fatal("written to a full disk")
	}
	g.f = whole // and half a frame cannot be taken back from /dev/full: a new segment follows
	for _, n := range []int{2, 3} {
		if err := s.Append(frame(n, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if got := drain(t, s); fmt.Sprint(got) != "[1 2 3]" {
		t.Errorf("%v", got)
	}
}

// TestKilled: whatever the moment of a kill, every frame whose Append had returned is there once, in order.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	told, silent := 0, 0
	for range 15 {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), beKilled+"="+dir)
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond)
		c.Process.Kill()
		c.Wait()
		lines := bytes.Fields(out.Bytes())
		if silent++; len(lines) > 0 {
			fmt.Sscan(string(lines[len(lines)-1]), &told)
			silent = 0
		}
	}
	s := open(t, dir, MinLimit)
	defer s.Close()
	got := drain(t, s)
	for i, v := range got {
		if v != i+1 {
			t.Fatalf("frame %d came as number %d", v, i+1)
		}
	}
	// The last one may be whole although its process did not live to say so, and so may those of processes that said nothing.
	if len(got) < told || len(got) > told+1+silent || told == 0 || s.Status().Damaged != 0 {
		t.Errorf("%d frames, %d were told, %+v", len(got), told, s.Status())
	}
}
