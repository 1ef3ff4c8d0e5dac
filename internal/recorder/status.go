package recorder

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/budget"
	"github.com/picosnitch/picosnitch/internal/recorder/desk"
	"github.com/picosnitch/picosnitch/internal/recorder/feed"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/internal/recorder/virustotal"
)

// Status is the first line of the live feed, as {"status":{…}}, and what `picosnitch status` prints.
type Status struct {
	PID         int     `json:"pid"`          // of the sensor
	RecorderPID int     `json:"recorder_pid"` // of the recorder
	Program     string  `json:"program"`      // version of picosnitch
	Stream      string  `json:"stream"`       // of Hello
	Started     int64   `json:"started"`      // of the sensor; wall clock, ns since 1970
	Uptime      float64 `json:"uptime"`       // of the sensor; seconds

	HookSet   string       `json:"hook_set"`
	Why       string       `json:"hook_set_why,omitempty"`
	Hooks     []event.Hook `json:"hooks,omitempty"`
	Bandwidth bool         `json:"bandwidth"` // false: connections are recorded without bytes
	SelfTest  string       `json:"self_test"` // "ok", or what was wrong

	Batch           uint64            `json:"batch"`             // last one received
	Durable         uint64            `json:"durable"`           // last one on disk
	Events          uint64            `json:"events"`            // kernel reports since the start of the sensor
	EventsPerSecond float64           `json:"events_per_second"` // between the last two ledgers
	Seen            event.Bytes       `json:"seen"`
	Attributed      event.Bytes       `json:"attributed"`
	Unattributed    event.Bytes       `json:"unattributed"`
	Lost            map[string]uint64 `json:"lost,omitempty"` // by reason, see event.Losses; since the start of the sensor

	WindowSeconds int64       `json:"window_seconds"`
	Records       int         `json:"records"`    // in the open window
	Processes     int         `json:"processes"`  // program images known
	LastWrite     int64       `json:"last_write"` // wall clock of the ledger at which a window was written, ns since 1970; 0: none yet
	DatabaseBytes int64       `json:"database_bytes"`
	Takeover      string      `json:"takeover,omitempty"`      // the database of picosnitch 0.11 that is being taken over
	TakeoverDone  float64     `json:"takeover_done,omitempty"` // how much of it, from 0 to 1
	IgnoredFlows  uint64      `json:"ignored_flows"`           // flow lines (by hash: records) left out by "Log ignore", since the start of the recorder
	Ignored       event.Bytes `json:"ignored"`                 // their bytes
	Repeated      uint64      `json:"repeated"`                // flow lines that the sensor sent again and that were on disk already
	BadLines      uint64      `json:"bad_lines"`               // lines of the stream that could not be understood
	UnknownFlows  uint64      `json:"unknown_flows"`           // flow lines whose process the stream did not describe
	Shortened     uint64      `json:"shortened"`               // command lines cut because all of them were too long together
	Forgotten     uint64      `json:"forgotten"`               // process images dropped because there were too many at once
	Unread        uint64      `json:"unread"`                  // executables that only their user can read, and that were not hashed

	Sinks    []SinkStatus   `json:"sinks"`
	Remote   *remote.Status `json:"remote,omitempty"` // the SQL server; nil: none
	Feed     FeedStatus     `json:"feed"`
	Desktops []desk.Status  `json:"desktops,omitempty"`
	Ways     []WayStatus    `json:"ways,omitempty"`

	VirusTotal *virustotal.Status `json:"virustotal,omitempty"` // nil: nobody is asked
	Notices    NoticeStatus       `json:"notices"`

	Limits []budget.Use `json:"limits,omitempty"` // "Data limits"
}

// SinkStatus tells how a sink does.
type SinkStatus struct {
	Name     string        `json:"name"`
	Failures uint64        `json:"failures"`        // writes that failed since the start of the recorder
	Error    string        `json:"error,omitempty"` // of the last write; "" if it succeeded
	Waiting  int           `json:"waiting"`         // windows kept in memory until they can be written
	Dropped  store.Dropped `json:"dropped"`         // what could not be kept
}

// WayStatus tells how a way to the user does.
type WayStatus struct {
	Name    string `json:"name"`
	Dropped uint64 `json:"dropped"` // notices that were not delivered and never will be
}

// FeedStatus tells how the live feed does.
type FeedStatus struct {
	Readers int    `json:"readers"`
	Dropped uint64 `json:"dropped"` // readers that did not keep up
	Refused uint64 `json:"refused"` // readers that found too many others
}

type statusLine struct {
	Status *Status `json:"status"`
}

// line is the status as a line of the feed.
func (s Status) line(now time.Time) []byte {
	if s.Started != 0 {
		s.Uptime = now.Sub(time.Unix(0, s.Started)).Seconds()
	}
	b, err := json.Marshal(statusLine{&s})
	if err != nil {
		return []byte("{\"status\":{}}\n") // no field of Status can cause it
	}
	return append(b, '\n')
}

// ReadStatus asks the recorder that serves the live feed at path. An error of kind os.ErrNotExist or
// syscall.ECONNREFUSED means that none runs.
func ReadStatus(ctx context.Context, path string) (Status, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return Status{}, fmt.Errorf("read status: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReaderSize(c, 64<<10).ReadBytes('\n')
	if err != nil {
		return Status{}, fmt.Errorf("read status from %s: %w", path, err)
	}
	var s statusLine
	if err := json.Unmarshal(line, &s); err != nil {
		return Status{}, fmt.Errorf("read status from %s: %w", path, err)
	}
	if s.Status == nil {
		return Status{}, fmt.Errorf("read status from %s: it is not the feed of picosnitch", path)
	}
	return *s.Status, nil
}

// greet is what a new reader of the feed gets first: the status, and the line that opened the stream.
func (r *recorder) greet(f *feed.Feed) [][]byte {
	s := *r.status.Load()
	s.Feed = FeedStatus{f.Readers(), f.Dropped(), f.Refused()}
	if r.desk != nil {
		s.Desktops = r.desk.Status()
	}
	lines := [][]byte{s.line(time.Now())}
	if h := r.helloLine.Load(); h != nil {
		lines = append(lines, *h)
	}
	return lines
}

// publishStatus makes the status that greet gives.
func (r *recorder) publishStatus() {
	s := r.now
	s.RecorderPID = os.Getpid()
	s.WindowSeconds = r.o.Settings.WriteLimit
	s.Durable = r.acked
	s.Notices = *r.teller.status.Load()
	s.Records, s.Processes = r.table.Len(), r.processes.Len()
	if r.sqlite != nil {
		s.DatabaseBytes = r.sqlite.Size()
		s.Takeover, s.TakeoverDone = r.sqlite.Takeover()
	}
	if r.serverError != "" {
		s.Remote = &remote.Status{Error: r.serverError}
	}
	if r.server != nil {
		st := r.server.Status()
		s.Remote = &st
	}
	for _, q := range r.queues {
		n, err := q.Failures()
		k := SinkStatus{Name: q.Name(), Failures: n, Waiting: q.Waiting(), Dropped: q.Dropped()}
		if err != nil {
			k.Error = err.Error()
		}
		s.Sinks = append(s.Sinks, k)
	}
	if r.virustotal != nil {
		v := r.virustotal.Status()
		s.VirusTotal = &v
	}
	for _, w := range r.ways {
		s.Ways = append(s.Ways, WayStatus{w.Name(), w.Dropped()})
	}
	if r.limits != nil {
		s.Limits = r.limits.meter.Uses(r.at)
	}
	r.status.Store(&s)
}
