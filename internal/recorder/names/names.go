// Package names knows what addresses are called, and how that is known: from the stream's name lines and from the hosts
// file. It belongs to the recorder's wing. It asks nobody: a look-up of its own would tell the network
// what is watched, and what a name resolves to now is not what the program asked for.
package names

import (
	"net/netip"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
)

// SourceHosts marks names of the hosts file; the other sources are those of event.Name.
const SourceHosts = "hosts"

// linger is how long a name is used after it expired, in nanoseconds: connections outlive the answer that led to them.
const linger = 3600 * 1e9

// maxName bounds a name, in bytes: 253 characters, each escaped to at most four.
const maxName = 1024

// Name is what an address was called.
type Name struct {
	Name   string // in reverse notation; "" if not known
	Source string
}

type entry struct {
	Name
	expires int64 // ns since 1970; 0: never
}

// Cache is a bounded table of names. It is not safe for concurrent use.
type Cache struct {
	limit      int
	young, old map[netip.Addr]entry
	hosts      map[netip.Addr]Name
	path       string
	seen       stamp
	told       bool
}

// New returns a cache for at most limit names of the stream, and of the hosts file at path, which Refresh reads.
func New(limit int, path string) *Cache {
	return &Cache{limit: limit, young: make(map[netip.Addr]entry), path: path}
}

// Len is the number of names known from the stream.
func (c *Cache) Len() int { return len(c.young) + len(c.old) }

// Learn takes in a name of the stream. A later name of an address replaces the earlier one.
func (c *Cache) Learn(n *event.Name) {
	name := Reverse(n.Name)
	if !n.Address.IsValid() || name == "" || len(name) > maxName {
		return
	}
	c.put(n.Address.Unmap().WithZone(""), entry{Name{strings.Clone(name), strings.Clone(n.Source)}, n.Expires})
}

// put keeps two generations: what was not used since the younger one began falls out with the older one.
func (c *Cache) put(a netip.Addr, e entry) {
	if len(c.young) >= max(c.limit/2, 1) {
		c.old = c.young
		c.young = make(map[netip.Addr]entry)
	}
	c.young[a] = e
	delete(c.old, a)
}

// Lookup returns the name of an address at an instant (ns since 1970): the one that the stream told, else the one of the hosts file.
func (c *Cache) Lookup(a netip.Addr, at int64) Name {
	if !a.IsValid() {
		return Name{}
	}
	a = a.Unmap().WithZone("")
	e, ok := c.young[a]
	if !ok {
		if e, ok = c.old[a]; ok {
			c.put(a, e)
		}
	}
	if ok {
		if e.expires == 0 || at < e.expires+linger {
			return e.Name
		}
		delete(c.young, a)
	}
	return c.hosts[a]
}

// Reverse turns www.Example.com. into com.example.www, and back.
func Reverse(name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if !strings.Contains(name, ".") {
		return name
	}
	labels := strings.Split(name, ".")
	for i, j := 0, len(labels)-1; i < j; i, j = i+1, j-1 {
		labels[i], labels[j] = labels[j], labels[i]
	}
	return strings.Join(labels, ".")
}
