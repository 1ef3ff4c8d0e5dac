package fanotify

import "time"

// lane is a part of the namespaces that are to be looked at, and its walkers. Its owners are served in turn. walks.mu guards it.
type lane struct {
	waitMax, walkMax int                 // per owner: that wait, and that are walked at once
	lines            map[owner][]walk    // oldest first, none is empty
	turn             []owner             // of lines, who is next first
	waits            map[place]bool      // what is in lines
	begun            map[*walk]time.Time // by walkers, now
}

// place is a namespace, asked for through processes whose owner was the same: one that was unknown must not stand for one that is not.
type place struct {
	ns    uint32
	owner owner
}

func newLane(waitMax, walkMax int) *lane {
	return &lane{
		waitMax: waitMax, walkMax: walkMax,
		lines: map[owner][]walk{}, waits: map[place]bool{}, begun: map[*walk]time.Time{},
	}
}

// add reports whether there was room; what waits already needs none.
func (l *lane) add(w walk) bool {
	at, line := place{w.ns, w.owner}, l.lines[w.owner]
	if l.waits[at] {
		return true
	}
	if len(line) >= l.waitMax || len(l.waits) >= walksMax {
		return false
	}
	if len(line) == 0 {
		l.turn = append(l.turn, w.owner)
	}
	l.lines[w.owner], l.waits[at] = append(line, w), true
	return true
}

// next takes what a walker is to look at, or nil: of the next owner who has not as many walkers as he may.
func (l *lane) next() *walk {
	for range len(l.turn) {
		of := l.turn[0]
		l.turn = append(l.turn[1:], of)
		if l.walkersOf(of) >= l.walkMax {
			continue
		}
		this := l.lines[of][0]
		delete(l.waits, place{this.ns, of})
		if l.lines[of] = l.lines[of][1:]; len(l.lines[of]) == 0 {
			delete(l.lines, of)
			l.turn = l.turn[:len(l.turn)-1]
		}
		return &this
	}
	return nil
}

// giveUp takes all that waited since before a time.
func (l *lane) giveUp(before time.Time) (late []walk) {
	turn := l.turn[:0]
	for _, of := range l.turn {
		line := l.lines[of]
		for len(line) > 0 && line[0].since.Before(before) {
			delete(l.waits, place{line[0].ns, of})
			late, line = append(late, line[0]), line[1:]
		}
		if len(line) == 0 {
			delete(l.lines, of)
			continue
		}
		l.lines[of] = line
		turn = append(turn, of)
	}
	l.turn = turn
	return late
}

func (l *lane) walkersOf(of owner) (n int) {
	for b := range l.begun {
		if b.owner == of {
			n++
		}
	}
	return n
}

// hangs reports whether a walker is in a namespace.
func (l *lane) hangs(ns uint32) bool {
	for b := range l.begun {
		if b.ns == ns {
			return true
		}
	}
	return false
}

// slow counts the walkers that began before a time.
func (l *lane) slow(before time.Time) (n int) {
	for _, at := range l.begun {
		if at.Before(before) {
			n++
		}
	}
	return n
}
