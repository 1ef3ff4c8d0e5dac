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
	Version = 100
)

// ErrNewer is returned for a database that a newer picosnitch wrote. It must be left untouched.
var ErrNewer = errors.New("database of a newer picosnitch")

// Kind says whose a database is.
type Kind int

// Kinds of databases.
const (
	Ours    Kind = iota // of this version: use it
	Empty               // nothing in it: create the tables
	Older               // of the picosnitch before this one: version 1 to 3, flat table
	Foreign             // of another program
)

//go:embed sqlite.sql
var sqlite string

// SQLite is the text that makes the tables in an empty SQLite database.
func SQLite() string {
	return fmt.Sprintf("PRAGMA application_id = %d;\nPRAGMA user_version = %d;\n%s", ApplicationID, Version, sqlite)
}

// Classify says whose database it is, from its header and the number of its tables. The error is
// ErrNewer, wrapped in what to do.
func Classify(applicationID, userVersion int64, tables int) (Kind, error) {
	switch {
	case applicationID == ApplicationID && userVersion > Version:
		return Ours, fmt.Errorf("%w: its version is %d, this one knows up to %d: use the newer picosnitch, or move the file away", ErrNewer, userVersion, Version)
	case applicationID == ApplicationID && userVersion == Version && tables > 0:
		return Ours, nil
	case tables == 0:
		return Empty, nil
	case applicationID == 0 && userVersion >= 1 && userVersion <= 3:
		return Older, nil
	default:
		return Foreign, nil
	}
}
