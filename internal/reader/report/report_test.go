package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/reader/query"
)

func hostile() query.Answer {
	return query.Answer{
		Rows: []query.Row{
			{Value: "=cmd|' /C calc'!A0", Sum: query.Sum{Conns: 1, Sent: 999, Received: 1000}},
			{Value: "\x1b[31mred\u202e\xff", Sum: query.Sum{Sent: 1_234_567, Received: 999_999}},
			{Value: strings.Repeat("ä", 1000), Sum: query.Sum{Sent: 1<<63 - 1}},
			{Value: "a,\"b\"\n<script>", Sum: query.Sum{Received: 12_345}},
			{},
		},
		Values: 7, Others: query.Sum{Sent: 1}, Total: query.Sum{Conns: 1}, Rounded: true,
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	c := Context{By: query.Exe, Zone: time.UTC, Lost: query.Lost{Sent: 5}}
	if err := Totals(&b, Table, c, hostile()); err != nil {
		t.Fatal(err)
	}
	want := "     sent  received  conns exe\n" +
		"    999 B   1.00 kB      1 =cmd|' /C calc'!A0\n" +
		"  1.23 MB   1.00 MB      0 \\u{1b}[31mred\\u{202e}\\u{fffd}\n" +
		"  9.22 EB       0 B      0 " + strings.Repeat("ä", 33) + "…" + strings.Repeat("ä", 66) + "\n" +
		"      0 B   12.3 kB      0 a,\"b\"\\u{a}<script>\n" +
		"      0 B       0 B      0 (not known)\n" +
		"      1 B       0 B      0 (2 others)\n" +
		"      0 B       0 B      1 (total)\n" +
		"The range begins or ends within an hour of which only the sum is kept: that hour is in it as a whole, or not at all.\n" +
		"Besides, 5 B sent and 0 B received could not be attributed to a program.\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

// TestWidth: a table fits the terminal, whatever is in it; of a path, the end stays; and what it means that there is no value is said.
func TestWidth(t *testing.T) {
	a := query.Answer{
		Rows: []query.Row{
			{Value: "/home/somebody/.local/share/applications/very/deep/program", Sum: query.Sum{Conns: 1, Sent: 999, Received: 1000}},
			{Value: "/x/" + strings.Repeat("日本語", 20)},
			{Value: strings.Repeat("e\u0301", 50)},
			{Value: "/usr/bin/curl"},
			{Value: ""},
		},
		Values: 5, Total: query.Sum{Conns: 1_000_000},
	}
	for _, by := range query.Dimensions() {
		for _, w := range []int{1, 40, 60, 80, 200} {
			var b bytes.Buffer
			if err := Totals(&b, Table, Context{By: by, Width: w}, a); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(b.String()) {
				if n := columnsOf(strings.TrimSuffix(line, "\n")); n > max(w, 50) {
					t.Errorf("by %s, %d columns wide: %d: %s", by, w, n, line)
				}
			}
		}
	}
	var b bytes.Buffer
	if err := Totals(&b, Table, Context{By: query.Script, Width: 60}, a); err != nil {
		t.Fatal(err)
	}
	if want := "   sent  received    conns script\n"; !strings.HasPrefix(b.String(), want) || !strings.Contains(b.String(), "ery/deep/program\n") || !strings.Contains(b.String(), " (no script)\n") || !strings.Contains(b.String(), " /usr/bin/curl\n") {
		t.Error(b.String())
	}
	b.Reset()
	if err := Totals(&b, Table, Context{By: query.None}, query.Answer{}); err != nil || b.String() != "  sent  received  conns\n   0 B       0 B      0\n"+nothing+"\n" {
		t.Errorf("%v %q", err, b.String())
	}
	b.Reset()
	line := query.Timeline{Starts: []int64{0}, End: 86400, Series: []query.Series{{Sums: []query.Sum{{Sent: 1}}}}, Others: []query.Sum{{}}}
	if err := Timeline(&b, Table, Context{By: query.None, Zone: time.UTC}, query.Day, line); err != nil || b.String() != "        from  sent  received  conns\n  1970-01-01   1 B       0 B      0\n" {
		t.Errorf("%v %q", err, b.String())
	}
}

// TestSpreadsheet: what a spreadsheet reads is text, and all of it comes back.
func TestSpreadsheet(t *testing.T) {
	var b bytes.Buffer
	if err := Totals(&b, CSV, Context{By: query.Exe}, hostile()); err != nil {
		t.Fatal(err)
	}
	r := NewRecords(&b, CSV, time.UTC)
	for _, s := range []string{"=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'quote", "fine"} {
		if err := r.Write(&query.Record{Exe: s, Cmdline: s, Domain: s, End: 86400, RemotePort: -1, Sent: 5}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	in := csv.NewReader(&b)
	in.FieldsPerRecord = -1
	all, err := in.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range all {
		for k, f := range line {
			if f != "" && strings.ContainsRune("=+-@\t\r", rune(f[0])) && f != "-1" {
				t.Errorf("line %d, field %d is a formula: %q", i, k, f)
			}
			if strings.ContainsAny(f, "\x1b\n\r\t\u202e") {
				t.Errorf("line %d, field %d: %q", i, k, f)
			}
		}
	}
	if got := all[len(all)-1]; got[0] != "fine" || got[4] != "1970-01-02 00:00:00" || got[7] != "-1" || len(got) != 25 {
		t.Errorf("%q", got)
	}
	if got := all[len(all)-8][0]; got != "'=1+1" {
		t.Errorf("%q", got)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := Totals(&b, JSON, Context{By: query.Exe}, hostile()); err != nil {
		t.Fatal(err)
	}
	var out struct {
		Rows []struct {
			Value string
			Sent  uint64
		}
	}
	if err := json.Unmarshal(b.Bytes(), &out); err != nil || len(out.Rows) != 5 || out.Rows[0].Value != hostile().Rows[0].Value || out.Rows[2].Sent != 1<<63-1 {
		t.Errorf("%v %+v", err, out)
	}
	b.Reset()
	line := query.Timeline{Starts: []int64{0, 86400}, End: 172800, Series: []query.Series{{Value: "x", Sums: []query.Sum{{Sent: 1}, {}}}}, Others: []query.Sum{{}, {Sent: 2}}}
	if err := Timeline(&b, CSV, Context{By: query.Exe, Zone: time.UTC}, query.Day, line); err != nil {
		t.Fatal(err)
	}
	if want := "start,exe,conns,sent,received\n1970-01-01,x,0,1,0\n1970-01-02,(others),0,2,0\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}

func TestParseTime(t *testing.T) {
	zone := time.FixedZone("x", 5*3600+1800)
	now := time.Date(2026, 3, 15, 14, 30, 0, 0, zone)
	for _, c := range []struct {
		in   string
		end  bool
		want string
	}{
		{"today", false, "2026-03-15T00:00:00+05:30"},
		{"today", true, "2026-03-16T00:00:00+05:30"},
		{"yesterday", false, "2026-03-14T00:00:00+05:30"},
		{"2026-01-31", false, "2026-01-31T00:00:00+05:30"},
		{"2026-01-31", true, "2026-02-01T00:00:00+05:30"},
		{"2026-01-31 15:04", true, "2026-01-31T15:04:00+05:30"},
		{"2026-01-31T15:04:05Z", true, "2026-01-31T15:04:05Z"},
		{"90m", false, "2026-03-15T13:00:00+05:30"},
		{"2d", false, "2026-03-13T14:30:00+05:30"},
		{"1w", false, "2026-03-08T14:30:00+05:30"},
	} {
		got, err := ParseTime(c.in, now, c.end)
		if err != nil || got.Format(time.RFC3339) != c.want {
			t.Errorf("%q: %v %v, want %s", c.in, got.Format(time.RFC3339), err, c.want)
		}
	}
	for _, bad := range []string{"", "x", "31.1.2026", "5", "-5d", "99999999999d", "2026-02-30"} {
		if got, err := ParseTime(bad, now, false); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v %v", bad, got, err)
		}
	}
}
