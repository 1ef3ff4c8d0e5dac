package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
)

// A segment is a file of the spool: a header (magic, chain, mark) and frames (fixed header, mark, payload). All numbers are little
// endian. The header of a frame has a checksum of its own, so that a damaged payload does not cost the frames after it.
const (
	suffix      = ".spool"
	magic       = "picospl1"
	headSize    = len(magic) + 16 + 4 + 4 // and the mark
	frameHead   = 76                      // 7 numbers of 8 bytes, 5 of 4
	maxMark     = 64 << 10
	maxPayload  = 256 << 20
	headerSum   = 72 // bytes of a frame's header that its checksum covers
	payloadSum  = 68 // where the checksum of mark and payload is
	markLength  = 56
	paySize     = 60
	notInFrames = 64 // reserved, zero
)

type segment struct {
	f     *os.File
	chain [16]byte
	since int64 // unix seconds

	// Guarded by the spool's mu, but for what read reads below size.
	size   int64 // of all whole frames and the header
	frames uint64
	total  tally
	offset int64  // of the first frame that was not delivered
	number uint64 // of the frames before it
	done   tally  // in them
	busy   bool   // a Batch of it is out
	broken bool   // nothing can be written behind it: half a frame is there, or what cannot be read
	lossy  bool   // it holds what cannot be read, of which no frame tells yet
}

// tally is what frames hold, and the losses that they tell of.
type tally struct {
	Count
	lost Count
}

func (t tally) add(u tally) tally   { return tally{t.Count.Add(u.Count), t.lost.Add(u.lost)} }
func (t tally) minus(u tally) tally { return tally{t.Count.minus(u.Count), t.lost.minus(u.lost)} }

func (g *segment) left() tally { return g.total.minus(g.done) }

func create(path string, chain [16]byte, mark []byte) (*segment, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	b := append([]byte(magic), chain[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(mark)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(mark, table()))
	b = append(b, mark...)
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(path))
	}
	return &segment{f: f, chain: chain, size: int64(len(b)), offset: int64(len(b))}, nil
}

func table() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// loaded is what is found of a segment of an earlier process.
type loaded struct {
	segment     *segment // nil: none of it can be used
	first, mark []byte   // the mark that it begins with, and that of its last frame (or the first, when it has none)
	foreign     bool     // it is of another version
	damaged     int64    // bytes that are there and cannot be used, without the half of a frame that a kill left at the end
	unreadable  tally    // what was found in them
}

// load opens a segment of an earlier process.
func load(path string) (l loaded, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return l, err
	}
	defer func() {
		if l.segment == nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return l, err
	}
	damaged := func(from int64) (loaded, error) {
		l.damaged = info.Size() - from
		l.unreadable = salvage(f, from)
		return l, nil
	}
	head := make([]byte, headSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		return damaged(0)
	}
	if string(head[:len(magic)]) != magic {
		if string(head[:len(magic)-1]) == magic[:len(magic)-1] && head[len(magic)-1] > '0' && head[len(magic)-1] <= '9' {
			l.foreign, l.damaged = true, info.Size()
			return l, nil
		}
		return damaged(0)
	}
	n := binary.LittleEndian.Uint32(head[len(magic)+16:])
	if n > maxMark {
		return damaged(0)
	}
	l.first = make([]byte, n)
	if _, err := f.ReadAt(l.first, int64(headSize)); err != nil {
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		return damaged(0)
	}
	if crc32.Checksum(l.first, table()) != binary.LittleEndian.Uint32(head[len(magic)+20:]) {
		return damaged(0)
	}
	if n > 0 {
		l.mark = l.first
	}
	g := &segment{f: f, since: info.ModTime().Unix()}
	copy(g.chain[:], head[len(magic):])
	g.size = int64(headSize) + int64(n)
	g.offset = g.size
	lastMark := int64(-1)
	var lastSize int
	for {
		h, err := g.header(g.size)
		if err != nil {
			if info.Size()-g.size >= frameHead && !errors.Is(err, io.EOF) {
				l, _ = damaged(g.size)
			}
			break
		}
		if g.size+h.size() > info.Size() {
			break // torn by a kill
		}
		if h.markLen > 0 {
			lastMark, lastSize = g.size+frameHead, h.markLen
		}
		g.size += h.size()
		g.frames++
		g.total = g.total.add(tally{h.Count, h.Lost})
	}
	if lastMark >= 0 {
		mark := make([]byte, lastSize)
		if _, err := f.ReadAt(mark, lastMark); err == nil { // else the sensor sends again what we have: better twice than never
			l.mark = mark
		}
	}
	l.segment = g
	return l, nil
}

// salvage counts what the frames hold whose headers are whole, from a place where there is none. They cannot be delivered: their numbers
// are not known, and without them nobody can say whether the server has them.
func salvage(f *os.File, from int64) (c tally) {
	const most = 64 << 20 // a segment is 8 MB, and a frame that did not fit into it
	b, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil && len(b) == 0 {
		return c
	}
	for len(b) >= frameHead {
		h, ok := parseHeader(b)
		switch {
		case !ok:
			b = b[1:]
			continue
		case h.size() > int64(len(b)):
			return c
		}
		c = c.add(tally{h.Count, h.Lost})
		b = b[h.size():]
	}
	return c
}

// header is a frame's fixed part.
type header struct {
	Count
	Lost       Count
	At         int64
	markLen    int
	payloadLen int
	sum        uint32
}

func (h *header) size() int64 { return frameHead + int64(h.markLen) + int64(h.payloadLen) }

func frameSize(f *Frame) int64 { return frameHead + int64(len(f.Mark)) + int64(len(f.Payload)) }

func appendFrame(b []byte, f *Frame) []byte {
	for _, n := range [...]uint64{f.Records, f.Sent, f.Received, f.Lost.Records, f.Lost.Sent, f.Lost.Received, uint64(f.At)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Mark)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Payload)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	sum := crc32.Update(crc32.Checksum(f.Mark, table()), table(), f.Payload)
	b = binary.LittleEndian.AppendUint32(b, sum)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[len(b)-headerSum:], table()))
	b = append(b, f.Mark...)
	return append(b, f.Payload...)
}

// header reads the header of the frame at an offset.
func (g *segment) header(offset int64) (header, error) {
	var b [frameHead]byte
	if _, err := g.f.ReadAt(b[:], offset); err != nil {
		return header{}, err
	}
	h, ok := parseHeader(b[:])
	if !ok {
		return header{}, fmt.Errorf("%s is damaged at byte %d", filepath.Base(g.f.Name()), offset)
	}
	return h, nil
}

// parseHeader reads the header at the beginning of b, which must hold it.
func parseHeader(b []byte) (h header, ok bool) {
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	h = header{
		Count:   Count{u64(0), u64(8), u64(16)},
		Lost:    Count{u64(24), u64(32), u64(40)},
		At:      int64(min(u64(48), math.MaxInt64)),
		markLen: int(u32(markLength)), payloadLen: int(u32(paySize)), sum: u32(payloadSum),
	}
	ok = u32(notInFrames) == 0 && h.markLen <= maxMark && h.payloadLen <= maxPayload && u32(headerSum) == crc32.Checksum(b[:headerSum], table())
	return h, ok
}

// read reads the frame at an offset.
func (g *segment) read(offset int64) (Frame, int64, error) {
	h, err := g.header(offset)
	if err != nil {
		return Frame{}, 0, err
	}
	b := make([]byte, h.markLen+h.payloadLen)
	if _, err := g.f.ReadAt(b, offset+frameHead); err != nil {
		return Frame{}, 0, fmt.Errorf("%s: %w", filepath.Base(g.f.Name()), err)
	}
	f := Frame{Count: h.Count, At: h.At, Lost: h.Lost, Mark: b[:h.markLen], Payload: b[h.markLen:], size: h.size()}
	if crc32.Checksum(b, table()) != h.sum {
		f.Payload = nil // its place and its counts are right
		return f, h.size(), nil
	}
	return f, h.size(), nil
}

// append writes a frame at the end.
func (g *segment) append(b []byte, f *Frame) error {
	if len(f.Mark) > maxMark || len(f.Payload) > maxPayload {
		return fmt.Errorf("spool: a frame of %d and %d bytes is too large", len(f.Mark), len(f.Payload))
	}
	if _, err := g.f.WriteAt(b, g.size); err != nil {
		if back := g.f.Truncate(g.size); back != nil {
			g.broken = true
		}
		return err
	}
	g.size += int64(len(b))
	g.frames++
	g.total = g.total.add(tally{f.Count, f.Lost})
	return nil
}
