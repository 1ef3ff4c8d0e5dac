package report

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseTime reads a time as a user writes it: a date, a date with a time, RFC 3339, "now", "today", "yesterday", or how long ago
// ("90m", "24h", "7d", "4w"). The end of a range that is a date alone is the end of that day.
func ParseTime(s string, now time.Time, end bool) (time.Time, error) {
	midnight := func(t time.Time, add int) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day()+add, 0, 0, 0, 0, now.Location())
	}
	last := 0
	if end {
		last = 1
	}
	switch strings.ToLower(s) {
	case "now":
		return now, nil
	case "today":
		return midnight(now, last), nil
	case "yesterday":
		return midnight(now, last-1), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, now.Location()); err == nil {
		return midnight(t, last), nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if n := len(s); n > 1 {
		if k, err := strconv.ParseUint(s[:n-1], 10, 20); err == nil {
			switch s[n-1] {
			case 'm':
				return now.Add(-time.Duration(k) * time.Minute), nil
			case 'h':
				return now.Add(-time.Duration(k) * time.Hour), nil
			case 'd':
				return now.AddDate(0, 0, -int(k)), nil
			case 'w':
				return now.AddDate(0, 0, -7*int(k)), nil
			}
		}
	}
	return time.Time{}, fmt.Errorf("the time %q is not understood: use 2026-01-31, \"2026-01-31 15:04\", 2026-01-31T15:04:05Z, today, yesterday, or how long ago: 90m, 24h, 7d, 4w", s)
}
