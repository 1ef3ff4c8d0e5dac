package virustotal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

const secret = "k3y-that-nobody-may-see"

// vt is a VirusTotal that answers as a test says and remembers what it was asked.
type vt struct {
	*httptest.Server
	t      *testing.T
	answer func(w http.ResponseWriter, r *http.Request, n int)

	mu       sync.Mutex
	requests []string      // guarded by mu
	files    []string      // hashes of what was sent; guarded by mu
	hold     chan struct{} // closed at the end: what hangs ends
}

func serve(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, n int)) *vt {
	v := &vt{t: t, answer: answer, hold: make(chan struct{})}
	v.Server = httptest.NewServer(v)
	t.Cleanup(func() { close(v.hold); v.Close() })
	return v
}

func (v *vt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	n := len(v.requests)
	v.requests = append(v.requests, r.Method+" "+r.URL.Path)
	v.mu.Unlock()
	if k := r.Header.Get("x-apikey"); k != secret {
		v.t.Errorf("key %q", k)
	}
	if r.Method == http.MethodPost {
		f, head, err := r.FormFile("file")
		if err != nil {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		data, _ := io.ReadAll(f)
		sum := sha256.Sum256(data)
		if head.Filename != hex.EncodeToString(sum[:]) {
			v.t.Errorf("file name %q", head.Filename)
		}
		v.mu.Lock()
		v.files = append(v.files, hex.EncodeToString(sum[:]))
		v.mu.Unlock()
	}
	v.answer(w, r, n)
}

func (v *vt) asked() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string(nil), v.requests...)
}

func file(sum string, s Stats) string {
	return fmt.Sprintf(`{"data":{"id":"%s","type":"file","attributes":{"sha256":"%s","last_analysis_stats":{"malicious":%d,"suspicious":%d,"undetected":%d,"harmless":%d,"timeout":0}}}}`,
		sum, sum, s.Malicious, s.Suspicious, s.Undetected, s.Harmless)
}

func missing(w http.ResponseWriter) {
	w.WriteHeader(http.StatusNotFound)
	io.WriteString(w, `{"error":{"code":"NotFoundError","message":"`+secret+`"}}`)
}

func sum(n byte) string { return strings.Repeat(fmt.Sprintf("%02x", n), 32) }

// stamps notes when requests begin and end, by the client's clock: when a busy server comes to look at one says nothing.
type stamps struct {
	http.RoundTripper
	mu    sync.Mutex
	begun []time.Time // guarded by mu
}

func (s *stamps) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.begun = append(s.begun, time.Now())
	s.mu.Unlock()
	return s.RoundTripper.RoundTrip(r)
}

func (s *stamps) at() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.begun)
}

// client runs a Client with short times.
func client(t *testing.T, o Options) (*Client, *stamps) {
	t.Helper()
	return impatient(t, o, 0)
}

// impatient is a client whose questions take no longer than limit.
func impatient(t *testing.T, o Options, limit time.Duration) (*Client, *stamps) {
	t.Helper()
	var log bytes.Buffer
	o.Key = secret
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	c := New(o)
	c.lookLimit, c.sendLimit, c.firstPause, c.pollPause = cmp.Or(limit, 30*time.Second), 30*time.Second, 10*time.Millisecond, 4*time.Millisecond
	asked := &stamps{RoundTripper: c.http.Transport}
	c.http.Transport = asked
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if strings.Contains(log.String(), secret) {
			t.Errorf("the key is in the log: %s", &log)
		}
	})
	return c, asked
}

type collected struct {
	results  []Result
	problems []Problem
}

func (g *collected) from(c *Client) {
	r, p := c.Take()
	g.results, g.problems = append(g.results, r...), append(g.problems, p...)
}

func until(t *testing.T, c *Client, g *collected, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if g.from(c); ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s; have %+v, status %+v", what, g, c.Status())
		}
	}
}

func (g *collected) check(t *testing.T) {
	t.Helper()
	if text := fmt.Sprintf("%+v", g); strings.Contains(text, secret) {
		t.Errorf("the key is in what is told: %s", text)
	}
}

func one(t *testing.T, c *Client) Result {
	t.Helper()
	var g collected
	until(t, c, &g, "a result", func() bool { return len(g.results) > 0 })
	g.check(t)
	if len(g.results) != 1 {
		t.Fatalf("%d results", len(g.results))
	}
	g.results[0].At = 0
	return g.results[0]
}

func TestKnown(t *testing.T) {
	want := Stats{Malicious: 3, Suspicious: 1, Undetected: 60, Harmless: 2}
	v := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { io.WriteString(w, file(sum(1), want)) })
	c, _ := client(t, Options{URL: v.URL, Upload: true})
	if !c.Ask("/bin/x", sum(1)) || c.Ask("/bin/y", sum(1)) || c.Ask("/bin/x", "no hash") {
		t.Error("asks twice, or not at all")
	}
	got := one(t, c)
	if diff := gocmp.Diff(Result{SHA256: sum(1), Verdict: Analysed, Stats: want, Suspicious: true, Text: "3 of 66 scanners say malicious, 1 suspicious"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := gocmp.Diff([]string{"GET /files/" + sum(1)}, v.asked()); diff != "" {
		t.Error(diff)
	}
	if s := c.Status(); s.Waiting != 0 || s.Failures != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestServerInTrouble: everything that a server can do wrong is tried again, later and later, told once, and ends well.
func TestServerInTrouble(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	t.Cleanup(elsewhere.Close)
	good := func(w http.ResponseWriter) { io.WriteString(w, file(sum(1), Stats{Undetected: 70})) }
	for name, bad := range map[string]func(v *vt, w http.ResponseWriter){
		"quota": func(_ *vt, w http.ResponseWriter) {
			w.WriteHeader(429)
			io.WriteString(w, `{"error":{"code":"QuotaExceededError","message":"`+secret+`"}}`)
		},
		// Neither of them is VirusTotal: nothing is known, sent or given up by their word.
		"404 of another server": func(_ *vt, w http.ResponseWriter) { http.Error(w, "<html>not here", http.StatusNotFound) },
		"403 of a proxy":        func(_ *vt, w http.ResponseWriter) { http.Error(w, "<html>log in first", http.StatusForbidden) },
		"401 of a proxy":        func(_ *vt, w http.ResponseWriter) { http.Error(w, "<html>log in first", http.StatusUnauthorized) },
		"drop by drop": func(v *vt, w http.ResponseWriter) {
			for {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				select {
				case <-v.hold:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		},
		"broken":  func(_ *vt, w http.ResponseWriter) { http.Error(w, secret, 500) },
		"hang":    func(v *vt, _ http.ResponseWriter) { <-v.hold },
		"garbage": func(_ *vt, w http.ResponseWriter) { io.WriteString(w, "\x00\xff<html>"+secret) },
		"other file": func(_ *vt, w http.ResponseWriter) {
			io.WriteString(w, file(sum(2), Stats{Undetected: 70}))
		},
		"impossible": func(_ *vt, w http.ResponseWriter) {
			io.WriteString(w, file(sum(1), Stats{Malicious: -5, Undetected: 70}))
		},
		"redirect": func(_ *vt, w http.ResponseWriter) {
			w.Header().Set("Location", elsewhere.URL+"/"+secret)
			w.WriteHeader(302)
		},
		"two gigabytes": func(_ *vt, w http.ResponseWriter) {
			block := bytes.Repeat([]byte(" "), 1<<20)
			for range 2048 {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		},
		"cut off": func(_ *vt, w http.ResponseWriter) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := serve(t, nil)
			v.answer = func(w http.ResponseWriter, _ *http.Request, n int) {
				if n < 3 {
					bad(v, w)
					return
				}
				good(w)
			}
			limit := time.Duration(0)
			if name == "hang" || name == "drop by drop" {
				limit = time.Second
			}
			c, asked := impatient(t, Options{URL: v.URL, Upload: true, Fetch: func(context.Context, string, string) (Copy, error) {
				t.Error("a file is to be sent by the word of who knows whom")
				return nil, errors.New("no")
			}}, limit)
			c.Ask("/bin/x", sum(1))
			var g collected
			until(t, c, &g, "a result", func() bool { return len(g.results) > 0 })
			g.check(t)
			if r := g.results[0]; r.Verdict != Analysed || r.Suspicious {
				t.Errorf("%+v", r)
			}
			if len(g.problems) != 1 {
				t.Errorf("told %+v", g.problems)
			}
			s, at := c.Status(), asked.at()
			if slow := limit != 0 && s.Failures > 3; s.Failures != 3 && !slow || uint64(len(at)) != s.Failures+1 { // slow: this machine
				t.Errorf("%d requests, %d failed, want 3", len(at), s.Failures)
			}
			if s.Error != "" || strings.Contains(fmt.Sprintf("%+v", s), secret) {
				t.Errorf("status %+v", s)
			}
			for i := range 3 {
				if d, least := at[i+1].Sub(at[i]), c.firstPause<<i; d < least {
					t.Errorf("pause %d is %v, at least %v", i, d, least)
				}
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(429)
			return
		}
		io.WriteString(w, file(sum(1), Stats{Undetected: 70}))
	})
	c, asked := client(t, Options{URL: v.URL})
	c.Ask("/bin/x", sum(1))
	one(t, c)
	if at := asked.at(); at[1].Sub(at[0]) < time.Second {
		t.Errorf("tried again after %v", at[1].Sub(at[0]))
	}
}

func TestKeyRefused(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"error":{"code":"WrongCredentialsError","message":"`+secret+`"}}`)
	})
	c, _ := client(t, Options{URL: v.URL})
	for n := range byte(5) {
		c.Ask("/bin/x", sum(n))
	}
	var g collected
	until(t, c, &g, "the end", func() bool { return c.Status().Off })
	time.Sleep(100 * time.Millisecond)
	g.from(c)
	g.check(t)
	if len(v.asked()) != 1 || len(g.problems) != 1 || len(g.results) != 0 {
		t.Errorf("asked %v, told %+v, results %+v", v.asked(), g.problems, g.results)
	}
	if c.Ask("/bin/z", sum(99)) {
		t.Error("asks on")
	}
}

// TestPace: never faster than allowed, uploads and polls included.
func TestPace(t *testing.T) {
	const interval = 50 * time.Millisecond
	fetch, sha := upload(t, []byte("x"))
	v := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case r.Method == http.MethodPost:
			io.WriteString(w, `{"data":{"id":"id"}}`)
		case strings.HasPrefix(r.URL.Path, "/analyses"):
			io.WriteString(w, `{"data":{"attributes":{"status":"completed","stats":{"undetected":70}}}}`)
		case strings.HasSuffix(r.URL.Path, sha):
			missing(w)
		default:
			io.WriteString(w, file(r.URL.Path[len("/files/"):], Stats{Undetected: 70}))
		}
	})
	c, asked := client(t, Options{URL: v.URL, Interval: interval, Upload: true, Fetch: fetch})
	c.Ask("/bin/x", sha)
	for n := range byte(4) {
		c.Ask("/bin/y", sum(n))
	}
	var g collected
	until(t, c, &g, "five results", func() bool { return len(g.results) == 5 })
	at := asked.at()
	for i := 1; i < len(at); i++ {
		if d := at[i].Sub(at[i-1]); d < interval {
			t.Errorf("request %d %v after the one before", i, d)
		}
	}
	if len(at) != 7 {
		t.Errorf("%d requests: %v", len(at), v.asked())
	}
}

func TestKeyPrintsHidden(t *testing.T) {
	for _, f := range []string{"%v", "%s", "%+v", "%#v", "%q"} {
		if s := fmt.Sprintf(f, Options{Key: secret}); strings.Contains(s, secret) {
			t.Errorf("%s: %s", f, s)
		}
	}
}

// TestOneFailsForEver: a hash whose requests always fail neither keeps the others from being asked nor stays for ever.
func TestOneFailsForEver(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		h := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		if h == sum(1) {
			w.WriteHeader(500)
			return
		}
		io.WriteString(w, file(h, Stats{Undetected: 70}))
	})
	c, _ := client(t, Options{URL: v.URL})
	c.Ask("/bin/bad", sum(1))
	var g collected
	refused := ""
	n := byte(2)
	until(t, c, &g, "the bad one is given up", func() bool {
		if n < 250 && c.Ask("/bin/good", sum(n)) {
			n++
		}
		for _, r := range g.results {
			if r.SHA256 == sum(1) && r.Verdict == Refused {
				refused = r.Text
			}
		}
		return refused != ""
	})
	if !strings.Contains(refused, "500") || len(g.results) < maxFails {
		t.Errorf("%q, %d results", refused, len(g.results))
	}
}
