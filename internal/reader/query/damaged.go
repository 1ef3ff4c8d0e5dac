package query

import (
	"errors"

	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// Damaged reports whether an error says that the content of the database is at fault, and not the question or the disk.
func Damaged(err error) bool {
	var e *sqlite.Error
	return errors.Is(err, errDamaged) || errors.As(err, &e) && e.Code()&0xff == lib.SQLITE_CORRUPT
}
