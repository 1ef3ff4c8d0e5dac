package event

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":               "",
		"plain":          "plain",
		"é 世界 😀":         "é 世界 😀",
		`a\b`:            `a\\b`,
		`\x41`:           `\\x41`,
		"a\x00b\n\x1b":   `a\u{0}b\u{a}\u{1b}`,
		"\x7f\u0085":     `\u{7f}\u{85}`,
		"\xff\xc3(":      `\xff\xc3(`,
		"\xed\xa0\x80":   `\xed\xa0\x80`,
		"\ufffd":         "\ufffd",
		"\u202e\u2028":   `\u{202e}\u{2028}`,
		"\u00a0\u200b":   `\u{a0}\u{200b}`,
		"\U000f0000":     `\u{f0000}`,
		"<b>'; DROP --":  "<b>'; DROP --",
		"\u0301combined": "\u0301combined",
	} {
		if got := Text([]byte(in)); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}

// unText is the way back. That there is one is the proof that no two inputs become one.
func unText(s string) ([]byte, bool) {
	var b []byte
	for len(s) > 0 {
		switch {
		case strings.HasPrefix(s, `\\`):
			b, s = append(b, '\\'), s[2:]
		case strings.HasPrefix(s, `\x`) && len(s) >= 4:
			h, l := strings.IndexByte(hexDigit, s[2]), strings.IndexByte(hexDigit, s[3])
			if h < 0 || l < 0 {
				return nil, false
			}
			b, s = append(b, byte(h<<4|l)), s[4:]
		case strings.HasPrefix(s, `\u{`):
			end := strings.IndexByte(s, '}')
			if end < 0 {
				return nil, false
			}
			r := rune(0)
			for _, c := range []byte(s[3:end]) {
				r = r<<4 | rune(strings.IndexByte(hexDigit, c))
			}
			b, s = utf8.AppendRune(b, r), s[end+1:]
		case s[0] == '\\':
			return nil, false
		default:
			b, s = append(b, s[0]), s[1:]
		}
	}
	return b, true
}

func checkText(t interface{ Fatalf(string, ...any) }, in []byte) {
	got := Text(in)
	if !utf8.ValidString(got) {
		t.Fatalf("Text(%q) = %q is not UTF-8", in, got)
	}
	for _, r := range got {
		if r != ' ' && !unicode.IsPrint(r) {
			t.Fatalf("Text(%q) = %q holds %U", in, got, r)
		}
	}
	if back, ok := unText(got); !ok || string(back) != string(in) {
		t.Fatalf("Text(%q) = %q, and back: %q", in, got, back)
	}
}

func TestTextInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.OneOf(
			rapid.SliceOfN(rapid.Byte(), 0, 4),
			rapid.Map(rapid.Rune(), func(r rune) []byte { return utf8.AppendRune(nil, r) }),
			rapid.SampledFrom([][]byte{[]byte(`\`), []byte(`\x4`), []byte(`\u{41}`), []byte("\u202e"), {0}, {0xff}}),
		)
		var in []byte
		for _, p := range rapid.SliceOf(piece).Draw(t, "pieces") {
			in = append(in, p...)
		}
		checkText(t, in)
	})
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", `\`, `\x41`, "\xff", "\u202e", "a\x00", "\U0010ffff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) { checkText(t, in) })
}

func TestRaw(t *testing.T) {
	t.Parallel()
	for _, s := range []string{`\`, `\x`, `\xg0`, `\u{`, `\u{110000}`, `\u{d800}`, `\u{zz}`, `\n`, `a\`, `\u{}`} {
		if b, ok := Raw(s); ok {
			t.Errorf("Raw(%q) is %q", s, b)
		}
	}
}

func FuzzRaw(f *testing.F) {
	for _, s := range []string{"", "/usr/bin/x", "a\\b\n\xff\u202e", "\\u{a}", "\xef\xbf\xbd", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if raw, ok := Raw(Text(b)); !ok || string(raw) != string(b) {
			t.Errorf("Raw(Text(%q)) is %q, %v", b, raw, ok)
		}
	})
}
