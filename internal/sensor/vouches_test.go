package sensor

import (
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/sensor/digest"
)

// A digest that was read through a descriptor is that of the exec if nothing was written to the file meanwhile, whatever was written
// to it before or since, and if every write would have been told.
func TestVouches(t *testing.T) {
	inode := digest.Inode{Device: 1, Number: 2}
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	for _, c := range []struct {
		name   string
		writes []int
		forgot int
		want   bool
	}{
		{name: "no write", want: true},
		{name: "before", writes: []int{9}, want: true},
		{name: "since", writes: []int{21}, want: true},
		{name: "before and since", writes: []int{5, 9, 21, 30}, want: true},
		{name: "meanwhile", writes: []int{15}},
		{name: "meanwhile, and once more since", writes: []int{15, 25}},
		{name: "at its beginning", writes: []int{10}},
		{name: "at its end", writes: []int{20}},
		{name: "writes were lost before", forgot: 9, want: true},
		{name: "writes were lost meanwhile", forgot: 15},
		{name: "writes were lost since", forgot: 25},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &loop{}
			l.executed.written = map[digest.Inode]writes{}
			if c.forgot != 0 {
				l.executed.forgot = at(c.forgot)
			}
			var w writes
			for _, s := range c.writes {
				w.add(at(s))
			}
			l.executed.written[inode] = w
			r := digest.Result{Vouched: true, Since: at(10), Ended: at(20), Source: inode}
			if got := l.vouches(&r); got != c.want {
				t.Errorf("vouched %v, want %v", got, c.want)
			}
		})
	}
	t.Run("more writes than are remembered", func(t *testing.T) {
		var w writes
		for s := range writesMax + 10 {
			w.add(at(s))
		}
		if !w.between(at(2), at(3)) || w.between(at(writesMax+20), at(writesMax+30)) || len(w.at) != writesMax {
			t.Errorf("%d are remembered, of which %+v", len(w.at), w)
		}
	})
}
