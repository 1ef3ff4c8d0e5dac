package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/picosnitch/picosnitch/internal/reader/query"
)

// question is one that a user interface asks.
type question struct {
	name  string
	limit time.Duration // of the mission, over any range
	ask   func(ctx context.Context, l *query.Local, r query.Range) (any, error)
}

const (
	firstScreen = 100 * time.Millisecond
	anyGrouping = 500 * time.Millisecond
)

func totals(by query.Dimension, limit int, where ...query.Filter) func(context.Context, *query.Local, query.Range) (any, error) {
	return func(ctx context.Context, l *query.Local, r query.Range) (any, error) {
		return l.Totals(ctx, query.Question{By: by, Where: where, Range: r, Limit: limit})
	}
}

func timeline(by query.Dimension, step query.Step, zone *time.Location, where ...query.Filter) func(context.Context, *query.Local, query.Range) (any, error) {
	return func(ctx context.Context, l *query.Local, r query.Range) (any, error) {
		if step == query.Hour && r.Until-r.Since > 31*86400 {
			step = query.Day
		}
		return l.Timeline(ctx, query.Question{By: by, Where: where, Range: r, Limit: 5}, step, zone)
	}
}

func is(by query.Dimension, values ...string) query.Filter {
	return query.Filter{By: by, Values: values}
}

// busiest is the value that moved most.
func busiest(ctx context.Context, l *query.Local, by query.Dimension) (string, error) {
	a, err := l.Totals(ctx, query.Question{By: by, Limit: 1})
	if err != nil || len(a.Rows) == 0 {
		return "", err
	}
	return a.Rows[0].Value, nil
}

func questions(ctx context.Context, l *query.Local) ([]question, error) {
	top := make(map[query.Dimension]string)
	for _, d := range []query.Dimension{query.Exe, query.Domain, query.Address} {
		var err error
		if top[d], err = busiest(ctx, l, d); err != nil {
			return nil, err
		}
	}
	exe, domain, ip := is(query.Exe, top[query.Exe]), is(query.Domain, top[query.Domain]), is(query.Address, top[query.Address])
	india := time.FixedZone("India", 5*3600+1800)
	west := time.FixedZone("West", -7*3600)
	all := []question{{"first screen: totals by executable", firstScreen, totals(query.Exe, 50)}}
	for _, d := range []query.Dimension{query.Name, query.Parent, query.Place, query.User, query.Port, query.Protocol, query.Domain, query.Address} {
		all = append(all, question{"by " + string(d), anyGrouping, totals(d, 50)})
	}
	return append(all, []question{
		{"busiest executable, by domain", anyGrouping, totals(query.Domain, 50, exe)},
		{"busiest executable, by address", anyGrouping, totals(query.Address, 50, exe)},
		{"busiest domain, by executable", anyGrouping, totals(query.Exe, 50, domain)},
		{"busiest address, by executable", anyGrouping, totals(query.Exe, 50, ip)},
		{"busiest domain and port, by user", anyGrouping, totals(query.User, 50, domain, is(query.Port, "443"))},
		{"all domains, one page of 10,000", anyGrouping, totals(query.Domain, query.MaxRows)},
		{"time line of everything", anyGrouping, timeline(query.None, query.Hour, time.UTC)},
		{"time line by executable", anyGrouping, timeline(query.Exe, query.Hour, time.UTC)},
		{"time line by executable, days of UTC-7", anyGrouping, timeline(query.Exe, query.Day, west)},
		{"time line by executable, days of UTC+5:30", anyGrouping, timeline(query.Exe, query.Day, india)},
		{"time line of the busiest domain", anyGrouping, timeline(query.None, query.Hour, time.UTC, domain)},
		{"first and last seen of a program", anyGrouping, func(ctx context.Context, l *query.Local, _ query.Range) (any, error) {
			return l.Seen(ctx, []query.Filter{exe})
		}},
		{"first and last seen of a domain", anyGrouping, func(ctx context.Context, l *query.Local, _ query.Range) (any, error) {
			return l.Seen(ctx, []query.Filter{domain})
		}},
		{"search", anyGrouping, func(ctx context.Context, l *query.Local, _ query.Range) (any, error) {
			return l.Search(ctx, "host-00", 100)
		}},
	}...), nil
}

// askAll prints how long the questions take. Each is asked three times on a connection of its own, as a command line does; the median counts.
func askAll(ctx context.Context, path string) (slow int, err error) {
	l, err := query.OpenLocal(ctx, path, query.Options{})
	if err != nil {
		return 0, err
	}
	all, err := questions(ctx, l)
	if err != nil {
		return 0, err
	}
	l.Close()
	ranges := []struct {
		name string
		r    query.Range
	}{
		{"1h", query.Range{Since: end - 3600 - 1234, Until: end - 1234}},
		{"1d", query.Range{Since: end - 86400 - 1234, Until: end - 1234}},
		{"30d", query.Range{Since: end - 30*86400 - 1234, Until: end - 1234}},
		{"365d", query.Range{Since: end - 365*86400 + 1234, Until: end - 1234}},
		{"all", query.Range{}},
	}
	fmt.Printf("\n%-44s", "milliseconds, median of 3 (bytes of the answer)")
	for _, r := range ranges {
		fmt.Printf("%9s", r.name)
	}
	fmt.Println("   limit")
	for _, q := range all {
		fmt.Printf("%-44s", q.name)
		size := 0
		for _, r := range ranges {
			var times []time.Duration
			for range 3 {
				began := time.Now()
				l, err := query.OpenLocal(ctx, path, query.Options{})
				if err != nil {
					return 0, err
				}
				a, err := q.ask(ctx, l, r.r)
				if err != nil {
					return 0, fmt.Errorf("%s, %s: %w", q.name, r.name, err)
				}
				times = append(times, time.Since(began))
				l.Close()
				b, _ := json.Marshal(a)
				size = max(size, len(b))
			}
			slices.Sort(times)
			mark := " "
			if times[1] > q.limit {
				mark = "!"
				slow++
			}
			fmt.Printf("%8.1f%s", float64(times[1].Microseconds())/1000, mark)
		}
		fmt.Printf("%8d   %d\n", q.limit.Milliseconds(), size)
	}
	return slow, nil
}
