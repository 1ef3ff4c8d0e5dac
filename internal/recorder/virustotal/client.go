// Package virustotal asks VirusTotal about hashes and, when the user allows it, sends the files that it does not know: its API
// version 3 in three calls. It belongs to the recorder's wing, so it runs without rights. It asks one thing at a time and
// never faster than it may, believes an answer only so far as it is bounded and about the hash that was asked, and shows the
// key to nobody but the server. It keeps nothing: who asks (recorder) knows what is still open after a restart.
package virustotal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// DefaultURL is where VirusTotal is.
const DefaultURL = "https://www.virustotal.com/api/v3"

// Bounds.
const (
	maxJobs    = 1 << 12          // hashes that wait; more are refused and come again
	maxResults = 1 << 12          // that nobody took; with more, nothing is asked
	lookLimit  = time.Minute      // for a question
	sendLimit  = 10 * time.Minute // for a file
	maxFails   = 10               // of one hash while others succeed, after which it is given up
	maxPolls   = 30               // looks for an analysis before it is left to another day
	firstPause = time.Second
	lastPause  = time.Hour // the most between two tries when the server does not want
	pollPause  = 30 * time.Second
	tellAgain  = time.Hour // before a failure is told again, however often the server comes and goes meanwhile
)

// MaxUpload is the size of the largest file that is sent, in bytes: the most that the API takes in one call.
const MaxUpload = 32 << 20

// Key is an API key. It prints as "(hidden)".
type Key string

// String implements fmt.Stringer.
func (Key) String() string { return "(hidden)" }

// GoString implements fmt.GoStringer.
func (Key) GoString() string { return `"(hidden)"` }

// Options of New.
type Options struct {
	Key      Key
	URL      string        // of the API, without a slash at its end; "": DefaultURL
	Interval time.Duration // between two requests
	Upload   bool          // send files that are not known
	// Fetch gives a private copy of the file with a hash, of at most MaxUpload bytes, that nobody can change any more. Only
	// bytes with that hash are sent.
	Fetch  func(ctx context.Context, path, sha256 string) (Copy, error)
	Logger *slog.Logger
}

// Result is what became of a hash.
type Result struct {
	SHA256     string
	Text       string // in words, for record.json
	Verdict    Verdict
	Stats      Stats
	Uploaded   bool
	At         int64 // ns since 1970
	Suspicious bool
}

// Verdict says what is known.
type Verdict string

// Verdicts.
const (
	Analysed Verdict = "analysed" // Stats has the votes
	Unknown  Verdict = "unknown"  // VirusTotal does not know the file
	Refused  Verdict = "refused"  // the file could not be sent, or VirusTotal did not want it
)

// Stats are the votes of the scanners.
type Stats struct {
	Malicious  int `json:"malicious"`
	Suspicious int `json:"suspicious"`
	Undetected int `json:"undetected"`
	Harmless   int `json:"harmless"`
}

func (s Stats) total() int { return s.Malicious + s.Suspicious + s.Undetected + s.Harmless }

// String is for people: "3 of 70 scanners say malicious, 1 suspicious".
func (s Stats) String() string {
	return fmt.Sprintf("%d of %d scanners say malicious, %d suspicious", s.Malicious, s.total(), s.Suspicious)
}

// Problem is something that keeps the client from its work, for the user.
type Problem struct{ Text, Hint string }

// Client asks. Its methods are safe for concurrent use.
type Client struct {
	o    Options
	http *http.Client
	now  func() time.Time
	// How long things may take; as the constants, but for tests.
	lookLimit, sendLimit, firstPause, pollPause time.Duration

	mu       sync.Mutex
	jobs     []*job          // guarded by mu
	known    map[string]bool // hashes of jobs; guarded by mu
	results  []Result        // guarded by mu
	problems []Problem       // guarded by mu
	status   Status          // guarded by mu
	told     time.Time       // when a failure was last told; guarded by mu
	noSend   bool            // that the key may send nothing was told; guarded by mu
	wake     chan struct{}
}

// Status tells how the client does.
type Status struct {
	Waiting  int    `json:"waiting"` // hashes that are still to be asked or analysed
	Requests uint64 `json:"requests"`
	Failures uint64 `json:"failures"`        // requests that failed
	Error    string `json:"error,omitempty"` // of the last request; "": it succeeded
	Off      bool   `json:"off,omitempty"`   // the key was refused: nothing is asked any more
}

// job is a hash on its way.
type job struct {
	sha256, path string
	analysis     string // id: the file was sent, and this is waited for
	sent         bool   // we sent the file
	known        bool   // VirusTotal has it, but did not analyse it yet
	polls        int
	due          time.Time
	fails        int    // while others succeeded
	succeeded    uint64 // requests of others at the last of them
}

// New returns a Client that asks nothing before Run.
func New(o Options) *Client {
	if o.URL == "" {
		o.URL = DefaultURL
	}
	o.URL = strings.TrimRight(o.URL, "/")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{
		o: o, now: time.Now, known: make(map[string]bool), wake: make(chan struct{}, 1),
		lookLimit: lookLimit, sendLimit: sendLimit, firstPause: firstPause, pollPause: pollPause,
		http: &http.Client{
			// A redirect would take the key, and the hash, to somewhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DisableCompression: true, TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: lookLimit,
				MaxResponseHeaderBytes: 64 << 10, MaxConnsPerHost: 1, IdleConnTimeout: time.Minute,
			},
		},
	}
}

// Ask queues a hash, with a path where its file may be found. False: it waits already, or there are too many: ask again.
func (c *Client) Ask(path, sha256 string) bool {
	if !isHash(sha256) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[sha256] || len(c.jobs) >= maxJobs || c.status.Off {
		return false
	}
	c.known[sha256] = true
	c.jobs = append(c.jobs, &job{sha256: sha256, path: path})
	c.poke()
	return true
}

// poke has Run look again.
func (c *Client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func isHash(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// Take returns results and problems since the last call.
func (c *Client) Take() ([]Result, []Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, p := c.results, c.problems
	c.results, c.problems = nil, nil
	if len(r) >= maxResults {
		c.poke()
	}
	return r, p
}

// Status returns how it does now.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Waiting = len(c.jobs)
	return s
}

// Run asks until ctx is done.
func (c *Client) Run(ctx context.Context) {
	defer c.http.CloseIdleConnections()
	var next time.Time // of the next request
	pause := time.Duration(0)
	succeeded := uint64(0)
	for {
		j, due := c.pick()
		if due.Before(next) {
			due = next
		}
		var timer <-chan time.Time
		if j != nil {
			timer = time.After(due.Sub(c.now()))
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake: // another one may be due before
			continue
		case <-timer:
		}
		err := c.step(ctx, j)
		next = c.now().Add(c.o.Interval)
		var not *statusError
		var slow *laterError
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &not) && not.refusesKey():
			c.off(not)
			return
		case err == nil || errors.As(err, &slow):
			pause = 0
			succeeded++
			c.note("")
		default:
			pause = min(max(2*pause, c.firstPause, c.o.Interval), lastPause)
			if errors.As(err, &not) && not.after > pause {
				pause = min(not.after, lastPause)
			}
			next = c.now().Add(pause)
			text := c.clean(err)
			c.note(text)
			c.wait(j, pause) // the others go first
			if busy := errors.As(err, &not) && not.code == http.StatusTooManyRequests; !busy && succeeded > j.succeeded {
				j.fails++
			}
			j.succeeded = succeeded
			if j.fails >= maxFails {
				c.end(j, Result{Verdict: Refused, Text: fmt.Sprintf("given up after %d failures: %s", j.fails, text)})
			}
		}
	}
}

// pick chooses the job that is due first; nil: there is none, or nobody takes the results.
func (c *Client) pick() (*job, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.results) >= maxResults {
		return nil, time.Time{}
	}
	var first *job
	for _, j := range c.jobs {
		if first == nil || j.due.Before(first.due) {
			first = j
		}
	}
	if first == nil {
		return nil, time.Time{}
	}
	return first, first.due
}

// step makes one request for a job.
func (c *Client) step(ctx context.Context, j *job) error {
	switch {
	case j.analysis != "":
		return c.poll(ctx, j)
	case j.sent || j.known: // not analysed yet
		return c.look(ctx, j)
	}
	err := c.look(ctx, j)
	if !isNotFound(err) {
		return err
	}
	if !c.sends() {
		c.end(j, Result{Verdict: Unknown, Text: "not known to VirusTotal"})
		return nil
	}
	return c.send(ctx, j)
}

// note keeps how the last request ended, and tells the first failure of a row.
func (c *Client) note(failure string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Requests++
	if failure != "" {
		c.status.Failures++
		if now := c.now(); c.status.Error == "" && (c.told.IsZero() || now.Sub(c.told) >= tellAgain) {
			c.told = now
			c.problem("VirusTotal: "+failure, "it is tried again, less and less often; `picosnitch status` says how it goes")
		}
	}
	c.status.Error = failure
}

// problem is called with mu held.
func (c *Client) problem(text, hint string) {
	if len(c.problems) < 100 {
		c.problems = append(c.problems, Problem{text, hint})
	}
}

// off ends the asking: another try would be refused, too.
func (c *Client) off(not *statusError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Requests++
	c.status.Failures++
	c.status.Off = true
	c.status.Error = "the key was refused: " + not.Error()
	c.problem("VirusTotal refused the key, and is not asked any more: "+not.Error(), "check \"VT API key\" in config.json and restart picosnitch")
}

// mayNotSend notes, and tells once, that the key is good for questions only.
func (c *Client) mayNotSend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.noSend {
		c.noSend = true
		c.problem("VirusTotal lets this key send no files", "set \"VT file upload\" to false, or use another \"VT API key\"")
	}
}

// sends reports whether files may be sent.
func (c *Client) sends() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.o.Upload && c.o.Fetch != nil && !c.noSend
}

// end gives a result.
func (c *Client) end(j *job, r Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.SHA256, r.At, r.Uploaded = j.sha256, c.now().UnixNano(), j.sent
	r.Suspicious = r.Stats.Malicious > 0 || r.Stats.Suspicious > 0
	for i := range c.jobs {
		if c.jobs[i] == j {
			c.jobs = append(c.jobs[:i], c.jobs[i+1:]...)
			break
		}
	}
	delete(c.known, j.sha256)
	c.results = append(c.results, r) // see pick
}

// wait leaves a job for later.
func (c *Client) wait(j *job, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j.due = c.now().Add(d)
}

// clean is an error in words that hold no key.
func (c *Client) clean(err error) string {
	text := err.Error()
	if c.o.Key != "" {
		text = strings.ReplaceAll(text, string(c.o.Key), "(hidden)")
	}
	if len(text) > 300 {
		text = text[:300]
	}
	return strings.ToValidUTF8(text, "?")
}
