package store

import (
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkIdleCare is what an idle second costs.
func BenchmarkIdleCare(b *testing.B) {
	s := openTest(b, filepath.Join(b.TempDir(), "snitch.db"))
	defer s.Close()
	s.SetKeep(Keep{RawDays: 30, Days: 365, Bytes: 1 << 40})
	for n := range 400 {
		if err := s.Write(b.Context(), window(n, 10)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if more, err := s.Care(b.Context(), 4000, time.Second); err != nil || more {
			b.Fatal(more, err)
		}
	}
}
