// Package config reads config.json: the mission's 16 keys with the mission's defaults. It sits on top of the
// house (daemon and cli use it, no wing does) and knows nothing of what a key does elsewhere. The file is written
// by strangers until it is proven: it is bounded, parsed without YAML's anchors, tags and merges, and every error
// names the key, the value and what is allowed. Secrets never appear in an error or a log. It does not open files
// by path: daemon does that, with the care that a folder of the user's needs.
package config

import (
	_ "embed"
	"strings"
)

// Keys of config.json, as the user writes them.
const (
	KeyBandwidth     = "Bandwidth monitor"
	KeyRawRetention  = "DB raw retention (days)"
	KeyRetention     = "DB retention (days)"
	KeySizeLimit     = "DB size limit (MB)"
	KeySQLLog        = "DB sql log"
	KeySQLServer     = "DB sql server"
	KeySpoolLimit    = "DB spool limit (MB)"
	KeyTextFormat    = "DB text format"
	KeyTextLimit     = "DB text limit (MB)"
	KeyTextLog       = "DB text log"
	KeyWriteLimit    = "DB write limit (seconds)"
	KeyNotifications = "Desktop notifications"
	KeyEveryExe      = "Every exe (not just conns)"
	KeyLimits        = "Data limits"
	KeyLogAddresses  = "Log addresses"
	KeyLogCommands   = "Log commands"
	KeyLogIgnore     = "Log ignore"
	KeyNotifyDigest  = "Notify first digest (minutes)"
	KeyNotifyIgnore  = "Notify ignore"
	KeyCommand       = "Notify command"
	KeyJournal       = "Notify journal"
	KeyFeed          = "Notify live feed"
	KeyRingPages     = "Perf ring buffer (pages)"
	KeyNoFile        = "Set RLIMIT_NOFILE"
	KeyVTKey         = "VT API key"
	KeyVTURL         = "VT API url"
	KeyVTUpload      = "VT file upload"
	KeyVTLimit       = "VT request limit (seconds)"
)

// Config is the content of config.json.
type Config struct {
	Bandwidth     bool     // count bytes; false: connections only
	RawDays       int      // days that single rows stay in snitch.db; 0: as long as their sums
	RetentionDays int      // days that anything stays in snitch.db
	SizeLimit     int      // MB (2^20 bytes) of snitch.db above which the oldest rows are deleted; 0: none
	SQLLog        bool     // write snitch.db
	SQLServer     Server   // remote copy; zero: none
	SpoolLimit    int      // MB (2^20 bytes) that wait on disk for the server
	TextFormat    string   // of conn.log: FormatCSV or FormatJSON
	TextLimit     int      // MB (2^20 bytes) at which conn.log becomes conn.log.1; 0: never
	TextLog       bool     // write conn.log
	WriteLimit    int      // seconds between writes: the length of a window
	Notifications bool     // show notices on the desktop
	EveryExe      bool     // record programs that use no network too
	Limits        []Limit  // of how much may be moved until the user is told
	LogAddresses  bool     // record remote addresses and domains
	LogCommands   bool     // record command lines
	LogIgnore     Ignore   // what is left out of the connection log
	NotifyDigest  int      // minutes of a first run that are one notice; 0: none
	NotifyIgnore  []string // paths, names and hashes that the user is not notified of
	RingPages     int      // pages of the kernel's ring buffer, a power of two
	NoFile        uint64   // RLIMIT_NOFILE to set; 0: leave it
	VTKey         Secret   // VirusTotal; "": off
	Command       []string // program and arguments to run per notice; empty: none
	Journal       bool     // write notices to the systemd journal
	Feed          bool     // give notices to readers of the live feed
	VTURL         string   // of VirusTotal's API
	VTUpload      bool     // send files whose hash VirusTotal does not know
	VTLimit       int      // seconds between two requests
}

// Formats of conn.log.
const (
	FormatCSV  = "csv"  // the mission's 16 fields, separated by commas
	FormatJSON = "json" // one JSON object per line, with all fields
)

// Server says where the remote copy goes.
type Server struct {
	Client  string            // as the user wrote it, one of clients; "": no server
	Dialect string            // DialectPostgres or DialectMySQL
	Table   string            // table name; "": the default, "connections"
	Params  map[string]Secret // connection parameters, by the one name that ServerParameters gives them
}

// Ignore lists what is left out of the connection log.
type Ignore struct {
	Ports   []int    // exact
	SHA256  []string // exact, lower-case hex
	Domains []string // prefixes in reverse notation: "com.example" also matches com.example.www
}

//go:embed default.json
var document string

// Document is the file that the first run writes: the mission's documented block, comments and all.
func Document() []byte { return []byte(document) }

// Default returns the mission's defaults.
func Default() Config {
	return Config{
		Bandwidth:     true,
		RetentionDays: 365,
		SQLLog:        true,
		SpoolLimit:    256,
		TextFormat:    FormatCSV,
		WriteLimit:    10,
		Notifications: true,
		LogAddresses:  true,
		LogCommands:   true,
		NotifyDigest:  3,
		Feed:          true,
		RingPages:     64,
		VTURL:         "https://www.virustotal.com/api/v3",
		VTLimit:       15,
	}
}

// Secret is a text that must not be seen: it prints as "(hidden)" in every format. Reveal gives the text.
type Secret string

const hidden = "(hidden)"

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString implements fmt.GoStringer, for %#v.
func (s Secret) GoString() string { return `"` + s.String() + `"` }

// MarshalText keeps the text out of JSON and out of slog.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal returns the text itself: only for the one call that needs it.
func (s Secret) Reveal() string { return string(s) }

func keys() []string {
	k := make([]string, 0, 16)
	for _, f := range fields() {
		k = append(k, f.key)
	}
	return k
}

// nearest returns the key that the user probably meant, or "".
func nearest(key string) string {
	best, distance := "", 1+max(3, len(key)/3)
	plain := func(s string) string { return strings.Join(strings.Fields(strings.ToLower(s)), " ") }
	want := []rune(plain(key))
	if len(want) > 64 {
		return ""
	}
	for _, k := range keys() {
		have := plain(k)
		if d := levenshtein(want, []rune(have)); d < distance {
			best, distance = k, d
		}
		// "DB retention" for "DB retention (days)": the unit is what people forget.
		if name, _, unit := strings.Cut(have, " ("); unit {
			if d := levenshtein(want, []rune(name)); d < distance {
				best, distance = k, d
			}
		}
	}
	return best
}

func levenshtein(a, b []rune) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i, ca := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j, cb := range b {
			cost := 1
			if ca == cb {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
