// Package schema is the database: its tables, its views, its version, and what a reader or a writer must
// check before it touches one. It holds SQL text and no connection; it imports nothing of ours. The rooms
// that hold connections are recorder/store (the only writer) and reader/query.
package schema

import (
	_ "embed"
	"errors"
	"fmt"
)

const (
	// ApplicationID marks our databases in SQLite's header (PRAGMA application_id): "pico".
	ApplicationID = 0x7069636f
	// Version is our PRAGMA user_version. The picosnitch before this one used 1 to 3; ours starts at 100, so
	// that no database of the one can be taken for the other's.
	Version = 101
	// first is the version of the first database of ours; Steps lead from there to Version.
	first = 100
)

// PartRecords is how many records a row of windows has at most: raw.id is windows.id * PartRecords + n.
const PartRecords = 1 << 10

// HourSeconds and DaySeconds are the lengths of the buckets of roll-ups; they are of UTC.
const (
	HourSeconds = 3600
	DaySeconds  = 24 * HourSeconds
)

// Hour is the number of the hour to which a window that ends then (unix seconds) belongs: the end is the last instant of it.
func Hour(end int64) int64 { return Bucket(end-1, HourSeconds) }

// Bucket is the number of the bucket of the given length that holds t, also before 1970.
func Bucket(t, length int64) int64 {
	q := t / length
	if t%length < 0 {
		q--
	}
	return q
}

// Reasons of totals that stand for bytes that no record holds.
const (
	LostSent     = "unattributed sent"
	LostReceived = "unattributed received"
)

// Names in progress; see sqlite.sql.
const (
	ProgressRolled  = "rolled"
	ProgressRaw     = "raw"
	ProgressPruned  = "pruned"
	ProgressRollups = "rollups"
	ProgressTexts   = "texts"
	ProgressSwept   = "swept"
)

// ErrNewer is returned for a database that a newer picosnitch wrote. It must be left untouched.
var ErrNewer = errors.New("database of a newer picosnitch")

// ErrUnknown is returned for a database that claims to be ours, of a version that there never was.
var ErrUnknown = errors.New("database of an unknown version")

// Kind says whose a database is.
type Kind int

// Kinds of databases.
const (
	Ours     Kind = iota // of this version: use it
	Empty                // nothing in it: create the tables
	Older                // of the picosnitch before this one: version 1 to 3, flat table
	Outdated             // ours, of a version before this one: run Steps
	Foreign              // of another program
)

//go:embed sqlite.sql
var sqlite string

//go:embed views.sql
var views string

// SQLite is the text that makes the tables in an empty SQLite database, in one transaction: a kill leaves all of it or
// nothing. After an error, the transaction is still open.
func SQLite() string {
	// Where the pages of deleted rows go can only be said before there is a first page.
	return fmt.Sprintf("PRAGMA auto_vacuum = INCREMENTAL;\nBEGIN IMMEDIATE;\nPRAGMA application_id = %d;\nPRAGMA user_version = %d;\n%s%sCOMMIT;\n", ApplicationID, Version, sqlite, views)
}

// Classify says whose database it is, from its header and the number of its tables. The error is
// ErrNewer or ErrUnknown, wrapped in what to do.
func Classify(applicationID, userVersion int64, tables int) (Kind, error) {
	switch {
	case applicationID == ApplicationID && userVersion > Version:
		return Ours, fmt.Errorf("%w: its version is %d, this one knows up to %d: use the newer picosnitch, or move the file away", ErrNewer, userVersion, Version)
	case applicationID == ApplicationID && userVersion == Version && tables > 0:
		return Ours, nil
	case tables == 0:
		return Empty, nil
	case applicationID == ApplicationID && userVersion >= first:
		return Outdated, nil
	case applicationID == ApplicationID:
		return Foreign, fmt.Errorf("%w: %d, and the first one was %d: move the file away, and a new one is begun", ErrUnknown, userVersion, first)
	case applicationID == 0 && userVersion >= 1 && userVersion <= 3:
		return Older, nil
	default:
		return Foreign, nil
	}
}
