package sqlserver

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Postgres makes the configuration of a connection to PostgreSQL, or to what speaks its protocol, from the parameters by the names of
// config.ServerParameters. Passwords are taken from passfile (the format of libpq's .pgpass), and nothing is when it is nil: then the parameters are all.
func Postgres(params map[string]string, passfile *string) (*pgconn.Config, error) {
	var b strings.Builder
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	set := func(k, v string) { fmt.Fprintf(&b, "%s='%s' ", k, quote.Replace(v)) }
	set("connect_timeout", "10")
	set("application_name", "picosnitch")
	set("client_encoding", "UTF8")
	file := "/dev/null"
	if passfile != nil {
		file = *passfile
	}
	set("passfile", file)
	set("servicefile", "/dev/null")
	var timeout string
	for _, k := range slices.Sorted(maps.Keys(params)) {
		switch v := params[k]; k {
		case "database":
			set("dbname", v)
		case "host", "port", "user", "password", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "application_name", "options", "target_session_attrs":
			set(k, v)
		case "connect_timeout":
			timeout = v
			set(k, v)
		default:
			return nil, &SettingsError{fmt.Sprintf("parameter %q is not one of PostgreSQL", k)}
		}
	}
	c, err := pgconn.ParseConfig(b.String())
	if err != nil {
		return nil, ConfigError(err)
	}
	if timeout == "0" {
		c.ConnectTimeout = connectLimit
	}
	d := &net.Dialer{KeepAliveConfig: keepAlive()}
	c.DialFunc = d.DialContext
	c.MaxProtocolMessageBodyLen = maxMessage
	c.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) {} // "relation already exists"
	return c, nil
}
