package known

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// TestTakeOver: a record that picosnitch 0.11 wrote is known, and is written back in its shape.
func TestTakeOver(t *testing.T) {
	old, err := os.ReadFile("testdata/record-0.11.json")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: t.TempDir(), at: t0}
	if err := os.WriteFile(filepath.Join(b.dir, "record.json"), old, 0o644); err != nil {
		t.Fatal(err)
	}
	b.open()
	if b.k.First() {
		t.Error("a record that is there counts as a first run")
	}
	text := func(s string) string { return event.Text([]byte(s)) }
	ab, cd := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	known := func(path, name, sum string) {
		p := program(text(path), text(name), 0, nil)
		p.Executable.Digest.SHA256, p.Executable.Digest.Reason = sum, "none"
		b.seen(p)
	}
	known("/usr/bin/curl", "curl", ab)
	known("/home/u/Ünï/a b", "日本", "")
	known("/opt/x\xff", "x\xff", strings.Repeat("01", 32))
	known(`/opt/back\slash`, `b\q`, "")
	known(`/opt/"quote"`, `<b>&'`, "")
	if len(b.told) != 0 || b.log() != "" {
		t.Errorf("what was known is new: %s\n%s", b.kinds(), b.log())
	}
	b.k.Close(b.at)
	if got := b.read("record.json"); got != string(old) {
		t.Error("the record was written although nothing changed")
	}
	b.open()
	known("/usr/bin/curl", "curl", cd)
	if len(b.told) != 1 || b.told[0].Kind != notify.Changed || b.told[0].Before != ab {
		t.Errorf("%+v", b.told)
	}
	b.k.Close(b.at)
	// The same bytes but for the new hash, and for texts that are not printable as they stand.
	want := strings.Replace(string(old), "undetected': 70}\"\n", "undetected': 70}\",\n      \""+cd+"\": \"File not analyzed (no api key)\"\n", 1)
	want = strings.ReplaceAll(want, "x\xff", `x\\xff`)
	want = strings.ReplaceAll(want, `back\\slash`, `back\\\\slash`)
	want = strings.ReplaceAll(want, `b\\q`, `b\\\\q`)
	want = strings.Replace(want, "null", `""`, 1)
	if d := cmp.Diff(want, b.read("record.json")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// And again: our own escapes are not escaped a second time.
	b.open()
	known("/opt/x\xff", "x\xff", strings.Repeat("01", 32))
	known(`/opt/back\slash`, `b\q`, "")
	if len(b.told) != 1 {
		t.Errorf("after a restart: %s", b.kinds())
	}
}

func TestDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"empty":       "",
		"cut":         `{"Executables": {"/usr/bin/curl": ["cu`,
		"binary":      "\x00\x01\x02\xff",
		"list":        "[]",
		"other shape": `{"Executables": ["/usr/bin/curl"]}`,
		"other file":  `{"Bandwidth monitor": true}`,
		"deep":        strings.Repeat("[", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{t: t, dir: t.TempDir(), at: t0}
			if err := os.WriteFile(filepath.Join(b.dir, "record.json"), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			b.open()
			p := b.k.Problems()
			if len(p) != 1 || !strings.Contains(p[0].Text, "record.json is damaged") || !strings.Contains(p[0].Text, "record.json.damaged-20220310-151814") || !b.k.First() {
				t.Errorf("%+v", p)
			}
			if got := b.read("record.json.damaged-20220310-151814"); got != content {
				t.Error("what was set aside is not what was there")
			}
			b.seen(program("/usr/bin/curl", "curl", 1, nil))
			b.k.Close(b.at)
			if r, err := parseRecord([]byte(b.read("record.json"))); err != nil || len(r.Executables) != 1 {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	b := &bench{t: t, dir: t.TempDir(), at: t0}
	os.WriteFile(filepath.Join(b.dir, "record.json"), []byte("{}"), 0o644)
	if b.open(); len(b.k.Problems()) != 0 || b.k.First() {
		t.Error("an empty record is damaged, or none")
	}
	// Bigger than what is read.
	b = &bench{t: t, dir: t.TempDir(), at: t0}
	f, err := os.Create(filepath.Join(b.dir, "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(maxFile + 1)
	f.Close()
	if b.open(); len(b.k.Problems()) != 1 {
		t.Error("a file that is too big is read")
	}
}

func FuzzParseRecord(f *testing.F) {
	old, err := os.ReadFile("testdata/record-0.11.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(old)
	for _, s := range []string{"{}", "", "null", `{"SHA256":{"a":{"b":1}}}`, `{"Names":{"\\x4":["\\u{1"]}}`, "{\"Names\":{\"\xff\":[\"\\\\\"]}}", `{"Names":{"\udbff\udffe":null}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if (err == nil) != (r != nil) {
			t.Fatal("a value xor an error")
		}
		if err != nil {
			return
		}
		out, err := r.bytes()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRecord(out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v: %s", err, out)
		}
		if d := cmp.Diff(r, again, cmp.AllowUnexported(record{})); d != "" {
			t.Fatal(d)
		}
	})
}
