package remote

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/reader/query"
)

// statement is SQL that is put together, with its parameters. What strangers and users chose is only ever a parameter.
type statement struct {
	r    *Remote
	args []string
}

func (s *statement) arg(v string) string {
	s.args = append(s.args, v)
	if s.r.s.Postgres {
		return "$" + strconv.Itoa(len(s.args)) + "::text"
	}
	return "?"
}

// quoted is a column's name; the table's owner chose it.
func (r *Remote) quoted(name string) string {
	q := "`"
	if r.s.Postgres {
		q = `"`
	}
	return q + strings.ReplaceAll(r.has[name].name, q, q+q) + q
}

// text is a column as a text that is compared byte by byte, whatever the table's collation says. "" where it is not there.
func (r *Remote) text(name string) string {
	c, ok := r.has[name]
	switch {
	case !ok:
		return "''"
	case r.s.Postgres && c.kind == kindText:
		return "coalesce(" + r.quoted(name) + ", '')"
	case r.s.Postgres:
		return "coalesce(" + r.quoted(name) + "::text, '')"
	}
	return "coalesce(CAST(CONVERT(" + r.quoted(name) + " USING utf8mb4) AS BINARY), '')"
}

// short is the beginning of a text, a little more than what is shown of it.
func short(text string) string {
	return "substring(" + text + " FROM 1 FOR " + strconv.Itoa(maxText+1) + ")"
}

// number is a column as a number; 0 where it is not there.
func (r *Remote) number(name string) string {
	if _, ok := r.has[name]; !ok {
		return "0"
	}
	return "coalesce(" + r.quoted(name) + ", 0)"
}

func (r *Remote) asText(number string) string {
	if r.s.Postgres {
		return "(" + number + ")::text"
	}
	return "CAST(" + number + " AS CHAR)"
}

// value is a dimension as an expression. What a table of 16 columns does not have is no question to it.
func (r *Remote) value(d query.Dimension) (string, error) {
	columns := map[query.Dimension]string{
		query.Exe: "exe", query.SHA256: "sha256", query.Name: "name", query.Cmdline: "cmdline", query.Script: "script", query.Parent: "pexe", query.Place: "place", query.User: "uid",
		query.Family: "family", query.Protocol: "protocol", query.Direction: "direction", query.Port: "port", query.Domain: "domain", query.Address: "ip", query.Country: "ip", query.Host: "host",
	}
	name, ok := columns[d]
	switch {
	case d == query.None:
		return "''", nil
	case !ok:
		return "", fmt.Errorf("%w: %q is no dimension", query.ErrQuestion, d)
	}
	if _, ok := r.has[name]; !ok {
		return "", fmt.Errorf("%w: the table %s has no column %s (picosnitch 0.11 made it?)", query.ErrQuestion, r.s.Table, name)
	}
	switch d {
	case query.User: // 4294967294 in 32 bits is -2
		return r.asText("CASE WHEN " + r.number("uid") + " < 0 THEN " + r.number("uid") + " + 4294967296 ELSE " + r.number("uid") + " END"), nil
	case query.Port:
		return r.asText(r.servicePort()), nil
	case query.Place:
		return r.place(), nil
	}
	return r.text(name), nil
}

// servicePort is rollup.ServicePort.
func (r *Remote) servicePort() string {
	port := r.number("port")
	if _, ok := r.has["local_port"]; !ok {
		return port
	}
	local, direction := r.number("local_port"), r.text("direction")
	return "CASE WHEN " + port + " < 0 OR " + direction + " = 'out' THEN " + port + " WHEN " + direction + " = 'in' OR " + port + " = 0 THEN " + local +
		" WHEN " + local + " = 0 OR " + port + " < " + local + " THEN " + port + " ELSE " + local + " END"
}

// place is what a local file has as the place: the container's name or id, the app, a unit, a session, or the path.
func (r *Remote) place() string {
	label, container := r.text("place"), r.text("container")
	// The column place has "docker web" for a container, or the first 12 characters of its id behind the runtime.
	name := "substring(" + label + " FROM position(' ' IN " + label + ") + 1)"
	first := func(names ...string) string {
		parts := make([]string, len(names))
		for i, n := range names {
			parts[i] = "nullif(" + r.text(n) + ", '')"
		}
		return "coalesce(" + strings.Join(parts, ", ") + ", '')"
	}
	return "CASE WHEN " + container + " = '' THEN " + first("app", "user_unit", "unit", "session", "place_path") +
		" WHEN " + name + " = substring(" + container + " FROM 1 FOR 12) THEN " + container + " ELSE " + name + " END"
}

// where is the condition of filters and a range. A row belongs to the last second of its window. Countries are filtered where they are known: here.
func (s *statement) where(filters []query.Filter, rng query.Range) (string, error) {
	all := []string{"1 = 1"}
	at := s.r.quoted("contime")
	if rng.Since > 0 {
		all = append(all, at+" > "+s.r.time(rng.Since))
	}
	if rng.Until > 0 {
		all = append(all, at+" <= "+s.r.time(rng.Until))
	}
	for _, f := range filters {
		if err := f.Check(); err != nil {
			return "", err
		}
		if f.By == query.Country {
			continue
		}
		value, err := s.r.value(f.By)
		if err != nil {
			return "", err
		}
		var one []string
		for _, v := range f.Values {
			switch {
			case f.Match == query.Contains && s.r.s.Postgres:
				one = append(one, "strpos(lower("+value+"), lower("+s.arg(v)+")) > 0")
			case f.Match == query.Contains: // lower() does nothing to bytes
				one = append(one, "locate(lower("+s.arg(v)+"), lower(CONVERT("+value+" USING utf8mb4)) COLLATE utf8mb4_bin) > 0")
			default:
				one = append(one, value+" = "+s.arg(v))
				if f.By == query.Domain && v != "" {
					one = append(one, value+" = "+s.arg(query.Reverse(v)))
				}
			}
		}
		condition := "(" + strings.Join(one, " OR ") + ")"
		if len(one) == 0 {
			condition = "(1 = 0)"
		}
		if f.Match == query.NotEqual {
			condition = "NOT " + condition
		}
		all = append(all, condition)
	}
	return strings.Join(all, " AND "), nil
}

// time is an instant as contime has it.
func (r *Remote) time(at int64) string {
	t := time.Unix(at, 0)
	switch r.has["contime"].kind {
	case kindNumber:
		return strconv.FormatInt(at, 10)
	case kindInstant:
		return t.UTC().Format("'2006-01-02 15:04:05+00'")
	case kindClock:
		return t.UTC().Format("'2006-01-02 15:04:05'")
	}
	return t.In(r.zone).Format("'2006-01-02 15:04:05'")
}

// bucket is what rows are grouped by for a time line whose intervals end at multiples of step seconds. begin reads it back: an instant that is
// in the same interval as the rows are.
func (r *Remote) bucket(step int64) string {
	at := r.quoted("contime")
	if r.has["contime"].kind == kindText {
		// The hour or the minute, and whether the window ends with the one before it.
		if n := map[bool]string{true: "16", false: "13"}[step < 3600]; r.s.Postgres {
			return "substring(coalesce(" + at + ", '') FROM 1 FOR " + n + ") || CASE WHEN substring(" + at + " FROM " + n + " + 1) IN (':00', ':00:00') THEN '-' ELSE '+' END"
		} else {
			return "concat(substring(coalesce(" + at + ", '') FROM 1 FOR " + n + "), CASE WHEN substring(" + at + " FROM " + n + " + 1) IN (':00', ':00:00') THEN '-' ELSE '+' END)"
		}
	}
	if r.s.Postgres {
		return "(" + r.seconds("contime") + " - 1) / " + strconv.FormatInt(step, 10)
	}
	return "(" + r.seconds("contime") + " - 1) DIV " + strconv.FormatInt(step, 10)
}

func (r *Remote) begin(b []byte, step int64) (at int64, ok bool) {
	if r.has["contime"].kind != kindText {
		return whole(b) * step, b != nil
	}
	if len(b) == 0 {
		return 0, false
	}
	layout := "2006-01-02 15"
	if step < 3600 {
		layout = "2006-01-02 15:04"
	}
	t, err := time.ParseInLocation(layout, string(b[:len(b)-1]), r.zone)
	if err != nil {
		return 0, false
	}
	if b[len(b)-1] == '-' {
		return t.Unix() - 1, true
	}
	return t.Unix(), true
}

// seconds is a time as unix seconds, or as the text that it is.
func (r *Remote) seconds(name string) string {
	c, ok := r.has[name]
	switch {
	case !ok:
		return "0"
	case c.kind == kindText, c.kind == kindNumber:
		return r.quoted(name)
	case r.s.Postgres:
		return "floor(extract(epoch FROM " + r.quoted(name) + "))::bigint"
	}
	return "timestampdiff(SECOND, '1970-01-01 00:00:00', " + r.quoted(name) + ")"
}

// instant reads what seconds gives.
func (r *Remote) instant(name string, b []byte) (at int64, ok bool) {
	if r.has[name].kind != kindText {
		return whole(b), b != nil
	}
	t, err := time.ParseInLocation(time.DateTime, string(b), r.zone)
	return t.Unix(), err == nil
}
