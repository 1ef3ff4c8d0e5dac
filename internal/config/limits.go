package config

import (
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"
)

// Limit is an entry of "Data limits".
type Limit struct {
	Programs     []string // paths and names, as in "Notify ignore"; empty: all programs together
	Bytes        uint64   // from 1 to MaxLimit
	Text         string   // Bytes, as written
	Per          string   // "day" or "month"
	Starts       int      // day on which a month begins: 1 to 31; 0 with "day"
	Interface    string   // network interface, may hold * and ?; "": all
	Direction    string   // "both", "sent" or "received"
	LocalNetwork bool     // what stays in the local network counts, too
}

// MaxLimit is the greatest limit, in bytes.
const MaxLimit = 1_000_000_000_000_000_000

const (
	maxLimits   = 32
	maxPrograms = 32
	maxProgram  = 4096 // bytes of a path
)

// limitKeys are the keys of an entry.
func limitKeys() []string {
	return []string{limitProgram, limitAmount, limitPer, limitInterface, limitDirection, limitStarts, limitLocal}
}

const (
	limitProgram   = "program"
	limitAmount    = "limit"
	limitPer       = "per"
	limitInterface = "interface"
	limitDirection = "direction"
	limitStarts    = "month starts on"
	limitLocal     = "local network"
)

func readLimits(p *parse, f field, n ast.Node, c *Config) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		p.wrong(f, n)
		return
	}
	if len(list.Values) > maxLimits {
		p.fail(at(n, &Error{Key: f.key, Problem: fmt.Sprintf("%d entries", len(list.Values)), Allowed: fmt.Sprintf("at most %d", maxLimits)}))
		return
	}
	for _, v := range list.Values {
		entries, ok := mapping(v)
		if !ok {
			p.wrong(f, v)
			continue
		}
		errs := len(p.errs)
		l := p.limit(f, v, entries)
		if len(p.errs) > errs {
			continue
		}
		same := func(k Limit) bool {
			return slices.Equal(sorted(k.Programs), sorted(l.Programs)) && k.Per == l.Per && k.Starts == l.Starts && k.Interface == l.Interface && k.LocalNetwork == l.LocalNetwork
		}
		if slices.ContainsFunc(c.Limits, same) {
			p.fail(at(v, &Error{Key: f.key, Problem: "the same is limited twice", Allowed: "one entry for the same \"program\", \"per\", \"interface\" and \"local network\""}))
			continue
		}
		c.Limits = append(c.Limits, l)
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func (p *parse) limit(f field, n ast.Node, entries []*ast.MappingValueNode) Limit {
	l := Limit{Direction: "both"}
	known := limitKeys()
	part := func(key, allowed string) field { return field{key: f.key + " › " + key, allowed: allowed} }
	seen := make(map[string]ast.Node)
	for _, entry := range entries {
		key, ok := keyText(entry.Key)
		if !ok || !slices.Contains(known, key) {
			p.fail(at(entry.Key, &Error{Key: f.key, Value: safe(strings.TrimSpace(entry.Key.String()), shownValue), Problem: "unknown key", Allowed: quoted(known)}))
			continue
		}
		if seen[key] != nil {
			p.fail(at(entry.Key, &Error{Key: f.key, Value: strconv.Quote(key), Problem: "the key is there twice", Allowed: "each key once"}))
			continue
		}
		v := entry.Value
		seen[key] = v
		switch key {
		case limitProgram:
			l.Programs = p.limitPrograms(part(key, `the path of a program (/usr/bin/*), its name, a list of them, or "*" for all`), v)
		case limitAmount:
			g := part(key, `an amount with its unit, like "500 MB", "1.5 GB" or "10 GiB", up to 1000 PB`)
			s, ok := text(v)
			if !ok {
				p.wrong(g, v)
				break
			}
			var problem string
			if l.Bytes, problem = amount(s); problem != "" {
				p.bad(g, v, problem)
			}
			l.Text = strings.Join(strings.Fields(s), " ")
		case limitPer:
			g := part(key, `"day" or "month"`)
			if l.Per, ok = text(v); !ok {
				p.wrong(g, v)
			} else if l.Per != "day" && l.Per != "month" {
				p.bad(g, v, "unknown")
			}
		case limitInterface:
			g := part(key, `the name of a network interface, like "wwan0" or "wwan*" (see: ip link)`)
			if l.Interface, ok = text(v); !ok {
				p.wrong(g, v)
			} else if len(l.Interface) > 15 || l.Interface == "" || strings.ContainsFunc(l.Interface, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
				p.bad(g, v, "no such name is possible") // IFNAMSIZ, dev_valid_name in Linux
			}
		case limitDirection:
			g := part(key, `"both", "sent" or "received"`)
			if l.Direction, ok = text(v); !ok {
				p.wrong(g, v)
			} else if !slices.Contains([]string{"both", "sent", "received"}, l.Direction) {
				p.bad(g, v, "unknown")
			}
		case limitStarts:
			g := part(key, "a whole number from 1 to 31")
			d, ok := whole(v)
			if !ok {
				p.wrong(g, v)
			} else if d < 1 || d > 31 {
				p.bad(g, v, "out of range")
			}
			l.Starts = int(d)
		case limitLocal:
			b, ok := v.(*ast.BoolNode)
			if !ok {
				p.wrong(part(key, "true or false"), v)
				break
			}
			l.LocalNetwork = b.Value
		}
	}
	for _, key := range []string{limitAmount, limitPer} {
		if seen[key] == nil {
			p.fail(at(n, &Error{Key: f.key, Problem: fmt.Sprintf("an entry without %q", key), Allowed: f.allowed}))
		}
	}
	switch {
	case l.Per == "month":
		l.Starts = max(l.Starts, 1)
	case l.Starts != 0 && l.Per == "day":
		p.bad(part(limitStarts, `only with "per": "month"`), seen[limitStarts], "a day has no such key")
	}
	return l
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = strconv.Quote(w)
	}
	return strings.Join(q, ", ")
}

// limitPrograms reads one program or a list of them; nil: all.
func (p *parse) limitPrograms(f field, n ast.Node) []string {
	values := []ast.Node{n}
	if list, ok := n.(*ast.SequenceNode); ok {
		values = list.Values
		if len(values) == 0 || len(values) > maxPrograms {
			p.fail(at(n, &Error{Key: f.key, Problem: fmt.Sprintf("%d programs", len(values)), Allowed: fmt.Sprintf("1 to %d", maxPrograms)}))
			return nil
		}
	}
	var all []string
	for _, v := range values {
		s, ok := text(v)
		switch {
		case !ok:
			p.wrong(f, v)
		case s == "":
			p.bad(f, v, "an empty name")
		case len(s) > maxProgram || strings.ContainsFunc(s, unicode.IsControl):
			p.bad(f, v, "longer than 4096 bytes, or with a control character")
		case strings.Contains(s, "/") && !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "*"):
			p.bad(f, v, "a path that does not begin with /")
		case !slices.Contains(all, s):
			all = append(all, s)
		}
	}
	if slices.Contains(all, "*") {
		return nil
	}
	return all
}

// amount reads "1.5 GB": a decimal unit is of 1000, a binary one (GiB) of 1024.
func amount(s string) (bytes uint64, problem string) {
	parts := regexp.MustCompile(`^\s*(-?[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*$`).FindStringSubmatch(s)
	if parts == nil {
		return 0, "no amount"
	}
	scale := map[string]int64{"B": 1}
	for i, prefix := range []string{"k", "M", "G", "T", "P"} {
		decimal, binary := int64(1000), int64(1024)
		for range i {
			decimal, binary = decimal*1000, binary*1024
		}
		scale[prefix+"B"], scale[strings.ToLower(prefix)+"b"], scale[strings.ToUpper(prefix)+"B"] = decimal, decimal, decimal
		scale[strings.ToUpper(prefix)+"iB"], scale[strings.ToLower(prefix)+"ib"] = binary, binary
	}
	unit, ok := scale[parts[2]]
	switch {
	case parts[2] == "":
		return 0, "an amount without a unit"
	case !ok && strings.HasSuffix(parts[2], "b"):
		return 0, "a unit of bits, or one that is not known"
	case !ok:
		return 0, "a unit that is not known"
	}
	r, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return 0, "no amount"
	}
	r.Mul(r, new(big.Rat).SetInt64(unit))
	n := new(big.Int).Quo(r.Num(), r.Denom())
	if n.Sign() <= 0 || n.Cmp(big.NewInt(MaxLimit)) > 0 {
		return 0, "out of range"
	}
	return n.Uint64(), ""
}
