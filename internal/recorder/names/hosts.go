package names

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Bounds of the hosts file: block lists of a million lines exist; what they call 0.0.0.0 is of no use here.
const (
	maxHostsBytes = 4 << 20
	maxHostsNames = 1 << 13
)

// stamp tells whether the file changed.
type stamp struct {
	modified time.Time
	size     int64
	file     fs.FileInfo
}

func (s stamp) same(t stamp) bool {
	if s.file == nil || t.file == nil {
		return s.file == nil && t.file == nil
	}
	return s.size == t.size && s.modified.Equal(t.modified) && os.SameFile(s.file, t.file)
}

// Refresh reads the hosts file if it changed since the last time. A missing file holds no names. An error leaves
// the names as they were and is returned once, until the file is readable again or changes.
func (c *Cache) Refresh() error {
	var now stamp
	info, err := os.Stat(c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.hosts, c.seen = nil, stamp{}
		return nil
	case err != nil:
		return c.once(fmt.Errorf("read names from %s: %w", c.path, err))
	case !info.Mode().IsRegular():
		c.hosts, c.seen = nil, stamp{}
		return nil
	}
	now = stamp{info.ModTime(), info.Size(), info}
	if c.seen.same(now) {
		return nil
	}
	f, err := os.Open(c.path)
	if err != nil {
		return c.once(fmt.Errorf("read names from %s: %w", c.path, err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHostsBytes))
	if err != nil {
		return c.once(fmt.Errorf("read names from %s: %w", c.path, err))
	}
	if len(text) == maxHostsBytes {
		text = text[:bytes.LastIndexByte(text, '\n')+1] // half an address would be another one
	}
	c.seen, c.told = now, false
	c.hosts = parseHosts(text)
	return nil
}

func (c *Cache) once(err error) error {
	if c.told {
		return nil
	}
	c.told = true
	return err
}

// parseHosts reads hosts(5): the first name of an address is the canonical one, the first line of an address wins.
func parseHosts(text []byte) map[netip.Addr]Name {
	hosts := make(map[netip.Addr]Name)
	for line := range bytes.Lines(text) {
		if len(hosts) >= maxHostsNames {
			break
		}
		line, _, _ = bytes.Cut(line, []byte("#"))
		field := bytes.Fields(line)
		if len(field) < 2 || len(field[1]) > maxName/4 {
			continue
		}
		a, err := netip.ParseAddr(string(field[0]))
		if err != nil || a.IsUnspecified() {
			continue
		}
		a = a.Unmap().WithZone("")
		if _, ok := hosts[a]; ok {
			continue
		}
		if name := Reverse(event.Text(field[1])); name != "" {
			hosts[a] = Name{name, SourceHosts}
		}
	}
	return hosts
}
