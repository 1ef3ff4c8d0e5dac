package country

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime/debug"

	"github.com/oschwald/maxminddb-golang/v2"
)

// marker begins the metadata of an MMDB file, near its end: https://maxmind.github.io/MaxMind-DB/.
const marker = "\xab\xcd\xefMaxMind.com"

func isMMDB(path string, size int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	const most = 128 << 10 // of metadata
	tail := make([]byte, min(size, most))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return false, err
	}
	return bytes.Contains(tail, []byte(marker)), nil
}

// mmdb is a file of the MaxMind DB format, mapped into memory.
type mmdb struct {
	r     *maxminddb.Reader
	known map[uintptr]answer // by the place of the record in the file: there are few
}

// answer is what a record says. An error is remembered, too: a damaged record may take long.
type answer struct {
	code string
	err  error
}

// maxKnown bounds known: a database of cities has a record for each.
const maxKnown = 1 << 14

func openMMDB(path string) (m *mmdb, err error) {
	err = guarded(func() error {
		r, err := maxminddb.Open(path)
		if err != nil {
			return err
		}
		m = &mmdb{r: r, known: make(map[uintptr]answer)}
		return nil
	})
	return m, err
}

// guarded keeps a damaged file from ending the program: by a bug of the library, or because it was cut while it is mapped (SIGBUS).
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return f()
}

// record is what the makers of databases call a country.
type record struct {
	Country    any    `maxminddb:"country"`      // GeoLite2, DB-IP: a map with iso_code; IPinfo: the code
	Code       string `maxminddb:"country_code"` // ip-location-db
	Registered struct {
		Code string `maxminddb:"iso_code"`
	} `maxminddb:"registered_country"` // GeoLite2, where the country of its use is not known
}

func (m *mmdb) code(a netip.Addr) (code string, err error) {
	err = guarded(func() error {
		if a.Is6() && m.r.Metadata.IPVersion == 4 {
			return nil // it has none of these
		}
		found := m.r.Lookup(a)
		if err := found.Err(); err != nil || !found.Found() {
			return err
		}
		known, ok := m.known[found.Offset()]
		if !ok {
			var r record
			if known.err = guarded(func() error { return found.Decode(&r) }); known.err == nil {
				known.code = r.text()
			}
			if len(m.known) < maxKnown {
				m.known[found.Offset()] = known
			}
		}
		code = known.code
		return known.err
	})
	return code, err
}

func (r *record) text() string {
	switch c := r.Country.(type) {
	case string:
		return c
	case map[string]any:
		if s, ok := c["iso_code"].(string); ok {
			return s
		}
	}
	if r.Code != "" {
		return r.Code
	}
	return r.Registered.Code
}

func (m *mmdb) close() error { return m.r.Close() }
