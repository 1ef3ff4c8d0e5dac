package known

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/event"
)

// What record.json says of a hash that VirusTotal was not asked about (yet): the words of picosnitch 0.11.
const (
	Pending = "VT Pending"
	NoKey   = "File not analyzed (no api key)"
)

// Bounds of the record.
const (
	maxFile   = 32 << 20 // bytes of a record.json that is read
	maxBytes  = 8 << 20  // bytes of texts that are kept
	maxNames  = 1 << 7   // names of one executable, executables of one name
	maxHashes = 1 << 8   // of one executable
)

// record is the content of record.json, in the order and with the keys of picosnitch 0.11. All texts went through event.Text.
type record struct {
	Executables       map[string][]string          `json:"Executables"`        // executable → names
	Names             map[string][]string          `json:"Names"`              // name → executables
	ParentExecutables map[string][]string          `json:"Parent Executables"` // likewise, of parents
	ParentNames       map[string][]string          `json:"Parent Names"`
	SHA256            map[string]map[string]string `json:"SHA256"` // executable or script → hash → VirusTotal's result
}

func newRecord() *record {
	return &record{
		Executables:       make(map[string][]string),
		Names:             make(map[string][]string),
		ParentExecutables: make(map[string][]string),
		ParentNames:       make(map[string][]string),
		SHA256:            make(map[string]map[string]string),
	}
}

// errDamaged marks a record.json that is not one.
var errDamaged = errors.New("not a record of picosnitch")

// readRecord reads record.json; a missing one is os.ErrNotExist.
func readRecord(path string) (*record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: it has more than %d bytes", errDamaged, maxFile)
	}
	return parseRecord(data)
}

// parseRecord takes a record.json in: ours, or one that picosnitch 0.11 wrote, whose texts may hold any byte.
func parseRecord(data []byte) (*record, error) {
	var raw struct {
		Executables       map[string][]any          `json:"Executables"`
		Names             map[string][]any          `json:"Names"`
		ParentExecutables map[string][]any          `json:"Parent Executables"`
		ParentNames       map[string][]any          `json:"Parent Names"`
		SHA256            map[string]map[string]any `json:"SHA256"`
	}
	if err := json.Unmarshal(escapeInvalid(data), &raw); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if raw.Executables == nil && raw.Names == nil && raw.SHA256 == nil && !bytes.Equal(bytes.TrimSpace(data), []byte("{}")) {
		return nil, fmt.Errorf("%w: it has none of its keys", errDamaged)
	}
	r := newRecord()
	for _, m := range []struct {
		from map[string][]any
		to   map[string][]string
	}{
		{raw.Executables, r.Executables},
		{raw.Names, r.Names},
		{raw.ParentExecutables, r.ParentExecutables},
		{raw.ParentNames, r.ParentNames},
	} {
		for key, list := range m.from {
			texts := []string{}
			for _, v := range list {
				if s, ok := v.(string); ok && len(texts) < maxNames {
					texts = append(texts, printable(s))
				}
			}
			m.to[printable(key)] = texts
		}
	}
	for path, hashes := range raw.SHA256 {
		results := make(map[string]string, len(hashes))
		for sum, v := range hashes {
			if len(results) >= maxHashes {
				break
			}
			result := ""
			switch v := v.(type) {
			case nil:
			case string:
				result = printable(v)
			default:
				if b, err := json.Marshal(v); err == nil {
					result = printable(string(b))
				}
			}
			results[printable(sum)] = result
		}
		r.SHA256[printable(path)] = results
	}
	return r, nil
}

// escapeInvalid makes bytes that are no UTF-8 the JSON for what event.Text makes of them.
func escapeInvalid(data []byte) []byte {
	if utf8.Valid(data) {
		return data
	}
	var b bytes.Buffer
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\\x%02x`, data[0])
		} else {
			b.Write(data[:n])
		}
		data = data[n:]
	}
	return b.Bytes()
}

// printable makes a text of record.json what event.Text gives. What looks as if it went through event.Text is left as it is:
// picosnitch 0.11 wrote names as they were, this one as they are shown, and for all but names with odd backslashes
// that is the same.
func printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if n := escaped(s); n > 0 {
			b.WriteString(s[:n])
			s = s[n:]
			continue
		}
		_, n := utf8.DecodeRuneInString(s)
		b.WriteString(event.Text([]byte(s[:n])))
		s = s[n:]
	}
	return b.String()
}

// escaped is the length of the escape of event.Text that s begins with, or 0.
func escaped(s string) int {
	hex := func(s string) int {
		return len(s) - len(strings.TrimLeft(s, "0123456789abcdef"))
	}
	switch {
	case strings.HasPrefix(s, `\\`):
		return 2
	case strings.HasPrefix(s, `\x`) && hex(s[2:min(4, len(s))]) == 2:
		return 4
	case strings.HasPrefix(s, `\u{`):
		if n := hex(s[3:]); n > 0 && n <= 8 && strings.HasPrefix(s[3+n:], "}") {
			return n + 4
		}
	}
	return 0
}

// size is the bytes of the texts.
func (r *record) size() int {
	n := 0
	for _, m := range []map[string][]string{r.Executables, r.Names, r.ParentExecutables, r.ParentNames} {
		for k, list := range m {
			n += len(k) + entryCost
			for _, v := range list {
				n += len(v) + valueCost
			}
		}
	}
	for k, hashes := range r.SHA256 {
		n += len(k) + entryCost
		for sum, v := range hashes {
			n += len(sum) + len(v) + valueCost
		}
	}
	return n
}

// About what an entry and a value cost besides their texts, in bytes.
const (
	entryCost = 96
	valueCost = 48
)

// bytes is the file: as Python's json.dump writes it with indent 2, sorted keys and no ASCII escapes.
func (r *record) bytes() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// writeAtomic replaces a file: whoever reads it sees the old or the new one, also after a power cut.
func writeAtomic(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o640)) // whatever the umask: the group reads
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync() // the name; a file system that cannot has nothing to do
		d.Close()
	}
	return nil
}

// setAside gives a damaged file another name and returns that.
func setAside(path string, at int64) (string, error) {
	aside := path + ".damaged-" + time.Unix(0, at).UTC().Format("20060102-150405")
	return filepath.Base(aside), os.Rename(path, aside)
}
