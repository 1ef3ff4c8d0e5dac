package compare

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"github.com/picosnitch/picosnitch/test/coverage/monitor"
)

// TestCompare: a suite that compares nothing passes always, so every way of being wrong must be seen here.
func TestCompare(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "gen-client")
	if err := os.WriteFile(exe, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte("content")))
	claims := []claim.Claim{
		{Exe: exe, File: exe, Parent: exe, UID: 7, Family: "inet", Protocol: "tcp", Direction: "out", Local: "127.0.0.1:1000", Remote: "127.0.0.1:80", Sent: 10, Received: 20, Conns: 1},
		{Exe: exe, File: exe, Parent: exe, UID: 7, Family: "inet", Protocol: "tcp", Direction: "out", Local: "127.0.0.1:1001", Remote: "127.0.0.1:80", Sent: 30, Conns: 1},
		{Exe: exe, File: exe, UID: 7, Family: "inet6", Protocol: "icmpv6", Remote: "::1", Sent: 5, Conns: claim.NotStated},
		{Exe: exe, File: exe, UID: 7, Family: "packet", Sent: 100, Conns: claim.NotStated, Limit: "known", Expect: &claim.Bytes{Sent: 90}},
	}
	right := func() []monitor.Row {
		return []monitor.Row{
			{Exe: exe, Name: "gen-client", SHA256: hash, PExe: exe, PSHA256: hash, UID: 7, Family: "inet", Protocol: "tcp", Direction: "out", Local: "127.0.0.1:1000", Remote: "127.0.0.1:80", Sent: 15, Conns: 1},
			{Exe: exe, Name: "gen-client", SHA256: hash, PExe: exe, PSHA256: hash, UID: 7, Family: "inet", Protocol: "tcp", Direction: "out", Local: "127.0.0.1:1001", Remote: "127.0.0.1:80", Sent: 25, Received: 20, Conns: 1},
			{Exe: exe, Name: "gen-client", SHA256: hash, UID: 7, Family: "inet6", Protocol: "icmpv6", Remote: "[::1]:0", Sent: 5},
			{Exe: exe, Name: "gen-client", SHA256: hash, UID: 7, Family: "packet", Remote: ":0", Sent: 90},
			{Exe: "/usr/bin/other", Sent: 1},
			{Exe: exe, Remote: "10.0.0.1:1"}, // moved nothing
		}
	}
	tests := []struct {
		name   string
		change func([]monitor.Row) []monitor.Row
		want   string // in What of the only difference; "" for none
	}{
		{"equal", func(r []monitor.Row) []monitor.Row { return r }, ""},
		{"one byte less sent", func(r []monitor.Row) []monitor.Row { r[0].Sent--; return r }, " sent"},
		{"one byte more received", func(r []monitor.Row) []monitor.Row { r[1].Received++; return r }, " received"},
		{"a connection too many", func(r []monitor.Row) []monitor.Row { r[1].Conns++; return r }, " conns"},
		{"a limit that does not hold any more", func(r []monitor.Row) []monitor.Row { r[3].Sent = 100; return r }, " sent"},
		{"another program", func(r []monitor.Row) []monitor.Row { r[2].SHA256 = "00"; return r }, " sha256"},
		{"no hash", func(r []monitor.Row) []monitor.Row { r[2].SHA256 = ""; return r }, " sha256"},
		{"another parent", func(r []monitor.Row) []monitor.Row { r[0].PExe = "/sbin/init"; return r }, " parent"},
		{"another parent's hash", func(r []monitor.Row) []monitor.Row { r[0].PSHA256 = ""; return r }, " parent's sha256"},
		{"another user", func(r []monitor.Row) []monitor.Row { r[0].UID = 0; return r }, " uid"},
		{"another name", func(r []monitor.Row) []monitor.Row { r[0].Name = "disguise"; return r }, " name"},
		{"another local address", func(r []monitor.Row) []monitor.Row { r[0].Local = "127.0.0.1:5"; return r }, " local"},
		{"a row that is not claimed", func(r []monitor.Row) []monitor.Row { r[5].Conns = 1; return r }, "unexpected record"},
		{"nothing recorded", func(r []monitor.Row) []monitor.Row { return r[:3] }, " sent"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := New().Compare("scenario", claims, Source{Name: "test", Rows: test.change(right())})
			switch {
			case test.want == "" && len(got) != 0:
				t.Errorf("found %+v, want none", got)
			case test.want != "" && (len(got) != 1 || !strings.Contains(got[0].What, test.want)):
				t.Errorf("found %+v, want one with %q", got, test.want)
			}
		})
	}
	flat := right()
	for i := range flat {
		flat[i].Family, flat[i].Protocol, flat[i].Direction, flat[i].Local = "", "", "", ""
	}
	if got := New().Compare("scenario", claims, Source{Name: "flat", Rows: flat, Flat: true}); len(got) != 0 {
		t.Errorf("flat: found %+v, want none", got)
	}

	for got, want := range map[uint64]string{90: "", 100: "", 95: " sent"} {
		either := []claim.Claim{{Exe: exe, File: exe, UID: 7, Family: "packet", Sent: 100, Conns: claim.NotStated, Limit: "known", Expect: &claim.Bytes{Sent: 90}, Either: true}}
		source := Source{Name: "test", Rows: []monitor.Row{{Exe: exe, Name: "gen-client", SHA256: hash, UID: 7, Family: "packet", Remote: ":0", Sent: got}}}
		found := New().Compare("scenario", either, source)
		if want == "" && len(found) != 0 || want != "" && (len(found) != 1 || !strings.Contains(found[0].What, want)) {
			t.Errorf("either, %d: found %+v", got, found)
		}
		if limit := Sum(either, source, found).Limit; (limit == "") != (got == 100) {
			t.Errorf("either, %d: limit %q", got, limit)
		}
	}

	unsure := []claim.Claim{{Exe: exe, File: exe, UID: 7, Family: "inet6", Protocol: "tcp", Direction: "out", Local: "[::1]:1000", Remote: "[::1]:80", Sent: 10, Conns: 1, Unsure: true}}
	for _, test := range []struct{ direction, local, want string }{
		{"out", "[::1]:1000", ""},
		{"", "[::1]:1000", ""},
		{"out", "[::1]:0", ""},
		{"in", "[::1]:1000", "unexpected record"},
		{"out", "[::1]:1001", " local"},
	} {
		row := monitor.Row{Exe: exe, Name: "gen-client", SHA256: hash, UID: 7, Family: "inet6", Protocol: "tcp", Direction: test.direction, Local: test.local, Remote: "[::1]:80", Sent: 10, Conns: 1}
		got := New().Compare("scenario", unsure, Source{Name: "test", Rows: []monitor.Row{row}})
		if test.want == "" && len(got) != 0 || test.want != "" && (len(got) == 0 || !strings.Contains(got[0].What, test.want)) {
			t.Errorf("unsure, %+v: found %+v", test, got)
		}
	}
}
