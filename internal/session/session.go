// Package session is the process of a logged-in desktop user: it shows the recorder's notices on the user's session
// bus, hashes files that only the user can read (FUSE), and runs the user's command. It has the rights of that user and no
// others, is trusted with nothing, knows nothing of the log, and decides nothing: what is shown, and what an answer is worth, is the
// recorder's to say.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
)

// Bounds. The recorder gives one errand of a kind at a time; a second recorder may come before the first one's errands are done.
const (
	maxErrands = 8
	sendWait   = 5 * time.Second
)

// Options of Run.
type Options struct {
	Bus    string // path of the socket of the user's bus: /run/user/UID/bus
	Proc   string // where proc is mounted; "": /proc
	Logger *slog.Logger
	// Start runs a command of the user's and waits for its end; fields are added to its environment.
	Start func(ctx context.Context, argv, fields []string) error
}

// session is the state of one Run.
type session struct {
	o       Options
	conn    *errand.Conn
	show    chan *errand.Show
	files   chan fileErrand
	run     chan *errand.Run
	desktop chan bool // whether notices are shown at all
}

type fileErrand struct {
	*errand.File
	open bool // hand it over; else hash it
}

// Run does the recorder's errands until conn or ctx ends.
func Run(ctx context.Context, conn *errand.Conn, o Options) error {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &session{
		o: o, conn: conn,
		show:    make(chan *errand.Show, maxErrands),
		files:   make(chan fileErrand, maxErrands),
		run:     make(chan *errand.Run, maxErrands),
		desktop: make(chan bool, 1),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var work sync.WaitGroup
	work.Go(func() { s.desk(ctx) })
	work.Go(func() { s.hashes(ctx) })
	work.Go(func() { s.commands(ctx) })
	err := s.receive(ctx)
	cancel()
	work.Wait()
	return err
}

// receive takes errands until there are none any more.
func (s *session) receive(ctx context.Context) error {
	for {
		m, file, err := s.conn.Receive()
		if file != nil {
			file.Close() // the recorder sends none
		}
		switch {
		case err == io.EOF || ctx.Err() != nil:
			return nil
		case errors.Is(err, errand.ErrMessage):
			s.o.Logger.Warn("from the recorder", "error", err)
			continue
		case err != nil:
			return fmt.Errorf("read from the recorder: %w", err)
		}
		full := false
		switch {
		case m.Hello != nil:
			select {
			case <-s.desktop:
			default:
			}
			s.desktop <- m.Hello.Desktop
		case m.Show != nil:
			full = !offer(s.show, m.Show)
		case m.Hash != nil:
			full = !offer(s.files, fileErrand{m.Hash, false})
		case m.Open != nil:
			full = !offer(s.files, fileErrand{m.Open, true})
		case m.Run != nil:
			full = !offer(s.run, m.Run)
		}
		if full {
			s.done(ctx, &errand.Done{N: number(&m), Reason: "the session process has too much to do"})
		}
	}
}

func offer[T any](c chan T, v T) bool {
	select {
	case c <- v:
		return true
	default:
		return false
	}
}

func number(m *errand.Message) uint64 {
	switch {
	case m.Show != nil:
		return m.Show.N
	case m.Hash != nil:
		return m.Hash.N
	case m.Open != nil:
		return m.Open.N
	case m.Run != nil:
		return m.Run.N
	}
	return 0
}

func (s *session) done(ctx context.Context, d *errand.Done) {
	d.Reason = errand.Clip(d.Reason, 300)
	s.answer(ctx, errand.Message{Done: d})
}

// answer sends an answer; while no recorder is there, or it does not read, it waits.
func (s *session) answer(ctx context.Context, m errand.Message) {
	for ctx.Err() == nil {
		err := s.conn.Send(m, nil, sendWait)
		if err == nil {
			return
		}
		if !isTimeout(err) {
			s.o.Logger.Warn("answer the recorder", "error", err)
			return
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// commands runs the user's commands, one after the other.
func (s *session) commands(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.run:
			d := &errand.Done{N: r.N}
			if s.o.Start == nil {
				d.Reason = "no way to start a command"
			} else if err := s.o.Start(ctx, r.Argv, r.Fields); err != nil {
				d.Reason = err.Error()
			}
			s.done(ctx, d)
		}
	}
}
