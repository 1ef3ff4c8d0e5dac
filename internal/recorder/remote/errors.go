package remote

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/schema"
	"github.com/picosnitch/picosnitch/internal/sqlserver"
)

// Classes of failures: what is told once, and with which hint.
const (
	classReach  = "reach"
	classLogin  = "login"
	classRights = "rights"
	classSchema = "schema"
	classFile   = "file"
	classAnswer = "answer"
)

// Bounds of an answer: a table has 1,600 columns at most (PostgreSQL), or 4,096 (MariaDB).
const (
	maxAnswerRows  = 4096
	maxAnswerBytes = 1 << 20
)

// answerError is an answer that no server gives to the question.
type answerError struct{ text string }

func (e *answerError) Error() string { return "its answer is none to what was asked: " + e.text }

// createError is a statement of the first run that was refused.
type createError struct {
	statement string
	err       error
}

func (e *createError) Error() string { return "make a table: " + e.err.Error() }
func (e *createError) Unwrap() error { return e.err }

// classify says what kind of failure it is, and what to do.
func classify(err error) (class, hint string) {
	var create *createError
	var drift *schemaError
	var answer *answerError
	var file *fs.PathError
	var set *sqlserver.SettingsError
	var network net.Error
	switch {
	case errors.As(err, &create):
		return classRights + classSchema, "grant CREATE for the first start, or run as the administrator: " + create.statement
	case errors.As(err, &drift):
		return classSchema, "give \"table_name\" another name and picosnitch makes a table, or add the columns; docs/fleet.md has them"
	case errors.As(err, &answer):
		return classAnswer, "is it the server that is meant? Look at host and port; with \"sslmode\": \"verify-full\" or ssl_ca nobody else can answer"
	case errors.As(err, &file), errors.As(err, &set):
		return classFile, "look at the ssl… parameters of \"DB sql server\"; the recorder opens their files without any right: they must be readable for everybody or for the account picosnitch (or uid 63147)"
	}
	if class, ok := postgresClass(err); ok {
		return class, hints()[class]
	}
	if class, ok := mysqlClass(err); ok {
		return class, hints()[class]
	}
	if errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) {
		return classReach, hints()[classReach]
	}
	return classReach, hints()[classReach]
}

func hints() map[string]string {
	return map[string]string{
		classReach:  "is it running, and is the way to it open? It is tried again",
		classLogin:  "look at user and password of \"DB sql server\"; it is tried again",
		classRights: "grant INSERT and SELECT on both tables; docs/fleet.md has the statements",
		classSchema: "was the table changed? docs/fleet.md has its columns",
	}
}

// scrub makes an error printable, and keeps the password out of it, whatever a server or a library put into it.
func (s *Settings) scrub(err error) error {
	return &scrubbed{flow.PrintableReason(strings.Join(strings.Fields(sqlserver.Hide(err.Error(), s.Params)), " ")), err}
}

type scrubbed struct {
	text string
	err  error
}

func (e *scrubbed) Error() string { return e.text }
func (e *scrubbed) Unwrap() error { return e.err }

func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func batchColumns(quote func(string) string) string {
	all := schema.RemoteBatches()
	names := make([]string, len(all))
	for i, c := range all {
		names[i] = quote(c.Name)
	}
	return strings.Join(names, ", ")
}
