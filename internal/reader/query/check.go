package query

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// Report is what a check found.
type Report struct {
	RawRows  int64
	Hours    int64 // whose roll-ups were compared with raw rows
	Days     int64 // whose roll-ups were compared with those of their hours
	Problems []string
}

// maxProblems bounds a report.
const maxProblems = 100

func (r *Report) problem(format string, a ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, a...))
	}
}

// Check examines the file, and whether the roll-ups are the sums of the raw rows. progress is told what is done, from 0 to 1; nil: nobody is.
func (l *Local) Check(ctx context.Context, progress func(what string, done float64)) (report Report, err error) {
	if progress == nil {
		progress = func(string, float64) {}
	}
	err = l.look(ctx, func(s *snapshot) error {
		progress("the file", 0)
		for _, q := range []string{"PRAGMA integrity_check(20)", "SELECT 'a row of ' || \"table\" || ' refers to one of ' || parent || ' that does not exist' FROM pragma_foreign_key_check LIMIT 20"} {
			err := s.every(q, func(scan func(...any) error) error {
				var text string
				if err := scan(&text); err != nil {
					return err
				}
				if text != "ok" {
					report.problem("%s", text)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := s.checkTexts(&report, progress); err != nil {
			return err
		}
		if err := s.checkHours(&report, progress); err != nil {
			return err
		}
		return s.checkDays(&report, progress)
	})
	return report, err
}

// checkTexts looks whether what the roll-ups name exists: no foreign key watches over it.
func (s *snapshot) checkTexts(report *Report, progress func(string, float64)) error {
	progress("the texts", 0)
	exist := make(map[string]map[int64]bool)
	for _, table := range []string{"actors", "addresses", "domains"} {
		ids := map[int64]bool{0: table != "actors"} // not known
		if err := s.stream("SELECT id FROM "+table, func(v []driver.Value) error {
			id, _ := v[0].(int64)
			ids[id] = true
			return nil
		}); err != nil {
			return err
		}
		exist[table] = ids
	}
	var a rollup.Actors
	var p rollup.Peers
	return s.stream("SELECT a.segment, a.data, p.data FROM segment_actors a LEFT JOIN segment_peers p ON p.segment = a.segment", func(v []driver.Value) error {
		actors, _ := v[1].([]byte)
		err := a.Read(actors)
		if peers, ok := v[2].([]byte); ok && err == nil {
			_, err = p.Read(peers, len(a.Actor), rollup.Want{Remote: true, Domain: true})
		} else {
			p.Remote, p.Domain = nil, nil
		}
		if err != nil {
			report.problem("segment %d: %v", v[0], err)
			return nil
		}
		for _, c := range []struct {
			table string
			ids   []int64
		}{{"actors", a.Actor}, {"addresses", p.Remote}, {"domains", p.Domain}} {
			for _, id := range c.ids {
				if !exist[c.table][id] {
					report.problem("segment %d names row %d of %s, which does not exist", v[0], id, c.table)
				}
			}
		}
		return nil
	})
}

// checkHours compares hour by hour.
func (s *snapshot) checkHours(report *Report, progress func(string, float64)) error {
	p, err := s.plan(None, nil)
	if err != nil {
		return err
	}
	var hours [][3]int64
	if err := s.every("SELECT hour, first, last FROM hours WHERE hour >= ? ORDER BY hour", func(scan func(...any) error) error {
		var h [3]int64
		if err := scan(&h[0], &h[1], &h[2]); err != nil {
			return err
		}
		hours = append(hours, h)
		return nil
	}, s.raw); err != nil {
		return err
	}
	for i, h := range hours {
		progress("hours", float64(i)/float64(len(hours)))
		var raw []rollup.Entry
		err := s.every(`SELECT r.actor, r.local_port, coalesce(r.remote, 0), r.remote_port, coalesce(r.domain, 0), r.conns, r.sent, r.received
			FROM windows w JOIN raw r ON r.id >= w.id * 1024 AND r.id < w.id * 1024 + 1024 WHERE w.id BETWEEN ? AND ? AND w."end" > ? AND w."end" <= ?`, func(scan func(...any) error) error {
			var e rollup.Entry
			var local int64
			if err := scan(&e.Actor, &local, &e.Remote, &e.Port, &e.Domain, &e.Conns, &e.Sent, &e.Received); err != nil {
				return err
			}
			report.RawRows++
			e.Port = rollup.ServicePort(p.directions[e.Actor], local, e.Port)
			raw = append(raw, e)
			return nil
		}, h[1], min(h[2], s.rolled), h[0]*schema.HourSeconds, (h[0]+1)*schema.HourSeconds)
		if err != nil {
			return err
		}
		raw = rollup.Merge(raw)
		sums, total, err := s.entries(schema.HourSeconds, h[0], "0, 1", true)
		if err != nil {
			report.problem("hour %d: %v", h[0], err)
			continue
		}
		report.Hours++
		compareEntries(report, fmt.Sprintf("hour %d", h[0]), raw, sums, total)
	}
	return nil
}

// compareEntries tells how sums differ from what they should be.
func compareEntries(report *Report, where string, want, got []rollup.Entry, total Sum) {
	var sum Sum
	for _, e := range got {
		sum.Add(e.Sum)
	}
	if sum != total {
		report.problem("%s: its segments say %+v, and their rows are %+v", where, total, sum)
	}
	if len(want) != len(got) {
		report.problem("%s: %d sums, and %d are right", where, len(got), len(want))
		return
	}
	for i := range want {
		if want[i] != got[i] {
			report.problem("%s: the sum %+v, and %+v is right", where, got[i], want[i])
		}
	}
}

// entries reads the segments of a bucket.
func (s *snapshot) entries(seconds, bucket int64, merged string, peers bool) (all []rollup.Entry, total Sum, err error) {
	err = s.every("SELECT s.conns, s.sent, s.received, a.data, p.data FROM segments s LEFT JOIN segment_actors a ON a.segment = s.id LEFT JOIN segment_peers p ON p.segment = s.id WHERE seconds = ? AND merged IN ("+merged+") AND bucket = ?", func(scan func(...any) error) error {
		var sum Sum
		var actors, blob sql.RawBytes
		if err := scan(&sum.Conns, &sum.Sent, &sum.Received, &actors, &blob); err != nil {
			return err
		}
		total.Add(sum)
		if peers {
			e, err := rollup.Entries(actors, blob)
			all = append(all, e...)
			return err
		}
		var a rollup.Actors
		if err := errors.Join(a.Read(actors), a.ReadSums(nil)); err != nil {
			return err
		}
		for i := range a.Actor {
			all = append(all, rollup.Entry{Actor: a.Actor[i], Port: a.Port[i], Sum: Sum{Conns: a.Conns[i], Sent: a.Sent[i], Received: a.Received[i]}})
		}
		return nil
	}, seconds, bucket)
	return rollup.Merge(all), total, err
}

// checkDays compares the days with their hours.
func (s *snapshot) checkDays(report *Report, progress func(string, float64)) error {
	var days []int64
	if err := s.every("SELECT DISTINCT bucket FROM segments WHERE seconds = ? AND merged = 0 UNION SELECT DISTINCT bucket / 24 FROM segments WHERE seconds = ? AND merged = 1 ORDER BY 1", func(scan func(...any) error) error {
		var d int64
		err := scan(&d)
		days = append(days, d)
		return err
	}, schema.DaySeconds, schema.HourSeconds); err != nil {
		return err
	}
	for i, d := range days {
		progress("days", float64(i)/float64(len(days)))
		sums, total, err := s.entries(schema.DaySeconds, d, "0", false)
		if err != nil {
			report.problem("day %d: %v", d, err)
			continue
		}
		var hours []rollup.Entry
		for h := d * dayHours; h < (d+1)*dayHours; h++ {
			e, _, err := s.entries(schema.HourSeconds, h, "1", false)
			if err != nil {
				report.problem("hour %d: %v", h, err)
			}
			hours = append(hours, e...)
		}
		report.Days++
		compareEntries(report, fmt.Sprintf("day %d", d), rollup.Merge(hours), sums, total)
	}
	return nil
}
