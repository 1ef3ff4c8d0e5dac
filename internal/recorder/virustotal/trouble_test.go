package virustotal

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// says answers with an error of VirusTotal's.
func says(w http.ResponseWriter, code int, word string) {
	w.WriteHeader(code)
	io.WriteString(w, `{"error":{"code":"`+word+`","message":"`+secret+`"}}`)
}

// TestAnalysisForgotten: an analysis that VirusTotal does not know any more is no loss: the file itself is asked about, and not sent again.
func TestAnalysisForgotten(t *testing.T) {
	fetch, sha := upload(t, []byte("program"))
	looks := 0
	v := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case r.Method == http.MethodPost:
			io.WriteString(w, `{"data":{"id":"id"}}`)
		case strings.HasPrefix(r.URL.Path, "/analyses"):
			missing(w)
		default:
			switch looks++; looks {
			case 1, 2: // unknown, and not to be seen yet after it was sent
				missing(w)
			case 3:
				says(w, http.StatusBadRequest, "NotAvailableYet")
			case 4: // there, not analysed yet
				io.WriteString(w, file(sha, Stats{}))
			default:
				io.WriteString(w, file(sha, Stats{Undetected: 70}))
			}
		}
	})
	c, _ := client(t, Options{URL: v.URL, Upload: true, Fetch: fetch})
	c.Ask("/bin/x", sha)
	if r := one(t, c); r.Verdict != Analysed || !r.Uploaded {
		t.Errorf("%+v", r)
	}
	if len(v.files) != 1 || c.Status().Failures != 0 {
		t.Errorf("sent %d times, %+v, asked %v", len(v.files), c.Status(), v.asked())
	}
}

// TestNotAnalysedInTime: a file that VirusTotal has and does not analyse is left, without a claim that we sent it.
func TestNotAnalysedInTime(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { io.WriteString(w, file(sum(1), Stats{})) })
	c, _ := client(t, Options{URL: v.URL, Upload: true})
	c.Ask("/bin/x", sum(1))
	if r := one(t, c); r.Verdict != Refused || r.Uploaded || r.Suspicious {
		t.Errorf("%+v", r)
	}
	if n := len(v.asked()); n != maxPolls {
		t.Errorf("%d requests", n)
	}
}

// TestKeyForQuestionsOnly: a key that may not send files goes on asking.
func TestKeyForQuestionsOnly(t *testing.T) {
	fetch, sha := upload(t, []byte("program"))
	v := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		switch {
		case r.Method == http.MethodPost:
			says(w, http.StatusForbidden, "ForbiddenError")
		case strings.HasSuffix(r.URL.Path, sum(9)):
			io.WriteString(w, file(sum(9), Stats{Undetected: 70}))
		default:
			missing(w)
		}
	})
	c, _ := client(t, Options{URL: v.URL, Upload: true, Fetch: fetch})
	c.Ask("/bin/x", sha)
	if r := one(t, c); r.Verdict != Unknown || r.Uploaded || !strings.Contains(r.Text, "may not send") {
		t.Errorf("%+v", r)
	}
	c.Ask("/bin/y", sum(2))
	c.Ask("/bin/z", sum(9))
	var g collected
	until(t, c, &g, "two results", func() bool { return len(g.results) == 2 })
	if len(v.files) != 1 {
		t.Errorf("tried to send %d times", len(v.files))
	}
	if c.Status().Off {
		t.Error("nothing is asked any more")
	}
}

// TestComesAndGoes: a server that fails every second time is told of once.
func TestComesAndGoes(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n%2 == 0 {
			says(w, http.StatusServiceUnavailable, "TransientError")
			return
		}
		io.WriteString(w, file(r.URL.Path[len("/files/"):], Stats{Undetected: 70}))
	})
	c, _ := client(t, Options{URL: v.URL})
	var g collected
	for n := range byte(10) {
		c.Ask("/bin/x", sum(n))
		until(t, c, &g, "a result", func() bool { return len(g.results) > int(n) })
	}
	if len(g.problems) != 1 || c.Status().Failures < 5 {
		t.Errorf("told %+v, status %+v", g.problems, c.Status())
	}
}

// TestNobodyTakes: results that nobody takes are kept, and nothing more is asked meanwhile.
func TestNobodyTakes(t *testing.T) {
	v := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		io.WriteString(w, file(r.URL.Path[len("/files/"):], Stats{Undetected: 70}))
	})
	c := New(Options{URL: v.URL, Key: secret})
	for n := range maxResults {
		c.results = append(c.results, Result{SHA256: fmt.Sprintf("%064x", n)})
	}
	c.Ask("/bin/x", sum(1))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	time.Sleep(100 * time.Millisecond)
	if n := len(v.asked()); n != 0 {
		t.Errorf("%d requests although nobody takes what they give", n)
	}
	var g collected
	until(t, c, &g, "all results", func() bool { return len(g.results) == maxResults+1 })
}
