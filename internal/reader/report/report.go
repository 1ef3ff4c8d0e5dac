// Package report turns answers into text: tables to read, CSV for spreadsheets, JSON for programs. It belongs to everybody's wing. It
// asks nothing (reader/query does) and knows no flags (cli does). What strangers chose (names, paths, domains) reaches no output
// unescaped: not the terminal, and not a spreadsheet as a formula.
package report

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/reader/query"
)

// Format of an output.
type Format string

// Formats.
const (
	Table Format = "table"
	CSV   Format = "csv"
	JSON  Format = "json"
)

// ParseFormat reads a format as a user writes it.
func ParseFormat(s string, allowed ...Format) (Format, error) {
	if f := Format(strings.ToLower(s)); slices.Contains(allowed, f) {
		return f, nil
	}
	return "", fmt.Errorf("the format %q is none of %s", s, strings.Trim(fmt.Sprint(allowed), "[]"))
}

// Context is what stands beside the numbers.
type Context struct {
	By    query.Dimension
	Range query.Range
	Zone  *time.Location
	Exact bool       // bytes as they are, in a table too
	Width int        // of the terminal, in columns; 0: there is none
	Lost  query.Lost // in the range
	// Label is what a table shows for a value; nil: the value.
	Label func(by query.Dimension, value string) string
}

// printable is the last defence of a terminal: texts in the database are printable already, if it is what picosnitch wrote.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
	}
	return b.String()
}

// cell makes a text safe in a spreadsheet: what it would take for a formula begins with an apostrophe
// (https://owasp.org/www-community/attacks/CSV_Injection).
func cell(s string) string {
	s = printable(s)
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// Bytes writes an amount with a unit of 1000.
func Bytes(n uint64) string {
	if n < 1000 {
		return number(n) + " B"
	}
	f, unit := float64(n), 0
	for ; f >= 999.5 && unit < 6; unit++ {
		f /= 1000
	}
	digits := 0
	switch {
	case f < 9.995:
		digits = 2
	case f < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(f, 'f', digits, 64) + " " + "kMGTPE"[unit-1:unit] + "B"
}

func (c *Context) bytes(n uint64) string {
	if c.Exact {
		return number(n)
	}
	return Bytes(n)
}

// sum is Sum with names for JSON.
type sum struct {
	Conns    uint64 `json:"conns"`
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

type lost struct {
	Reasons  map[string]uint64 `json:"reasons,omitempty"`
	Sent     uint64            `json:"unattributed_sent"`
	Received uint64            `json:"unattributed_received"`
}

type valueRow struct {
	Value string `json:"value"`
	sum
}

// Totals writes an answer.
func Totals(w io.Writer, f Format, c Context, a query.Answer) error {
	switch f {
	case JSON:
		out := struct {
			By      query.Dimension `json:"by"`
			Since   int64           `json:"since,omitempty"`
			Until   int64           `json:"until,omitempty"`
			Rounded bool            `json:"rounded,omitempty"`
			Rows    []valueRow      `json:"rows"`
			Values  int             `json:"values"`
			Others  sum             `json:"others"`
			Total   sum             `json:"total"`
			Lost    lost            `json:"lost"`
		}{By: c.By, Since: c.Range.Since, Until: c.Range.Until, Rounded: a.Rounded, Rows: []valueRow{}, Values: a.Values, Others: sum(a.Others), Total: sum(a.Total), Lost: lost(c.Lost)}
		for _, r := range a.Rows {
			out.Rows = append(out.Rows, valueRow{r.Value, sum(r.Sum)})
		}
		return encode(w, out)
	case CSV:
		t := csv.NewWriter(w)
		t.Write([]string{column(c.By), "conns", "sent", "received"})
		for _, r := range a.Rows {
			t.Write([]string{cell(r.Value), number(r.Sum.Conns), number(r.Sum.Sent), number(r.Sum.Received)})
		}
		t.Flush()
		return t.Error()
	}
	var rows [][]string
	line := func(s query.Sum, label string) {
		rows = append(rows, []string{c.bytes(s.Sent), c.bytes(s.Received), number(s.Conns), label})
	}
	head := []string{"sent", "received", "conns", column(c.By)}
	if c.By == query.None {
		head = head[:3]
	} else {
		for _, r := range a.Rows {
			line(r.Sum, c.label(r.Value))
		}
		if n := a.Values - len(a.Rows); n > 0 {
			line(a.Others, fmt.Sprintf("(%d others)", n))
		}
	}
	line(a.Total, "(total)")
	if err := c.table(w, head, rows); err != nil {
		return err
	}
	if a.Values == 0 {
		fmt.Fprintln(w, nothing)
	}
	return c.notes(w, a.Rounded)
}

func column(by query.Dimension) string {
	if by == query.None {
		return "all"
	}
	return string(by)
}

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// nothing is said where there is no row, so that nobody takes it for a fault.
const nothing = "Nothing was recorded that matches."

// notes tells what the numbers leave out.
func (c *Context) notes(w io.Writer, rounded bool) error {
	if rounded {
		fmt.Fprintln(w, "The range begins or ends within an hour of which only the sum is kept: that hour is in it as a whole, or not at all.")
	}
	if c.Lost.Sent > 0 || c.Lost.Received > 0 {
		fmt.Fprintf(w, "Besides, %s sent and %s received could not be attributed to a program.\n", c.bytes(c.Lost.Sent), c.bytes(c.Lost.Received))
	}
	return nil
}

// Timeline writes a time line: a row for each interval and value.
func Timeline(w io.Writer, f Format, c Context, step query.Step, t query.Timeline) error {
	type row struct {
		Start string `json:"start"`
		valueRow
		Others bool `json:"others,omitempty"`
	}
	layout := time.DateOnly
	if step < query.Day {
		layout = "2006-01-02 15:04"
	}
	var rows []row
	for i, start := range t.Starts {
		at := time.Unix(start, 0).In(c.Zone).Format(layout)
		for _, s := range t.Series {
			if s.Sums[i] != (query.Sum{}) {
				rows = append(rows, row{at, valueRow{s.Value, sum(s.Sums[i])}, false})
			}
		}
		if t.Others[i] != (query.Sum{}) {
			rows = append(rows, row{at, valueRow{"", sum(t.Others[i])}, true})
		}
	}
	switch f {
	case JSON:
		return encode(w, struct {
			By      query.Dimension `json:"by"`
			Zone    string          `json:"zone"`
			Rounded bool            `json:"rounded,omitempty"`
			Rows    []row           `json:"rows"`
			Undated *sum            `json:"undated,omitempty"`
			Lost    lost            `json:"lost"`
		}{c.By, c.Zone.String(), t.Rounded, append([]row{}, rows...), undated(t.Undated), lost(c.Lost)})
	case CSV:
		out := csv.NewWriter(w)
		out.Write([]string{"start", column(c.By), "conns", "sent", "received"})
		for _, r := range rows {
			value := cell(r.Value)
			if r.Others {
				value = "(others)"
			}
			out.Write([]string{r.Start, value, number(r.Conns), number(r.Sent), number(r.Received)})
		}
		out.Flush()
		return out.Error()
	}
	head := []string{"from", "sent", "received", "conns", column(c.By)}
	if c.By == query.None {
		head = head[:4]
	}
	var lines [][]string
	for _, r := range rows {
		label := "(others)"
		if !r.Others {
			label = c.label(r.Value)
		}
		lines = append(lines, []string{r.Start, c.bytes(r.Sent), c.bytes(r.Received), number(r.Conns), label})
	}
	if err := c.table(w, head, lines); err != nil {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintln(w, nothing)
	}
	if t.Undated != (query.Sum{}) {
		fmt.Fprintf(w, "Besides, %s sent and %s received are in rows whose time cannot be read.\n", c.bytes(t.Undated.Sent), c.bytes(t.Undated.Received))
	}
	return c.notes(w, t.Rounded)
}

func undated(s query.Sum) *sum {
	if s == (query.Sum{}) {
		return nil
	}
	return (*sum)(&s)
}

// Records is a writer of single rows, one at a time.
type Records struct {
	format Format
	zone   *time.Location
	csv    *csv.Writer
	json   *json.Encoder
	fields []string
}

// NewRecords begins an output: CSV with a line of names, or a JSON object a line.
func NewRecords(w io.Writer, f Format, zone *time.Location) *Records {
	r := &Records{format: f, zone: zone}
	if f == JSON {
		r.json = json.NewEncoder(w)
		r.json.SetEscapeHTML(false)
		return r
	}
	r.csv = csv.NewWriter(w)
	r.csv.Write([]string{
		"exe", "name", "cmdline", "sha256", "time", "domain", "ip", "port", "uid", "parent_exe", "parent_name", "parent_cmdline", "parent_sha256", "conns", "sent", "received",
		"start", "script", "place", "family", "protocol", "direction", "local_ip", "local_port", "host",
	})
	return r
}

// Write writes a row. The mission's sixteen fields of the text log come first, in their order.
func (r *Records) Write(x *query.Record) error {
	if r.json != nil {
		return r.json.Encode(x)
	}
	at := func(t int64) string { return time.Unix(t, 0).In(r.zone).Format(time.DateTime) }
	r.fields = append(r.fields[:0],
		cell(x.Exe), cell(x.Name), cell(x.Cmdline), cell(x.SHA256), at(x.End), cell(x.Domain), cell(x.RemoteIP), strconv.FormatInt(x.RemotePort, 10), strconv.FormatInt(x.UID, 10),
		cell(x.ParentExe), cell(x.ParentName), cell(x.ParentCmd), cell(x.ParentSHA256), number(x.Conns), number(x.Sent), number(x.Received),
		at(x.Start), cell(x.Script), cell(x.Place), cell(x.Family), cell(x.Protocol), cell(x.Direction), cell(x.LocalIP), strconv.FormatInt(x.LocalPort, 10), cell(x.Host))
	return r.csv.Write(r.fields)
}

// Close ends the output. It does not close the writer.
func (r *Records) Close() error {
	if r.csv == nil {
		return nil
	}
	r.csv.Flush()
	return r.csv.Error()
}
