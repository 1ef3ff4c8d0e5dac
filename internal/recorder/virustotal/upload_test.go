package virustotal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestUnknownIsNotSent(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { missing(w) })
	c, _ := client(t, Options{URL: v.URL, Fetch: func(context.Context, string, string) (Copy, error) {
		t.Error("a file was fetched")
		return nil, errors.New("no")
	}})
	c.Ask("/bin/x", sum(1))
	if r := one(t, c); r.Verdict != Unknown || r.Suspicious {
		t.Errorf("%+v", r)
	}
	if n := len(v.asked()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// upload gives a Fetch of content, and its hash.
func upload(t *testing.T, content []byte) (func(context.Context, string, string) (Copy, error), string) {
	h := sha256.Sum256(content)
	dir := t.TempDir()
	return func(_ context.Context, path, want string) (Copy, error) {
		if path != "/bin/x" {
			t.Errorf("path %q", path)
		}
		return Private(dir, bytes.NewReader(content), want)
	}, hex.EncodeToString(h[:])
}

func TestUpload(t *testing.T) {
	content := bytes.Repeat([]byte("program "), 1<<18)
	fetch, sha := upload(t, content)
	v := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case n == 0:
			missing(w)
		case r.Method == http.MethodPost:
			io.WriteString(w, `{"data":{"type":"analysis","id":"MTIz=="}}`)
		case n < 4:
			io.WriteString(w, `{"data":{"attributes":{"status":"queued","stats":{"malicious":0}}}}`)
		default:
			io.WriteString(w, `{"data":{"attributes":{"status":"completed","stats":{"malicious":0,"suspicious":2,"undetected":68,"harmless":0}}}}`)
		}
	})
	c, _ := client(t, Options{URL: v.URL, Upload: true, Fetch: fetch})
	c.Ask("/bin/x", sha)
	r := one(t, c)
	if r.Verdict != Analysed || !r.Suspicious || !r.Uploaded || r.Stats.Suspicious != 2 {
		t.Errorf("%+v", r)
	}
	want := []string{"GET /files/" + sha, "POST /files", "GET /analyses/MTIz==", "GET /analyses/MTIz==", "GET /analyses/MTIz=="}
	if diff := gocmp.Diff(want, v.asked()); diff != "" {
		t.Error(diff)
	}
	if diff := gocmp.Diff([]string{sha}, v.files); diff != "" {
		t.Error(diff)
	}
}

// TestNothingElseIsSent: bytes that are not the hashed ones never make a whole request.
func TestNothingElseIsSent(t *testing.T) {
	_, sha := upload(t, []byte("what was hashed"))
	dir := t.TempDir()
	for name, fetch := range map[string]func(context.Context, string, string) (Copy, error){
		"another file": func(_ context.Context, _, want string) (Copy, error) {
			return Private(dir, strings.NewReader("what is there now"), want)
		},
		"too large": func(_ context.Context, _, want string) (Copy, error) {
			return Private(dir, io.LimitReader(zeros{}, MaxUpload+100), want)
		},
		"changes while it is sent": func(context.Context, string, string) (Copy, error) {
			f, err := os.CreateTemp(dir, "")
			if err == nil {
				_, err = f.WriteString("another text!!!")
				f.Seek(0, io.SeekStart)
			}
			return &copied{f, 15}, err
		},
		"unreadable": func(context.Context, string, string) (Copy, error) { return nil, &FetchError{"permission denied"} },
	} {
		v := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { missing(w) })
		c, _ := client(t, Options{URL: v.URL, Upload: true, Fetch: fetch})
		c.Ask("/bin/x", sha)
		r := one(t, c)
		if r.Verdict == Analysed || r.Uploaded || !strings.Contains(r.Text, "not sent") {
			t.Errorf("%s: %+v", name, r)
		}
		if len(v.files) != 0 {
			t.Errorf("%s: the server has %v", name, v.files)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 1 { // the one that the test itself made
		t.Errorf("left behind: %v", left)
	}
}

func TestPrivate(t *testing.T) {
	dir := t.TempDir()
	h := sha256.Sum256([]byte("content"))
	if c, err := Private(dir, strings.NewReader("contend"), hex.EncodeToString(h[:])); err == nil {
		c.Close()
		t.Error("took another file")
	}
	c, err := Private(dir, strings.NewReader("content"), hex.EncodeToString(h[:]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if data, err := io.ReadAll(c); string(data) != "content" || c.Size() != 7 || err != nil {
		t.Errorf("%q, %d, %v", data, c.Size(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("it has a name: %v", left)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("input/output error") }

func TestSourceCannotBeRead(t *testing.T) {
	_, err := Private(t.TempDir(), broken{}, sum(1))
	var never *FetchError
	if !errors.As(err, &never) {
		t.Errorf("%v is tried again for ever", err)
	}
}
