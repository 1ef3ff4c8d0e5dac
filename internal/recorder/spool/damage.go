package spool

import (
	"os"
	"path/filepath"
	"strings"
)

// tidy takes what cannot be read off the files, and renames those of which nothing can be used. Who cannot do it counts it again at the next start.
func (s *Spool) tidy() {
	for _, g := range s.segments {
		if info, err := g.f.Stat(); err == nil && info.Size() > g.size {
			_ = g.f.Truncate(g.size)
		}
	}
	for _, name := range s.lost.Aside {
		_ = os.Rename(filepath.Join(s.dir, strings.TrimSuffix(name, aside)), filepath.Join(s.dir, name))
	}
}

const aside = ".damaged" // of the name of a file that was put aside

// say appends a frame that tells of losses of which no other tells yet.
func (s *Spool) say() error {
	if s.unsaid == (Count{}) {
		return nil
	}
	if s.segments[len(s.segments)-1].broken {
		if err := s.begin(); err != nil {
			return err
		}
	}
	f := Frame{At: s.clock().Unix(), Mark: s.mark, Lost: s.unsaid}
	b := appendFrame(nil, &f)
	if err := s.segments[len(s.segments)-1].append(b, &f); err != nil {
		return err
	}
	s.bytes += int64(len(b))
	s.said()
	return nil
}

// said takes note that a frame tells of all losses.
func (s *Spool) said() {
	s.unsaid = Count{}
	for _, g := range s.segments {
		g.lossy = false
	}
}

// giveUp counts what cannot be read any more, from the next frame to the end of the segment.
func (s *Spool) giveUp(g *segment) {
	left := g.left()
	s.lost.Unreadable, s.unsaid = s.lost.Unreadable.Add(left.Count), s.unsaid.Add(left.Count).Add(left.lost)
	s.lost.Damaged += g.size - g.offset
	g.done, g.number, g.offset = g.total, g.frames, g.size
	g.broken, g.lossy = true, true
}
