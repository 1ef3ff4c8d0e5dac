package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDocumentIsDefault(t *testing.T) {
	got, err := Parse(Document())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), got); d != "" {
		t.Errorf("documented block is not the defaults (-default +block):\n%s", d)
	}
}

func TestReadmeShowsDocument(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```yaml\n"+string(Document())+"```\n") {
		t.Error("README.md does not show internal/config/default.json word for word")
	}
}

func TestParse(t *testing.T) {
	hash := strings.Repeat("aB", 32)
	for _, tc := range []struct {
		name, in string
		change   func(*Config)
	}{
		{"no key", `{}`, func(*Config) {}},
		{"byte order mark", "\ufeff{}", func(*Config) {}},
		{"windows lines", "{\r\n  \"DB text log\": true\r\n}\r\n", func(c *Config) { c.TextLog = true }},
		{"block style", "DB text log: true\nDB write limit (seconds): 5\n", func(c *Config) { c.TextLog, c.WriteLimit = true, 5 }},
		{"one key in block style", "DB text log: true\n", func(c *Config) { c.TextLog = true }},
		{"comments", "# a\n{ # b\n\"DB text log\": true # c\n}\n# d\n", func(c *Config) { c.TextLog = true }},
		{"plain JSON", `{"Bandwidth monitor":false,"Set RLIMIT_NOFILE":4096,"Perf ring buffer (pages)":16384}`, func(c *Config) { c.Bandwidth, c.NoFile, c.RingPages = false, 4096, 16384 }},
		{"ignore", `{"Log ignore": [53, -1, "` + hash + `", "com.Example", "xn--p1ai"]}`, func(c *Config) {
			c.LogIgnore = Ignore{Ports: []int{53, -1}, SHA256: []string{strings.ToLower(hash)}, Domains: []string{"com.example", "xn--p1ai"}}
		}},
		{"server", `{"DB sql server": {"client": "psycopg", "table_name": "audit.conns", "host": "db", "port": 5432, "user": "u", "dbname": "d", "password": "s3cret", "sslmode": "verify-full", "client_encoding": "utf8", "options": null}}`, func(c *Config) {
			c.SQLServer = Server{Client: "psycopg", Dialect: DialectPostgres, Table: "audit.conns", Params: map[string]Secret{"host": "db", "port": "5432", "user": "u", "database": "d", "password": "s3cret", "sslmode": "verify-full"}}
		}},
		{"other server", `{"DB spool limit (MB)": 16, "DB sql server": {"client": "pymysql", "unix_socket": "/run/s", "username": "u", "db": "d", "passwd": "s3cret", "charset": "utf8mb4", "ssl": {"ca": "/x", "check_hostname": true}}}`, func(c *Config) {
			c.SpoolLimit = 16
			c.SQLServer = Server{Client: "pymysql", Dialect: DialectMySQL, Params: map[string]Secret{"unix_socket": "/run/s", "user": "u", "database": "d", "password": "s3cret", "ssl_ca": "/x", "ssl_verify_identity": "true"}}
		}},
		{"brackets in texts and comments", `{"DB sql server": {"client": "pymysql", "password": "` + strings.Repeat("[{", 99) + `\"", "db": "d", "user": '` + strings.Repeat("[", 99) + `''` + `'}} # ` + strings.Repeat("[", 99) + "\n# it's " + strings.Repeat("{", 99), func(c *Config) {
			c.SQLServer = Server{Client: "pymysql", Dialect: DialectMySQL, Params: map[string]Secret{"password": Secret(strings.Repeat("[{", 99) + `"`), "database": "d", "user": Secret(strings.Repeat("[", 99) + "'")}}
		}},
		{"text log", `{"DB text format": "json", "DB text limit (MB)": 100}`, func(c *Config) { c.TextFormat, c.TextLimit = FormatJSON, 100 }},
		{"notify", `{"Notify first digest (minutes)": 0, "Notify ignore": ["/home/*/dev/**", "make", "` + hash + `", "/a b/ä"]}`, func(c *Config) {
			c.NotifyDigest, c.NotifyIgnore = 0, []string{"/home/*/dev/**", "make", hash, "/a b/ä"}
		}},
		{"command", `{"Notify command": ["/bin/x y", "", "a b", "$(c)"], "Notify journal": true, "Notify live feed": false}`, func(c *Config) {
			c.Command, c.Journal, c.Feed = []string{"/bin/x y", "", "a b", "$(c)"}, true, false
		}},
		{"no command", `{"Notify command": []}`, func(*Config) {}},
		{"virustotal of one's own", `{"VT API url": "http://127.0.0.1:8080/api/v3/"}`, func(c *Config) { c.VTURL = "http://127.0.0.1:8080/api/v3" }},
		{"virustotal", `{"VT API key": "k", "VT file upload": true, "VT request limit (seconds)": 0}`, func(c *Config) { c.VTKey, c.VTUpload, c.VTLimit = "k", true, 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			tc.change(&want)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     []string // each must be in the message
	}{
		{"empty", " \n", []string{"empty", "delete it"}},
		{"only a comment", "# nothing\n", []string{"no settings"}},
		{"a list", "[1]", []string{"line 1", "no settings", "one object"}},
		{"unknown key", `{"DB retention": 3}`, []string{"line 1", `"DB retention"`, "unknown key", `did you mean "DB retention (days)"?`}},
		{"unknown key, nothing near", `{"colour of the sky at night": 3}`, []string{"unknown key", "Bandwidth monitor", "VT API key"}},
		{"key twice", "{\"DB text log\": true,\n\"DB text log\": false}", []string{"line 2", "DB text log", "already defined"}},
		{"wrong type", "{\n  \"DB text log\": 1\n}", []string{"line 2", `"DB text log": 1: wrong type`, "allowed: true or false", `  2 |   "DB text log": 1`}},
		{"text for a number", `{"DB write limit (seconds)": "10"}`, []string{`"10"`, "wrong type", "from 1 to 86400"}},
		{"yes is a text", `{"DB text log": yes}`, []string{"wrong type"}},
		{"missing value", "{\"DB text log\": }", []string{"DB text log", "true or false"}},
		{"null", `{"DB text log": null}`, []string{"wrong type"}},
		{"fraction", `{"DB write limit (seconds)": 1.5}`, []string{"1.5", "wrong type"}},
		{"too small", `{"DB write limit (seconds)": 0}`, []string{`: 0: out of range`, "from 1 to 86400"}},
		{"too great", `{"DB retention (days)": 99999999999999999999}`, []string{"DB retention (days)", "from 1 to 36500"}},
		{"just above int64", `{"DB retention (days)": 9223372036854775808}`, []string{"out of range"}},
		{"not a power of two", `{"Perf ring buffer (pages)": 65}`, []string{"65", "not a power of two", "16384"}},
		{"rlimit", `{"Set RLIMIT_NOFILE": 63}`, []string{"63", "null or a whole number from 64 to 1048576"}},
		{"port", `{"Log ignore": [65536]}`, []string{"65536", "not a port"}},
		{"quoted port", `{"Log ignore": ["443"]}`, []string{`"443"`, "without quotes"}},
		{"empty domain", `{"Log ignore": [""]}`, []string{"would match everything"}},
		{"notify: no list", `{"Notify ignore": "curl"}`, []string{`"curl"`, "wrong type", "a list of paths"}},
		{"notify: number", `{"Notify ignore": [53]}`, []string{"53", "wrong type", "a list of paths"}},
		{"notify: empty", `{"Notify ignore": [""]}`, []string{"Notify ignore", "empty"}},
		{"notify: everything", `{"Notify ignore": ["/**"]}`, []string{`"/**"`, "Desktop notifications"}},
		{"notify: every name", `{"Notify ignore": ["*"]}`, []string{`"*"`, "Desktop notifications"}},
		{"notify: relative", `{"Notify ignore": ["dev/x"]}`, []string{`"dev/x"`, "begin with /"}},
		{"notify: home", `{"Notify ignore": ["~/x"]}`, []string{`"~/x"`, "begin with /"}},
		{"notify: short hash", `{"Notify ignore": ["` + strings.Repeat("ab", 16) + `"]}`, []string{"64 hex digits"}},
		{"notify: long name", `{"Notify ignore": ["NetworkManager-dispatcher"]}`, []string{"NetworkManager-dispatcher", "15"}},
		{"notify: digest", `{"Notify first digest (minutes)": 1441}`, []string{"1441", "out of range", "from 0 to 1440"}},
		{"ignore is no list", `{"Log ignore": 443}`, []string{"443", "a list of ports"}},
		{"nested list", `{"Log ignore": [[1]]}`, []string{"wrong type"}},
		{"client", `{"DB sql server": {"client": "oracle"}}`, []string{"oracle", "psycopg"}},
		{"parameter of another client", `{"DB sql server": {"client": "psycopg", "user": "u", "db": "d", "password": "hush"}}`, []string{`parameter "db" is unknown to client "psycopg"`, "allowed: table_name", "dbname"}},
		{"parameter that would do nothing", `{"DB sql server": {"client": "pymysql", "user": "u", "db": "d", "autocommit": true}}`, []string{`parameter "autocommit" is unknown`, "unix_socket"}},
		{"parameter under two names", `{"DB sql server": {"client": "pymysql", "user": "u", "db": "d", "password": "x", "passwd": "y"}}`, []string{`"password" is there twice`}},
		{"parameter's value", `{"DB sql server": {"client": "psycopg", "user": "u", "dbname": "d", "sslmode": "hush"}}`, []string{`"sslmode"`, "verify-full"}},
		{"server's port", `{"DB sql server": {"client": "mysql", "user": "u", "db": "d", "port": 65536}}`, []string{`"port"`, "from 1 to 65535"}},
		{"no database", `{"DB sql server": {"client": "mysql", "user": "u"}}`, []string{`"database" is missing`}},
		{"spool", `{"DB spool limit (MB)": 1}`, []string{"from 16 to"}},
		{"no client", `{"DB sql server": {"host": "x"}}`, []string{`"client" is missing`}},
		{"table name", `{"DB sql server": {"client": "pymysql", "table_name": "x; drop table y"}}`, []string{"table_name", "letters"}},
		{"format", `{"DB text format": "xml"}`, []string{`"DB text format": "xml"`, `"csv" or "json"`}},
		{"command: shell", `{"Notify command": "notify-send x"}`, []string{"Notify command", "a list of texts"}},
		{"command: name", `{"Notify command": ["notify-send"]}`, []string{"notify-send", "full path"}},
		{"command: number", `{"Notify command": ["/bin/x", 5]}`, []string{"5", "wrong type"}},
		{"command: long", `{"Notify command": ["/bin/x"` + strings.Repeat(`, "y"`, 16) + `]}`, []string{"more than 16"}},
		{"address: open", `{"VT API url": "http://www.virustotal.com/api/v3"}`, []string{"not encrypted", "https://"}},
		{"address: file", `{"VT API url": "file:///etc/passwd"}`, []string{"not an address"}},
		{"address: key in it", `{"VT API url": "https://key@host/"}`, []string{"not an address"}},
		{"anchor", "{\"DB text log\": &a true}", []string{"DB text log"}},
		{"alias", "a: &a [1]\nLog ignore: *a\n", []string{"Log ignore"}},
		{"merge", "x: &x {DB text log: true}\n<<: *x\n", []string{"plain text"}},
		{"tag", "{\"DB text log\": !!bool true}", []string{"wrong type"}},
		{"two documents", "DB text log: true\n---\nDB sql log: true\n", []string{"second document"}},
		{"NUL", "{\"DB text log\": \x00true}", []string{"U+0000"}},
		{"escape character", "{\"\x1b[31mDB\": true}", []string{"U+001B"}},
		{"not UTF-8", "{\"\xff\": 1}", []string{"UTF-8"}},
		{"not closed", "{\"DB text log\": true", []string{"line 1"}},
		{"deep", strings.Repeat("[", 1000), []string{"nested too deeply"}},
		{"octal", `{"DB write limit (seconds)": 010}`, []string{"010", "wrong type"}},
		{"underscore", `{"DB write limit (seconds)": 1_0}`, []string{"1_0", "wrong type"}},
		{"hexadecimal", `{"DB write limit (seconds)": 0x10}`, []string{"0x10", "wrong type"}},
		{"plus", `{"Log ignore": [+53]}`, []string{"53"}},
		{"deep behind an apostrophe", "DB text log: it's " + strings.Repeat("[", 1000), []string{"nested too deeply"}},
		{"deep behind an open quote", "'\n" + strings.Repeat("[", 1000), []string{"nested too deeply"}},
		{"deep dashes", strings.Repeat("- ", 5000), []string{"nested too deeply"}},
		{"huge", "#" + strings.Repeat("x", MaxSize), []string{"65537 bytes", "at most 65536"}},
		{"two errors", "{\"DB text log\": 1, \"Nothing like this\": 2}", []string{"DB text log", "Nothing like this"}},
		{"right to left", "{\"DB \u202etext log\": 1}", []string{`\u{202e}`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.in))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("message lacks %q:\n%s", w, err)
				}
			}
		})
	}
}

// No way of being wrong may print a secret.
func TestSecretsStayHidden(t *testing.T) {
	const secret = "TopS3cret"
	for _, in := range []string{
		`{"VT API key": ["TopS3cret"]}`,
		`{"VT API key": "TopS3cret with space"}`,
		"{\"VT API key\":\n\"TopS3cret\" \"x\"}",
		`{"VT API key": "TopS3cret`,
		`{"DB sql server": "TopS3cret"}`,
		`{"DB sql server": {"client": "pymysql", "password": ["TopS3cret"]}}`,
		"{\"DB sql server\": {\n\"client\": \"pymysql\",\n\"password\": \"TopS3cret\" }]}",
		"{\"DB sql server\": {\n\"client\": \"pymysql\",\n\"passwd\": TopS3cret: x}",
		"{\"DB sql server\": {\n\"client\": \"pymysql\", \"x\": [\n\"TopS3cret\"]}}",
		"DB sql server:\n  client: pymysql\n  password: TopS3cret\n  password: TopS3cret\n",
		`{"VT APIkey": "TopS3cret"}`,
		`{"VT kee": "TopS3cret"}`,
		`{"colour": "TopS3cret"}`,
		"VT kee: TopS3cret\n",
		`{"DB text log": 1, "VT kee": "TopS3cret"}`,
		`{"DB text log": true, "VT kee": "TopS3cret" "x"}`,
		"{\"DB text log\": true, \"VT kee\":\n\"TopS3cret\" \"x\"}",
		"{\"DB text log\": true, \"VT kee\":\n\"TopS3cret\", \"DB sql log\": 1}",
		`{"DB sql srever": {"client": "pymysql", "pwd": "TopS3cret"}}`,
		`{"DB sql server": {"client": "nobody", "pwd": "TopS3cret"}}`,
		`{"DB sql server": {"client": "pymysql", "pwd": ["TopS3cret"], "token": ["TopS3cret"], "key": ["TopS3cret"], "secret": ["TopS3cret"]}}`,
		`{"DB sql server": {"client": "pymysql", "host": "db", "x": ["TopS3cret"]}, "DB text log": 1}`,
		`{"DB text log": {"VT API key": "TopS3cret"}}`,
		"DB text log:\n  VT API key: TopS3cret\n",
		`{"Log ignore": [{"password": "TopS3cret"}]}`,
		"TopS3cret",
		`{"TopS3cret`,
		"DB text log: password TopS3cret\n",
	} {
		_, err := Parse([]byte(in))
		if err == nil {
			t.Errorf("accepted: %s", in)
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error for\n%s\nprints the secret:\n%s", in, err)
		}
	}
	c := Config{VTKey: secret, SQLServer: Server{Params: map[string]Secret{"password": secret}}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("config", "config", c, "key", c.VTKey)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("config", "config", c, "key", c.VTKey)
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %s %q %x", c, c, c, c.VTKey, c.VTKey, c.VTKey) + log.String() + string(j)
	if strings.Contains(out, secret) || strings.Contains(out, fmt.Sprintf("%x", secret)) {
		t.Errorf("a secret was printed: %s", out)
	}
	if c.VTKey.Reveal() != secret {
		t.Error("Reveal does not give the text")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Document())
	for _, s := range []string{"{}", "", "\x00", "\ufeff{}", "a: &a [*a]", "- - - -", "? ?", "{\"a\":{\"a\":{}}}", "|\n x", ">-\n", "\"\\ud800\"", "%YAML 1.2\n---\n", "'", "!!binary x", "{VT API key: x}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		c, err := Parse(data)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("took %s", d)
		}
		if err != nil {
			if d := cmp.Diff(Config{}, c); d != "" {
				t.Errorf("error and value: %s", d)
			}
			for _, r := range err.Error() {
				if r != '\n' && r < ' ' {
					t.Errorf("error holds a control character: %q", err)
				}
			}
			return
		}
		if c.WriteLimit < 1 || c.RingPages&(c.RingPages-1) != 0 || c.RetentionDays < 1 {
			t.Errorf("out of range: %+v", c)
		}
	})
}
