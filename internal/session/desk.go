package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/picosnitch/picosnitch/internal/errand"
)

// The notification server: https://specifications.freedesktop.org/notification-spec.
const (
	serverName = "org.freedesktop.Notifications"
	serverPath = "/org/freedesktop/Notifications"
	appName    = "picosnitch"
)

const (
	connectLimit = 5 * time.Second  // for the handshake with the bus
	firstPause   = time.Second      // before a bus or a server is tried again; doubled each time
	lastPause    = 15 * time.Second // at most
	impatience   = 5 * time.Second  // after which a server that does not answer is told of
	maxRefusals  = 5                // after which a notice that the server refuses is given up
	maxShown     = 256              // notices whose buttons are remembered
)

// desk is the goroutine that owns the bus.
type desk struct {
	*session
	bus     *dbus.Conn // nil: none
	signals chan *dbus.Signal
	owner   string   // unique name of the server that told what it can do; "": none
	can     []string // its capabilities
	shown   []shown  // oldest first
	state   errand.State
	told    bool // state was told at least once
	on      bool // notices are shown
}

type shown struct {
	n      uint64
	id     uint32
	server string // unique name
}

// errGone means that the bus or the server went away: what was asked is to be asked again.
var errGone = errors.New("no notification server")

func (s *session) desk(ctx context.Context) {
	d := &desk{session: s}
	defer d.hangUp()
	pause := time.Duration(0) // until the next try
	refused := 0              // how often the open notice was
	var open *errand.Show
	for {
		queue := s.show
		if open != nil {
			queue = nil
		}
		var again <-chan time.Time
		if open != nil || d.on && d.bus == nil {
			again = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case d.on = <-s.desktop:
			if !d.on {
				d.hangUp()
			}
		case open = <-queue:
			refused, pause = 0, 0
		case signal, ok := <-d.signals:
			if !ok {
				d.hangUp()
				d.tell(ctx, "the session bus went away")
			} else if d.take(ctx, signal) {
				pause = 0 // a server came
			}
		case <-again:
			err := d.try(ctx, open)
			switch {
			case err == nil:
				d.tell(ctx, "")
				pause = 0
			case errors.Is(err, errGone):
				d.tell(ctx, err.Error())
				pause = longer(pause)
				continue
			default:
				pause = longer(pause)
				if refused++; refused < maxRefusals {
					continue
				}
			}
			if open != nil {
				answer := &errand.Done{N: open.N}
				if err != nil {
					answer.Reason = err.Error()
				}
				s.done(ctx, answer)
				open, pause = nil, 0
			}
		}
	}
}

func longer(pause time.Duration) time.Duration {
	return min(max(2*pause, firstPause), lastPause)
}

// tell tells the recorder how the desktop does, when that changed.
func (d *desk) tell(ctx context.Context, problem string) {
	now := errand.State{Problem: errand.Clip(problem, 300), Server: d.state.Server}
	if problem != "" {
		now.Server = ""
	}
	if d.told && now == d.state {
		return
	}
	d.told, d.state = true, now
	d.answer(ctx, errand.Message{State: &now})
}

// try connects, and shows a notice if there is one.
func (d *desk) try(ctx context.Context, open *errand.Show) error {
	if d.bus == nil {
		if err := d.connect(ctx); err != nil {
			return fmt.Errorf("%w: session bus: %w", errGone, err)
		}
	}
	if open == nil {
		return nil
	}
	return d.notify(ctx, open)
}

// connect connects to the bus. A bus that accepts and says nothing must not hold us.
func (d *desk) connect(ctx context.Context) error {
	bus, err := dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(d.o.Bus), dbus.WithContext(ctx))
	if err != nil {
		return err
	}
	late := time.AfterFunc(connectLimit, func() { bus.Close() })
	defer late.Stop()
	signals := make(chan *dbus.Signal, maxShown)
	bus.Signal(signals)
	err = bus.Auth([]dbus.Auth{dbus.AuthExternal(uid())})
	if err == nil {
		err = bus.Hello()
	}
	for _, rule := range [][]dbus.MatchOption{
		{dbus.WithMatchInterface(serverName), dbus.WithMatchObjectPath(serverPath)},
		{dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, serverName)},
	} {
		if err == nil {
			err = bus.AddMatchSignalContext(ctx, rule...)
		}
	}
	if err == nil && !late.Stop() {
		err = errors.New("it does not answer")
	}
	if err != nil {
		bus.Close()
		return err
	}
	d.bus, d.signals, d.owner = bus, signals, ""
	return nil
}

func (d *desk) hangUp() {
	if d.bus != nil {
		d.bus.Close()
	}
	d.bus, d.signals, d.owner, d.shown = nil, nil, "", nil
}

// call asks the server. It waits as long as the server has the question: a server that hangs answers when it is woken, and
// asking twice would show a notice twice. Signals are taken meanwhile.
func (d *desk) call(ctx context.Context, method string, args ...any) ([]any, error) {
	c := d.bus.Object(serverName, serverPath).Go(serverName+"."+method, 0, make(chan *dbus.Call, 1), args...)
	patience := time.After(impatience)
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case c := <-c.Done:
			return c.Body, d.failure(c.Err)
		case <-patience:
			d.tell(ctx, "the notification server does not answer")
		case signal, ok := <-d.signals:
			if !ok {
				d.hangUp()
				return nil, fmt.Errorf("%w: the session bus went away", errGone)
			}
			d.take(ctx, signal)
		}
	}
}

// failure tells a server that is not there from one that refuses.
func (d *desk) failure(err error) error {
	if err == nil {
		return nil
	}
	var answer dbus.Error
	if !errors.As(err, &answer) {
		d.hangUp()
		return fmt.Errorf("%w: %w", errGone, err)
	}
	switch {
	case strings.HasPrefix(answer.Name, "org.freedesktop.DBus.Error.Spawn."),
		slices.Contains([]string{
			"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.NoReply",
			"org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.TimedOut", "org.freedesktop.DBus.Error.LimitsExceeded",
		}, answer.Name):
		d.owner = ""
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return fmt.Errorf("the notification server refused: %w", err)
}

// ask learns which server there is and what it can do.
func (d *desk) ask(ctx context.Context) error {
	if d.owner != "" {
		return nil
	}
	answer, err := d.call(ctx, "GetCapabilities")
	if err != nil {
		return err
	}
	d.can = nil
	if err := dbus.Store(answer, &d.can); err != nil {
		d.can = nil // what it can do is not known: plain text without buttons
	}
	answer, err = d.call(ctx, "GetServerInformation")
	if err != nil {
		return err
	}
	d.state.Server, d.told = "", false
	if len(answer) > 0 {
		if name, ok := answer[0].(string); ok {
			d.state.Server = errand.Clip(name, 60)
		}
	}
	// Only its word counts as the user's from now on.
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	var owner string
	err = d.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, serverName).Store(&owner)
	if err := d.failure(err); err != nil {
		return err
	}
	d.owner = owner
	return nil
}

// notify shows a notice.
func (d *desk) notify(ctx context.Context, n *errand.Show) error {
	if err := d.ask(ctx); err != nil {
		return err
	}
	title, body := texts(n, d.can)
	actions := []string{}
	if slices.Contains(d.can, "actions") {
		for _, a := range n.Actions {
			actions = append(actions, a.Key, a.Label)
		}
	}
	hints := map[string]dbus.Variant{
		"urgency":  dbus.MakeVariant(byte(n.Urgency)),
		"category": dbus.MakeVariant("network"),
	}
	answer, err := d.call(ctx, "Notify", appName, uint32(0), n.Icon, title, body, actions, hints, int32(-1))
	if err != nil {
		return err
	}
	var id uint32
	if err := dbus.Store(answer, &id); err != nil {
		return nil // shown; its buttons cannot be told apart
	}
	if len(actions) > 0 {
		if d.shown = append(d.shown, shown{n.N, id, d.owner}); len(d.shown) > maxShown {
			d.shown = d.shown[1:]
		}
	}
	return nil
}

// texts are title and body as the server wants them.
func texts(n *errand.Show, can []string) (title, body string) {
	title, body = n.Title, n.Body
	switch {
	case !slices.Contains(can, "body"):
		if first, _, _ := strings.Cut(body, "\n"); first != "" {
			title += ": " + first
		}
		return title, ""
	case slices.Contains(can, "body-markup"):
		body = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;").Replace(body)
	}
	return title, body
}

// take takes a signal. It reports whether a server came.
func (d *desk) take(ctx context.Context, s *dbus.Signal) bool {
	switch s.Name {
	case "org.freedesktop.DBus.NameOwnerChanged":
		var name, before, after string
		// Anybody may send a signal of this name; only the bus itself is believed.
		if s.Sender != "org.freedesktop.DBus" || dbus.Store(s.Body, &name, &before, &after) != nil || name != serverName {
			return false
		}
		d.owner = ""
		d.shown = slices.DeleteFunc(d.shown, func(one shown) bool { return one.server == before })
		return after != ""
	case serverName + ".ActionInvoked":
		var id uint32
		var key string
		if dbus.Store(s.Body, &id, &key) == nil {
			if i := d.find(s.Sender, id); i >= 0 {
				d.answer(ctx, errand.Message{Invoked: &errand.Invoked{N: d.shown[i].n, Key: errand.Clip(key, 60)}})
			}
		}
	case serverName + ".NotificationClosed":
		var id, why uint32
		if dbus.Store(s.Body, &id, &why) == nil {
			if i := d.find(s.Sender, id); i >= 0 {
				d.shown = slices.Delete(d.shown, i, i+1)
			}
		}
	}
	return false
}

// find finds a notice by the word of the server that shows it; -1: it is none, or not that server's word.
func (d *desk) find(sender string, id uint32) int {
	return slices.IndexFunc(d.shown, func(one shown) bool { return one.id == id && one.server == sender })
}
