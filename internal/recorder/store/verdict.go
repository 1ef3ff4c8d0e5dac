package store

import "context"

// Verdict is what VirusTotal says of a hash.
type Verdict struct {
	SHA256  string
	Verdict string // "analysed", "unknown", "refused"
	Text    string // in words

	Malicious, Suspicious, Undetected, Harmless int // scanners
	Uploaded                                    bool
	At                                          int64 // ns since 1970
}

// PutVerdict writes what is said of a hash in the place of what was said before.
func (s *SQLite) PutVerdict(ctx context.Context, v Verdict) error {
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	_, err := s.conn.ExecContext(ctx, "INSERT OR REPLACE INTO virustotal (sha256, verdict, text, malicious, suspicious, undetected, harmless, uploaded, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		v.SHA256, v.Verdict, v.Text, v.Malicious, v.Suspicious, v.Undetected, v.Harmless, v.Uploaded, v.At)
	return err
}
