// Package remote is the copy off the machine: it brings every window to a MariaDB, MySQL or PostgreSQL server exactly once, with
// nothing but CREATE (once), INSERT and SELECT. It belongs to the recorder's wing and runs without rights. Windows go to a spool
// on disk, which is what the recorder waits for; a goroutine of its own brings them from there to the server and never
// holds the recorder up. It does not decide what is logged, and reads nothing back but how far the server is.
package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
	"github.com/picosnitch/picosnitch/internal/sqlserver"
)

// Dialects.
const (
	Postgres = "postgres"
	MySQL    = "mysql"
)

// Settings say where the copy goes. They hold the password: they are never printed.
type Settings struct {
	Client  string            `json:"client"`  // as the user wrote it
	Dialect string            `json:"dialect"` // Postgres or MySQL
	Table   string            `json:"table"`   // "": connections
	Params  map[string]string `json:"params"`  // connection parameters, by the names of config.ServerParameters
	Limit   int64             `json:"limit"`   // bytes of the spool
}

// String hides the parameters.
func (s Settings) String() string { return s.Client + " (hidden)" }

// GoString hides them for %#v.
func (s Settings) GoString() string { return s.String() }

func (s *Settings) table() string {
	if s.Table == "" {
		return "connections"
	}
	return s.Table
}

// Options of a Remote.
type Options struct {
	Dir    string // the spool's
	Zone   *time.Location
	Linger time.Duration // how long Close may go on delivering
	Clock  func() time.Time
	Wait   time.Duration // before the second try, doubled for each one after it up to a minute; 0: a second
}

// Limits of time.
const (
	sendLimit = 60 * time.Second // of one batch
	lateLimit = 30 * time.Second // that a row waits for its hash
)

// Notice is something that the user must know.
type Notice struct {
	Level, Text, Hint string
}

// Status is how the copy does.
type Status struct {
	Server    string      `json:"server"` // client, host and table
	Connected bool        `json:"connected"`
	Error     string      `json:"error,omitempty"` // why not; "" if all is well
	Failures  uint64      `json:"failures"`        // tries that failed since the start
	Delivered spool.Count `json:"delivered"`       // since the start
	Waiting   spool.Count `json:"waiting"`         // in the spool
	Frames    uint64      `json:"frames"`          // windows in the spool
	Bytes     int64       `json:"spool_bytes"`     // on disk
	Limit     int64       `json:"spool_limit"`     // bytes
	Oldest    int64       `json:"oldest"`          // unix seconds at which what waits longest was recorded; 0: nothing waits
	Dropped   spool.Count `json:"dropped"`         // what the spool could not keep, because it was full
	// Unreadable is what was in the spool and cannot be read: the disk is damaged, or a newer version wrote it.
	Unreadable spool.Count `json:"unreadable"`
	Damaged    int64       `json:"damaged"`       // bytes of the spool that could not be read
	NoHash     uint64      `json:"no_hash"`       // rows sent without a hash that did not come in time
	Cut        uint64      `json:"cut,omitempty"` // values that did not fit into the server's columns
	Last       int64       `json:"last_delivery"` // unix seconds; 0: none yet
}

// Remote is a store.Sink whose windows go to a server. Write and Resume belong to one goroutine; the rest is safe for several.
type Remote struct {
	o     Settings
	opt   Options
	spool *spool.Spool
	late  late

	cancel  context.CancelFunc
	leave   chan struct{} // closed when Close begins
	there   place         // of the last errThere; the goroutine's
	warned  bool          // of the tables; the goroutine's
	strange bool          // a frame that is not understood was told; the goroutine's
	lost    string        // chain whose loss was told; the goroutine's
	done    chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	status  Status   // guarded by mu
	notices []Notice // guarded by mu
}

// Open opens the spool and begins to deliver. It does not wait for the server.
func Open(s Settings, o Options) (*Remote, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Wait == 0 {
		o.Wait = firstWait
	}
	if err := check(s); err != nil {
		return nil, err
	}
	sp, err := spool.Open(o.Dir, s.Limit)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Remote{o: s, opt: o, spool: sp, cancel: cancel, leave: make(chan struct{}), done: make(chan struct{})}
	r.status.Server = s.where()
	r.tellDamage(sp.Status())
	go func() {
		defer close(r.done)
		r.run(ctx)
	}()
	return r, nil
}

// tellDamage tells what cannot be used of an earlier process's spool.
func (r *Remote) tellDamage(st spool.Status) {
	const hint = "look after the disk; snitch.db has the rows that it had been given"
	name := filepath.Base(r.opt.Dir)
	if st.Damaged > 0 {
		r.tell("error", fmt.Sprintf("the folder %s is damaged: %d bytes of it cannot be read, and at least %d records in them will not reach the SQL server", name, st.Damaged, st.Unreadable.Records), hint)
	}
	if len(st.Aside) > 0 {
		r.tell("error", fmt.Sprintf("the folder %s: files whose beginning is damaged were renamed: %s", name, strings.Join(st.Aside, " ")), "delete them when you have looked at them")
	}
	if st.Short > 0 {
		r.tell("error", fmt.Sprintf("the folder %s is damaged: files that end too early: %d; what they held behind that will not reach the SQL server", name, st.Short), hint)
	}
	if len(st.Foreign) > 0 {
		r.tell("error", fmt.Sprintf("the folder %s has files of another version of picosnitch, which are left alone: %s", name, strings.Join(st.Foreign, " ")), "that version delivers them when it runs again; else delete them")
	}
}

// check refuses settings that can never work.
func check(s Settings) error {
	var err error
	switch s.Dialect {
	case Postgres:
		_, err = sqlserver.Postgres(s.Params, nil)
	case MySQL:
		_, err = sqlserver.MySQL(s.Params, s.native())
	default:
		return fmt.Errorf("unknown dialect %q", s.Dialect)
	}
	var set *sqlserver.SettingsError
	if errors.As(err, &set) {
		return s.scrub(fmt.Errorf("\"DB sql server\": %w", err))
	}
	return nil
}

// native is true for a client that takes localhost for the unix socket, as the client library does.
func (s *Settings) native() bool { return s.Client != "pymysql" }

func (s *Settings) where() string {
	host := s.Params["host"]
	if socket := s.Params["unix_socket"]; socket != "" {
		host = socket
	}
	if host == "" {
		host = "this machine"
	}
	return fmt.Sprintf("%s on %s, table %s", s.Client, host, s.table())
}

// Name implements store.Sink.
func (r *Remote) Name() string { return "spool of the SQL server" }

// Resume returns how far the spool has a stream.
func (r *Remote) Resume(stream string) flow.Position {
	var p flow.Position
	if m := r.spool.Mark(); m != nil && json.Unmarshal(m, &p) == nil && p.Stream == stream {
		return p
	}
	return flow.Position{Stream: stream}
}

// Write puts a window into the spool.
func (r *Remote) Write(_ context.Context, w *flow.Window) error {
	r.late.learn(w.Digests)
	if len(w.Records) == 0 && len(w.Losses) == 0 && w.Unattributed == (event.Bytes{}) {
		return nil
	}
	mark, err := json.Marshal(w.Position)
	if err != nil {
		return err
	}
	payload, _ := encode(w)
	f := spool.Frame{Mark: mark, Payload: payload, Count: spool.Count{Records: uint64(len(w.Records))}}
	for i := range w.Records {
		f.Sent += w.Records[i].Sent
		f.Received += w.Records[i].Received
	}
	return r.spool.Append(f)
}

// Close goes on delivering for a moment, if the server is there, and closes the spool; what is left comes with the next Open.
func (r *Remote) Close() error {
	close(r.leave)
	select {
	case <-r.done:
	case <-time.After(r.opt.Linger):
	}
	r.cancel()
	<-r.done
	return r.spool.Close()
}

// Status says how the copy does.
func (r *Remote) Status() Status {
	s := r.spool.Status()
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.status
	st.Waiting, st.Frames, st.Bytes, st.Limit, st.Oldest, st.Dropped, st.Unreadable, st.Damaged = s.Waiting, s.Frames, s.Bytes, r.o.Limit, s.Oldest, s.Dropped, s.Unreadable, s.Damaged
	return st
}

// maxNotices bounds what waits to be told.
const maxNotices = 32

func (r *Remote) tell(level, text, hint string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.notices) < maxNotices {
		r.notices = append(r.notices, Notice{level, text, hint})
	}
}

// Notices returns what is to be told since the last call.
func (r *Remote) Notices() []Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.notices
	r.notices = nil
	return n
}
