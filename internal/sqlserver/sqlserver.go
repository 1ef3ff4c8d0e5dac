// Package sqlserver says how an SQL server is reached: it turns the connection parameters of "DB sql server" into the configuration of the two client
// libraries, TLS included. Both the recorder, which writes to a server, and the readers, which ask it, use it. It connects to nothing and
// knows no table.
package sqlserver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"
)

// Limits of time where the parameters say nothing.
const (
	connectLimit = 10 * time.Second
	answerLimit  = 60 * time.Second
)

// SettingsError is a setting that can never work.
type SettingsError struct{ Text string }

// Error implements error.
func (e *SettingsError) Error() string { return e.Text }

// FileError is a file of a TLS parameter that cannot be read (then it is an fs.PathError), or is of no use (then a SettingsError).
func FileError(param string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("%s: %w", param, err)
	}
	return &SettingsError{param + ": " + err.Error()}
}

// ConfigError hides what a client library says about a configuration but for its cause: it may show all of it.
func ConfigError(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		var path *fs.PathError
		if errors.As(err, &path) {
			return FileError("TLS", path)
		}
		err = inner
	}
	return &SettingsError{err.Error()}
}

// Hide takes the passwords among the parameters out of a text, whatever a server or a library put into it.
func Hide(text string, params map[string]string) string {
	for _, k := range []string{"password", "sslpassword"} {
		if secret := params[k]; len(secret) > 2 {
			text = strings.ReplaceAll(text, secret, "(hidden)")
		}
	}
	return text
}

// keepAlive finds a dead server behind a dead network within a minute.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 9}
}
