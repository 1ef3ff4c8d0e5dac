package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/budget"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/links"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

const (
	limitsFile    = "limits.json"
	maxLimitsFile = 1 << 20
	limitsSync    = time.Minute     // the most that a power cut takes of what was counted
	pastTime      = 5 * time.Second // for the log to say what was before
)

// limits is what "Data limits" need: the Meter, its file, and the interfaces of this machine.
type limits struct {
	meter *budget.Meter
	links *links.Links // nil: not known
	path  string
	dirty bool
	at    time.Time // when the file was last brought to the disk
}

// openLimits takes up what was counted, and asks the log for what is new.
func (r *recorder) openLimits(ctx context.Context) {
	if len(r.o.Settings.Limits) == 0 {
		// What moves from now on is not counted: what was counted before would pass for all of it when there are limits again.
		if err := os.Remove(filepath.Join(r.o.Dir, limitsFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.notice("error", "remove limits.json: "+err.Error(), "remove it yourself before \"Data limits\" has an entry again, or what was not counted meanwhile is missing")
		}
		return
	}
	l := &limits{meter: budget.New(r.o.Settings.Limits, r.o.Zone), path: filepath.Join(r.o.Dir, limitsFile)}
	r.limits = l
	if r.o.Machine {
		var err error
		if l.links, err = links.Open(); err != nil {
			r.notice("error", "\"Data limits\": "+err.Error(), "limits of an interface are not counted right")
		}
	}
	state, err := readLimits(l.path)
	if err != nil {
		aside := l.path + ".damaged-" + time.Unix(0, r.at).UTC().Format("20060102-150405")
		if err := os.Rename(l.path, aside); err != nil {
			r.notice("error", "set limits.json aside: "+err.Error(), "")
		}
		r.notice("error", fmt.Sprintf("limits.json is damaged: %v; it is set aside as %s", err, filepath.Base(aside)), "what \"Data limits\" have used is taken from snitch.db, where it can be")
	}
	l.meter.Restore(state)
	r.askPast(ctx)
	l.dirty = true
}

// askPast fills limits whose period was never counted with what the log has of it.
func (r *recorder) askPast(ctx context.Context) {
	fresh, since := r.limits.meter.Empty(r.at)
	if len(fresh) == 0 || r.o.Past == nil || r.sqlite == nil || !r.o.Settings.LogAddresses {
		return // without addresses, the log does not know what stayed on this machine
	}
	ctx, cancel := context.WithTimeout(ctx, pastTime)
	defer cancel()
	for i, l := range fresh {
		if l.Interface != "" {
			continue // the log does not know interfaces
		}
		moved, from, err := r.o.Past(ctx, l, since[i])
		if err != nil {
			r.notice("warning", fmt.Sprintf("\"Data limits\": what %s moved before now is not known: %v", l.What(), err), "it is counted from now on")
			continue
		}
		r.limits.meter.Seed(l, r.at, moved.Sent, moved.Received, from.UnixNano())
	}
}

func readLimits(path string) (s budget.State, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLimitsFile+1))
	if err == nil && len(data) > maxLimitsFile {
		err = fmt.Errorf("it has more than %d bytes", maxLimitsFile)
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return budget.State{}, err
	}
	return s, nil
}

// count counts a flow line.
func (l *limits) count(at flow.Position, now int64, f *event.Flow, p *flow.Program) {
	l.meter.Count(at, now, f, p, func() budget.Place {
		if l.links == nil {
			machine, local := links.Special(f.Remote.Addr())
			return budget.Place{Machine: machine || f.Remote.IsValid() && f.Remote.Addr() == f.Local.Addr(), Local: local}
		}
		p := l.links.Of(f.NetNS, f.Local.Addr(), f.Remote.Addr())
		return budget.Place{Interface: p.Interface, Machine: p.Machine, Local: p.Local, Carried: p.Carried}
	})
}

// tellLimits tells which thresholds are reached: first the journal has the notice, then limits.json that it was told.
func (r *recorder) tellLimits() {
	l := r.limits
	if l == nil {
		return
	}
	due := l.meter.Due(r.at)
	for i := range due {
		r.known.Say(due[i].ID, r.limitNotice(&due[i]))
		due[i].Told()
	}
	if len(due) > 0 {
		r.saveLimits(true)
	}
	if l.links != nil {
		if err := l.links.Err(); err != nil {
			r.tell.add("links", 1)
			if r.tell.due("links", r.at, false) > 0 {
				r.notice("warning", "\"Data limits\": "+err.Error(), "limits of an interface may not be counted right")
			}
		}
	}
}

func (r *recorder) limitNotice(u *budget.Reached) notify.Notice {
	resets := time.Unix(u.Resets, 0).In(r.o.Zone).Format("Monday, 2 January 15:04")
	n := notify.Notice{Kind: notify.DataLimit, At: r.at, Count: 1, Key: fmt.Sprintf("%d %% of %s, %s", min(u.Percent, 999), u.Amount, u.What)}
	n.Detail = fmt.Sprintf("%s: %s of %s used", u.What, budget.Bytes(u.Used), u.Amount)
	n.Hint = "nothing is blocked; it begins anew on " + resets
	if u.Threshold < 100 {
		n.Hint = fmt.Sprintf("%s left until %s", budget.Bytes(u.Left()), resets)
	}
	if u.Since != 0 {
		n.Hint += "; counted since " + time.Unix(u.Since, 0).In(r.o.Zone).Format("2 January 15:04")
	}
	return n
}

// saveLimits writes limits.json if it changed. It is on the disk at last a minute later; a kill of this process loses nothing.
func (r *recorder) saveLimits(sync bool) {
	l := r.limits
	if l == nil {
		return
	}
	l.meter.Forget()
	l.dirty = l.meter.Changed() || l.dirty
	if !l.dirty {
		return
	}
	now := time.Now()
	sync = sync || now.Sub(l.at) >= limitsSync || now.Before(l.at)
	if err := l.write(sync); err != nil {
		r.tell.add("limits", 1)
		if r.tell.due("limits", r.at, r.final) > 0 {
			r.notice("error", "write limits.json: "+err.Error(), "free disk space; what \"Data limits\" count is in memory only until then")
		}
		return
	}
	l.dirty = false
	if sync {
		l.at = now
	}
}

func (l *limits) write(sync bool) error {
	data, err := json.MarshalIndent(l.meter.State(), "", " ")
	if err != nil {
		return err
	}
	tmp := l.path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Chmod(0o640)) // whatever the umask: the group reads
	if sync {
		err = errors.Join(err, f.Sync())
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, l.path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
