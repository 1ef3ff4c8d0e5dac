package session

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// TestSlowFile: a file that comes byte by byte always makes progress, and is given up all the same.
func TestSlowFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer w.Close()
		for range 500 {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if _, err := w.WriteString("x"); err != nil {
				return
			}
		}
	}()
	var progress atomic.Int64
	_, err = sum(r, 1<<20, &progress, 100*time.Millisecond)
	close(stop)
	<-done
	r.Close()
	if !errors.Is(err, errSlow) {
		t.Errorf("%v, want %v", err, errSlow)
	}
}
