package sqlserver

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"
)

// sockets are where servers listen on this machine when nothing else is said, as the client libraries know them.
func sockets() []string {
	return []string{"/run/mysqld/mysqld.sock", "/var/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"}
}

// MySQL makes the configuration of a connection to MariaDB, MySQL, or to what speaks their protocol, from the parameters by the names of
// config.ServerParameters. native is true when localhost without a port is the unix socket, as for the client libraries.
func MySQL(params map[string]string, native bool) (*mysql.Config, error) {
	c := mysql.NewConfig()
	c.Logger = &mysql.NopLogger{}
	c.InterpolateParams = true // one round trip per statement
	c.MaxAllowedPacket = 0     // ask the server
	c.RejectReadOnly = true    // a server that was demoted: connect again
	c.Collation = "utf8mb4_general_ci"
	c.Timeout, c.ReadTimeout, c.WriteTimeout = connectLimit, answerLimit, answerLimit
	// Strict: a value that does not fit is an error and never cut in silence.
	c.Params = map[string]string{"time_zone": "'+00:00'", "sql_mode": "'STRICT_ALL_TABLES'"}
	host, port := "localhost", "3306"
	security := make(map[string]string)
	for _, k := range slices.Sorted(maps.Keys(params)) {
		v := params[k]
		seconds := func(d *time.Duration) {
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				*d = time.Duration(n) * time.Second
			}
		}
		switch k {
		case "host":
			host = v
		case "port":
			port = v
		case "unix_socket":
			c.Net, c.Addr = "unix", v
		case "user":
			c.User = v
		case "password":
			c.Passwd = v
		case "database":
			c.DBName = v
		case "connect_timeout":
			seconds(&c.Timeout)
		case "read_timeout":
			seconds(&c.ReadTimeout)
		case "write_timeout":
			seconds(&c.WriteTimeout)
		case "compress":
			if v == "true" {
				if err := c.Apply(mysql.EnableCompression(true)); err != nil {
					return nil, err
				}
			}
		case "ssl", "ssl_disabled", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert", "ssl_verify_identity":
			security[k] = v
		default:
			return nil, &SettingsError{fmt.Sprintf("parameter %q is not one of MariaDB or MySQL", k)}
		}
	}
	if c.Net != "unix" {
		c.Net, c.Addr = "tcp", net.JoinHostPort(host, port)
		if _, hasPort := params["port"]; host == "localhost" && !hasPort && native {
			for _, s := range sockets() {
				if _, err := os.Stat(s); err == nil {
					c.Net, c.Addr = "unix", s
					break
				}
			}
		}
	}
	if c.Net == "unix" {
		if security["ssl_ca"] != "" || security["ssl"] == "true" {
			return nil, &SettingsError{"TLS is asked for, and the server is reached over a unix socket: remove ssl…, or give host and port"}
		}
		return c, nil
	}
	return c, mysqlTLS(c, host, security)
}

// mysqlTLS sets up TLS as the Python clients do: as the server likes it by default, but never without it when a parameter asks
// for it.
func mysqlTLS(c *mysql.Config, host string, p map[string]string) error {
	if p["ssl_disabled"] == "true" || p["ssl"] == "false" {
		if len(p) > 1 {
			return &SettingsError{"TLS is switched off, and other ssl… parameters ask for it"}
		}
		return nil
	}
	t := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	asked := len(p) > 0
	if file := p["ssl_ca"]; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return FileError("ssl_ca", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return &SettingsError{"ssl_ca: " + file + " holds no certificate"}
		}
	}
	if p["ssl_cert"] != "" || p["ssl_key"] != "" {
		cert, err := tls.LoadX509KeyPair(p["ssl_cert"], p["ssl_key"])
		if err != nil {
			return FileError("ssl_cert, ssl_key", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	switch {
	case p["ssl_verify_identity"] == "true" || p["ssl_verify_cert"] == "true":
	case t.RootCAs != nil: // the chain, and not the name: what ssl_ca alone means to these clients
		t.InsecureSkipVerify = true
		roots := t.RootCAs
		t.VerifyConnection = func(s tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, c := range s.PeerCertificates[1:] {
				o.Intermediates.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(o)
			return err
		}
	default:
		t.InsecureSkipVerify = true
	}
	c.TLS = t
	c.AllowFallbackToPlaintext = !asked
	return nil
}
