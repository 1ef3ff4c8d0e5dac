package schema

import (
	"fmt"
	"strings"
)

// RemoteColumn is a column of the table that picosnitch makes on an SQL server.
type RemoteColumn struct {
	Name string
	Type RemoteType
}

// RemoteType is what a column holds.
type RemoteType int

// Types of columns.
const (
	RemoteText RemoteType = iota
	RemoteHash            // 64 characters at most, ASCII
	RemoteNumber
	RemoteTime
)

// RemoteColumns are the columns of connections on a server: the mission's 16, then what we know besides.
func RemoteColumns() []RemoteColumn {
	var c []RemoteColumn
	add := func(t RemoteType, names string) {
		for name := range strings.FieldsSeq(names) {
			c = append(c, RemoteColumn{name, t})
		}
	}
	add(RemoteText, "exe name cmdline")
	add(RemoteHash, "sha256")
	add(RemoteTime, "contime")
	add(RemoteText, "domain ip")
	add(RemoteNumber, "port uid")
	add(RemoteText, "pexe pname pcmdline")
	add(RemoteHash, "psha256")
	add(RemoteNumber, "conns send recv")
	add(RemoteText, "host")
	add(RemoteTime, "start")
	add(RemoteText, "family protocol direction layer peer local_ip")
	add(RemoteNumber, "local_port")
	add(RemoteText, "domain_source")
	add(RemoteNumber, "net_ns")
	add(RemoteText, "reason script script_kind")
	add(RemoteHash, "script_sha256")
	add(RemoteText, "preload place place_path unit user_unit session container pod app")
	add(RemoteText, "gexe gname gcmdline")
	add(RemoteHash, "gsha256")
	return c
}

// RemoteAliases are the names that picosnitch 1 had for some columns, by ours.
func RemoteAliases() map[string]string {
	return map[string]string{"port": "rport", "ip": "raddr", "local_port": "lport", "local_ip": "laddr"}
}

// RemoteBatches are the columns of the second table: one row per transaction, made in it. chain and first are its key, so that no
// batch can be there twice; the rest lets a reader see that nothing is missing.
func RemoteBatches() []RemoteColumn {
	var c []RemoteColumn
	add := func(t RemoteType, names string) {
		for name := range strings.FieldsSeq(names) {
			c = append(c, RemoteColumn{name, t})
		}
	}
	add(RemoteHash, "chain")
	add(RemoteNumber, "first_frame last_frame")
	add(RemoteText, "host")
	add(RemoteTime, "begins ends")
	add(RemoteNumber, "records sent received unattributed_sent unattributed_received dropped")
	add(RemoteText, "losses")
	return c
}

// BatchesTable is the name of the second table.
func BatchesTable(table string) string { return table + "_batches" }

// PostgresRemote is what makes the two tables on PostgreSQL and what speaks its protocol, one statement each. Only standard features
// are used: CockroachDB, YugabyteDB and Citus have them.
func PostgresRemote(table string) []string {
	types := map[RemoteType]string{RemoteText: "text NOT NULL", RemoteHash: "text NOT NULL", RemoteNumber: "bigint NOT NULL", RemoteTime: "timestamptz NOT NULL"}
	bare := table[strings.LastIndexByte(table, '.')+1:]
	return []string{
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (%s, PRIMARY KEY (chain, first_frame))", QuotePostgres(BatchesTable(table)), columns(RemoteBatches(), types, QuotePostgres)),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (%s)", QuotePostgres(table), columns(RemoteColumns(), types, QuotePostgres)),
		fmt.Sprintf("CREATE INDEX IF NOT EXISTS %s ON %s (contime)", QuotePostgres(bare+"_contime"), QuotePostgres(table)),
	}
}

// MySQLRemote is the same for MariaDB, MySQL and TiDB. The row id is for servers that demand a primary key
// (sql_require_primary_key, Galera); InnoDB has a hidden one otherwise.
func MySQLRemote(table string) []string {
	types := map[RemoteType]string{
		RemoteText: "text NOT NULL", RemoteHash: "varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
		RemoteNumber: "bigint NOT NULL", RemoteTime: "datetime NOT NULL",
	}
	const end = "ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
	return []string{
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (%s, PRIMARY KEY (chain, first_frame)) %s", QuoteMySQL(BatchesTable(table)), columns(RemoteBatches(), types, QuoteMySQL), end),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (%s, row_id bigint NOT NULL AUTO_INCREMENT, PRIMARY KEY (row_id), KEY contime (contime)) %s", QuoteMySQL(table), columns(RemoteColumns(), types, QuoteMySQL), end),
	}
}

func columns(all []RemoteColumn, types map[RemoteType]string, quote func(string) string) string {
	parts := make([]string, len(all))
	for i, c := range all {
		parts[i] = quote(c.Name) + " " + types[c.Type]
	}
	return strings.Join(parts, ", ")
}

// QuotePostgres quotes a name, with a schema or without. It is folded as the server folds a name without quotes.
func QuotePostgres(name string) string {
	return quoteParts(strings.ToLower(name), `"`)
}

// QuoteMySQL quotes a name, with a database or without.
func QuoteMySQL(name string) string { return quoteParts(name, "`") }

func quoteParts(name, q string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = q + strings.ReplaceAll(p, q, q+q) + q
	}
	return strings.Join(parts, ".")
}
