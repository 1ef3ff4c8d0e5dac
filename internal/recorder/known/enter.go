package known

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
)

// Keys of record.json.
const (
	executables       = "Executables"
	names             = "Names"
	parentExecutables = "Parent Executables"
	parentNames       = "Parent Names"
	hashes            = "SHA256"
)

// meet enters a name and an executable and says what of it is new, in the words of exe.log, or "".
func (k *Known) meet(n *news, byName, byExe, name, exe string) string {
	var fresh []string
	if k.enter(n, entry{In: byName, Key: name, Value: exe}) {
		fresh = append(fresh, "name")
	}
	if k.enter(n, entry{In: byExe, Key: exe, Value: name}) {
		fresh = append(fresh, "exe")
	}
	if len(fresh) == 0 {
		return ""
	}
	return "(new " + strings.Join(fresh, ", ") + ")"
}

// enter enters something into the record and reports whether its key is new.
func (k *Known) enter(n *news, e entry) bool {
	list, known := k.list(e.In)[e.Key]
	if known && (slices.Contains(list, e.Value) || len(list) >= maxNames) {
		return false
	}
	if k.isFull(e) {
		return !known && k.overflows(e)
	}
	k.apply(e)
	n.Entries = append(n.Entries, e)
	return !known
}

func (k *Known) list(in string) map[string][]string {
	switch in {
	case names:
		return k.r.Names
	case executables:
		return k.r.Executables
	case parentNames:
		return k.r.ParentNames
	}
	return k.r.ParentExecutables
}

// isFull reports whether the record has no room, and says so once.
func (k *Known) isFull(e entry) bool {
	if k.bytes+len(e.Key)+len(e.Value)+entryCost+valueCost <= maxBytes {
		return false
	}
	if !k.full {
		k.full = true
		k.problem("full", fmt.Sprintf("record.json is full (%d executables): what is new from now on is told and is in exe.log, but is not remembered", len(k.r.Executables)), "does a program run from ever new paths? Stop picosnitch, move record.json away and start it again")
	}
	return true
}

// overflows reports whether something that found the record full is new.
func (k *Known) overflows(e entry) bool {
	h := maphash.Comparable(k.seed, e)
	if _, ok := k.overflow[h]; ok {
		return false
	}
	if len(k.overflow) >= maxOverflow {
		clear(k.overflow)
	}
	k.overflow[h] = struct{}{}
	return true
}

// apply puts an entry into the record.
func (k *Known) apply(e entry) {
	k.dirty = true
	if e.In == hashes {
		m := k.r.SHA256[e.Key]
		if m == nil {
			m = make(map[string]string)
			k.r.SHA256[e.Key] = m
			k.bytes += len(e.Key) + entryCost
		}
		if old, ok := m[e.Value]; ok {
			k.bytes += len(e.Also) - len(old)
		} else {
			k.bytes += len(e.Value) + len(e.Also) + valueCost
		}
		m[e.Value] = e.Also
		for sum, result := range m {
			if len(m) <= maxHashes {
				break
			}
			if sum != e.Value && sum != k.current[e.Key] && (result == Pending || result == NoKey) {
				delete(m, sum)
				k.bytes -= len(sum) + len(result) + valueCost
			}
		}
		return
	}
	m := k.list(e.In)
	list, ok := m[e.Key]
	if !ok {
		k.bytes += len(e.Key) + entryCost
	}
	if !slices.Contains(list, e.Value) {
		m[e.Key] = append(list, e.Value)
		k.bytes += len(e.Value) + valueCost
	}
}
