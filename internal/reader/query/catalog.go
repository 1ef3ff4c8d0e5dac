package query

import (
	"database/sql/driver"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// actorText is the text of a dimension that belongs to an actor, as SQL over actorTables; "" for the others.
func actorText(d Dimension) string {
	switch d {
	case Exe:
		return "e.path"
	case SHA256:
		return "e.sha256"
	case Name:
		return "p.name"
	case Cmdline:
		return "p.cmdline"
	case Script:
		return "coalesce(se.path, '')"
	case Parent:
		return "coalesce(pe.path, '')"
	case Place:
		return "coalesce(nullif(c.name, ''), nullif(c.container, ''), nullif(c.app, ''), nullif(c.user_unit, ''), nullif(c.unit, ''), nullif(c.session, ''), c.path, '')"
	case User:
		return "CAST(a.uid AS TEXT)"
	case Family:
		return "k.family"
	case Protocol:
		return "k.protocol"
	case Direction:
		return "k.direction"
	}
	return ""
}

const actorTables = ` FROM actors a JOIN programs p ON p.id = a.program JOIN executables e ON e.id = p.executable JOIN kinds k ON k.id = a.kind
	LEFT JOIN executables se ON se.id = p.script LEFT JOIN programs pp ON pp.id = p.parent LEFT JOIN executables pe ON pe.id = pp.executable LEFT JOIN places c ON c.id = a.place`

// groups gives values numbers: the rows of an answer while it is computed.
type groups struct {
	index  map[string]int32
	values []string
}

func (g *groups) of(value string) int32 {
	n, ok := g.index[value]
	if !ok {
		n = int32(len(g.values))
		g.index[value] = n
		g.values = append(g.values, value)
	}
	return n
}

// slots maps numbers of rows in a table to groups: the group + 1, 0 for what does not pass the filters.
type slots []int32

func (s slots) at(id int64) int32 {
	if id < 0 || id >= int64(len(s)) {
		return 0
	}
	return s[id]
}

// plan says, for every number that a roll-up or raw row holds, to which group it belongs and whether it passes the filters.
type plan struct {
	by     Dimension
	groups groups
	// Of each, nil is for all. A row's group is the one of the dimension that is asked for; the others hold 1 for what passes.
	actor, remote, domain slots
	port                  func(int64) bool
	met                   sync.Mutex       // guards ports, and groups where they are of ports
	ports                 map[int64]int32  // slot of a port
	directions            map[int64]string // by actor
}

// needPeers reports whether the sums by actor and port are not enough.
func (p *plan) needPeers() bool { return p.remote != nil || p.domain != nil }

// kindOf says where a dimension is.
func kindOf(d Dimension) string {
	switch d {
	case None:
		return ""
	case Port, Domain:
		return string(d)
	case Address, Country:
		return "remote"
	}
	return "actor"
}

func (s *snapshot) plan(by Dimension, where []Filter) (*plan, error) {
	p := &plan{by: by, groups: groups{index: make(map[string]int32)}, directions: make(map[int64]string), ports: make(map[int64]int32)}
	filters := make(map[string][]Filter)
	for _, f := range append(slices.Clone(where), Filter{By: by}) {
		if f.By == Host {
			return nil, fmt.Errorf("%w: snitch.db has the rows of this host only: ask an SQL server for host", ErrQuestion)
		}
		if actorText(f.By) == "" && !slices.Contains([]Dimension{None, Port, Domain, Address, Country}, f.By) {
			return nil, fmt.Errorf("%w: %q is no dimension", ErrQuestion, f.By)
		}
		if f.By == Country && s.options.Country == nil {
			return nil, fmt.Errorf("%w: the countries of addresses are not known here", ErrQuestion)
		}
	}
	for _, f := range where {
		k := kindOf(f.By)
		filters[k] = append(filters[k], f)
	}
	if by == None {
		p.groups.of("")
	}
	if err := s.planActors(p, filters["actor"]); err != nil {
		return nil, err
	}
	if err := p.planPorts(filters["port"]); err != nil {
		return nil, err
	}
	if kindOf(by) == "remote" || filters["remote"] != nil {
		if err := s.planAddresses(p, filters["remote"]); err != nil {
			return nil, err
		}
	}
	if by == Domain || filters["domain"] != nil {
		if err := s.planDomains(p, filters["domain"]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (s *snapshot) planActors(p *plan, where []Filter) error {
	needed := []Dimension{Direction}
	for _, f := range where {
		needed = append(needed, f.By)
	}
	grouped := kindOf(p.by) == "actor"
	if grouped {
		needed = append(needed, p.by)
	}
	columns := make([]string, len(needed))
	for i, d := range needed {
		columns[i] = actorText(d)
	}
	values, pointers := make([]string, len(needed)), make([]any, len(needed)+1)
	for i := range values {
		pointers[i+1] = &values[i]
	}
	var id int64
	pointers[0] = &id
	return s.every("SELECT a.id, "+strings.Join(columns, ", ")+actorTables, func(scan func(...any) error) error {
		if err := scan(pointers...); err != nil {
			return err
		}
		if id < 0 || id > maxID {
			return errDamaged
		}
		p.directions[id] = values[0]
		if !grouped && len(where) == 0 {
			return nil
		}
		slot := int32(1)
		for i := range where {
			if !where[i].Matches(values[i+1]) {
				slot = 0
			}
		}
		if slot != 0 && grouped {
			slot = p.groups.of(values[len(values)-1]) + 1
		}
		p.actor = put(p.actor, id, slot)
		return nil
	})
}

// maxID bounds what a damaged number can make us reserve: rows of texts.
const maxID = 1 << 27

var errDamaged = fmt.Errorf("the database is damaged: `picosnitch db check` examines it")

func put(s slots, id int64, slot int32) slots {
	if n := int(id) + 1; n > len(s) {
		s = append(s, make(slots, n-len(s))...)
	}
	s[id] = slot
	return s
}

func (p *plan) planPorts(where []Filter) error {
	for _, f := range where {
		if err := f.Check(); err != nil {
			return err
		}
	}
	if len(where) > 0 {
		p.port = func(port int64) bool {
			for i := range where {
				if !where[i].Matches(strconv.FormatInt(port, 10)) {
					return false
				}
			}
			return true
		}
	}
	return nil
}

// planAddresses reads all addresses only where their texts are needed: 0 is the one that is not known.
func (s *snapshot) planAddresses(p *plan, where []Filter) error {
	add := func(id int64, ip string) error {
		if id < 0 || id > maxID {
			return errDamaged
		}
		country := ""
		if s.options.Country != nil {
			if a, err := netip.ParseAddr(ip); err == nil {
				country = s.options.Country(a)
			}
		}
		slot := int32(1)
		for i := range where {
			text := ip
			if where[i].By == Country {
				text = country
			}
			if !where[i].Matches(text) {
				slot = 0
			}
		}
		if slot != 0 {
			switch p.by {
			case Address:
				slot = p.groups.of(ip) + 1
			case Country:
				slot = p.groups.of(country) + 1
			}
		}
		p.remote = put(p.remote, id, slot)
		return nil
	}
	if err := add(0, ""); err != nil {
		return err
	}
	return s.texts("SELECT id, ip FROM addresses", add)
}

func (s *snapshot) planDomains(p *plan, where []Filter) error {
	add := func(id int64, name string) error {
		if id < 0 || id > maxID {
			return errDamaged
		}
		slot := int32(1)
		for i := range where {
			if !where[i].Matches(name) {
				slot = 0
			}
		}
		if slot != 0 && p.by == Domain {
			slot = p.groups.of(name) + 1
		}
		p.domain = put(p.domain, id, slot)
		return nil
	}
	if err := add(0, ""); err != nil {
		return err
	}
	return s.texts("SELECT id, name FROM domains", add)
}

// texts calls a function for rows of a number and a text.
func (s *snapshot) texts(q string, add func(id int64, text string) error) error {
	return s.stream(q, func(v []driver.Value) error {
		id, ok := v[0].(int64)
		text, ok2 := v[1].(string)
		if !ok || !ok2 {
			return errDamaged
		}
		return add(id, text)
	})
}

// needPorts reports whether the port matters, and needActors whether it or the actor does.
func (p *plan) needPorts() bool  { return p.port != nil || p.by == Port }
func (p *plan) needActors() bool { return p.actor != nil || p.needPorts() }

// asks reports whether what is asked for is in these slots: the others hold 1 for what passes.
func (p *plan) asks(of slots) bool {
	switch p.by {
	case Address, Country:
		return &of[0] == &p.remote[0]
	case Domain:
		return &of[0] == &p.domain[0]
	}
	return false
}

// slot says to which group a row belongs: its number + 1; 0: it does not pass. A number that is not known passes nothing that is asked of it.
func (p *plan) slot(actor, port, remote, domain int64) int32 {
	slot := int32(1)
	for _, x := range []struct {
		of    slots
		id    int64
		asked bool
	}{
		{p.actor, actor, kindOf(p.by) == "actor"},
		{p.remote, remote, kindOf(p.by) == "remote"},
		{p.domain, domain, p.by == Domain},
	} {
		if x.of == nil {
			continue
		}
		switch found := x.of.at(x.id); {
		case found == 0:
			return 0
		case x.asked:
			slot = found
		}
	}
	if p.needPorts() {
		if found := p.slotOfPort(port); found == 0 || p.by == Port {
			return found
		}
	}
	return slot
}

// slotOfPort is the one thing of a plan that changes while it is followed: ports are found as they are met.
func (p *plan) slotOfPort(port int64) int32 {
	p.met.Lock()
	defer p.met.Unlock()
	known, ok := p.ports[port]
	if !ok {
		switch {
		case p.port != nil && !p.port(port):
		case p.by == Port:
			known = p.groups.of(strconv.FormatInt(port, 10)) + 1
		default:
			known = 1
		}
		p.ports[port] = known
	}
	return known
}

// size is how many groups there are so far.
func (p *plan) size() int {
	p.met.Lock()
	defer p.met.Unlock()
	return len(p.groups.values)
}
