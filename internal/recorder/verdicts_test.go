package recorder

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/virustotal"
)

// TestUnkeptVerdict: a result that is not in snitch.db is not in record.json either, so that it is asked again; what is left is told.
func TestUnkeptVerdict(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Settings: Defaults(), Hosts: os.DevNull, Zone: time.UTC}
	o.Settings.VTKey = "key"
	r, err := open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s := newScript(t)
	s.process(1, 0, "/bin/a", "a")
	s.hash("/bin/a", 1)
	s.tcp(1, "192.0.2.1:443", 1, 10, 10)
	s.ledger()
	if err := r.read(bytes.NewReader(s.b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if n := len(r.known.Unasked()); n != 1 {
		t.Fatalf("%d to be asked", n)
	}
	r.virustotal = virustotal.New(virustotal.Options{Key: "key"})
	r.stopVirusTotal = func() {}
	good := r.sqlite
	r.sqlite = nil
	result := virustotal.Result{SHA256: hash(1), Verdict: virustotal.Analysed, Text: "0 of 70", At: 1}
	r.takeVerdicts([]virustotal.Result{result})
	if len(r.known.Unasked()) != 1 || len(r.unkept) != 1 {
		t.Error("record.json has what snitch.db has not: nobody asks again")
	}
	r.tellUnkept()
	if !strings.Contains(readFile(t, dir, "error.log"), "not written to snitch.db: 1") {
		t.Error("not told")
	}
	r.sqlite = good
	r.takeVerdicts(nil)
	if len(r.known.Unasked()) != 0 || len(r.unkept) != 0 {
		t.Error("not kept although it could be")
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
}

// TestFileSystemHangs: a file that cannot even be opened, because its file system does not answer, holds neither the asking nor the end up.
func TestFileSystemHangs(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	done := make(chan error, 1)
	go func() {
		_, err := copyPlain(ctx, t.TempDir(), func() (*os.File, error) { <-hold; return nil, os.ErrNotExist }, hash(1))
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("waits for ever")
	}
}
