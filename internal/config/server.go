package config

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/goccy/go-yaml/ast"
)

func readServer(p *parse, f field, n ast.Node, c *Config) {
	entries, ok := mapping(n)
	if !ok {
		p.wrong(f, n)
		return
	}
	s := Server{}
	if len(entries) > 0 {
		s.Params = map[string]Secret{}
	}
	p.params(f, "", entries, &s)
	if len(entries) == 0 {
		return
	}
	switch s.Client {
	case "mariadb", "psycopg", "psycopg2", "pymysql":
		c.SQLServer = s
	case "":
		p.fail(at(n, &Error{Key: f.key, Problem: `"client" is missing`, Allowed: `"client": "mariadb", "psycopg", "psycopg2" or "pymysql"`}))
	default:
		p.fail(at(n, &Error{Key: f.key, Value: strconv.Quote(safe(s.Client, shownValue)), Problem: `unknown "client"`, Allowed: "mariadb, psycopg, psycopg2 or pymysql"}))
	}
}

func (p *parse) params(f field, prefix string, entries []*ast.MappingValueNode, s *Server) {
	identifier := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?$`)
	for _, entry := range entries {
		name, ok := keyText(entry.Key)
		if !ok || name == "" || len(name) > 64 {
			p.fail(at(entry.Key, &Error{Key: f.key, Problem: "a parameter without a plain name", Allowed: f.allowed}))
			continue
		}
		full := prefix + name
		if inner, ok := mapping(entry.Value); ok {
			p.params(f, full+".", inner, s)
			continue
		}
		value, ok := scalar(entry.Value)
		_, twice := s.Params[full]
		switch {
		case !ok:
			p.fail(at(entry.Value, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is not a text, a number, true or false", safe(full, shownValue)), Allowed: f.allowed}))
		case twice || full == "client" && s.Client != "" || full == "table_name" && s.Table != "":
			p.fail(at(entry.Key, &Error{Key: f.key, Problem: fmt.Sprintf("parameter %q is there twice", safe(full, shownValue))}))
		case full == "client":
			s.Client = value
		case full == "table_name" && !identifier.MatchString(value):
			p.fail(at(entry.Value, &Error{Key: f.key, Problem: `"table_name" is not a table's name`, Allowed: "letters, digits and _, with an optional schema. before it"}))
		case full == "table_name":
			s.Table = value
		default:
			s.Params[full] = Secret(value)
		}
	}
}
