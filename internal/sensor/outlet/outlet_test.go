package outlet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeRecorder is the far end of one stream.
type fakeRecorder struct {
	net.Conn
	lines *bufio.Scanner
}

func (r *fakeRecorder) next(t *testing.T) string {
	t.Helper()
	if !r.lines.Scan() {
		t.Fatalf("the stream ended: %v", r.lines.Err())
	}
	return r.lines.Text()
}

func (r *fakeRecorder) ack(n int) { fmt.Fprintf(r, "{\"ack\":%d}\n", n) }

// start runs an outlet in which every connect gives a new fake recorder.
func start(t *testing.T, connectErr func() error) (o *Outlet, recorders chan *fakeRecorder, failed *[]error, stop func() error) {
	recorders = make(chan *fakeRecorder, 10)
	failed = new([]error)
	ctx, cancel := context.WithCancel(t.Context())
	connect := func(context.Context) (io.ReadWriteCloser, error) {
		if connectErr != nil {
			if err := connectErr(); err != nil {
				return nil, err
			}
		}
		ours, theirs := net.Pipe()
		lines := bufio.NewScanner(theirs)
		lines.Buffer(nil, Limit)
		recorders <- &fakeRecorder{theirs, lines}
		return ours, nil
	}
	o = New(connect, func(next uint64) []byte { return fmt.Appendf(nil, "hello, %d follows\n", next) }, func(err error) { *failed = append(*failed, err) }, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx, 10*time.Second) }()
	return o, recorders, failed, func() error { cancel(); return <-done }
}

func batch(n int) Batch {
	return Batch{Number: uint64(n), Data: fmt.Appendf(nil, "batch %d\n", n), Lines: 1, Sent: 10, Received: 1}
}

func TestDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, recorders, _, stop := start(t, nil)
		r := <-recorders
		o.Send(batch(1))
		o.Send(batch(2))
		for _, want := range []string{"hello, 1 follows", "batch 1", "batch 2"} {
			if got := r.next(t); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		r.ack(2)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if s := o.Stats(); s.Acked != 2 || s.Restarts != 0 || s.Dropped != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSendsAgainWhatWasNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, recorders, failed, stop := start(t, nil)
		r := <-recorders
		for i := range 3 {
			o.Send(batch(i + 1))
		}
		for range 4 {
			r.next(t)
		}
		r.ack(1)
		synctest.Wait()
		r.Close()
		r = <-recorders
		o.Send(batch(4))
		for _, want := range []string{"hello, 2 follows", "batch 2", "batch 3", "batch 4"} {
			if got := r.next(t); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		r.ack(4)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if s := o.Stats(); s.Restarts != 1 || s.Dropped != 0 || len(*failed) != 1 {
			t.Errorf("%+v, failures %v", s, *failed)
		}
	})
}

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		o, recorders, _, stop := start(t, func() error {
			tries++
			if tries < 12 {
				return errors.New("no such program")
			}
			return nil
		})
		began := time.Now()
		r := <-recorders
		// 0.2 + 0.4 + … + 25.6 + 3 × 30 s
		if d := time.Since(began); d < time.Minute || d > 5*time.Minute {
			t.Errorf("12 tries took %s", d)
		}
		r.next(t)
		if err := stop(); err != nil {
			t.Error(err)
		}
		_ = o
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, recorders, _, stop := start(t, nil)
		r := <-recorders
		read := make(chan int)
		go func() {
			n := 0
			for r.lines.Scan() {
				n++
			}
			read <- n
		}()
		big := strings.Repeat("x", Limit/8-1) + "\n"
		for i := range 20 {
			o.Send(Batch{Number: uint64(i + 1), Data: []byte(big), Lines: 5, Sent: 100, Received: 10})
			synctest.Wait()
		}
		o.mu.Lock()
		size := o.size
		o.mu.Unlock()
		if size > Limit {
			t.Errorf("%d bytes kept, at most %d", size, Limit)
		}
		if o.Full() {
			t.Error("all was sent, and yet the outlet is full")
		}
		r.ack(2) // 3 to 12 are forgotten and not acknowledged
		synctest.Wait()
		r.Close()
		<-read
		r = <-recorders
		synctest.Wait()
		if s := o.Stats(); s.Dropped != 5*10 || s.DroppedSent != 100*10 || s.DroppedReceived != 10*10 {
			t.Errorf("%+v", s)
		}
		for i := range 5 {
			o.Send(Batch{Number: uint64(i + 21), Data: []byte(big)})
		}
		if !o.Full() {
			t.Error("nothing is read, and yet the outlet is not full")
		}
		go func() {
			for r.lines.Scan() {
			}
			read <- 0
		}()
		synctest.Wait()
		r.ack(25)
		if err := stop(); err != nil {
			t.Error(err)
		}
		<-read
	})
}

func TestStopWithAHangingRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, recorders, _, stop := start(t, nil)
		<-recorders // never reads
		o.Send(batch(1))
		synctest.Wait()
		began := time.Now()
		err := stop()
		if err == nil || !strings.Contains(err.Error(), "last 1 batches") {
			t.Errorf("%v", err)
		}
		if d := time.Since(began); d > 11*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

func TestGarbageFromTheRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, recorders, failed, stop := start(t, nil)
		r := <-recorders
		r.next(t)
		fmt.Fprintln(r, "}{")
		r2 := <-recorders
		r2.next(t)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if len(*failed) != 1 || !strings.Contains((*failed)[0].Error(), "answer of the recorder") {
			t.Errorf("%v", *failed)
		}
		_ = o
	})
}
