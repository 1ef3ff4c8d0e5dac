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

// Raw undoes Text. False: Text did not make it.
func Raw(text string) ([]byte, bool) {
	raw := make([]byte, 0, len(text))
	for rest := text; rest != ""; {
		if rest[0] != '\\' {
			raw = append(raw, rest[0])
			rest = rest[1:]
			continue
		}
		b, n := unescape(rest)
		if n == 0 {
			return nil, false
		}
		raw = append(raw, b...)
		rest = rest[n:]
	}
	return raw, true
}

// unescape reads one of \\, \xNN and \u{N} at the beginning of s, and how long it is; 0: there is none.
func unescape(s string) ([]byte, int) {
	switch {
	case len(s) >= 2 && s[1] == '\\':
		return []byte{'\\'}, 2
	case len(s) >= 4 && s[1] == 'x':
		if v, err := strconv.ParseUint(s[2:4], 16, 8); err == nil {
			return []byte{byte(v)}, 4
		}
	case len(s) >= 5 && s[1] == 'u' && s[2] == '{':
		for i := 3; i < len(s) && i < 12; i++ {
			if s[i] != '}' {
				continue
			}
			if v, err := strconv.ParseUint(s[3:i], 16, 21); err == nil {
				return []byte(string(rune(v))), i + 1
			}
			break
		}
	}
	return nil, 0
}
