package country

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
)

// text is the pair of files of tor-geoipdb: lines of the first and the last address and a code, ascending. In geoip addresses are
// decimal numbers, in geoip6 they are written as such.
type text struct {
	path  string
	four  []span
	six   []span
	sixed bool // six is read
}

// span is packed: there are 660,000.
type span struct {
	first, last [16]byte
	code        [2]byte
}

// maxSpans bounds the lines of one file; tor-geoipdb has 400,000.
const maxSpans = 1 << 23

func openText(path string) (*text, error) {
	four, err := readSpans(path, func(s string) (netip.Addr, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), err
	})
	if err != nil {
		return nil, err
	}
	return &text{path: path, four: four}, nil
}

func readSpans(path string, address func(string) (netip.Addr, error)) ([]span, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	all := make([]span, 0, min(st.Size()/20, maxSpans)) // lines have 25 characters and more
	lines := bufio.NewScanner(io.LimitReader(f, maxFile))
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		from, rest, _ := bytes.Cut(line, []byte{','})
		to, code, ok := bytes.Cut(rest, []byte{','})
		if !ok || len(code) != 2 {
			return nil, fmt.Errorf("line %d is not \"first,last,code\"", n)
		}
		a, err := address(string(from))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		b, err := address(string(to))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		first, last := a.As16(), b.As16()
		switch {
		case compare(last, first) < 0, len(all) > 0 && compare(all[len(all)-1].last, first) >= 0:
			return nil, fmt.Errorf("line %d is not in ascending order", n)
		case len(all) >= maxSpans:
			return nil, fmt.Errorf("it has more than %d lines", maxSpans)
		}
		all = append(all, span{first, last, [2]byte(code)})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no address")
	}
	return all, nil
}

func compare(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

func (t *text) code(a netip.Addr) (string, error) {
	spans := t.four
	if a.Is6() {
		if !t.sixed {
			t.sixed = true // an error is told once
			six, err := readSpans(t.path+"6", netip.ParseAddr)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return "", fmt.Errorf("%s6: %w", t.path, err)
			}
			t.six = six
		}
		spans = t.six
	}
	wanted := a.As16()
	i, exact := slices.BinarySearchFunc(spans, wanted, func(s span, a [16]byte) int { return compare(s.first, a) })
	if !exact {
		i--
	}
	if i < 0 || compare(spans[i].last, wanted) < 0 {
		return "", nil
	}
	return string(spans[i].code[:]), nil
}

func (*text) close() error { return nil }
