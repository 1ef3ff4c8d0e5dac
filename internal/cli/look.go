package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/daemon"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder"
	"github.com/picosnitch/picosnitch/internal/sensor"
)

func statusCommand(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "show whether picosnitch runs, what it sees and what it lost",
		RunE: func(c *cobra.Command, _ []string) error {
			run, err := daemon.RunDir(env.Getenv)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			s, err := daemon.Status(context.Background(), run)
			if errors.Is(err, daemon.ErrNotRunning) && os.Geteuid() == 0 {
				if pid, lock := daemon.Holder(run); lock == nil {
					return fmt.Errorf("picosnitch runs with pid %d, but its recorder does not answer: it is starting, or see error.log", pid)
				}
			}
			if errors.Is(err, daemon.ErrNotRunning) {
				return fmt.Errorf("%w: to start it: %s", err, asRoot(env, "start"))
			}
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(env.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			printStatus(env.Stdout, s)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printStatus(w io.Writer, s recorder.Status) {
	line := func(name, format string, a ...any) {
		// What the feed says is the recorder's word: escaped like everything that root did not write.
		fmt.Fprintf(w, "%-14s %s\n", name, event.Text(fmt.Appendf(nil, format, a...)))
	}
	line("running", "pid %d, recorder %d, picosnitch %s", s.PID, s.RecorderPID, or(s.Program, "unknown"))
	line("uptime", "%s", (time.Duration(s.Uptime) * time.Second).String())
	line("hook set", "%s", because(or(s.HookSet, "unknown"), s.Why))
	for _, h := range s.Hooks {
		switch {
		case h.Waits:
			line("  on demand", "%s: %s", h.Name, h.Cost)
		case h.Spare:
			line("  spare", "%s is off (%s): %s", h.Name, h.Error, h.Cost)
		case !h.Attached:
			line("  missing", "%s (%s): %s", h.Name, h.Error, h.Cost)
		}
	}
	line("self test", "%s", or(s.SelfTest, "unknown"))
	line("events", "%d, %.1f per second", s.Events, s.EventsPerSecond)
	if s.Bandwidth {
		line("seen", "%d bytes sent, %d received", s.Seen.Sent, s.Seen.Received)
		line("unattributed", "%d bytes sent, %d received", s.Unattributed.Sent, s.Unattributed.Received)
	} else {
		line("bytes", "not counted: %q is false", config.KeyBandwidth)
	}
	none := true
	known := map[string]bool{}
	for _, l := range event.Losses() {
		known[l.Key] = true
		if n := s.Lost[l.Key]; n > 0 {
			none = false
			line("lost", "%d %s", n, l.Text)
			line("", "→ %s", l.Hint)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Lost)) {
		if n := s.Lost[k]; n > 0 && !known[k] {
			none = false
			line("lost", "%d %s", n, k)
		}
	}
	if s.BadLines > 0 || s.UnknownFlows > 0 {
		none = false
		line("lost", "%d lines that the recorder did not understand, %d flows without a program", s.BadLines, s.UnknownFlows)
	}
	if s.Unread > 0 {
		none = false
		line("lost", "%d hashes of executables that only their users can read (see error.log)", s.Unread)
	}
	if none {
		line("lost", "nothing")
	}
	line("window", "%d s, %d records open, last write %s", s.WindowSeconds, s.Records, ago(s.LastWrite))
	if s.IgnoredFlows > 0 {
		line("ignored", "%d flows, %d bytes sent, %d received (%q)", s.IgnoredFlows, s.Ignored.Sent, s.Ignored.Received, config.KeyLogIgnore)
	}
	for _, k := range s.Sinks {
		if k.Error == "" && k.Waiting == 0 && k.Failures == 0 {
			line("sink", "%s: ok", k.Name)
			continue
		}
		line("sink", "%s: %d failures, %d windows waiting: %s", k.Name, k.Failures, k.Waiting, or(k.Error, "ok now"))
	}
	if r := s.Remote; r != nil {
		how := "connected"
		if !r.Connected {
			how = or(r.Error, "not connected yet")
		}
		line("SQL server", "%s: %s", r.Server, how)
		line("", "%d records delivered, %d wait in the spool (%d of %d MB), %d dropped because it was full, %d without a hash, %d values cut", r.Delivered.Records, r.Waiting.Records, r.Bytes>>20, r.Limit>>20, r.Dropped.Records, r.NoHash, r.Cut)
		if r.Damaged > 0 || r.Unreadable.Records > 0 {
			line("", "the spool is damaged: %d records, %d bytes cannot be read (see error.log)", r.Unreadable.Records, r.Damaged)
		}
	}
	for i := range s.Limits {
		printLimit(line, &s.Limits[i])
	}
	line("snitch.db", "%d bytes", s.DatabaseBytes)
	if s.Takeover != "" {
		line("takeover", "%s: %.1f %%", s.Takeover, 100*s.TakeoverDone)
	}
	printNotices(line, s)
	line("feed", "%d readers, %d dropped, %d refused", s.Feed.Readers, s.Feed.Dropped, s.Feed.Refused)
}

// printLimit says how much of a limit is used.
func printLimit(line func(name, format string, a ...any), u *recorder.Use) {
	const layout = "Mon 2 Jan 15:04"
	line("data limit", "%s: %d %% of %s: %s used, %s left until %s", u.What, u.Percent, u.Amount, recorder.Bytes(u.Used), recorder.Bytes(u.Left()), time.Unix(u.Resets, 0).Format(layout))
	if u.Since != 0 {
		line("", "counted since %s: what was before is not known", time.Unix(u.Since, 0).Format(layout))
	}
	if u.Unplaced != 0 {
		line("", "besides, %s of which it is not known over which interface they went", recorder.Bytes(u.Unplaced))
	}
}

// printNotices says how what is to be told reaches people.
func printNotices(line func(name, format string, a ...any), s recorder.Status) {
	for _, d := range s.Desktops {
		state := "shown by " + or(d.Server, "nobody yet")
		switch {
		case !d.Here:
			state = "not logged in"
		case d.Problem != "":
			state = d.Problem
		}
		text := fmt.Sprintf("uid %d: %s", d.UID, state)
		if d.Waiting > 0 {
			text += fmt.Sprintf(", %d notices wait", d.Waiting)
		}
		if d.Muted > 0 {
			text += fmt.Sprintf(", %d muted (see: picosnitch mutes)", d.Muted)
		}
		line("desktop", "%s", text)
	}
	if n := s.Notices.Uncompared; n > 0 {
		line("not compared", "%d files in time with their packages: their notices say so; look at them with the package manager", n)
	}
	for _, w := range s.Ways {
		if w.Dropped > 0 {
			line("not delivered", "%d notices by %s; exe.log has everything", w.Dropped, w.Name)
		}
	}
	if v := s.VirusTotal; v != nil {
		state := or(v.Error, "ok")
		if v.Off {
			state += "; not asked any more"
		}
		line("VirusTotal", "%s, %d requests, %d hashes wait", state, v.Requests, v.Waiting)
	}
}

func ago(at int64) string {
	if at == 0 {
		return "not yet"
	}
	return time.Since(time.Unix(0, at)).Round(time.Second).String() + " ago"
}

func doctorCommand(env Env) *cobra.Command {
	var asJSON bool
	var hooks string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "show what the machine offers, what is missing, and a self test",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			ctx, cancel := interruptible(env)
			defer cancel()
			report, err := daemon.Doctor(ctx, daemon.Options{Program: version(), HookSet: hooks, Getenv: env.Getenv, Stderr: env.Stderr, Logger: logger(env.Stderr)})
			if asJSON {
				enc := json.NewEncoder(env.Stdout)
				enc.SetIndent("", "  ")
				err = errors.Join(err, enc.Encode(report))
			} else {
				printReport(env.Stdout, report)
				printConfig(env)
			}
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return errors.New("interrupted: what is above is not the whole")
			}
			for _, s := range report.SelfTest {
				if !s.OK {
					return fmt.Errorf("the self test found a difference: %s: %s", s.Name, s.Detail)
				}
			}
			if !report.OK() {
				return errors.New("not everything works here: see the lines with NO")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&hooks, "hooks", "", "examine this hook `SET` instead of the best one")
	return c
}

func printReport(w io.Writer, r sensor.Report) {
	fmt.Fprintf(w, "kernel    %s\nhook set  %s\n", or(r.Kernel, "unknown"), because(or(r.HookSet, "none"), r.Why))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(sign, name, detail string) {
		if detail != "" { // else the column would be blanks
			detail = "\t" + detail
		}
		fmt.Fprintf(t, "  %s\t%s%s\n", sign, name, detail)
	}
	checks := func(title string, list []sensor.Check) {
		if len(list) == 0 {
			return
		}
		fmt.Fprintf(t, "\n%s\n", title)
		for _, c := range list {
			row(mark(c.OK), c.Name, c.Detail)
			if !c.OK && c.Hint != "" {
				fmt.Fprintf(t, "  \t\t→ %s\n", c.Hint)
			}
		}
	}
	checks("What the kernel offers", r.Features)
	if len(r.Hooks) > 0 {
		fmt.Fprintf(t, "\nHooks\n")
		for _, h := range r.Hooks {
			detail := ""
			if !h.Attached {
				detail = h.Error
				switch {
				case h.Cost == "":
				case h.Spare: // the cost is a whole sentence
					detail += "; " + h.Cost
				default:
					detail += "; not seen without it: " + h.Cost
				}
			}
			sign := mark(h.Attached)
			if h.Spare {
				sign = " - "
			}
			row(sign, h.Name, detail)
		}
	}
	checks("Self test: known bytes, and what was counted", r.SelfTest)
	t.Flush()
}

// printConfig tells whether the config file can be read.
func printConfig(env Env) {
	_, path, err := daemon.ReadConfig(env.Getenv)
	switch {
	case err != nil:
		fmt.Fprintf(env.Stdout, "\nConfig\n  %s  %v\n", mark(false), err)
	default:
		fmt.Fprintf(env.Stdout, "\nConfig\n  %s  %s\n", mark(true), path)
	}
}

// because is a hook set with the reason for taking it.
func because(set, why string) string {
	if why == "" {
		return set
	}
	return set + " (" + why + ")"
}

func mark(ok bool) string {
	if ok {
		return "ok"
	}
	return "NO"
}

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}
