package config

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// ServerURL reads where an SQL server is from a URL: CLIENT://USER@HOST:PORT/DATABASE?table=NAME&PARAMETER=VALUE, with the clients and
// parameters of "DB sql server". There is no password in it: a command line can be read by every program on the machine, and is in
// picosnitch's own log.
func ServerURL(text string) (Server, error) {
	u, err := url.Parse(text)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) { // it shows the whole text, and a password that may be in it
			err = inner.Err
		}
		return Server{}, fmt.Errorf("the URL of the SQL server is not understood: %s", safe(err.Error(), shownValue))
	}
	client := u.Scheme
	if client == "postgresql" {
		client = "postgres"
	}
	dialect, ok := clients()[client]
	if client == "" {
		return Server{}, errors.New("it is no URL: write config, or a URL that begins with postgres:// or mysql://") // not what it is: a password may be in it
	}
	if !ok {
		return Server{}, fmt.Errorf("the URL of the SQL server begins with %q: use one of %s, and ://", safe(u.Scheme, shownValue), strings.Join(slices.Sorted(maps.Keys(clients())), ", "))
	}
	if _, has := u.User.Password(); has {
		return Server{}, errors.New("a password in a command line can be read by every program: leave it out, and use PGPASSWORD or ~/.pgpass (PostgreSQL), MYSQL_PWD (MariaDB, MySQL), or the config.json that has it")
	}
	s := Server{Client: client, Dialect: dialect, Params: make(map[string]Secret)}
	set := func(name, value string) error {
		known, ok := parameters(dialect)[name]
		_, twice := s.Params[known.as]
		switch {
		case !ok:
			return fmt.Errorf("the URL of the SQL server: parameter %q is unknown to client %q: use table, %s", safe(name, shownValue), client, strings.Join(slices.Sorted(maps.Keys(parameters(dialect))), ", "))
		case known.as == "password", known.as == "sslpassword":
			return errors.New("the URL of the SQL server: a password in a command line can be read by every program: leave it out")
		case value == "":
		case known.ok != nil && !known.ok(value):
			return fmt.Errorf("the URL of the SQL server: parameter %q is %q: use %s", name, safe(value, shownValue), known.allowed)
		case known.as == "":
		case twice:
			return fmt.Errorf("the URL of the SQL server: parameter %q is there twice", known.as)
		default:
			s.Params[known.as] = Secret(value)
		}
		return nil
	}
	err = errors.Join(set("user", u.User.Username()), set("host", u.Hostname()), set("port", u.Port()), set("database", strings.TrimPrefix(u.Path, "/")))
	query, wrong := url.ParseQuery(u.RawQuery)
	if err = errors.Join(err, wrong); err != nil {
		return Server{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		for _, value := range query[name] {
			if name == "table" || name == "table_name" {
				if !tableName(value) || s.Table != "" {
					return Server{}, fmt.Errorf("the URL of the SQL server: %q is not a table's name: use %s", safe(value, shownValue), tableNames)
				}
				s.Table = value
				continue
			}
			if err := set(name, value); err != nil {
				return Server{}, err
			}
		}
	}
	for _, need := range []string{"user", "database"} {
		if s.Params[need] == "" {
			return Server{}, fmt.Errorf("the URL of the SQL server says no %s: use %s://USER@HOST/DATABASE?table=NAME", need, client)
		}
	}
	return s, nil
}
