// Package play runs scenarios of the traffic generator for the tests and collects what they claim.
package play

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
)

// lacking is the generator's exit code for what this kernel does not offer.
const lacking = 3

// Generator is the built program and the folder for its copies.
type Generator struct {
	Program, Folder string
}

// Outcome is what became of one scenario.
type Outcome struct {
	Claims []claim.Claim
	Lack   string // what this kernel does not offer, in the generator's words; "" if it does
	Err    error
}

// List names the scenarios of the coverage suite.
func (g Generator) List() ([]string, error) {
	out, err := exec.Command(g.Program, "list").Output()
	if err != nil {
		return nil, fmt.Errorf("list scenarios: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// Run plays one scenario. Each line that it prints on standard error goes to line, if not nil. When the scenario holds
// ("held"), between is called, if not nil, and it goes on after that.
func (g Generator) Run(name string, between func() error, line func(string)) Outcome {
	cmd := exec.Command(g.Program, name, g.Folder)
	var out, problems bytes.Buffer
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return Outcome{Err: err}
	}
	// Not StderrPipe: Wait closes that as soon as the process ends, and a last line would be lost.
	read, write := io.Pipe()
	cmd.Stderr = write
	seen := make(chan error, 1)
	go func() {
		var errs []error
		s := bufio.NewScanner(read)
		for s.Scan() {
			if line != nil {
				line(s.Text())
			}
			if s.Text() != "held" {
				fmt.Fprintln(&problems, s.Text())
				continue
			}
			if between != nil {
				errs = append(errs, between())
			}
			_, err := io.WriteString(in, "go\n")
			errs = append(errs, err)
		}
		seen <- errors.Join(append(errs, s.Err())...)
	}()
	if err := cmd.Start(); err != nil {
		return Outcome{Err: err}
	}
	err = cmd.Wait()
	write.Close()
	err = errors.Join(err, <-seen)
	if cmd.ProcessState.ExitCode() == lacking {
		return Outcome{Lack: strings.TrimSpace(problems.String())}
	}
	if err != nil {
		return Outcome{Err: fmt.Errorf("scenario %s: %w: %s", name, err, problems.String())}
	}
	claims, err := claim.Decode(out.Bytes())
	return Outcome{Claims: claims, Err: err}
}
