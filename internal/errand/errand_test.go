package errand

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (*Conn, *Conn, *os.File) {
	t.Helper()
	r, s, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := unix.Dup(int(s.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewConn(r)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewConn(s)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(raw), "raw")
	t.Cleanup(func() { a.Close(); b.Close(); f.Close() })
	return a, b, f
}

func TestMessageArrivesWhole(t *testing.T) {
	a, b, _ := pair(t)
	want := Message{Show: &Show{N: 1<<53 + 1, Title: "New program: <b>&\u202e", Body: strings.Repeat("ü", maxBody/2), Urgency: Critical, Actions: []Action{{"mute", "Mute"}}}}
	if err := a.Send(want, nil, time.Second); err != nil {
		t.Fatal(err)
	}
	got, f, err := b.Receive()
	if err != nil || f != nil {
		t.Fatalf("%v, file %v", err, f)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFileIsHandedOver(t *testing.T) {
	a, b, _ := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := b.Send(Message{Done: &Done{N: 7}}, r, time.Second); err != nil {
		t.Fatal(err)
	}
	r.Close()
	_, f, err := a.Receive()
	if err != nil || f == nil {
		t.Fatalf("%v, file %v", err, f)
	}
	defer f.Close()
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
}

// TestHostileMessages: each is refused, and what comes after it is received.
func TestHostileMessages(t *testing.T) {
	a, _, raw := pair(t)
	for name, text := range map[string]string{
		"no JSON":           "\x00\xff{",
		"nothing":           "{}",
		"two things":        `{"done":{"n":1},"state":{}}`,
		"no sha256":         `{"done":{"n":1,"sha256":"` + strings.Repeat("A", 64) + `"}}`,
		"short sha256":      `{"done":{"n":1,"sha256":"abc"}}`,
		"long reason":       `{"done":{"n":1,"reason":"` + strings.Repeat("x", maxReason+1) + `"}}`,
		"long key":          `{"invoked":{"n":1,"key":"` + strings.Repeat("x", maxWord+1) + `"}}`,
		"negative number":   `{"done":{"n":-1}}`,
		"too long":          `{"state":{"problem":"` + strings.Repeat("x", MaxMessage) + `"}}`,
		"NUL":               `{"state":{"problem":"\u0000"}}`,
		"wrong urgency":     `{"show":{"n":1,"urgency":7}}`,
		"command of nobody": `{"run":{"n":1,"argv":[]}}`,
	} {
		if _, err := unix.Write(int(raw.Fd()), []byte(text)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, _, err := a.Receive(); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := unix.Write(int(raw.Fd()), []byte(`{"done":{"n":1}}`)); err != nil {
		t.Fatal(err)
	}
	if m, _, err := a.Receive(); err != nil || m.Done == nil {
		t.Errorf("after them: %+v, %v", m, err)
	}
}

// TestManyFilesAreClosed: descriptors that nobody asked for do not stay.
func TestManyFilesAreClosed(t *testing.T) {
	a, _, raw := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fds := unix.UnixRights(int(r.Fd()), int(r.Fd()), int(r.Fd()))
	if err := unix.Sendmsg(int(raw.Fd()), []byte(`{"done":{"n":1}}`), fds, nil, 0); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, f, err := a.Receive(); err != nil || f != nil {
		t.Errorf("%v, file %v", err, f)
	}
	if _, err := w.WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("somebody holds the pipe: %v", err)
	}
	w.Close()
}

func TestNobodyReads(t *testing.T) {
	a, b, raw := pair(t)
	m := Message{Show: &Show{Title: strings.Repeat("x", maxTitle)}}
	sent := 0
	for ; sent < 10_000; sent++ {
		m.Show.N = uint64(sent)
		if err := a.Send(m, nil, 20*time.Millisecond); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
	}
	if sent == 10_000 {
		t.Fatal("ten thousand messages found room")
	}
	for n := range sent { // what was said to be sent is there, once
		got, _, err := b.Receive()
		if err != nil || got.Show.N != uint64(n) {
			t.Fatalf("message %d: %+v, %v", n, got.Show, err)
		}
	}
	a.Close()
	raw.Close()
	if _, _, err := b.Receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestClip(t *testing.T) {
	for in, want := range map[string]string{"abc": "abc", "abcdefghij": "abcde…", "üüüüüü": "üü…", "\xff\x00": "\ufffd\\0"} {
		if got := Clip(in, 8); got != want || len(got) > 8 {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	s := Show{Title: strings.Repeat("t", 1000), Body: strings.Repeat("\xff", 10_000), Icon: strings.Repeat("i", 100), Urgency: 9, Actions: make([]Action, 9)}
	s.Fit()
	if err := s.check(); err != nil {
		t.Error(err)
	}
}
