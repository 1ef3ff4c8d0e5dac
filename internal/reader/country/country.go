// Package country says in which country an address is, from a database that the administrator of this machine installed: an MMDB file
// (GeoLite2, DB-IP, IPinfo and others of that format) or the text files of Debian's tor-geoipdb. It belongs to everybody's wing, asks nobody
// on the network, and writes nothing. A database is a stranger's file: whatever is in it, an address gets two letters of ISO 3166 or
// a label of this package, and nothing ends the program. It does not know whose addresses they are (reader/query does).
package country

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Labels of what is in no country. None has two letters.
const (
	Machine   = "loopback"  // this machine itself: 127.0.0.0/8, ::1
	Private   = "private"   // RFC 1918, RFC 4193
	Shared    = "shared"    // between a provider and its customers, also used by overlay networks: RFC 6598
	LinkLocal = "link"      // RFC 3927, RFC 4291
	Multicast = "multicast" // and broadcast
	Reserved  = "reserved"  // for documentation, benchmarks, the future; and the address of nobody (0.0.0.0, ::)
	Unknown   = "unknown"   // the database does not have it
)

// Labels are all labels, in the order in which they are explained.
func Labels() []string {
	return []string{Machine, Private, Shared, LinkLocal, Multicast, Reserved, Unknown}
}

// Special is the label of an address that is in no country, "" for one that may be in one. It needs no database.
func Special(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid():
		return ""
	case a.IsLoopback():
		return Machine
	case a.IsPrivate():
		return Private
	case a.IsLinkLocalUnicast():
		return LinkLocal
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return Multicast
	}
	if netip.MustParsePrefix("100.64.0.0/10").Contains(a) {
		return Shared
	}
	// https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-; NAT64 and 6to4 are somewhere, and asked about.
	for _, p := range []string{"0.0.0.0/8", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "::/128", "100::/64", "2001:db8::/32", "3fff::/20"} {
		if netip.MustParsePrefix(p).Contains(a) {
			return Reserved
		}
	}
	return ""
}

// source finds the code of an address; "" if it does not have it.
type source interface {
	code(netip.Addr) (string, error)
	close() error
}

// Database is an open database. It is not safe for concurrent use.
type Database struct {
	path string
	from source
	err  error // the first one of a look-up
}

// ErrNone is returned when no database is there; the text says what to install.
var ErrNone = errors.New("there is no database of countries")

// howTo is what to do about it.
const howTo = "`apt-get install tor-geoipdb` brings one; GeoLite2-Country.mmdb, dbip-country-lite.mmdb and others of that format belong in /usr/share/GeoIP or /var/lib/GeoIP; PICOSNITCH_COUNTRY_DB names a file elsewhere"

// Open opens the database at path: an MMDB file, or the file geoip of tor-geoipdb (with geoip6 beside it). "" finds one at the usual
// places below root, which is "/" but in tests.
func Open(path, root string) (*Database, error) {
	if path == "" {
		if path = find(root); path == "" {
			return nil, fmt.Errorf("%w: %s", ErrNone, howTo)
		}
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w at %s: %s", ErrNone, path, howTo)
	case err != nil:
		return nil, fmt.Errorf("read the database of countries: %w", err)
	case !st.Mode().IsRegular(): // a pipe would make us wait for ever
		return nil, fmt.Errorf("the database of countries %s is no regular file", path)
	case st.Size() > maxFile:
		return nil, fmt.Errorf("the database of countries %s has %d bytes: more than %d are not read", path, st.Size(), int64(maxFile))
	}
	d := &Database{path: path}
	if mmdb, err := isMMDB(path, st.Size()); err != nil {
		return nil, fmt.Errorf("read the database of countries: %w", err)
	} else if mmdb {
		d.from, err = openMMDB(path)
		if err != nil {
			return nil, d.damaged(err)
		}
		return d, nil
	}
	if d.from, err = openText(path); err != nil {
		return nil, d.damaged(err)
	}
	return d, nil
}

func (d *Database) damaged(err error) error {
	return fmt.Errorf("the database of countries %s is damaged, or of a format that is not known: %w; install it again, or name another file with PICOSNITCH_COUNTRY_DB", d.path, err)
}

// maxFile bounds a database, in bytes: the largest ones of cities have 150 MB.
const maxFile = 1 << 30

// find finds a database: of countries before cities, and of several the newest.
func find(root string) string {
	for _, kind := range []string{"*[Cc]ountry*.mmdb", "*[Cc]ity*.mmdb"} {
		var all []string
		for _, dir := range []string{"usr/share/GeoIP", "usr/local/share/GeoIP", "var/lib/GeoIP", "var/lib/geoip"} {
			found, err := filepath.Glob(filepath.Join(root, dir, kind))
			if err == nil {
				all = append(all, found...)
			}
		}
		if len(all) > 0 {
			age := func(path string) int64 {
				st, err := os.Stat(path)
				if err != nil {
					return 0
				}
				return st.ModTime().UnixNano()
			}
			return slices.MaxFunc(all, func(a, b string) int { return cmp.Compare(age(a), age(b)) })
		}
	}
	if path := filepath.Join(root, "usr/share/tor/geoip"); exists(path) {
		return path
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Path is the file.
func (d *Database) Path() string { return d.path }

// Of is the code of the country, in two capital letters, or a label; "" for no address at all.
func (d *Database) Of(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	if s := Special(a); s != "" {
		return s
	}
	code, err := d.from.code(a.Unmap().WithZone(""))
	if err != nil && d.err == nil {
		d.err = err
	}
	if err != nil || !isCode(code) {
		return Unknown
	}
	return strings.ToUpper(code)
}

// Err is what went wrong with a look-up since Open, if something did: what was asked is Unknown then.
func (d *Database) Err() error {
	if d.err == nil {
		return nil
	}
	return d.damaged(d.err)
}

// Close closes the file.
func (d *Database) Close() error { return d.from.close() }

// Normal is a country or label as a user writes it, as Of gives it; an error says what can be written.
func Normal(s string) (string, error) {
	if isCode(s) {
		return strings.ToUpper(s), nil
	}
	if l := strings.ToLower(s); s == "" || slices.Contains(Labels(), l) {
		return l, nil
	}
	return "", fmt.Errorf("%q is no country: use its two letters (ISO 3166: DE, US, …), or one of %s", s, strings.Join(Labels(), ", "))
}

func isCode(s string) bool {
	letter := func(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
	return len(s) == 2 && letter(s[0]) && letter(s[1])
}
