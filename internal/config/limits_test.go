package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLimits(t *testing.T) {
	c, err := Parse([]byte(`{
  "Data limits": [
    {"limit": "10 GB", "per": "month"}, # all
    {"program": "/usr/bin/steam", "limit": "1.5GiB", "per": "day", "direction": "received"},
    {"program": ["firefox", "/opt/**", "firefox"], "limit": "500 kb", "per": "month", "month starts on": 17, "interface": "wwan*", "local network": true},
    {"program": "*", "limit": "1 B", "per": "day", "direction": "both"},
    {"program": "*", "limit": "1000 PB", "per": "day", "interface": "eth0"},
  ]
}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Limit{
		{Bytes: 10e9, Text: "10 GB", Per: "month", Starts: 1, Direction: "both"},
		{Programs: []string{"/usr/bin/steam"}, Bytes: 3 << 29, Text: "1.5GiB", Per: "day", Direction: "received"},
		{Programs: []string{"firefox", "/opt/**"}, Bytes: 500e3, Text: "500 kb", Per: "month", Starts: 17, Interface: "wwan*", Direction: "both", LocalNetwork: true},
		{Bytes: 1, Text: "1 B", Per: "day", Direction: "both"},
		{Bytes: 1e18, Text: "1000 PB", Per: "day", Interface: "eth0", Direction: "both"},
	}
	if d := cmp.Diff(want, c.Limits); d != "" {
		t.Error(d)
	}
	// In the way of YAML too.
	c, err = Parse([]byte("Data limits:\n  - limit: 10 GB\n    per: month\n"))
	if err != nil || len(c.Limits) != 1 || c.Limits[0].Bytes != 10e9 {
		t.Errorf("%+v %v", c.Limits, err)
	}
	if c, err = Parse([]byte(`{"Data limits": []}`)); err != nil || c.Limits != nil {
		t.Errorf("%+v %v", c.Limits, err)
	}
}

// TestLimitErrors: each names what is wrong and what is allowed.
func TestLimitErrors(t *testing.T) {
	entry := func(s string) string { return `{"limit": "1 GB", "per": "day", ` + s + `}` }
	for _, c := range []struct{ in, want string }{
		{`5`, `"Data limits": 5: wrong type`},
		{`["10 GB"]`, `"Data limits": "10 GB": wrong type; allowed: a list of objects like`},
		{`[{"per": "day"}]`, `an entry without "limit"`},
		{`[{"limit": "1 GB"}]`, `an entry without "per"`},
		{`[{}]`, `an entry without "limit"`},
		{`[{"limit": 10, "per": "day"}]`, `"Data limits › limit": 10: wrong type; allowed: an amount with its unit`},
		{`[{"limit": .nan, "per": "day"}]`, `wrong type`},
		{`[{"limit": .inf, "per": "day"}]`, `wrong type`},
		{`[{"limit": null, "per": "day"}]`, `wrong type`},
		{`[{"limit": "10", "per": "day"}]`, `"10": an amount without a unit`},
		{`[{"limit": "10 Gb", "per": "day"}]`, `a unit of bits`},
		{`[{"limit": "10 XB", "per": "day"}]`, `a unit that is not known`},
		{`[{"limit": "0 GB", "per": "day"}]`, `out of range`},
		{`[{"limit": "-5 GB", "per": "day"}]`, `"-5 GB": out of range`},
		{`[{"limit": "0.0001 B", "per": "day"}]`, `out of range`},
		{`[{"limit": "1001 PB", "per": "day"}]`, `out of range`},
		{`[{"limit": "999999999999999999999999999999 PB", "per": "day"}]`, `out of range`},
		{`[{"limit": "1e9 GB", "per": "day"}]`, `no amount`},
		{`[{"limit": "NaN GB", "per": "day"}]`, `no amount`},
		{`[{"limit": "", "per": "day"}]`, `no amount`},
		{`[{"limit": "1 GB", "per": "week"}]`, `"Data limits › per": "week": unknown; allowed: "day" or "month"`},
		{`[{"limit": "1 GB", "per": 1}]`, `wrong type`},
		{`[` + entry(`"program": ""`) + `]`, `an empty name`},
		{`[` + entry(`"program": []`) + `]`, `0 programs`},
		{`[` + entry(`"program": [1]`) + `]`, `wrong type`},
		{`[` + entry(`"program": "bin/steam"`) + `]`, `does not begin with /`},
		{`[` + entry(`"program": "a\u001b[31m"`) + `]`, `control character`},
		{`[` + entry(`"program": "`+strings.Repeat("x", 5000)+`"`) + `]`, `longer than 4096`},
		{`[` + entry(`"interface": ""`) + `]`, `no such name is possible`},
		{`[` + entry(`"interface": "a/b"`) + `]`, `"a/b": no such name is possible; allowed: the name of a network interface`},
		{`[` + entry(`"interface": "0123456789abcdef"`) + `]`, `no such name`},
		{`[` + entry(`"direction": "up"`) + `]`, `"up": unknown; allowed: "both", "sent" or "received"`},
		{`[` + entry(`"local network": "yes"`) + `]`, `wrong type; allowed: true or false`},
		{`[` + entry(`"month starts on": 5`) + `]`, `a day has no such key`},
		{`[{"limit": "1 GB", "per": "month", "month starts on": 32}]`, `32: out of range; allowed: a whole number from 1 to 31`},
		{`[{"limit": "1 GB", "per": "month", "month starts on": 0}]`, `0: out of range`},
		{`[` + entry(`"colour": "red"`) + `]`, `"colour": unknown key; allowed: "program", "limit"`},
		{`[` + entry(`"per": "day"`) + `]`, `"per": `},
		{`[` + entry(`"program": "a"`) + `, ` + entry(`"program": ["a"]`) + `]`, `the same is limited twice`},
		{`[` + strings.Repeat(entry(`"program": "a"`)+",", 40) + `]`, `40 entries; allowed: at most 32`},
	} {
		_, err := Parse([]byte(`{"Data limits": ` + c.in + `}`))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: %v, want %s", c.in, err, c.want)
		}
	}
	_, err := Parse([]byte(`{"Bandwidth monitor": false, "Data limits": [{"limit": "1 GB", "per": "day"}]}`))
	if err == nil || !strings.Contains(err.Error(), `there is nothing to count: "Bandwidth monitor" is false`) {
		t.Error(err)
	}
	// The line is shown, as none of these keys holds a secret.
	_, err = Parse([]byte("{\"Data limits\": [\n  {\"limit\": \"1 GB\",\n   \"per\": \"week\"}]}"))
	if err == nil || !strings.Contains(fmt.Sprint(err), "3 |    \"per\": \"week\"}]}") {
		t.Error(err)
	}
}
