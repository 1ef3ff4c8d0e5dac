package country

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// write makes an MMDB file with a record for a network.
func write(t *testing.T, path string, records map[string]mmdbtype.DataType) {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test", RecordSize: 24, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, r := range records {
		_, n, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Insert(n, r); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func country(code string) mmdbtype.Map {
	return mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(code), "names": mmdbtype.Map{"en": mmdbtype.String("X")}}}
}

func TestSpecial(t *testing.T) {
	for a, want := range map[string]string{
		"127.8.9.1": Machine, "::1": Machine, "::ffff:127.0.0.1": Machine,
		"10.1.2.3": Private, "172.31.0.1": Private, "192.168.1.1": Private, "fd00::1": Private, "::ffff:10.0.0.1": Private,
		"100.64.0.1": Shared, "100.128.0.1": "", "169.254.1.1": LinkLocal, "fe80::1%eth0": LinkLocal,
		"224.0.0.251": Multicast, "ff02::fb": Multicast, "255.255.255.255": Multicast,
		"0.0.0.0": Reserved, "::": Reserved, "192.0.2.1": Reserved, "2001:db8::1": Reserved, "250.0.0.1": Reserved,
		"8.8.8.8": "", "2a00:1450::1": "", "172.32.0.1": "",
	} {
		if got := Special(addr(a)); got != want {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
	if got := Special(netip.Addr{}); got != "" {
		t.Errorf("no address: %q", got)
	}
}

// TestMMDB: the forms that makers of databases use, and what strangers put into such a file.
func TestMMDB(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.mmdb")
	write(t, path, map[string]mmdbtype.DataType{
		"1.1.0.0/16":     country("AU"),
		"2a00::/16":      country("de"),
		"1.2.0.0/16":     mmdbtype.Map{"registered_country": mmdbtype.Map{"iso_code": mmdbtype.String("FR")}},
		"1.3.0.0/16":     mmdbtype.Map{"country_code": mmdbtype.String("NL")},
		"1.4.0.0/16":     mmdbtype.Map{"country": mmdbtype.String("JP"), "country_name": mmdbtype.String("Japan")},
		"1.5.0.0/16":     country("\x1b[31m"),
		"1.6.0.0/16":     country("'; DROP TABLE raw; --"),
		"1.7.0.0/16":     mmdbtype.Map{"country": mmdbtype.Slice{mmdbtype.Uint32(1)}},
		"1.8.0.0/16":     mmdbtype.Map{"country_code": mmdbtype.Uint64(7)},
		"1.9.0.0/16":     mmdbtype.String("DE"),
		"1.10.0.0/16":    country("\xc3\xa9"),
		"192.168.0.0/16": country("US"),
	})
	d, err := Open(path, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for a, want := range map[string]string{
		"1.1.2.3": "AU", "::ffff:1.1.2.3": "AU", "2a00::5": "DE", "1.2.3.4": "FR", "1.3.3.4": "NL", "1.4.3.4": "JP", "1.5.0.1": Unknown, "1.6.0.1": Unknown, "1.7.0.1": Unknown,
		"1.10.0.1": Unknown, "9.9.9.9": Unknown, "2c00::1": Unknown, "192.168.1.1": Private,
	} {
		for range 2 { // also as remembered
			if got := d.Of(addr(a)); got != want {
				t.Errorf("%s: %q, want %q", a, got, want)
			}
		}
	}
	if got := d.Of(netip.Addr{}); got != "" {
		t.Errorf("no address: %q", got)
	}
	if err := d.Err(); err != nil {
		t.Errorf("nothing was wrong so far: %v", err)
	}
	for _, a := range []string{"1.8.0.1", "1.9.0.1"} {
		if got := d.Of(addr(a)); got != Unknown {
			t.Errorf("%s: %q", a, got)
		}
	}
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a record of another shape is not told: %v", err)
	}
}

// TestDamaged: whatever byte of a file is wrong and wherever it is cut, the answer is a code, a label or an error.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole.mmdb")
	write(t, whole, map[string]mmdbtype.DataType{"1.1.0.0/16": country("AU"), "2a00::/16": country("DE"), "1.2.0.0/15": country("FR")})
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "damaged.mmdb")
	try := func(b []byte) {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		d, err := Open(path, "/nowhere")
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		defer d.Close()
		for _, a := range []string{"1.1.2.3", "2a00::5", "1.2.3.4", "200.1.1.1"} {
			if got := d.Of(addr(a)); got != Unknown && !isCode(got) {
				t.Errorf("%q", got)
			}
		}
	}
	for n := 0; n < len(data); n += 7 {
		try(data[:n])
	}
	for i := range data {
		b := bytes.Clone(data)
		b[i] ^= byte(i*31 + 1)
		try(b)
	}
	// Cut while it is open.
	d, err := Open(whole, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Truncate(whole, 0); err != nil {
		t.Fatal(err)
	}
	if got := d.Of(addr("1.1.2.3")); got != Unknown || d.Err() == nil {
		t.Errorf("%q, %v", got, d.Err())
	}
}

func TestText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "geoip")
	put := func(name, s string) {
		if err := os.WriteFile(name, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(path, "# comment\n16777216,16777471,AU\n16777472,16778239,CN\n16779264,4294967295,??\n")
	put(path+"6", "2a00::,2a00:ffff:ffff:ffff:ffff:ffff:ffff:ffff,DE\n")
	d, err := Open(path, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{"1.0.0.0": "AU", "1.0.0.255": "AU", "1.0.1.0": "CN", "1.0.3.255": "CN", "1.0.4.0": Unknown, "200.0.0.1": Unknown, "2a00::5": "DE", "2a01::": Unknown, "::ffff:1.0.0.1": "AU"} {
		if got := d.Of(addr(a)); got != want {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
	for _, bad := range []string{"", "x", "1,2", "1,2,D", "5,4,DE\n", "1,9,DE\n9,10,FR\n", "1,99999999999,DE\n", "-1,2,DE\n", strings.Repeat("1", 1<<17), "1,2,\x1b["[:6] + "\n\xff,,\n"} {
		put(path, bad)
		if _, err := Open(path, "/nowhere"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	put(path, "16777216,16777471,AU\n")
	put(path+"6", "nonsense\n")
	if d, err = Open(path, "/nowhere"); err != nil {
		t.Fatal(err)
	}
	if got := d.Of(addr("2a00::1")); got != Unknown || d.Err() == nil {
		t.Errorf("%q %v", got, d.Err())
	}
	if got := d.Of(addr("1.0.0.1")); got != "AU" {
		t.Errorf("%q", got)
	}
}

// TestFind: countries before cities, the newest of them, and the error says what to do.
func TestFind(t *testing.T) {
	root := t.TempDir()
	_, err := Open("", root)
	if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "tor-geoipdb") {
		t.Error(err)
	}
	for _, bad := range []string{root, "/dev/zero", filepath.Join(root, "missing")} {
		if _, err := Open(bad, root); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	now := time.Now()
	for i, c := range []struct{ path, want string }{
		{"usr/share/tor/geoip", "usr/share/tor/geoip"},
		{"usr/share/GeoIP/GeoLite2-City.mmdb", "usr/share/GeoIP/GeoLite2-City.mmdb"},
		{"usr/share/GeoIP/GeoLite2-ASN.mmdb", "usr/share/GeoIP/GeoLite2-City.mmdb"},
		{"var/lib/GeoIP/GeoLite2-Country.mmdb", "var/lib/GeoIP/GeoLite2-Country.mmdb"},
		{"usr/share/GeoIP/dbip-country-lite-2026-11.mmdb", "usr/share/GeoIP/dbip-country-lite-2026-11.mmdb"},
	} {
		path := filepath.Join(root, c.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		at := now.Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		if got := find(root); got != filepath.Join(root, c.want) {
			t.Errorf("after %s: %s", c.path, got)
		}
	}
}

// TestTor reads the database of Debian's tor-geoipdb, where it is installed.
func TestTor(t *testing.T) {
	const path = "/usr/share/tor/geoip"
	if !exists(path) {
		t.Skip("needs Debian's tor-geoipdb: apt-get install tor-geoipdb")
	}
	d, err := Open(path, "/")
	if err != nil {
		t.Fatal(err)
	}
	// Networks of national authorities and exchanges, which do not move.
	for a, want := range map[string]string{"193.0.6.139": "NL", "202.12.29.205": "AU", "192.168.7.7": Private, "130.89.148.77": "NL", "2001:67c:2e8::1": "NL"} {
		if got := d.Of(addr(a)); got != want {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
}

func TestNormal(t *testing.T) {
	for in, want := range map[string]string{"de": "DE", "DE": "DE", "Private": "private", "": "", "unknown": "unknown"} {
		if got, err := Normal(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"Germany", "D", "d1", "\x1b["} {
		if _, err := Normal(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestFailedOnce: a record that cannot be read is not read again for each address.
func TestFailedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.mmdb")
	var long mmdbtype.Slice
	for i := range 10_000 {
		long = append(long, mmdbtype.Uint32(i))
	}
	write(t, path, map[string]mmdbtype.DataType{"1.1.0.0/16": mmdbtype.Map{"country": long, "country_code": mmdbtype.Uint32(1)}})
	d, err := Open(path, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Of(addr("1.1.1.1")); got != Unknown || d.Err() == nil {
		t.Fatalf("%q, %v", got, d.Err())
	}
	if n := testing.AllocsPerRun(10, func() { d.Of(addr("1.1.1.2")) }); n > 100 {
		t.Errorf("another look-up of the same record made %.0f objects", n)
	}
}
