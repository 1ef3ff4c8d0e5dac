package recorder

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
	"github.com/picosnitch/picosnitch/internal/recorder/store"
	"github.com/picosnitch/picosnitch/test/servers"
	"github.com/picosnitch/picosnitch/test/windows"
)

// sinkKind is a kind of sink, and how to read what it wrote: rows of the mission's columns.
type sinkKind struct {
	name  string
	open  func(t *testing.T, dir string) store.Sink
	read  func(t *testing.T, dir string) []map[string]string
	clean func(string) string // what the format takes away from a text; nil: nothing
	zone  *time.Location      // of times without one; nil: UTC
}

// TestSinks: the same windows in, the same rows out, whatever the sink: hostile texts, great numbers, a window without records, a
// close and an open in between.
func TestSinks(t *testing.T) {
	var mission []string
	for _, f := range store.Fields()[:store.MissionFields] {
		mission = append(mission, f.Name)
	}
	query := "SELECT " + strings.Join(mission, ", ") + " FROM connections"
	read := func(t *testing.T, db *sql.DB) (rows []map[string]string) {
		t.Helper()
		r, err := db.QueryContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		values := make([]sql.NullString, len(mission))
		to := make([]any, len(mission))
		for i := range values {
			to[i] = &values[i]
		}
		for r.Next() {
			if err := r.Scan(to...); err != nil {
				t.Fatal(err)
			}
			row := make(map[string]string)
			for i, name := range mission {
				row[name] = values[i].String
			}
			rows = append(rows, row)
		}
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	text := func(json bool) func(t *testing.T, dir string) store.Sink {
		return func(t *testing.T, dir string) store.Sink {
			s, err := store.OpenText(filepath.Join(dir, "conn.log"), store.TextOptions{Zone: time.UTC, JSON: json})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	lines := func(t *testing.T, dir string) []string {
		b, err := os.ReadFile(filepath.Join(dir, "conn.log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	kinds := []sinkKind{
		{
			name: "sqlite", zone: time.Local,
			open: func(t *testing.T, dir string) store.Sink {
				s, err := store.OpenSQLite(t.Context(), filepath.Join(dir, "snitch.db"), time.Second, func(string, string) {})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			read: func(t *testing.T, dir string) []map[string]string { return read(t, openDB(t, dir)) },
		},
		{
			name: "csv", open: text(false),
			clean: strings.NewReplacer(",", "", "\n", "", "\r", "", "\x00", "").Replace,
			read: func(t *testing.T, dir string) (rows []map[string]string) {
				for _, line := range lines(t, dir) {
					row := make(map[string]string)
					f := strings.Split(line, ",")
					if len(f) != len(mission) {
						t.Fatalf("%d fields: %q", len(f), line)
					}
					for i, name := range mission {
						row[name] = f[i]
					}
					rows = append(rows, row)
				}
				return rows
			},
		},
		{
			name: "json", open: text(true),
			read: func(t *testing.T, dir string) (rows []map[string]string) {
				for _, line := range lines(t, dir) {
					d := json.NewDecoder(strings.NewReader(line))
					d.UseNumber()
					var all map[string]any
					if err := d.Decode(&all); err != nil {
						t.Fatal(err)
					}
					row := make(map[string]string)
					for _, name := range mission {
						row[name] = fmt.Sprint(all[name])
					}
					rows = append(rows, row)
				}
				return rows
			},
		},
		serverKind(remote.Postgres, mission, servers.StartPostgres),
		serverKind(remote.MySQL, mission, servers.StartMariaDB),
	}
	m := windows.New(windows.Shape{})
	all := []*flow.Window{windows.Hostile(1), m.Window(2, 300), m.Window(3, 0), m.Window(4, 1), m.Window(5, 50)}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dir := t.TempDir()
			s := k.open(t, dir)
			for i, w := range all {
				if i == 3 {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					s = k.open(t, dir)
				}
				if err := s.Write(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			got, want := k.read(t, dir), windows.Rows(all...)
			for i := range want {
				for name, v := range want[i] {
					if !slices.Contains(mission, name) {
						delete(want[i], name)
					} else if k.clean != nil {
						want[i][name] = k.clean(v)
					}
				}
			}
			for _, rows := range [][]map[string]string{got, want} {
				for _, row := range rows {
					for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04:05+00"} {
						if at, err := time.ParseInLocation(layout, row["contime"], cmp.Or(k.zone, time.UTC)); err == nil {
							row["contime"] = at.UTC().Format(time.RFC3339)
							break
						}
					}
				}
				slices.SortFunc(rows, func(a, b map[string]string) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
			if d := gocmp.Diff(want, got); d != "" {
				t.Error(d[:min(len(d), 3000)])
			}
		})
	}
}

// serverKind is the sink of a real server, which is started for it.
func serverKind(dialect string, mission []string, start func(...string) (*servers.Server, error)) sinkKind {
	var s *servers.Server
	return sinkKind{
		name: dialect,
		open: func(t *testing.T, dir string) store.Sink {
			if s == nil {
				var err error
				s, err = start()
				if errors.Is(err, servers.ErrMissing) && os.Geteuid() != 0 {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(s.Remove)
				if _, err := s.SQL("", "CREATE DATABASE pico"); err != nil {
					t.Fatal(err)
				}
			}
			o := remote.Settings{Client: dialect, Dialect: dialect, Limit: spool.MinLimit, Params: map[string]string{"user": s.Admin, "database": "pico"}}
			if dialect == remote.Postgres {
				o.Params["host"], o.Params["port"] = s.Socket, fmt.Sprint(s.Port)
			} else {
				o.Params["unix_socket"] = s.Socket
			}
			r, err := remote.Open(o, remote.Options{Dir: filepath.Join(dir, "spool"), Zone: time.UTC, Linger: 30 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return r
		},
		read: func(t *testing.T, _ string) (rows []map[string]string) {
			q := "SELECT row_to_json(c) FROM connections c"
			if dialect == remote.MySQL {
				var parts []string
				for _, name := range mission {
					parts = append(parts, fmt.Sprintf("'%s', `%[1]s`", name))
				}
				q = "SELECT hex(json_object(" + strings.Join(parts, ",") + ")) FROM connections"
			}
			out, err := s.SQL("pico", q)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out) {
				line = strings.TrimSuffix(line, "\n")
				if dialect == remote.MySQL { // the client escapes backslashes
					var b []byte
					if _, err := fmt.Sscanf(line, "%x", &b); err != nil {
						t.Fatal(err)
					}
					line = string(b)
				}
				d := json.NewDecoder(strings.NewReader(line))
				d.UseNumber()
				var all map[string]any
				if err := d.Decode(&all); err != nil {
					t.Fatal(err)
				}
				row := make(map[string]string)
				for _, name := range mission {
					row[name] = fmt.Sprint(all[name])
				}
				rows = append(rows, row)
			}
			return rows
		},
	}
}
