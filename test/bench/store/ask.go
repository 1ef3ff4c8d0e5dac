package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // zones with summer time, wherever this runs

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

// dimensions are those of a local database, which has one host.
func dimensions() []query.Dimension {
	return slices.DeleteFunc(query.Dimensions(), func(d query.Dimension) bool { return d == query.Host })
}

// ranges end at an odd second, so that the hours at both ends are cut.
var ranges = []struct {
	name string
	r    query.Range
}{
	{"1h", query.Range{Since: end - 3600 - 1234, Until: end - 1234}},
	{"1d", query.Range{Since: end - 86400 - 1234, Until: end - 1234}},
	{"30d", query.Range{Since: end - 30*86400 - 1234, Until: end - 1234}},
	{"365d", query.Range{Since: end - 365*86400 + 1234, Until: end - 1234}},
	{"all", query.Range{}},
}

// options stand for a table of countries that is asked for each address.
var options = query.Options{Country: func(a netip.Addr) string { return fmt.Sprintf("C%02d", a.As16()[13]%50) }}

// asked says how often a question is asked that takes more than half of its limit; the median counts. It is the machine's other work that is left
// out so, not what the question costs.
const asked = 5

// timed asks a question on connections of its own, as a command line does.
func timed(ctx context.Context, path string, limit time.Duration, ask func(*query.Local) (any, error)) (time.Duration, any, error) {
	var times []time.Duration
	for {
		began := time.Now()
		l, err := query.OpenLocal(ctx, path, options)
		if err != nil {
			return 0, nil, err
		}
		a, err := ask(l)
		times = append(times, time.Since(began))
		if err := errors.Join(err, l.Close()); err != nil {
			return 0, nil, err
		}
		slices.Sort(times)
		if times[0] <= limit/2 && len(times) == 1 || len(times) == asked {
			return times[len(times)/2], a, nil
		}
	}
}

// cell writes a time in milliseconds, with a mark if it is too long.
func cell(d, limit time.Duration, slow *int) string {
	return fmt.Sprintf("%d%s", (d + time.Millisecond/2).Milliseconds(), exceeds(d, limit, slow))
}

// askAll prints how long the questions take.
func askAll(ctx context.Context, path string) (slow int, err error) {
	l, err := query.OpenLocal(ctx, path, options)
	if err != nil {
		return 0, err
	}
	all, err := questions(ctx, l)
	if err := errors.Join(err, l.Close()); err != nil {
		return 0, err
	}
	fmt.Printf("\nmilliseconds of a question, by range: asked once, and where that took more than half of the limit, the median of %d\n%-44s", asked, "")
	for _, r := range ranges {
		fmt.Printf("%7s", r.name)
	}
	fmt.Println("  limit  bytes of the answer")
	for _, q := range all {
		fmt.Printf("%-44s", q.name)
		size := 0
		for _, r := range ranges {
			d, a, err := timed(ctx, path, q.limit, func(l *query.Local) (any, error) { return q.ask(ctx, l, r.r) })
			if err != nil {
				return 0, fmt.Errorf("%s, %s: %w", q.name, r.name, err)
			}
			b, _ := json.Marshal(a)
			size = max(size, len(b))
			fmt.Printf("%7s", cell(d, q.limit, &slow))
		}
		fmt.Printf("%7d  %d\n", q.limit.Milliseconds(), size)
	}
	return slow, nil
}

// filters are one of each dimension, and combinations: what a user gets to who goes from one table to the next.
func filters(ctx context.Context, l *query.Local) ([][]query.Filter, error) {
	one := make(map[query.Dimension]query.Filter)
	all := [][]query.Filter{nil}
	for _, d := range dimensions() {
		value, err := busiest(ctx, l, d)
		if err != nil {
			return nil, err
		}
		one[d] = is(d, value)
		all = append(all, []query.Filter{one[d]})
	}
	for _, ds := range [][]query.Dimension{
		{query.Exe, query.Port},
		{query.Exe, query.Domain},
		{query.Exe, query.Address},
		{query.Name, query.User, query.Direction},
		{query.Parent, query.Domain, query.Port},
		{query.Domain, query.Address},
		{query.Exe, query.Domain, query.Address, query.Port},
		{query.Country, query.Exe},
	} {
		var f []query.Filter
		for _, d := range ds {
			f = append(f, one[d])
		}
		all = append(all, f)
	}
	other := func(f query.Filter, m query.Match, values ...string) query.Filter {
		f.Match = m
		if values != nil {
			f.Values = values
		}
		return f
	}
	return append(all,
		[]query.Filter{other(one[query.Domain], query.Contains, "host-1")},
		[]query.Filter{other(one[query.Address], query.Contains, "2001:db8")},
		[]query.Filter{other(one[query.Exe], query.NotEqual)},
		[]query.Filter{other(one[query.Exe], query.NotEqual), other(one[query.Domain], query.NotEqual), other(one[query.Port], query.NotEqual)},
	), nil
}

func title(where []query.Filter) string {
	var parts []string
	for _, f := range where {
		value := f.Values[0]
		if n := len(value); n > 12 {
			value = value[n-12:]
		}
		parts = append(parts, string(f.By)+[]string{"=", "!=", "~"}[f.Match]+value)
	}
	text := strings.Join(parts, " ")
	if len(parts) > 1 {
		text = ""
		for i, f := range where {
			text += []string{"", " "}[min(i, 1)] + string(f.By) + []string{"", "!", "~"}[f.Match]
		}
	}
	if text == "" {
		return "(everything)"
	}
	return text
}

// askProduct asks for every grouping with every filter over the year, and prints the slowest of the shorter ranges.
func askProduct(ctx context.Context, path string) (slow int, err error) {
	l, err := query.OpenLocal(ctx, path, options)
	if err != nil {
		return 0, err
	}
	wheres, err := filters(ctx, l)
	if err := errors.Join(err, l.Close()); err != nil {
		return 0, err
	}
	by := append(dimensions(), query.None)
	head := func(text string) {
		fmt.Printf("\n%s (limit %d ms)\n%-28s", text, anyGrouping.Milliseconds(), "")
		for _, d := range by {
			fmt.Printf("%6.5s", d)
		}
	}
	head("totals over 365 days by every dimension, in milliseconds, and the slowest of them over shorter ranges")
	fmt.Printf(" |%6s%6s%6s\n", ranges[0].name, ranges[1].name, ranges[2].name)
	for _, where := range wheres {
		fmt.Printf("%-28.28s", title(where))
		ask := func(d query.Dimension, r query.Range) (time.Duration, error) {
			took, _, err := timed(ctx, path, anyGrouping, func(l *query.Local) (any, error) { return totals(d, 50, where...)(ctx, l, r) })
			return took, err
		}
		for _, d := range by {
			took, err := ask(d, ranges[3].r)
			if err != nil {
				return 0, err
			}
			fmt.Printf("%6s", cell(took, anyGrouping, &slow))
		}
		fmt.Print(" |")
		for _, r := range ranges[:3] {
			var most time.Duration
			for _, d := range by {
				took, err := ask(d, r.r)
				if err != nil {
					return 0, err
				}
				most = max(most, took)
			}
			fmt.Printf("%6s", cell(most, anyGrouping, &slow))
		}
		fmt.Println()
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		return 0, err
	}
	head("time lines of the five greatest over 365 days, by days of Berlin, in milliseconds")
	fmt.Println()
	one := make(map[query.Dimension][]query.Filter)
	for _, w := range wheres[1:] {
		if len(w) == 1 && one[w[0].By] == nil {
			one[w[0].By] = w
		}
	}
	for _, where := range [][]query.Filter{nil, one[query.Exe], one[query.Domain], one[query.Address], one[query.Port], append(slices.Clone(one[query.Exe]), one[query.Domain]...)} {
		fmt.Printf("%-28.28s", title(where))
		for _, d := range by {
			took, _, err := timed(ctx, path, anyGrouping, func(l *query.Local) (any, error) {
				return timeline(d, query.Day, berlin, where...)(ctx, l, ranges[3].r)
			})
			if err != nil {
				return 0, err
			}
			fmt.Printf("%6s", cell(took, anyGrouping, &slow))
		}
		fmt.Println()
	}
	return slow, nil
}
