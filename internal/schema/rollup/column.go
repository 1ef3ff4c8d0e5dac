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

// maxRows bounds what a damaged BLOB can make a reader reserve. A writer's steps are much smaller; Encode refuses more.
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

// read reads a column into a slice that is used again. Of rows whose group is 0, none, anything may be read; no groups: all
// are read.
func read[T number](r *rows, into []T, groups []int32) []T {
	c, rest := r.next()
	if r.err != nil {
		return into[:0]
	}
	into = slices.Grow(into[:0], r.n)[:r.n]
	if len(groups) != r.n {
		groups = nil
	}
	ok := false
	switch {
	case r.version == versionVarints:
		ok = readVarints(c, into)
	case len(c) == 0:
	case c[0] == varints:
		ok = readVarints(c[1:], into)
	default:
		ok = readBits(c, rest, into, groups)
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
func readBits[T number](c, b []byte, into []T, groups []int32) bool {
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
	size := uint64(len(c) - begin) // of the numbers, in bytes
	if size+padding > uint64(len(b)) {
		return false
	}
	switch code {
	case 0:
		return (uint64(len(into))*widths[0]+7)/8 == size && readEven(b[:size+padding], widths[0], into)
	case maxCode:
		return readFours(codes, b[:size+padding], &widths, &masks, into, groups) == size
	}
	return readPairs(codes, b[:size+padding], &widths, &masks, into) == size
}

// readEven reads numbers of one width.
func readEven[T number](b []byte, w uint64, into []T) bool {
	at, mask := uint64(0), uint64(1)<<w-1
	k := 0
	if w <= 14 { // four at once: with the seven bits before them they are within eight bytes
		for ; k+4 <= len(into); k += 4 {
			i := at >> 3
			if i+8 > uint64(len(b)) {
				return false
			}
			v := binary.LittleEndian.Uint64(b[i:]) >> (at & 7)
			four := into[k : k+4 : k+4]
			four[0] = T(v & mask)
			v >>= w
			four[1] = T(v & mask)
			v >>= w
			four[2] = T(v & mask)
			four[3] = T(v >> w & mask)
			at += 4 * w
		}
	}
	for ; k < len(into); k++ {
		i := at >> 3
		if i+8 > uint64(len(b)) {
			return false
		}
		into[k] = T(binary.LittleEndian.Uint64(b[i:]) >> (at & 7) & mask)
		at += w
	}
	return true
}

const damaged = math.MaxUint64

// readFours reads numbers of four widths: a byte of codes is of four numbers. It returns how many bytes they take, or damaged.
func readFours[T number](codes, b []byte, widths, masks *[1 << maxCode]uint64, into []T, groups []int32) uint64 {
	at := uint64(0)
	k := 0
	codes = codes[:(len(into)+3)/4]
	for _, c := range codes[:len(into)/4] {
		c0, c1, c2, c3 := c&3, c>>2&3, c>>4&3, c>>6
		at1 := at + widths[c0]
		at2 := at1 + widths[c1]
		at3 := at2 + widths[c2]
		if at3>>3+8 > uint64(len(b)) {
			return damaged
		}
		if groups != nil {
			if g := groups[k : k+4 : k+4]; g[0]|g[1]|g[2]|g[3] == 0 {
				at = at3 + widths[c3]
				k += 4
				continue
			}
		}
		four := into[k : k+4 : k+4]
		four[0] = T(binary.LittleEndian.Uint64(b[at>>3:]) >> (at & 7) & masks[c0])
		four[1] = T(binary.LittleEndian.Uint64(b[at1>>3:]) >> (at1 & 7) & masks[c1])
		four[2] = T(binary.LittleEndian.Uint64(b[at2>>3:]) >> (at2 & 7) & masks[c2])
		four[3] = T(binary.LittleEndian.Uint64(b[at3>>3:]) >> (at3 & 7) & masks[c3])
		at = at3 + widths[c3]
		k += 4
	}
	for ; k < len(into); k++ {
		if at>>3+8 > uint64(len(b)) {
			return damaged
		}
		c := codes[k/4] >> (k % 4 * 2) & 3
		into[k] = T(binary.LittleEndian.Uint64(b[at>>3:]) >> (at & 7) & masks[c])
		at += widths[c]
	}
	return (at + 7) / 8
}

// readPairs reads numbers of two widths.
func readPairs[T number](codes, b []byte, widths, masks *[1 << maxCode]uint64, into []T) uint64 {
	at := uint64(0)
	for k := range into {
		if at>>3+8 > uint64(len(b)) {
			return damaged
		}
		c := codes[k/8] >> (k % 8) & 1
		into[k] = T(binary.LittleEndian.Uint64(b[at>>3:]) >> (at & 7) & masks[c])
		at += widths[c]
	}
	return (at + 7) / 8
}
