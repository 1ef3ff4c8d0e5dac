// Package place tells from the path of a control group where a process ran: which unit of systemd, which container of
// which runtime, which flatpak or snap, whose session. It belongs to the root wing and is plain text work: what it gets was
// walked in the kernel at exec, so it is as true for a container that lived a millisecond as for one that still runs. Names
// asks the runtimes' own files for what people call a container; nothing else here opens a file. It decides nothing: the
// names below a user's own systemd, or inside of a container, are chosen by that user or container, and are told as theirs.
package place

import (
	"slices"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Of tells what the path of a control group says. path is raw, from the root of its hierarchy, as a kernel's name chain
// gives it: names may hold any byte but NUL and '/'. An empty path is the zero Place.
func Of(path string) event.Place {
	p := event.Place{Path: event.Text([]byte(path))}
	r := reading{place: &p}
	rest := strings.TrimPrefix(path, "/")
	for n := 0; rest != "" && n < maxDepth; n++ {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next, _, _ := strings.Cut(rest, "/")
		r.step(n, name, next)
	}
	p.Kind = kind(&p)
	return p
}

// maxDepth bounds the names that are looked at; the kernel side tells no more.
const maxDepth = 128

// Best tells the place of a process that is in two hierarchies: the unified one, and one of a controller of its own (cgroup v1).
// Container engines that do not use systemd leave the unified one alone as long as there are others. nil: it is in the root of both.
func Best(unified, other string) *event.Place {
	p := Of(unified)
	if other != "" {
		if q := Of(other); rank(q.Kind) > rank(p.Kind) || p.Path == "/" {
			p = q
		}
	}
	if p.Path == "" || p.Path == "/" {
		return nil
	}
	return &p
}

// rank orders kinds by how much they tell.
func rank(kind string) int {
	return slices.Index([]string{"", event.PlaceService, event.PlaceSession, event.PlaceUser, event.PlaceApp, event.PlaceContainer}, kind)
}

// Cut is the place of a process whose control groups were too deep to be walked to the root: the names that would tell
// most are missing, and the others prove nothing.
func Cut(path string) *event.Place {
	return &event.Place{Path: "…" + event.Text([]byte(path))}
}

// kind is the most telling fact.
func kind(p *event.Place) string {
	switch {
	case p.Container != "":
		return event.PlaceContainer
	case p.App != "" && p.Runtime != "":
		return event.PlaceApp
	case p.UserUnit != "":
		return event.PlaceUser
	case p.Session != "":
		return event.PlaceSession
	case p.Unit != "":
		return event.PlaceService
	}
	return ""
}

// reading is the state of one walk from the root of the hierarchy.
type reading struct {
	place    *event.Place
	above    string // the name before this one
	aboveTwo string
	pod      bool // below Kubernetes' group
	inside   bool // of a container: what follows are its own names
}

// step takes the n-th name of the path, and the one after it.
func (r *reading) step(n int, name, next string) {
	defer func() { r.aboveTwo, r.above = r.above, name }()
	if r.inside {
		return
	}
	p := r.place
	if isPod(name) {
		r.pod = true
		p.Pod = podUID(name)
	} else if rest, ok := strings.CutPrefix(name, "pod"); ok && r.pod && p.Pod == "" {
		p.Pod = uid(rest) // cgroupfs driver: /kubepods/burstable/podUID/ID
	}
	if runtime, id, ok := container(r, name, next); ok {
		p.Runtime, p.Container = runtime, event.Text([]byte(id))
		p.App = ""
		r.inside = true
		// The scope of a container is a unit like any other.
		if !isUnit(name) {
			return
		}
	}
	switch {
	case isUnit(name):
		r.unit(n, name)
	case n == 0 && strings.HasPrefix(name, "openrc.") && len(name) > len("openrc."):
		p.Unit = event.Text([]byte(name[len("openrc."):])) // openrc: sh/rc-cgroup.sh
	}
}

// unit takes a service or scope. The first one is the system's; a login and a user's systemd are told by their places,
// which only the system's systemd can give out.
func (r *reading) unit(n int, name string) {
	p := r.place
	if p.Unit == "" {
		p.Unit = event.Text([]byte(name))
		if uid, ok := cut(r.above, "user-", ".slice"); ok && n == 2 && r.aboveTwo == "user.slice" && decimal(uid) {
			if session, ok := cut(name, "session-", ".scope"); ok {
				p.Session = event.Text([]byte(session))
			}
			if name == "user@"+uid+".service" {
				p.Owner = uid
			}
		}
		if !r.inside {
			r.app(name)
		}
		return
	}
	// A user's systemd puts its own processes into init.scope; below another unit, these names mean nothing to us.
	if p.Owner != "" && p.UserUnit == "" {
		p.UserUnit = event.Text([]byte(name))
		if !r.inside {
			r.app(name)
		}
	}
}

// app takes the names of flatpak, snap and desktop programs.
func (r *reading) app(name string) {
	p := r.place
	if rest, ok := strings.CutPrefix(name, "snap."); ok {
		// snapd: snap.NAME.APP.service, snap.NAME.APP-UUID.scope, snap.NAME.hook.HOOK-UUID.scope.
		base, scope := strings.CutSuffix(rest, ".scope")
		if !scope {
			base = strings.TrimSuffix(base, ".service")
		}
		snap, app, _ := strings.Cut(base, ".")
		if i := len(app) - len("-00000000-0000-0000-0000-000000000000"); scope && i > 0 && app[i] == '-' {
			app = app[:i]
		}
		if snap != "" {
			p.Runtime, p.App = "snap", event.Text([]byte(unescape(snap)))
			if app != "" && app != snap {
				p.App += "." + event.Text([]byte(unescape(app)))
			}
		}
		return
	}
	rest, ok := strings.CutPrefix(name, "app-")
	if !ok {
		// flatpak before 1.9.1 had no "app-"
		if id, ok := cut(name, "flatpak-", ".scope"); ok {
			r.flatpak(id)
		}
		return
	}
	if id, ok := cut(rest, "flatpak-", ".scope"); ok {
		r.flatpak(id)
		return
	}
	// systemd.io/DESKTOP_ENVIRONMENTS: app[-LAUNCHER]-ID-RANDOM.scope, app[-LAUNCHER]-ID[@RANDOM].service. '-' within a part
	// is escaped.
	id, scope := strings.CutSuffix(rest, ".scope")
	if scope {
		if i := strings.LastIndexByte(id, '-'); i >= 0 {
			id = id[:i]
		}
	} else {
		id = strings.TrimSuffix(id, ".service")
		id, _, _ = strings.Cut(id, "@")
	}
	if i := strings.LastIndexByte(id, '-'); i >= 0 {
		id = id[i+1:]
	}
	p.App = event.Text([]byte(unescape(id)))
}

func (r *reading) flatpak(id string) {
	if i := strings.LastIndexByte(id, '-'); i > 0 {
		id = id[:i]
	}
	if id = unescape(id); id != "" {
		r.place.Runtime, r.place.App = "flatpak", event.Text([]byte(id))
	}
}

func isUnit(name string) bool {
	return strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope")
}

// cut returns what stands between a prefix and a suffix, if anything does.
func cut(s, prefix, suffix string) (string, bool) {
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return "", false
	}
	s, ok = strings.CutSuffix(s, suffix)
	return s, ok && s != ""
}

func decimal(s string) bool {
	return s != "" && len(s) <= 10 && strings.Trim(s, "0123456789") == ""
}

// unescape undoes systemd-escape: \xNN is a byte.
func unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if len(s)-i >= 4 && s[i] == '\\' && s[i+1] == 'x' {
			high, low := hexValue(s[i+2]), hexValue(s[i+3])
			if v := high<<4 | low; high >= 0 && low >= 0 && v != 0 {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func hexValue(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
