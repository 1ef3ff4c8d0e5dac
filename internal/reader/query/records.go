package query

import (
	"context"
	"fmt"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// texts remembers what numbers stand for, so that a row costs no join. It is bounded: what is needed comes back.
type texts[T any] struct {
	m    map[int64]T
	read func(id int64) (T, error)
}

const maxTexts = 1 << 15

func (t *texts[T]) of(id int64) (T, error) {
	if v, ok := t.m[id]; ok {
		return v, nil
	}
	v, err := t.read(id)
	if err != nil {
		return v, err
	}
	if len(t.m) >= maxTexts || t.m == nil {
		t.m = make(map[int64]T)
	}
	t.m[id] = v
	return v, nil
}

// Records implements Source. Every hour is a snapshot of its own, so that a slow reader does not hold up the writer's log.
func (l *Local) Records(ctx context.Context, where []Filter, r Range, each func(*Record, float64) error) error {
	for _, f := range where {
		if f.By == Country && l.options.Country == nil {
			return fmt.Errorf("%w: the countries of addresses are not known here", ErrQuestion)
		}
	}
	var hours [][3]int64
	err := l.look(ctx, func(s *snapshot) error {
		return s.every("SELECT hour, first, last FROM hours WHERE hour BETWEEN ? AND ? ORDER BY hour", func(scan func(...any) error) error {
			var h [3]int64
			err := scan(&h[0], &h[1], &h[2])
			hours = append(hours, h)
			return err
		}, schema.Bucket(r.Since, schema.HourSeconds), schema.Bucket(r.End()-1, schema.HourSeconds))
	})
	if err != nil {
		return err
	}
	var x expand
	for i, h := range hours {
		since, until := max(r.Since, h[0]*schema.HourSeconds), min(r.End(), (h[0]+1)*schema.HourSeconds)
		done := float64(i) / float64(len(hours))
		err := l.look(ctx, func(s *snapshot) error {
			x.use(s)
			return x.hour(h, since, until, func(r *Record) error {
				for i := range where {
					if !where[i].Matches(l.value(r, where[i].By)) {
						return nil
					}
				}
				return each(r, done)
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// expand turns numbers into texts.
type expand struct {
	s         *snapshot
	actors    texts[Record]
	addresses texts[string]
	domains   texts[string]
	streams   texts[string]
}

func (x *expand) use(s *snapshot) {
	x.s = s
	one := func(q string) func(int64) (string, error) {
		return func(id int64) (text string, err error) {
			if id == 0 {
				return "", nil
			}
			err = x.s.conn.QueryRowContext(x.s.ctx, q, id).Scan(&text)
			return text, err
		}
	}
	x.addresses.read = one("SELECT ip FROM addresses WHERE id = ?")
	x.domains.read = one("SELECT name FROM domains WHERE id = ?")
	x.streams.read = one("SELECT host FROM streams WHERE id = ?")
	x.actors.read = func(id int64) (r Record, err error) {
		err = x.s.conn.QueryRowContext(x.s.ctx, `SELECT e.path, p.name, p.cmdline, e.sha256, coalesce(se.path, ''), coalesce(pe.path, ''), coalesce(pp.name, ''), coalesce(pp.cmdline, ''), coalesce(pe.sha256, ''), `+
			actorText(Place)+`, a.uid, k.family, k.protocol, k.direction`+actorTables+` WHERE a.id = ?`, id).
			Scan(&r.Exe, &r.Name, &r.Cmdline, &r.SHA256, &r.Script, &r.ParentExe, &r.ParentName, &r.ParentCmd, &r.ParentSHA256, &r.Place, &r.UID, &r.Family, &r.Protocol, &r.Direction)
		return r, err
	}
}

// hour reads the rows of an hour. They are read whole before the texts are: one connection, one query at a time.
func (x *expand) hour(h [3]int64, since, until int64, each func(*Record) error) error {
	type row struct {
		stream, start, end, actor, local, lport, remote, rport, domain int64
		sum                                                            Sum
	}
	const most = 1 << 13
	for window := h[1]; ; {
		var rows []row
		err := x.s.every(`SELECT w.id, w.stream, w.start, w."end", r.actor, coalesce(r.local, 0), r.local_port, coalesce(r.remote, 0), r.remote_port, coalesce(r.domain, 0), r.conns, r.sent, r.received
			FROM windows w JOIN raw r ON r.id >= w.id * 1024 AND r.id < w.id * 1024 + 1024 WHERE w.id BETWEEN ? AND ? AND w."end" > ? AND w."end" <= ? ORDER BY w.id, r.id LIMIT ?`, func(scan func(...any) error) error {
			var r row
			var id int64
			if err := scan(&id, &r.stream, &r.start, &r.end, &r.actor, &r.local, &r.lport, &r.remote, &r.rport, &r.domain, &r.sum.Conns, &r.sum.Sent, &r.sum.Received); err != nil {
				return err
			}
			if len(rows) > 0 && len(rows) >= most-schema.PartRecords && id != window {
				return errEnough // whole windows only
			}
			window = id
			rows = append(rows, r)
			return nil
		}, window, h[2], since, until, most)
		if err != nil && err != errEnough {
			return err
		}
		for i := range rows {
			r := &rows[i]
			out, err := x.actors.of(r.actor)
			if err != nil {
				return err
			}
			out.Start, out.End, out.LocalPort, out.RemotePort = r.start, r.end, r.lport, r.rport
			out.Conns, out.Sent, out.Received = r.sum.Conns, r.sum.Sent, r.sum.Received
			if out.Host, err = x.streams.of(r.stream); err != nil {
				return err
			}
			if out.LocalIP, err = x.addresses.of(r.local); err != nil {
				return err
			}
			if out.RemoteIP, err = x.addresses.of(r.remote); err != nil {
				return err
			}
			if out.Domain, err = x.domains.of(r.domain); err != nil {
				return err
			}
			if err := each(&out); err != nil {
				return err
			}
		}
		if err == nil && len(rows) < most {
			return nil
		}
		window++
	}
}

var errEnough = fmt.Errorf("enough")

// value is a record's value in a dimension.
func (l *Local) value(r *Record, d Dimension) string {
	switch d {
	case Exe:
		return r.Exe
	case SHA256:
		return r.SHA256
	case Name:
		return r.Name
	case Cmdline:
		return r.Cmdline
	case Script:
		return r.Script
	case Parent:
		return r.ParentExe
	case Place:
		return r.Place
	case User:
		return fmt.Sprint(r.UID)
	case Family:
		return r.Family
	case Protocol:
		return r.Protocol
	case Direction:
		return r.Direction
	case Port:
		return fmt.Sprint(servicePort(r))
	case Domain:
		return r.Domain
	case Address:
		return r.RemoteIP
	case Host:
		return r.Host
	case Country:
		return l.options.CountryOf(r.RemoteIP)
	}
	return ""
}

func servicePort(r *Record) int64 { return rollup.ServicePort(r.Direction, r.LocalPort, r.RemotePort) }
