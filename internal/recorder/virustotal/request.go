package virustotal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"
)

// maxAnswer bounds what is read of an answer, in bytes: the object of a file has some 100 KB.
const maxAnswer = 4 << 20

// Copy is a private copy of a file, at its beginning.
type Copy interface {
	io.ReadCloser
	Size() int64
}

// FetchError is an error of Fetch that another try will not heal.
type FetchError struct{ Reason string }

func (e *FetchError) Error() string { return e.Reason }

// statusError is an answer that says no.
type statusError struct {
	code  int
	word  string        // the server's, if it is one
	after time.Duration // Retry-After
}

func (e *statusError) Error() string {
	if e.word != "" {
		return fmt.Sprintf("the server says %d (%s)", e.code, e.word)
	}
	return fmt.Sprintf("the server says %d", e.code)
}

// refusesKey reports whether the server is VirusTotal and does not want the key. A number alone is not believed here, nor in isNotFound:
// a proxy, or a page for guests of a network, says 403 and 404 too, and what was asked there was not asked.
func (e *statusError) refusesKey() bool {
	switch e.code {
	case http.StatusUnauthorized:
		return e.word == "WrongCredentialsError" || e.word == "AuthenticationRequiredError" || e.word == "UserNotActiveError"
	case http.StatusForbidden:
		return e.word == "ForbiddenError"
	}
	return false
}

// isNotFound reports whether VirusTotal says that it does not know what was asked for:
// https://docs.virustotal.com/reference/errors.
func isNotFound(err error) bool {
	var not *statusError
	return errors.As(err, &not) && not.code == http.StatusNotFound && not.word == "NotFoundError"
}

// isNotYet reports whether what was asked for will be there later.
func isNotYet(err error) bool {
	var not *statusError
	return errors.As(err, &not) && not.code == http.StatusBadRequest && not.word == "NotAvailableYet"
}

// laterError is no failure: the answer is not there yet.
type laterError struct{}

func (*laterError) Error() string { return "not analysed yet" }

// object is what is read of an answer: https://docs.virustotal.com/reference/files and /analyses-object.
type object struct {
	Data struct {
		ID         string `json:"id"`
		Attributes struct {
			SHA256 string `json:"sha256"`
			Status string `json:"status"` // of an analysis
			Last   *Stats `json:"last_analysis_stats"`
			Stats  *Stats `json:"stats"` // of an analysis
		} `json:"attributes"`
	} `json:"data"`
	Error struct {
		Code string `json:"code"`
	} `json:"error"`
}

// look asks for a hash.
func (c *Client) look(ctx context.Context, j *job) error {
	var o object
	if err := c.call(ctx, http.MethodGet, "/files/"+j.sha256, nil, "", c.lookLimit, &o); err != nil {
		if (j.sent || j.known) && isNotFound(err) || isNotYet(err) {
			return c.later(j) // sent a moment ago
		}
		return err
	}
	a := o.Data.Attributes
	if a.SHA256 != j.sha256 {
		return errors.New("the answer is about another file")
	}
	if a.Last == nil || a.Last.total() == 0 {
		j.known = true // somebody sent it
		return c.later(j)
	}
	return c.judge(j, *a.Last)
}

func (c *Client) judge(j *job, s Stats) error {
	for _, n := range []int{s.Malicious, s.Suspicious, s.Undetected, s.Harmless} {
		if n < 0 || n > 1000 {
			return errors.New("the answer holds impossible numbers")
		}
	}
	c.end(j, Result{Verdict: Analysed, Stats: s, Text: s.String()})
	return nil
}

// later leaves a job that waits for an analysis.
func (c *Client) later(j *job) error {
	if j.polls++; j.polls >= maxPolls {
		c.end(j, Result{Verdict: Refused, Text: "VirusTotal has the file, but did not analyse it in time"})
		return nil
	}
	c.wait(j, max(c.o.Interval, min(time.Duration(j.polls)*c.pollPause/4, 10*c.pollPause)))
	return &laterError{}
}

// poll looks whether an analysis is there.
func (c *Client) poll(ctx context.Context, j *job) error {
	var o object
	if err := c.call(ctx, http.MethodGet, "/analyses/"+url.PathEscape(j.analysis), nil, "", c.lookLimit, &o); err != nil {
		switch {
		case isNotFound(err):
			j.analysis = "" // forgotten: the file itself will tell
			return c.later(j)
		case isNotYet(err):
			return c.later(j)
		}
		return err
	}
	a := o.Data.Attributes
	if a.Status != "completed" {
		return c.later(j)
	}
	if a.Stats == nil || a.Stats.total() == 0 {
		j.analysis = ""
		return c.later(j)
	}
	return c.judge(j, *a.Stats)
}

// send sends the file. Its name is its hash: where it lies is nobody's business.
func (c *Client) send(ctx context.Context, j *job) error {
	file, err := c.o.Fetch(ctx, j.path, j.sha256)
	if err != nil {
		var never *FetchError
		if errors.As(err, &never) {
			c.end(j, Result{Verdict: Unknown, Text: "not known to VirusTotal, and not sent: " + never.Reason})
			return nil
		}
		return err
	}
	defer file.Close()
	if n := file.Size(); n > MaxUpload {
		c.end(j, Result{Verdict: Unknown, Text: fmt.Sprintf("not known to VirusTotal, and not sent: it has %d bytes, at most %d can be", n, MaxUpload)})
		return nil
	}
	if err := c.pace(ctx); err != nil {
		return err
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if _, err := w.CreateFormFile("file", j.sha256); err != nil {
		return err
	}
	head := bytes.Clone(form.Bytes())
	form.Reset()
	if err := w.Close(); err != nil {
		return err
	}
	tail := form.Bytes()
	h := sha256.New()
	body := &checked{want: j.sha256, h: h, file: io.TeeReader(io.LimitReader(file, file.Size()), h), size: file.Size(), tail: bytes.NewReader(tail)}
	all := struct {
		io.Reader
		size int64
	}{io.MultiReader(bytes.NewReader(head), body), int64(len(head)) + file.Size() + int64(len(tail))}
	var o object
	err = c.callSized(ctx, http.MethodPost, "/files", all.Reader, all.size, w.FormDataContentType(), c.sendLimit, &o)
	if body.wrong {
		c.end(j, Result{Verdict: Refused, Text: "not known to VirusTotal, and not sent: the file changed"})
		return nil
	}
	var not *statusError
	switch {
	case errors.As(err, &not) && not.code == http.StatusConflict: // somebody was faster
		j.known = true
		return c.later(j)
	case errors.As(err, &not) && not.code == http.StatusForbidden && not.refusesKey(): // it was good for the question
		c.mayNotSend()
		c.end(j, Result{Verdict: Unknown, Text: "not known to VirusTotal, and not sent: the key may not send files"})
		return nil
	case errors.As(err, &not) && (not.code == http.StatusBadRequest && not.word != "" || not.code == http.StatusRequestEntityTooLarge):
		c.end(j, Result{Verdict: Refused, Text: "not known to VirusTotal, which did not want the file: " + not.Error()})
		return nil
	case err != nil:
		return err
	}
	j.sent = true
	if len(o.Data.ID) <= 200 && regexp.MustCompile(`^[A-Za-z0-9_=-]+$`).MatchString(o.Data.ID) {
		j.analysis = o.Data.ID
	}
	return c.later(j)
}

// pace waits for the next request within a step.
func (c *Client) pace(ctx context.Context) error {
	c.note("")
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(c.o.Interval):
		return nil
	}
}

// checked is the end of a request's body: the file, and the words that make it a whole request only if the file has the right hash.
type checked struct {
	want  string
	h     hash.Hash
	file  io.Reader
	size  int64
	tail  io.Reader
	ended bool
	wrong bool
}

func (b *checked) Read(p []byte) (int, error) {
	if !b.ended {
		n, err := b.file.Read(p)
		b.size -= int64(n)
		if err != io.EOF {
			return n, err
		}
		b.ended = true
		if b.size != 0 || hex.EncodeToString(b.h.Sum(nil)) != b.want {
			b.wrong = true
			return n, errors.New("the file changed while it was sent")
		}
		if n > 0 {
			return n, nil
		}
	}
	return b.tail.Read(p)
}

func (c *Client) call(ctx context.Context, method, path string, body io.Reader, kind string, limit time.Duration, to *object) error {
	return c.callSized(ctx, method, path, body, 0, kind, limit, to)
}

// callSized makes a request and reads its answer. No error of it holds the key or a text of the server's but a word.
func (c *Client) callSized(ctx context.Context, method, path string, body io.Reader, size int64, kind string, limit time.Duration, to *object) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.o.URL+path, body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("x-apikey", string(c.o.Key))
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "picosnitch")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	answer, err := c.http.Do(req)
	if err != nil {
		return reachable(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if answer.StatusCode != http.StatusOK {
		_ = json.Unmarshal(data, to) // often there is no more than the number
		e := &statusError{code: answer.StatusCode}
		if regexp.MustCompile(`^[A-Za-z]{1,40}$`).MatchString(to.Error.Code) {
			e.word = to.Error.Code
		}
		if s, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && s > 0 && s < 1<<20 {
			e.after = time.Duration(s) * time.Second
		}
		return e
	}
	if err != nil {
		return reachable(err)
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(data, to); err != nil {
		return errors.New("the answer is not what VirusTotal answers")
	}
	return nil
}

// reachable shortens an error of net/http: its text repeats the address.
func reachable(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}
