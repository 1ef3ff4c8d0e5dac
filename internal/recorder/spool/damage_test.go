package spool

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// segments fills a spool with more than three segments of frames of one record each, and returns their files.
func segments(t *testing.T, dir string) []string {
	t.Helper()
	s := open(t, dir, 64<<20)
	for n := 1; len(s.segments) < 4; n++ {
		if err := s.Append(one(n, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// one is a frame of one record.
func one(n, size int) Frame {
	f := frame(n, size)
	f.Count = Count{1, 1, 1}
	return f
}

// deliver empties a spool and returns what it says was lost.
func deliver(s *Spool) (records, lost uint64) {
	for s.Chain() != "" {
		if b := s.Read(1000, 1<<20); b != nil {
			records, lost = records+b.Count().Records, lost+b.Lost().Records
			s.Done(b)
		}
	}
	return records, lost
}

// TestCutToNothing: a file in the middle that was cut down to less than its header is a loss, and told; the last one may be what a kill left.
func TestCutToNothing(t *testing.T) {
	for _, size := range []int64{0, 10, int64(headSize) + 1} {
		for _, number := range []int{0, 1} {
			dir := t.TempDir()
			names := segments(t, dir)
			if err := os.Truncate(names[number], size); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir, 64<<20)
			if st := s.Status(); st.Short == 0 {
				t.Errorf("file %d cut to %d bytes: %+v", number, size, st)
			}
			s.Close()
		}
	}
	dir := t.TempDir()
	names := segments(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "00000000000000ff"+suffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, 64<<20)
	defer s.Close()
	if st := s.Status(); st.Short != 0 || len(names) == 0 {
		t.Errorf("killed while it began: %+v", st)
	}
}

// TestCountedOnce: however often it is started before the server is there again, what is damaged is counted and told once.
func TestCountedOnce(t *testing.T) {
	dir := t.TempDir()
	names := segments(t, dir)
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	l, err := load(names[0])
	if err != nil {
		t.Fatal(err)
	}
	g := l.segment
	_, size, err := g.read(g.offset)
	if err != nil {
		t.Fatal(err)
	}
	g.f.Close()
	b[g.offset+size+3] ^= 0xff // the header of the second frame
	if err := os.WriteFile(names[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	want := g.frames - 2 // the header of the second is gone, and its count with it
	for start := range 3 {
		s := open(t, dir, 64<<20)
		st := s.Status()
		if got := st.Unreadable.Records; start == 0 && got != want || start > 0 && got != 0 {
			t.Errorf("start %d: %d of %d records are unreadable", start, got, want)
		}
		disk := int64(0)
		all, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, name := range all {
			if info, err := os.Stat(name); err == nil {
				disk += info.Size()
			}
		}
		if st.Bytes != disk {
			t.Errorf("start %d: it counts %d bytes, on disk are %d", start, st.Bytes, disk)
		}
		if err := s.Append(one(1000+start, 10)); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	s := open(t, dir, 64<<20)
	defer s.Close()
	if _, lost := deliver(s); lost != want {
		t.Errorf("the server is told of %d lost records, want %d", lost, want)
	}
}

// TestSalvagedLosses: what a frame that cannot be read had to tell of earlier losses is told, but was not lost a second time.
func TestSalvagedLosses(t *testing.T) {
	var b []byte
	f := one(1, 10)
	f.Lost = Count{Records: 5}
	b = appendFrame(b, &f)
	name := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(name, append(bytes.Repeat([]byte{0xff}, 200), b...), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if c := salvage(r, 0); c.Records != 1 || c.lost.Records != 5 {
		t.Errorf("%+v", c)
	}
}

// TestGivenUpIsTold: what was found damaged while it ran reaches the server also when nothing is appended any more, after a close and after a kill.
func TestGivenUpIsTold(t *testing.T) {
	for _, closed := range []bool{true, false} {
		for _, number := range []int{0, -1} { // the first segment, and that which is written
			dir := t.TempDir()
			var s *Spool
			if number == 0 {
				segments(t, dir)
				s = open(t, dir, 64<<20)
			} else {
				s = open(t, dir, 64<<20)
				for n := range 3 {
					if err := s.Append(one(n, 10)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if number < 0 {
				number = len(s.segments) - 1
			}
			g := s.segments[number]
			if _, err := g.f.WriteAt([]byte{0xff, 0xff, 0xff}, g.offset+40); err != nil {
				t.Fatal(err)
			}
			want := g.total.Records
			if b := s.Read(1000, 1<<20); b != nil {
				t.Fatal("it can be read")
			}
			if got := s.Status().Unreadable.Records; got != want {
				t.Errorf("%d records are unreadable, want %d", got, want)
			}
			if closed {
				s.Close()
			}
			s = open(t, dir, 64<<20)
			if _, lost := deliver(s); lost != want {
				t.Errorf("closed %v, segment %d: the server is told of %d lost records, want %d", closed, number, lost, want)
			}
			s.Close()
		}
	}
}
