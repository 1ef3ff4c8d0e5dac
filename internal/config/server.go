package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Dialects of SQL servers.
const (
	DialectPostgres = "postgres" // PostgreSQL, and what speaks its protocol
	DialectMySQL    = "mysql"    // MariaDB, MySQL, and what speaks their protocol
)

// parameter is one connection parameter of a client.
type parameter struct {
	as      string // the one name that the recorder knows it by
	allowed string // in words; "": any text
	ok      func(string) bool
}

// clients returns the dialect of each "client".
func clients() map[string]string {
	return map[string]string{
		"psycopg": DialectPostgres, "psycopg2": DialectPostgres, "postgres": DialectPostgres,
		"mariadb": DialectMySQL, "pymysql": DialectMySQL, "mysql": DialectMySQL,
	}
}

// parameters returns the connection parameters of a dialect by the names that its Python clients (or libpq) give them. Those that
// make no sense here (autocommit, cursorclass, …) are not in it, so that nothing is ignored in silence.
func parameters(dialect string) map[string]parameter {
	text := func(as string) parameter { return parameter{as: as} }
	number := func(as string, low, high int) parameter {
		return parameter{as, fmt.Sprintf("a whole number from %d to %d", low, high), func(s string) bool {
			n, err := strconv.Atoi(s)
			return err == nil && n >= low && n <= high
		}}
	}
	word := func(as string, words ...string) parameter {
		return parameter{as, strings.Join(words, ", "), func(s string) bool { return slices.Contains(words, s) }}
	}
	boolean := func(as string) parameter { return word(as, "true", "false") }
	all := map[string]parameter{
		"host": text("host"), "user": text("user"), "password": text("password"), "database": text("database"),
		"connect_timeout": number("connect_timeout", 0, 3600),
	}
	switch dialect {
	case DialectPostgres:
		port := number("port", 1, 65535)
		maps.Copy(all, map[string]parameter{
			"dbname": text("database"), "sslrootcert": text("sslrootcert"), "sslcert": text("sslcert"), "sslkey": text("sslkey"),
			"sslpassword": text("sslpassword"), "application_name": text("application_name"), "options": text("options"),
			"sslmode":              word("sslmode", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
			"target_session_attrs": word("target_session_attrs", "any", "read-write", "primary"),
			"client_encoding":      word("", "utf8", "UTF8", "UTF-8", "utf-8"),
			// One per host, as in libpq.
			"port": {"port", port.allowed + ", or one per host, separated by commas", func(s string) bool {
				return !slices.ContainsFunc(strings.Split(s, ","), func(one string) bool { return !port.ok(one) })
			}},
		})
	case DialectMySQL:
		maps.Copy(all, map[string]parameter{
			"port": number("port", 1, 65535), "username": text("user"), "passwd": text("password"), "db": text("database"),
			"unix_socket": text("unix_socket"), "read_timeout": number("read_timeout", 0, 3600), "write_timeout": number("write_timeout", 0, 3600),
			"charset": word("", "utf8mb4", "utf8"), "compress": boolean("compress"),
			"ssl": boolean("ssl"), "ssl_disabled": boolean("ssl_disabled"),
			"ssl_ca": text("ssl_ca"), "ssl_cert": text("ssl_cert"), "ssl_key": text("ssl_key"),
			"ssl_verify_cert": boolean("ssl_verify_cert"), "ssl_verify_identity": boolean("ssl_verify_identity"),
			"ssl.ca": text("ssl_ca"), "ssl.cert": text("ssl_cert"), "ssl.key": text("ssl_key"), "ssl.check_hostname": boolean("ssl_verify_identity"),
		})
	}
	return all
}

// ServerParameters returns the connection parameters that "DB sql server" takes for a client, by the user's names: the name by
// which Server.Params has them ("" for those that are only checked). It is nil for an unknown client.
func ServerParameters(client string) map[string]string {
	dialect, ok := clients()[client]
	if !ok {
		return nil
	}
	names := make(map[string]string)
	for name, p := range parameters(dialect) {
		names[name] = p.as
	}
	return names
}

func clientNames() string {
	return `"client": ` + strings.Join(slices.Sorted(maps.Keys(clients())), ", ")
}

const tableNames = "at most 48 letters, digits and _, with an optional schema. before it"

// tableName reports whether a text is a table's name: 63 characters with what we append.
func tableName(s string) bool {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,47}(\.[A-Za-z_][A-Za-z0-9_]{0,47})?$`).MatchString(s)
}

// given is a parameter as it stands in the file.
type given struct {
	value string
	key   ast.Node
	node  ast.Node
}

func readServer(p *parse, f field, n ast.Node, c *Config) {
	entries, ok := mapping(n)
	if !ok {
		p.wrong(f, n)
		return
	}
	if len(entries) == 0 {
		return
	}
	before := len(p.errs)
	params := make(map[string]given)
	p.params(f, "", entries, params)
	client, has := params["client"]
	dialect, known := clients()[client.value]
	switch {
	case !has:
		p.fail(at(n, &Error{Key: f.key, Problem: `"client" is missing`, Allowed: clientNames()}))
		return
	case !known:
		p.fail(at(client.node, &Error{Key: f.key, Value: strconv.Quote(safe(client.value, shownValue)), Problem: `unknown "client"`, Allowed: clientNames()}))
		return
	}
	s := Server{Client: client.value, Dialect: dialect, Params: map[string]Secret{}}
	delete(params, "client")
	if t, ok := params["table_name"]; ok {
		if !tableName(t.value) {
			p.fail(at(t.node, &Error{Key: f.key, Problem: `"table_name" is not a table's name`, Allowed: tableNames}))
		}
		s.Table = t.value
		delete(params, "table_name")
	}
	p.match(f, &s, params)
	for _, need := range []string{"user", "database"} {
		if s.Params[need] == "" && len(p.errs) == before {
			p.fail(at(n, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is missing", need), Allowed: "the name of the account, and of the database"}))
		}
	}
	if len(p.errs) == before {
		c.SQLServer = s
	}
}

// match gives the parameters the names that the recorder knows, and refuses what has no meaning.
func (p *parse) match(f field, s *Server, params map[string]given) {
	known := parameters(s.Dialect)
	for _, name := range slices.Sorted(maps.Keys(params)) {
		g := params[name]
		k, ok := known[name]
		_, twice := s.Params[k.as]
		switch {
		case !ok:
			p.fail(at(g.key, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is unknown to client %q", safe(name, shownValue), s.Client), Allowed: "table_name, " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")}))
		case g.value == "": // as if it were not there
		case k.ok != nil && !k.ok(g.value):
			p.fail(at(g.node, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q has a value that it cannot have", name), Allowed: k.allowed}))
		case k.as == "": // the only value that works, and what we do anyway
		case twice:
			p.fail(at(g.key, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is there twice, once under another name", k.as)}))
		default:
			s.Params[k.as] = Secret(g.value)
		}
	}
}

// params collects the parameters; the keys of an object within get its name and a dot before them.
func (p *parse) params(f field, prefix string, entries []*ast.MappingValueNode, to map[string]given) {
	for _, entry := range entries {
		name, ok := keyText(entry.Key)
		if !ok || name == "" || len(name) > 64 {
			p.fail(at(entry.Key, &Error{Key: f.key, Problem: "a parameter without a plain name", Allowed: f.allowed}))
			continue
		}
		full := prefix + name
		if inner, ok := mapping(entry.Value); ok {
			p.params(f, full+".", inner, to)
			continue
		}
		value, ok := scalar(entry.Value)
		_, twice := to[full]
		switch {
		case !ok:
			p.fail(at(entry.Value, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is not a text, a number, true or false", safe(full, shownValue)), Allowed: f.allowed}))
		case twice:
			p.fail(at(entry.Key, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is there twice", safe(full, shownValue))}))
		default:
			to[full] = given{value, entry.Key, entry.Value}
		}
	}
}
