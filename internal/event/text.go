package event

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text makes bytes that strangers chose (names, arguments, paths, domains) printable UTF-8, by escaping and
// never by dropping or replacing, so that two different inputs never become one: a backslash becomes \\, a byte
// that is not valid UTF-8 becomes \xNN, and a character that does not print (control, bidirectional
// override, line separator, private use) becomes \u{N}. Applied once, at the edge where the bytes enter.
func Text(b []byte) string {
	plain := true
	for _, c := range b {
		if c < 0x20 || c >= 0x7f || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return string(b)
	}
	var s strings.Builder
	s.Grow(len(b) + 8)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			s.WriteString(`\x`)
			s.WriteByte(hexDigit[b[0]>>4])
			s.WriteByte(hexDigit[b[0]&15])
		case r == '\\':
			s.WriteString(`\\`)
		case r == ' ' || unicode.IsPrint(r):
			s.WriteRune(r)
		default:
			s.WriteString(`\u{`)
			writeHex(&s, uint32(r))
			s.WriteByte('}')
		}
		b = b[n:]
	}
	return s.String()
}

const hexDigit = "0123456789abcdef"

func writeHex(s *strings.Builder, v uint32) {
	shift := 28
	for shift > 0 && v>>shift == 0 {
		shift -= 4
	}
	for ; shift >= 0; shift -= 4 {
		s.WriteByte(hexDigit[v>>shift&15])
	}
}

// Raw undoes Text. False: s is not something that Text gives.
func Raw(s string) ([]byte, bool) {
	if !strings.Contains(s, `\`) {
		return []byte(s), true
	}
	raw := make([]byte, 0, len(s))
	for s != "" {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			return append(raw, s...), true
		}
		raw, s = append(raw, s[:i]...), s[i:]
		switch {
		case strings.HasPrefix(s, `\\`):
			raw, s = append(raw, '\\'), s[2:]
		case strings.HasPrefix(s, `\x`) && len(s) >= 4:
			v, err := strconv.ParseUint(s[2:4], 16, 8)
			if err != nil {
				return nil, false
			}
			raw, s = append(raw, byte(v)), s[4:]
		case strings.HasPrefix(s, `\u{`):
			digits, rest, found := strings.Cut(s[3:], "}")
			v, err := strconv.ParseUint(digits, 16, 21)
			if !found || err != nil || !utf8.ValidRune(rune(v)) {
				return nil, false
			}
			raw, s = utf8.AppendRune(raw, rune(v)), rest
		default:
			return nil, false
		}
	}
	return raw, true
}
