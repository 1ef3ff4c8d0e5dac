package recorder

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/picosnitch/picosnitch/internal/recorder/budget"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/virustotal"
)

// Settings are the keys of the configuration that the recorder needs. The daemon makes them from config.json; they
// travel as the first line of the recorder's standard stream and never through arguments or the environment.
type Settings struct {
	SQLLog       bool  `json:"sql_log"`       // "DB sql log"
	TextLog      bool  `json:"text_log"`      // "DB text log"
	TextJSON     bool  `json:"text_json"`     // "DB text format" is "json"
	TextLimit    int64 `json:"text_limit"`    // "DB text limit (MB)" in bytes; 0: none
	RawDays      int   `json:"raw_days"`      // "DB raw retention (days)"; 0: as long as Days
	Days         int   `json:"days"`          // "DB retention (days)"; 0: for ever
	SizeLimit    int64 `json:"size_limit"`    // "DB size limit (MB)" in bytes; 0: none
	WriteLimit   int64 `json:"write_limit"`   // "DB write limit (seconds)", at least 1
	LogAddresses bool  `json:"log_addresses"` // "Log addresses"
	LogCommands  bool  `json:"log_commands"`  // "Log commands"

	Desktop bool     `json:"desktop"`           // "Desktop notifications"
	Command []string `json:"command,omitempty"` // "Notify command"
	Owner   uint32   `json:"owner"`             // uid of the folder's owner, who runs the command
	Journal bool     `json:"journal"`           // "Notify journal"
	Feed    bool     `json:"feed"`              // "Notify live feed"

	Remote *remote.Settings `json:"remote,omitempty"` // "DB sql server" and "DB spool limit (MB)"; nil: none. Holds the password

	VTKey    Key    `json:"vt_key,omitempty"` // "VT API key"
	VTURL    string `json:"vt_url,omitempty"` // "VT API url"
	VTUpload bool   `json:"vt_upload"`        // "VT file upload"
	VTLimit  int    `json:"vt_limit"`         // "VT request limit (seconds)"

	IgnoreHashes  []string `json:"ignore_hashes,omitempty"`  // "Log ignore": its sha256 hashes
	IgnoreDomains []string `json:"ignore_domains,omitempty"` // "Log ignore": its domains, in reverse notation
	IgnorePorts   []int    `json:"ignore_ports,omitempty"`   // "Log ignore": its ports

	Limits []Limit `json:"limits,omitempty"` // "Data limits"

	NotifyIgnore []string `json:"notify_ignore,omitempty"` // "Notify ignore": see notify.NewIgnore
	NotifyDigest int64    `json:"notify_digest,omitempty"` // "Notify first digest (minutes)"; 0: none
}

// Key is the key of VirusTotal's API.
type Key = virustotal.Key

// Limit is an entry of "Data limits".
type Limit = budget.Limit

// Use is how a limit stands.
type Use = budget.Use

// Bytes is an amount in words.
func Bytes(n uint64) string { return budget.Bytes(n) }

// RemoteSettings say where the copy off the machine goes.
type RemoteSettings = remote.Settings

// Defaults are the mission's.
func Defaults() Settings {
	return Settings{SQLLog: true, Days: 365, WriteLimit: 10, LogAddresses: true, LogCommands: true, Feed: true}
}

type settingsLine struct {
	Settings *Settings `json:"settings"`
}

// maxSettings bounds the settings line, in bytes.
const maxSettings = 1 << 20

// WriteSettings writes the line that goes before the stream.
func WriteSettings(w io.Writer, s Settings) error {
	b, err := json.Marshal(settingsLine{&s})
	if err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// ReadSettings reads the settings line and returns the stream that follows it; r must not be read any more.
func ReadSettings(r io.Reader) (Settings, io.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	for {
		part, err := b.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull {
			return Settings{}, nil, fmt.Errorf("read settings: %w", err)
		}
		if len(line) > maxSettings {
			return Settings{}, nil, fmt.Errorf("read settings: line is longer than %d bytes", maxSettings)
		}
	}
	var s settingsLine
	if err := json.Unmarshal(line, &s); err != nil {
		return Settings{}, nil, fmt.Errorf("read settings: %w", err)
	}
	if s.Settings == nil {
		return Settings{}, nil, fmt.Errorf("read settings: the first line holds none")
	}
	return *s.Settings, b, nil
}
