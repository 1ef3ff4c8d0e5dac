package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/schema"
)

// Classes of failures: what is told once, and with which hint.
const (
	classReach  = "reach"
	classLogin  = "login"
	classRights = "rights"
	classSchema = "schema"
	classFile   = "file"
)

// settingsError is a setting that can never work.
type settingsError struct{ text string }

func (e *settingsError) Error() string { return e.text }

// createError is a statement of the first run that was refused.
type createError struct {
	statement string
	err       error
}

func (e *createError) Error() string { return "make a table: " + e.err.Error() }
func (e *createError) Unwrap() error { return e.err }

// fileError is a file of a TLS parameter that cannot be read.
func fileError(param string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("%s: %w: the recorder opens it, without any right: make it readable for everybody or for the account picosnitch (or uid 63147)", param, err)
	}
	return &settingsError{param + ": " + err.Error()}
}

// configError hides what a client library says about a configuration but for its cause: it may show all of it.
func configError(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		return fileError("TLS", err)
	}
	return &settingsError{err.Error()}
}

// temporary is false for what only a change of the settings can mend.
func temporary(err error) bool {
	var s *settingsError
	return !errors.As(err, &s)
}

// classify says what kind of failure it is, and what to do.
func classify(err error) (class, hint string) {
	var create *createError
	var drift *schemaError
	var file *fs.PathError
	var set *settingsError
	var network net.Error
	switch {
	case errors.As(err, &create):
		return classRights + classSchema, "grant CREATE for the first start, or run as the administrator: " + create.statement
	case errors.As(err, &drift):
		return classSchema, "give \"table_name\" another name and picosnitch makes a table, or add the columns; docs/fleet.md has them"
	case errors.As(err, &file), errors.As(err, &set):
		return classFile, "look at the ssl… parameters of \"DB sql server\""
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
	text := err.Error()
	for _, k := range []string{"password", "sslpassword"} {
		if secret := s.Params[k]; len(secret) > 2 {
			text = strings.ReplaceAll(text, secret, "(hidden)")
		}
	}
	return &scrubbed{flow.PrintableReason(strings.Join(strings.Fields(text), " ")), err}
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

// keepAlive finds a dead server behind a dead network within a minute.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 9}
}
