package rollup

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// Versions of a BLOB: its first byte. In the first one all columns are varints; nothing writes it any more.
const (
	versionVarints = 1
	version        = 2
)

// A column is a sequence of numbers of few widths in bits: its first byte says how many bits of a code say which of the widths a number has
// (0: one width, 1: two, 2: four), then come the widths, a byte each, then the codes of all numbers, from the lowest bit of a byte on, then,
// from the next byte on, the numbers themselves, bit after bit. So a loop without a branch reads them, several times as fast as varints, whose
// lengths no processor can foresee, and they take less. A column with a number of more than maxWidth bits is varints (encoding/binary).
const (
	maxCode  = 2
	varints  = 0xff
	maxWidth = 56 // that many bits are within eight bytes, wherever in the first of them they begin
	padding  = 8  // bytes after the last column: a number is read as eight of them
)

// maxRows bounds what a damaged BLOB can make a reader reserve. A writer's steps are much smaller.
const maxRows = 1 << 20

// number is what a column is read into.
type number interface{ ~int64 | ~uint64 }

func zigzag(v int64) uint64  { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(v int64) int64 { return int64(uint64(v)>>1) ^ -(v & 1) }

func pack(rows int, columns ...[]uint64) []byte {
	b := binary.AppendUvarint([]byte{version}, uint64(rows))
	var c []byte
	for _, values := range columns {
		c = appendColumn(c[:0], values)
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	return append(b, make([]byte, padding)...)
}

func appendColumn(b []byte, values []uint64) []byte {
	var lengths [65]int // how many numbers have so many bits
	longest := 0
	for _, v := range values {
		n := bits.Len64(v)
		lengths[n]++
		longest = max(longest, n)
	}
	if longest > maxWidth {
		b = append(b, varints)
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	code, widths := chooseWidths(lengths[:longest+1])
	b = append(b, byte(code))
	for _, w := range widths {
		b = append(b, byte(w))
	}
	codes := len(b)
	b = append(b, make([]byte, (len(values)*code+7)/8)...)
	var held uint64 // bits that make no byte yet
	n := 0
	for i, v := range values {
		c := 0
		for bits.Len64(v) > widths[c] {
			c++
		}
		if code > 0 {
			b[codes+i*code/8] |= byte(c << (i * code % 8))
		}
		held |= v << n
		for n += widths[c]; n >= 8; n -= 8 {
			b = append(b, byte(held))
			held >>= 8
		}
	}
	if n > 0 {
		b = append(b, byte(held))
	}
	return b
}

// chooseWidths returns the widths, ascending, that take the fewest bits, and how many bits a code has.
func chooseWidths(lengths []int) (code int, widths []int) {
	longest := len(lengths) - 1
	upTo := make([]int, len(lengths)+1) // how many numbers have less than so many bits
	for n, count := range lengths {
		upTo[n+1] = upTo[n] + count
	}
	// cost[k][w] is what all numbers of up to w bits take with k+1 widths, the last of which is w; before[k][w] is the one before it.
	var cost, before [1 << maxCode][maxWidth + 1]int
	for w := range lengths {
		cost[0][w] = upTo[w+1] * w
	}
	for k := 1; k < len(cost); k++ {
		for w := range lengths {
			cost[k][w] = math.MaxInt
			for v := 0; v <= w; v++ {
				if c := cost[k-1][v] + (upTo[w+1]-upTo[v+1])*w; c < cost[k][w] {
					cost[k][w], before[k][w] = c, v
				}
			}
		}
	}
	size := func(code int) int { return 8<<code + upTo[longest+1]*code + cost[1<<code-1][longest] }
	for c := 1; c <= maxCode; c++ {
		if size(c) < size(code) {
			code = c
		}
	}
	widths = make([]int, 1<<code)
	w := longest
	for k := len(widths) - 1; k >= 0; k-- {
		widths[k] = w
		w = before[k][w]
	}
	return code, widths
}

// rows are what is left to read of a BLOB.
type rows struct {
	b       []byte
	n       int
	version byte
	err     error
}

func open(b []byte) rows {
	if len(b) == 0 || (b[0] != version && b[0] != versionVarints) {
		return rows{err: ErrFormat}
	}
	n, k := binary.Uvarint(b[1:])
	// Of several rows, no two are the same: each takes a bit at least.
	if k <= 0 || n > maxRows || n > 8*uint64(len(b)) {
		return rows{err: ErrFormat}
	}
	return rows{b: b[1+k:], n: int(n), version: b[0]}
}

// next returns the next column, and it with all that comes after it.
func (r *rows) next() (column, rest []byte) {
	n, k := binary.Uvarint(r.b)
	if r.err != nil || k <= 0 || n > uint64(len(r.b)-k) {
		r.err = ErrFormat
		return nil, nil
	}
	rest = r.b[k:]
	r.b = rest[n:]
	return rest[:n], rest
}

// read reads a column into a slice that is used again.
func read[T number](r *rows, into []T) []T {
	c, rest := r.next()
	if r.err != nil {
		return into[:0]
	}
	into = slices.Grow(into[:0], r.n)[:r.n]
	ok := false
	switch {
	case r.version == versionVarints:
		ok = readVarints(c, into)
	case len(c) == 0:
	case c[0] == varints:
		ok = readVarints(c[1:], into)
	default:
		ok = readBits(c, rest, into)
	}
	if !ok {
		r.err = ErrFormat
		return into[:0]
	}
	return into
}

func readVarints[T number](c []byte, into []T) bool {
	for k := range into {
		v, n := binary.Uvarint(c)
		if n <= 0 || v > math.MaxInt64 {
			return false
		}
		into[k] = T(v)
		c = c[n:]
	}
	return len(c) == 0
}

// readBits reads a column; b begins with it and has at least eight bytes more.
func readBits[T number](c, b []byte, into []T) bool {
	code := int(c[0])
	if code > maxCode || len(c) < 1+1<<code {
		return false
	}
	var widths, masks [1 << maxCode]uint64
	for i, w := range c[1 : 1+1<<code] {
		if w > maxWidth {
			return false
		}
		widths[i], masks[i] = uint64(w), 1<<w-1
	}
	begin := 1 + 1<<code
	codes := b[begin:]
	begin += (len(into)*code + 7) / 8
	if begin > len(c) {
		return false
	}
	b = b[begin:]
	at := uint64(0) // in bits
	if code == 0 {
		w, mask := widths[0], masks[0]
		if size := (uint64(len(into))*w + 7) / 8; size != uint64(len(c)-begin) || size+padding > uint64(len(b)) {
			return false
		}
		for k := range into {
			i := at >> 3
			into[k] = T(binary.LittleEndian.Uint64(b[i:i+8]) >> (at & 7) & mask)
			at += w
		}
		return true
	}
	few := byte(1)<<code - 1
	for k := range into {
		i := at >> 3
		if i+8 > uint64(len(b)) {
			return false
		}
		j := k * code
		which := codes[j>>3] >> (j & 7) & few & (1<<maxCode - 1)
		into[k] = T(binary.LittleEndian.Uint64(b[i:i+8]) >> (at & 7) & masks[which])
		at += widths[which]
	}
	return (at+7)/8 == uint64(len(c)-begin)
}
