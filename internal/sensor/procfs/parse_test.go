package procfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestParseCmdline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		raw  string
		cut  bool
		argv []string
	}{
		{"", false, nil},
		{"\x00", false, []string{""}},
		{"a", false, []string{"a"}},
		{"a\x00", false, []string{"a"}},
		{"a\x00\x00", false, []string{"a", ""}},
		{"a\x00b c\x00", false, []string{"a", "b c"}},
		{"a\x00b", true, []string{"a", "b"}},
		{"a\x00", true, []string{"a", ""}}, // the next one was cut off at its beginning
		{"a" + strings.Repeat("\x00", 100), false, []string{"a"}},
		{strings.Repeat("\x00", 100), false, []string{""}},
	} {
		if got := parseCmdline([]byte(c.raw), c.cut); !slices.Equal(got, c.argv) || (got == nil) != (c.argv == nil) {
			t.Errorf("%q: got %q, want %q", c.raw, got, c.argv)
		}
	}
}

func TestParseStatRefuses(t *testing.T) {
	t.Parallel()
	numbers := strings.Repeat(" 1", 40)
	for _, bad := range []string{
		"", "1", "()", "1 (", "1 )(", "(a) S" + numbers, "1(a) S" + numbers, "x (a) S" + numbers, "-1 (a) S" + numbers,
		"4294967296 (a) S" + numbers, "1 (a)", "1 (a) S 1 2 3", "1 (a) SS" + numbers, "1 (a) S x" + numbers,
		"1 (a) S 1 1 1 1 1 x" + numbers, "1 (a) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 99999999999999999",
	} {
		if s, err := parseStat([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: got %+v, %v; want %v", bad, s, err, ErrFormat)
		}
	}
}

func TestParseNamespace(t *testing.T) {
	t.Parallel()
	for link, want := range map[string]uint32{"mnt:[4026531841]": 4026531841, "mnt:[4294967296]": 0, "mnt:[]": 0, "mnt:[1": 0, "": 0, "mnt:[-1]": 0} {
		if got := parseNamespace(link); got != want {
			t.Errorf("%q: got %d, want %d", link, got, want)
		}
	}
}

// seeds adds a file of every fixture.
func seeds(f *testing.F, name string) {
	files, err := filepath.Glob("testdata/proc/*/" + name)
	if err != nil || len(files) == 0 {
		f.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

func FuzzParseStat(f *testing.F) {
	seeds(f, "stat")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStat(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("error %v is no %v", err, ErrFormat)
			}
			return
		}
		if !bytes.Contains(b, append(append([]byte(" ("), s.comm...), ')')) {
			t.Errorf("comm %q is not in %q", s.comm, b)
		}
		if s.start*Tick/Tick != s.start {
			t.Errorf("start %d overflows", s.start)
		}
	})
}

func FuzzParseUID(f *testing.F) {
	seeds(f, "status")
	f.Add([]byte("Name:\tUid:\t0\nUid:\t7\t7\t7\t7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if uid, err := parseUID(b); err != nil && (uid != 0 || !errors.Is(err, ErrFormat)) {
			t.Errorf("got %d, %v", uid, err)
		}
	})
}

func FuzzParseCmdline(f *testing.F) {
	seeds(f, "cmdline")
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, cut := range []bool{false, true} {
			argv := parseCmdline(b, cut)
			if (len(b) == 0) != (argv == nil) || len(argv) > len(b)+1 {
				t.Errorf("%d arguments of %q", len(argv), b)
			}
			for _, a := range argv {
				if !utf8.ValidString(a) || strings.ContainsFunc(a, unicode.IsControl) {
					t.Errorf("unsafe text %q", a)
				}
			}
		}
	})
}
