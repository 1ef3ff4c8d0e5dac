package recorder

import (
	"fmt"
	"maps"
	"slices"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// lostOther is the reason that stands for all reasons beyond the first few.
const lostOther = "other"

// takeLosses adds what a ledger has more than the one before it to the open window, and to what is to be told.
func (r *recorder) takeLosses(l *event.Ledger) {
	totals := make(map[string]uint64, len(l.Lost))
	fresh := 0
	for _, key := range slices.Sorted(maps.Keys(l.Lost)) {
		reason := flow.PrintableWord(key)
		_, before := r.totals[reason]
		_, now := totals[reason]
		switch {
		case before || now:
		case len(r.totals)+fresh < maxReasons:
			fresh++
		default:
			reason = lostOther
		}
		totals[reason] += l.Lost[key]
	}
	for reason, n := range totals {
		before := r.totals[reason]
		if n <= before {
			continue
		}
		r.totals[reason] = n
		r.losses[reason] += n - before
		r.tell.add("lost:"+reason, n-before)
	}
	if n := l.Unattributed.Sent; n > r.unattributed.Sent {
		r.missing.Sent += n - r.unattributed.Sent
		r.tell.add("unattributed sent", n-r.unattributed.Sent)
		r.unattributed.Sent = n
	}
	if n := l.Unattributed.Received; n > r.unattributed.Received {
		r.missing.Received += n - r.unattributed.Received
		r.tell.add("unattributed received", n-r.unattributed.Received)
		r.unattributed.Received = n
	}
}

// tellLosses writes to error.log what was lost since it was last told.
func (r *recorder) tellLosses(force bool) {
	known := make(map[string]bool)
	for _, l := range event.Losses() {
		known[l.Key] = true
		if n := r.tell.due("lost:"+l.Key, r.at, force); n > 0 && !l.Quiet {
			r.loss(l.Key, fmt.Sprintf("lost: %s: %d (%s)", l.Text, n, l.Hint))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(r.totals)) {
		if !known[reason] {
			if n := r.tell.due("lost:"+reason, r.at, force); n > 0 {
				r.loss(reason, fmt.Sprintf("lost: for a reason that this picosnitch does not know, %q: %d (a newer one does)", reason, n))
			}
		}
	}
	if n := r.processes.Shortened(); n > r.now.Shortened {
		r.tell.add("shortened", n-r.now.Shortened)
		r.now.Shortened = n
	}
	if n := r.tell.due("shortened", r.at, force); n > 0 {
		r.notice("error", fmt.Sprintf("command lines of which only the beginning was kept: %d", n), "all running programs together have more than the recorder keeps in memory")
	}
	if n := r.processes.Forgotten(); n > r.now.Forgotten {
		r.tell.add("forgotten", n-r.now.Forgotten)
		r.now.Forgotten = n
	}
	if n := r.tell.due("forgotten", r.at, force); n > 0 {
		r.notice("error", fmt.Sprintf("%d processes were forgotten because there were too many at once", n), "what they move from now on is that of an unknown program")
	}
	if n := r.tell.due("unknown", r.at, force); n > 0 {
		r.notice("error", fmt.Sprintf("%d flow lines named a process that the stream had not described: their program is not known", n), "report it with `picosnitch record`")
	}
	for _, d := range [...]string{"sent", "received"} {
		if n := r.tell.due("unattributed "+d, r.at, force); n > 0 {
			r.loss("unattributed "+d, fmt.Sprintf("%d bytes %s could not be attributed to a program: see the losses beside this line for the reason", n, d))
		}
	}
}

func (r *recorder) tellBadLines(force bool) {
	if n := r.tell.due("batch", r.at, force); n > 0 {
		r.notice("warning", fmt.Sprintf("batches that came out of order: %d, the last: %s", n, r.badBatch), "lines between them are missing; see the losses")
	}
	if n := r.tell.due("notice", r.at, force); n > 0 {
		r.notice("warning", fmt.Sprintf("messages of the sensor that were left out because there were too many: %d", n), "")
	}
	if n := r.tell.due("line", r.at, force); n > 0 {
		r.notice("error", fmt.Sprintf("%d lines of the stream could not be understood, the last: %s", n, flow.Printable(r.badLine.Error())), "report it with `picosnitch record`")
	}
}

// notice tells the user something of the recorder's own: in error.log, in the log, on the live feed, and by the ways out.
func (r *recorder) notice(level, text, hint string) {
	r.write(text, hint)
	r.feedNotice(level, text, hint)
	r.failure(level, text, hint)
}

// failure tells by the ways out what went wrong.
func (r *recorder) failure(level, text, hint string) {
	if r.teller != nil && level != "info" {
		r.teller.offer(0, notify.Notice{Kind: notify.Failure, At: r.at, Key: class(text), Detail: text, Hint: hint})
	}
}

// loss tells that something was lost: like notice.
func (r *recorder) loss(reason, text string) {
	r.write(text, "")
	r.feedNotice("error", text, "")
	if r.teller != nil {
		r.teller.offer(0, notify.Notice{Kind: notify.Loss, At: r.at, Key: reason, Detail: text})
	}
}

func (r *recorder) feedNotice(level, text, hint string) {
	if r.feed != nil && r.o.Settings.Feed {
		n := event.Event{At: r.at, Notice: &event.Notice{Level: level, Text: text, Hint: hint}}
		if line, err := event.Append(nil, &n); err == nil {
			r.feed.Publish(line)
		}
	}
}

// write writes to error.log.
func (r *recorder) write(text, hint string) {
	r.log.Warn(text, "hint", hint)
	if err := r.errors.write(r.at, text, hint); err != nil {
		r.log.Error("write error.log", "error", err)
	}
}
