package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/desk"
	"github.com/picosnitch/picosnitch/internal/recorder/known"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/recorder/virustotal"
)

const (
	maxUnkept   = 1 << 10          // results that wait for snitch.db
	verdictPace = 5 * time.Second  // between two looks for what is to be asked
	fetchWait   = 30 * time.Second // for a session process that is to open a file
)

// openVirusTotal starts to ask VirusTotal, if there is a key. A stream of another machine, or of another time, is not asked about.
func (r *recorder) openVirusTotal() {
	s := r.o.Settings
	if r.o.Door == nil || s.VTKey == "" {
		return
	}
	r.virustotal = virustotal.New(virustotal.Options{
		Key: s.VTKey, URL: s.VTURL, Interval: time.Duration(s.VTLimit) * time.Second, Upload: s.VTUpload, Fetch: r.fetch, Logger: r.log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.virustotal.Run(ctx) }()
	r.stopVirusTotal = func() { cancel(); <-done }
}

// askVirusTotal takes what VirusTotal said, and asks about what it was not asked yet: what record.json does not know is asked again
// after a restart, too.
func (r *recorder) askVirusTotal() {
	if r.virustotal == nil {
		return
	}
	results, problems := r.virustotal.Take()
	for _, p := range problems {
		r.notice("warning", p.Text, p.Hint)
	}
	if len(results) == 0 && time.Since(r.asked) < verdictPace {
		return
	}
	r.asked = time.Now()
	r.takeVerdicts(results)
	for _, u := range r.known.Unasked() {
		if !slices.ContainsFunc(r.unkept, func(v virustotal.Result) bool { return v.SHA256 == u[1] }) {
			r.virustotal.Ask(u[0], u[1])
		}
	}
}

// takeVerdicts has record.json take in what is in snitch.db.
func (r *recorder) takeVerdicts(results []virustotal.Result) {
	open := r.known.Unasked()
	for _, v := range r.keepVerdicts(results) {
		verdict := ""
		switch {
		case v.Suspicious:
			verdict = known.Suspicious
		case v.Verdict == virustotal.Analysed:
			verdict = known.Clean
		}
		for _, u := range open {
			if u[1] == v.SHA256 {
				r.known.Result(u[0], v.SHA256, v.Text, verdict, v.At)
			}
		}
	}
}

// keepVerdicts writes results to snitch.db and returns those that are there; what cannot be written now is tried again. Until then
// record.json does not know it either: after a restart it is asked again.
func (r *recorder) keepVerdicts(results []virustotal.Result) (kept []virustotal.Result) {
	if !r.o.Settings.SQLLog {
		return results
	}
	if n := len(r.unkept) + len(results) - maxUnkept; n > 0 {
		r.unkept = r.unkept[min(n, len(r.unkept)):]
		r.notice("error", fmt.Sprintf("results of VirusTotal that were not written to snitch.db: %d", n), "they are asked again")
	}
	r.unkept = append(r.unkept, results...)
	for len(r.unkept) > 0 && r.sqlite != nil {
		v := r.unkept[0]
		err := r.sqlite.PutVerdict(context.Background(), store.Verdict{
			SHA256: v.SHA256, Verdict: string(v.Verdict), Text: v.Text, Uploaded: v.Uploaded, At: v.At,
			Malicious: v.Stats.Malicious, Suspicious: v.Stats.Suspicious, Undetected: v.Stats.Undetected, Harmless: v.Stats.Harmless,
		})
		if err != nil {
			r.tell.add("verdict", 1)
			if r.tell.due("verdict", r.at, false) > 0 {
				r.notice("error", "write a result of VirusTotal to snitch.db: "+err.Error(), "it is tried again")
			}
			return kept
		}
		kept = append(kept, v)
		r.unkept = r.unkept[1:]
	}
	return kept
}

// tellUnkept tells, at the end, what is left.
func (r *recorder) tellUnkept() {
	if n := len(r.unkept); n > 0 {
		r.notice("error", fmt.Sprintf("results of VirusTotal that were not written to snitch.db: %d", n), "they are asked again after the next start")
	}
}

// fetch gives VirusTotal's client a private copy of a file with a hash. The recorder has no rights: what not everybody may read is
// opened by the session process of a user who may, and the hash proves that it is the same file.
func (r *recorder) fetch(ctx context.Context, path, sha256 string) (virustotal.Copy, error) {
	c, last := copyPlain(ctx, r.o.Dir, func() (*os.File, error) { return openPlain(path) }, sha256)
	if last == nil || r.desk == nil {
		return c, last
	}
	for _, uid := range r.desk.Sessions() {
		answer := make(chan desk.Opened, 1)
		if !r.desk.Open(uid, event.ProcessID{}, path, event.FileID{}, answer) {
			continue
		}
		select {
		case <-ctx.Done():
			go closeLate(answer)
			return nil, ctx.Err()
		case <-time.After(fetchWait):
			go closeLate(answer)
		case o := <-answer:
			if o.File == nil {
				continue
			}
			if c, err := copyPlain(ctx, r.o.Dir, func() (*os.File, error) { return o.File, nil }, sha256); err == nil {
				return c, nil
			}
		}
	}
	return nil, last
}

// closeLate closes a file that comes too late.
func closeLate(answer <-chan desk.Opened) {
	select {
	case o := <-answer:
		if o.File != nil {
			o.File.Close()
		}
	case <-time.After(time.Hour): // the session process hangs; its end answers
	}
}

// openPlain opens a path of the stream for reading, if a plain file is there.
func openPlain(text string) (*os.File, error) {
	path, ok := event.Raw(text)
	if !ok || len(path) == 0 || path[0] != '/' {
		return nil, fs.ErrNotExist
	}
	fd, err := unix.Open(string(path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "executable")
	return f, nil
}

// plain refuses what is no plain file, and what is too large to be sent anyway.
func plain(f *os.File) error {
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errors.New("no plain file")
	case st.Size() > virustotal.MaxUpload:
		return fmt.Errorf("it has %d bytes, at most %d are sent", st.Size(), virustotal.MaxUpload)
	}
	return nil
}

// copyPlain opens a file and copies it. It may be anything, and its file system may never answer, to opening it either: the copy is left
// behind then.
func copyPlain(ctx context.Context, dir string, open func() (*os.File, error), sha256 string) (virustotal.Copy, error) {
	type result struct {
		c   virustotal.Copy
		err error
	}
	answer := make(chan result, 1)
	go func() {
		f, err := open()
		if err != nil {
			answer <- result{nil, &virustotal.FetchError{Reason: "the recorder may not read it: " + reason(err)}}
			return
		}
		defer f.Close()
		if err := plain(f); err != nil {
			answer <- result{nil, &virustotal.FetchError{Reason: err.Error()}}
			return
		}
		c, err := virustotal.Private(dir, f, sha256)
		answer <- result{c, err}
	}()
	late := time.NewTimer(fetchWait)
	defer late.Stop()
	var err error
	select {
	case r := <-answer:
		return r.c, r.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-late.C:
		err = &virustotal.FetchError{Reason: "its file system does not answer"}
	}
	go func() {
		if r := <-answer; r.err == nil {
			r.c.Close()
		}
	}()
	return nil, err
}

func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return err.Error()
}
