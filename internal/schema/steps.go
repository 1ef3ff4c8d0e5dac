package schema

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed step*.sql
var steps embed.FS

// Step leads from the version before To to To. Each of its texts is run in a transaction of its own, so that a kill between two of
// them leaves a database from which it goes on. The file stepTo.sql holds them, one after the other:
//
//	what is run once
//	-- repeat: SELECT that gives 1 while there is more to do
//	what is run again and again, a bounded piece of work each time
//	-- end
//	what is run at the end
//
// A step that changes no rows, or few, needs only the first part. The views are not its business: they are dropped before and
// made anew after it. A step is never changed once a version with it was released.
type Step struct {
	To     int64
	Before string
	More   string // a SELECT that gives 1 or 0; "": Each is empty
	Each   string
	After  string
}

// Steps are what a database of a version of ours needs to become one of Version, in order.
func Steps(from int64) ([]Step, error) {
	var all []Step
	for to := from + 1; to <= Version; to++ {
		text, err := steps.ReadFile(fmt.Sprintf("step%d.sql", to))
		if err != nil {
			return nil, fmt.Errorf("%w: %d", ErrUnknown, from)
		}
		s := Step{To: to}
		var repeated bool
		s.Before, s.Each, repeated = strings.Cut(string(text), "\n-- repeat: ")
		if repeated {
			s.More, s.Each, _ = strings.Cut(s.Each, "\n")
			s.Each, s.After, _ = strings.Cut(s.Each, "\n-- end\n")
		}
		s.Before = dropViews(to-1) + "CREATE TABLE migration (to_version INTEGER PRIMARY KEY) STRICT;\n" + fmt.Sprintf("INSERT INTO migration VALUES (%d);\n", to) + s.Before
		s.After += fmt.Sprintf("\nDROP TABLE migration;\nPRAGMA user_version = %d;\n", to)
		if to == Version {
			s.After += views
		}
		all = append(all, s)
	}
	return all, nil
}

// Begun is the statement that says for which version Before is done: no row, or an error because there is no such
// table, if for none.
const Begun = "SELECT to_version FROM migration"

// dropViews drops the views of a version.
func dropViews(version int64) string {
	text := "DROP VIEW IF EXISTS connections;\n"
	if version > 100 { // records was a table
		text += "DROP VIEW IF EXISTS records;\n"
	}
	return text
}
