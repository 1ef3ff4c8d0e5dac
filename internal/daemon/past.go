package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/reader/country"
	"github.com/picosnitch/picosnitch/internal/reader/query"
	"github.com/picosnitch/picosnitch/internal/recorder"
)

// past answers what the log has of a limit that is new: the recorder does not know how to read it. What stays on this machine and in the
// local network is left out as far as addresses alone tell it.
func past(file string) func(context.Context, recorder.Limit, time.Time) (event.Bytes, time.Time, error) {
	return func(ctx context.Context, l recorder.Limit, since time.Time) (sum event.Bytes, from time.Time, err error) {
		own, err := addresses()
		if err != nil {
			return sum, from, err
		}
		where := func(a netip.Addr) string {
			if own[a] {
				return country.Machine
			}
			return country.Special(a)
		}
		q, err := query.OpenLocal(ctx, file, query.Options{Country: where})
		if err != nil {
			return sum, from, err
		}
		defer q.Close()
		away := []string{country.Machine}
		if !l.Local {
			away = append(away, country.Private, country.Shared, country.LinkLocal, country.Multicast)
		}
		filters := []query.Filter{{By: query.Family, Values: []string{"inet", "inet6"}}, {By: query.Country, Match: query.NotEqual, Values: away}}
		add := func(s query.Sum) { sum.Sent, sum.Received = sum.Sent+s.Sent, sum.Received+s.Received }
		ask := query.Question{Where: filters, Range: query.Range{Since: since.Unix()}}
		if len(l.Programs) == 0 {
			a, err := q.Totals(ctx, ask)
			if err != nil {
				return sum, from, err
			}
			add(a.Total)
		} else {
			m := l.Matcher()
			// What is found by its path is not counted once more by its script, nor by its name.
			for _, by := range []query.Dimension{query.Exe, query.Script, query.Name} {
				ask.By = by
				a, err := q.Totals(ctx, ask)
				if err != nil {
					return sum, from, err
				}
				if a.Values > len(a.Rows) { // the program may be among the others
					return sum, from, fmt.Errorf("the log has %d different values of %s in this period, and only the greatest %d are looked through", a.Values, by, len(a.Rows))
				}
				var found []string
				for _, r := range a.Rows {
					if m.Match(only(by, query.Exe, r.Value), only(by, query.Script, r.Value), only(by, query.Name, r.Value)) {
						add(r.Sum)
						found = append(found, r.Value)
					}
				}
				if len(found) > 0 {
					ask.Where = append(ask.Where, query.Filter{By: by, Match: query.NotEqual, Values: found})
				}
			}
		}
		// The log may be younger than the period: it says from when on it knows.
		seen, err := q.Seen(ctx, nil)
		if err != nil {
			return sum, from, err
		}
		first := cmp.Or(seen.First, time.Now().Unix())
		return sum, time.Unix(max(since.Unix(), first), 0), nil
	}
}

// addresses are those of this machine now.
func addresses() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := make(map[netip.Addr]bool)
	for _, x := range all {
		if n, ok := x.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				own[a.Unmap()] = true
			}
		}
	}
	return own, nil
}

func only(by, want query.Dimension, value string) string {
	if by == want {
		return value
	}
	return ""
}
