package recorder

import (
	"bytes"
	"database/sql"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/picosnitch/picosnitch/internal/event"
)

var update = flag.Bool("update", false, "write the streams and what they give into testdata")

// streams are the recorded streams and the settings that they are replayed with.
func streams() []struct {
	name     string
	settings func(*Settings)
	script   func(*script)
} {
	bash := "/usr/bin/bash"
	curl := "/usr/bin/curl"
	shell := func(s *script) {
		s.process(1, 0, "/sbin/init", "init")
		s.process(10, 1, bash, "bash")
		s.hash(bash, 0xba)
	}
	type stream = struct {
		name     string
		settings func(*Settings)
		script   func(*script)
	}
	return []stream{
		{"tcp", nil, func(s *script) {
			shell(s)
			s.process(11, 10, curl, "curl", "-o", "a file", "https://www.example.com/?a=1&b='2'")
			s.hash(curl, 0xc0)
			s.add(event.Event{Name: &event.Name{Address: ap("192.0.2.1:1").Addr(), Name: "www.Example.com", Source: "dns"}})
			s.tcp(11, "192.0.2.1:443", 1, 100, 2000)
			s.ledger()
			s.tcp(11, "192.0.2.1:443", 0, 50, 3000)
			s.flow(event.Flow{Process: id(11), UID: 1000, Direction: event.Inbound, Local: ap("10.0.0.1:22"), Remote: ap("192.0.2.9:50123"), Peer: event.PeerSocket, Conns: 1, Sent: 7, Received: 8})
			s.flow(event.Flow{Process: id(11), UID: 1000, Family: "inet6", Direction: event.Outbound, Local: ap("[2001:db8::1]:40001"), Remote: ap("[2001:db8::2]:443"), Peer: event.PeerSocket, Conns: 1, Sent: 1, Received: 0})
			s.ledger()
			s.tcp(11, "127.0.0.1:8080", 1, 5, 5)
		}},
		{"windows", nil, func(s *script) {
			shell(s)
			for range 25 {
				s.tcp(10, "192.0.2.1:443", 0, 1, 10)
				s.ledger()
			}
		}},
		{"failed-connect", nil, func(s *script) {
			shell(s)
			s.tcp(10, "192.0.2.2:81", 1, 0, 0)
			s.tcp(10, "192.0.2.2:81", 2, 0, 0)
		}},
		{"udp-many-peers", nil, func(s *script) {
			shell(s)
			for i := range 40 {
				s.flow(event.Flow{Process: id(10), UID: 0, Protocol: "udp", Local: ap("0.0.0.0:5353"), Remote: ap(fmt.Sprintf("192.0.2.%d:%d", 1+i%20, 1000+i%20)), Peer: event.PeerMessage, Conns: uint32(1 - i/20), Sent: 10, Received: uint64(i)})
			}
			s.flow(event.Flow{Process: id(10), UID: 0, Protocol: "udp", Local: ap("0.0.0.0:5353"), Sent: 3})
		}},
		{"other-families", nil, func(s *script) {
			shell(s)
			s.flow(event.Flow{Process: id(10), Family: "packet", Layer: event.LayerFrame, Sent: 60, Received: 1500})
			s.flow(event.Flow{Process: id(10), Protocol: "icmp", Local: ap("10.0.0.1:0"), Remote: ap("192.0.2.1:0"), Layer: event.LayerIP, Peer: event.PeerPacket, Sent: 64, Received: 84})
			s.flow(event.Flow{Process: id(10), Family: "vsock", Sent: 1})
		}},
		{"every-exe", func(o *Settings) { o.IgnorePorts = []int{0} }, func(s *script) {
			shell(s)
			executed := func(pid int) {
				s.add(event.Event{Flow: &event.Flow{Process: id(pid), UID: 1000, Family: event.FamilyExec, Conns: 1}})
			}
			executed(10)
			s.process(11, 10, curl, "curl")
			executed(11)
			s.process(12, 10, curl, "curl")
			executed(12) // the same program: one record
			s.tcp(11, "192.0.2.1:443", 1, 1, 1)
			s.hash(curl, 0xc0)
		}},
		{"exec-after-connect", nil, func(s *script) {
			shell(s)
			s.process(11, 10, bash, "bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/80; exec cat <&3")
			s.tcp(11, "192.0.2.1:80", 1, 10, 0)
			next := id(11)
			next.Exec = 2
			s.add(event.Event{Process: &event.Process{ID: next, Parent: id(10), Path: "/bin/cat", Argv: []string{"cat"}, Name: "cat", File: file(inode("/bin/cat")), Source: event.SourceExec}})
			s.flow(event.Flow{Process: next, UID: 1000, Direction: event.Outbound, Local: ap("10.0.0.1:40000"), Remote: ap("192.0.2.1:80"), Peer: event.PeerSocket, Received: 500})
		}},
		{"fork-without-exec", nil, func(s *script) {
			shell(s)
			s.process(20, 10, "/usr/sbin/nginx", "nginx: master")
			s.add(event.Event{Process: &event.Process{ID: id(21), Parent: id(20), Path: "/usr/sbin/nginx", Argv: []string{"nginx: worker"}, Name: "nginx", UID: 33, File: file(inode("/usr/sbin/nginx")), Source: event.SourceFork}})
			s.flow(event.Flow{Process: id(21), UID: 33, Direction: event.Inbound, Local: ap("10.0.0.1:80"), Remote: ap("192.0.2.7:55555"), Peer: event.PeerSocket, Conns: 1, Sent: 1000, Received: 100})
		}},
		{"ancestors", nil, func(s *script) {
			// Twelve generations; the parents are gone before the last one speaks; one of them execs after its parent's end.
			for i := 1; i <= 12; i++ {
				s.process(i, i-1, fmt.Sprintf("/gen/%02d", i), fmt.Sprint("gen", i))
			}
			for i := 1; i < 12; i++ {
				s.add(event.Event{Exit: &event.Exit{ID: id(i)}})
			}
			s.tcp(12, "192.0.2.1:80", 1, 1, 1)
			next := id(12)
			next.Exec = 2
			s.add(event.Event{Process: &event.Process{ID: next, Parent: id(11), Path: "/gen/13", Name: "13", Source: event.SourceExec}})
			s.flow(event.Flow{Process: next, Remote: ap("192.0.2.1:80"), Sent: 1})
			s.add(event.Event{Exit: &event.Exit{ID: next}})
		}},
		{"late-hash", nil, func(s *script) {
			s.process(10, 0, bash, "bash")
			s.process(11, 10, curl, "curl")
			s.process(12, 10, "/bin/nc", "nc")
			s.tcp(11, "192.0.2.1:80", 1, 1, 1)
			for range 12 {
				s.ledger()
			}
			s.hash(curl, 0xc0) // after its window
			s.hash(bash, 0xba)
			s.add(event.Event{Executable: &event.Executable{File: file(inode("/bin/nc")), Path: "/bin/nc", Reason: "open /bin/nc: permission denied"}})
			s.tcp(12, "192.0.2.1:80", 1, 2, 2)
			s.add(event.Event{Exit: &event.Exit{ID: id(11)}})
		}},
		{"hostile", nil, func(s *script) {
			huge := strings.Repeat("A", 100_000)
			s.add(event.Event{Process: &event.Process{ID: id(1), Path: event.Text([]byte("/tmp/\x1b[31m\xff\n,evil")), Argv: []string{event.Text([]byte("<script>alert(1)</script>")), "'; DROP TABLE records; --", "", event.Text([]byte("a\x00b\u202e"))}, Name: event.Text([]byte("a,b\r\n")), File: file(1)}})
			s.add(event.Event{Process: &event.Process{ID: id(2), Path: "/raw\x1b[2J\u202eesrever", Argv: []string{huge}, Name: "\n\x00", File: file(2)}})
			s.add(event.Event{Process: &event.Process{ID: id(3), Kernel: true, Name: "kworker/0:1"}})
			s.add(event.Event{Name: &event.Name{Address: ap("192.0.2.1:1").Addr(), Name: "evil,\x1b]0;x\a.example", Source: "dns\n"}})
			s.tcp(1, "192.0.2.1:443", 1, 1, 2)
			s.tcp(2, "192.0.2.2:443", 1, 3, 4)
			s.tcp(3, "192.0.2.3:2049", 1, 5, 6)
			s.tcp(99, "192.0.2.4:1", 1, 7, 8) // a process that nobody described
			s.flow(event.Flow{Sent: 9})       // not even a number
			s.flow(event.Flow{Process: id(1), Family: "inet\x1b", Protocol: "", Sent: 1<<64 - 1, Received: 1<<64 - 1})
			s.flow(event.Flow{Process: id(1), Family: "inet\x1b", Protocol: "", Sent: 1<<64 - 1, Received: 1<<64 - 1})
		}},
		{"losses", nil, func(s *script) {
			shell(s)
			s.ledger()
			s.lost = map[string]uint64{event.LostExec: 3, "flux": 1}
			s.unatt = event.Bytes{Sent: 5, Received: 7}
			s.ledger()
			s.lost[event.LostExec] = 5
			s.ledger()
			s.tcp(10, "192.0.2.1:80", 1, 1, 1)
			for range 10 {
				s.ledger()
			}
			s.add(event.Event{Notice: &event.Notice{Level: "error", Text: "cannot hash /x", Hint: "look"}})
		}},
		{"places", nil, func(s *script) {
			shell(s)
			// One program in two containers, and a script: its interpreter's row says which.
			for n, cgroup := range []uint64{4242, 1<<64 - 1} {
				s.add(event.Event{Process: &event.Process{ID: id(20 + n), Parent: id(10), Path: "/usr/bin/python3", Argv: []string{"python3", "/srv/app"}, Name: "app", Script: "/srv/app", File: file(3), Cgroup: cgroup, Source: event.SourceExec}})
				s.tcp(20+n, "192.0.2.1:443", 1, uint64(n+1), 0)
			}
		}},
		{"interpreters", nil, func(s *script) {
			shell(s)
			python := func(pid int, sent uint64, p event.Process) {
				p.ID, p.Parent, p.Path, p.Argv, p.Name, p.File, p.Source = id(pid), id(10), "/usr/bin/python3.12", []string{"python3", p.Script}, "python3", file(3), event.SourceExec
				s.add(event.Event{Process: &p})
				s.tcp(pid, "192.0.2.1:443", 1, sent, 0)
			}
			docker := &event.Place{Kind: event.PlaceContainer, Path: "/docker/x", Runtime: "docker", Container: "x", Name: "web"}
			python(20, 1, event.Process{Script: "/srv/a.py", ScriptKind: event.ScriptArgument, ScriptFile: file(7), Cgroup: 1, Place: docker})
			// The same path, other bytes: another container, or a new version.
			python(21, 2, event.Process{Script: "/srv/a.py", ScriptKind: event.ScriptFromFile, ScriptFile: file(8), Cgroup: 1, Place: &event.Place{Kind: event.PlaceContainer, Path: "/docker/y", Runtime: "docker", Container: "y"}})
			python(22, 4, event.Process{Script: "/srv/b.py", ScriptKind: event.ScriptArgument, ScriptReason: "gone before it could be opened", Preload: "LD_PRELOAD=/tmp/x.so", Cgroup: 1, Place: docker})
			python(23, 8, event.Process{Script: "http.server", ScriptKind: event.ScriptModule, ScriptReason: "a module", PreloadCut: true})
			python(24, 16, event.Process{ScriptKind: event.ScriptCommand, Place: &event.Place{Kind: event.PlaceUser, Path: "/user.slice/a", Unit: "user@1.service", Owner: "1", UserUnit: "b.service", Session: "3", Pod: "4", App: "<b>'; DROP TABLE places; --"}})
			python(25, 32, event.Process{ScriptKind: event.ScriptStdin, Preload: "LD_AUDIT=y", PreloadCut: true})
			python(26, 64, event.Process{ScriptKind: event.ScriptUnknown})
			s.add(event.Event{Executable: &event.Executable{File: file(7), Path: "/srv/a.py", SHA256: fmt.Sprintf("%064x", 0xa)}})
			for range 12 {
				s.ledger()
			}
			s.add(event.Event{Executable: &event.Executable{File: file(8), Path: "/srv/a.py", SHA256: fmt.Sprintf("%064x", 0xb)}}) // after its window
			// An executable of the same name as a script that was never found: its digest is not the script's.
			s.add(event.Event{Executable: &event.Executable{Path: "/srv/b.py", SHA256: fmt.Sprintf("%064x", 0xc)}})
		}},
		{"no-addresses", func(o *Settings) { o.LogAddresses = false; o.LogCommands = false }, func(s *script) {
			shell(s)
			s.tcp(10, "192.0.2.1:443", 1, 1, 10)
			s.tcp(10, "192.0.2.2:443", 1, 2, 20)
			s.tcp(10, "127.0.0.1:80", 1, 4, 40)
		}},
		{"ignore", func(o *Settings) {
			o.IgnoreDomains, o.IgnoreHashes = []string{"com.example"}, []string{hash(0xc0)}
			o.IgnorePorts = []int{53, 22}
		}, func(s *script) {
			shell(s)
			s.add(event.Event{Name: &event.Name{Address: ap("192.0.2.1:1").Addr(), Name: "www.example.com", Source: "dns"}})
			s.add(event.Event{Name: &event.Name{Address: ap("192.0.2.2:1").Addr(), Name: "example.com.org", Source: "dns"}})
			s.process(11, 10, curl, "curl")
			s.tcp(10, "192.0.2.1:443", 1, 1, 1)  // by domain
			s.tcp(10, "192.0.2.2:443", 1, 2, 2)  // logged
			s.tcp(10, "192.0.2.3:53", 1, 4, 4)   // by port
			s.tcp(10, "192.0.2.3:5353", 1, 8, 8) // logged
			s.tcp(11, "192.0.2.3:80", 1, 16, 16) // by hash, which comes later
			s.flow(event.Flow{Process: id(10), Direction: event.Inbound, Local: ap("10.0.0.1:22"), Remote: ap("192.0.2.8:4000"), Sent: 32})
			s.flow(event.Flow{Process: id(10), Direction: event.Outbound, Local: ap("10.0.0.1:22"), Remote: ap("192.0.2.8:4000"), Sent: 64}) // logged
			s.ledger()
			s.hash(curl, 0xc0)
		}},
	}
}

func TestGolden(t *testing.T) {
	for _, g := range streams() {
		t.Run(g.name, func(t *testing.T) {
			path := filepath.Join("testdata", g.name+".ndjson")
			s := newScript(t)
			g.script(s)
			want := s.end()
			if *update {
				write(t, path, want)
			}
			stream, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(stream, want) {
				t.Errorf("%s is not what the script writes: run with -update if the script is right", path)
			}
			o := options(t)
			if g.settings != nil {
				g.settings(&o.Settings)
			}
			record(t, stream, o)
			got := dump(t, o.Dir)
			golden := filepath.Join("testdata", g.name+".golden")
			if *update {
				write(t, golden, []byte(got))
			}
			b, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(b), "\n"), strings.Split(got, "\n")); d != "" {
				t.Errorf("%s (-want +got):\n%s", golden, d)
			}
		})
	}
}

// options are for a recorder in a directory of its own, with both sinks.
func options(t testing.TB) Options {
	s := Defaults()
	s.TextLog = true
	return Options{Dir: t.TempDir(), Settings: s, Hosts: "testdata/hosts", Zone: time.Local}
}

func record(t testing.TB, stream []byte, o Options) {
	t.Helper()
	if err := Run(t.Context(), bytes.NewReader(stream), o); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func openDB(t testing.TB, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "snitch.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openRW(t testing.TB, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "snitch.db"))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// base is the base table with its words instead of its numbers, ancestors included.
const base = `SELECT w.start, w."end", r.n, e.path, e.inode, e.sha256, e.reason, p.name, r.uid, k.family, k.protocol, k.direction, k.layer,
	k.peer, l.ip, r.local_port, a.ip, r.remote_port, d.name, d.source, r.net_ns, r.conns, r.sent, r.received,
	(WITH RECURSIVE up (id, depth) AS (
	   SELECT p.parent, 1 UNION ALL SELECT programs.parent, depth + 1 FROM up JOIN programs USING (id) WHERE programs.parent IS NOT NULL)
	 SELECT group_concat(x.path, ' < ' ORDER BY depth) FROM up JOIN programs USING (id) JOIN executables x ON x.id = executable) AS ancestors
	FROM records r JOIN windows w ON w.id = r.window JOIN programs p ON p.id = r.program JOIN executables e ON e.id = p.executable
	JOIN kinds k ON k.id = r.kind LEFT JOIN addresses l ON l.id = r.local LEFT JOIN addresses a ON a.id = r.remote
	LEFT JOIN domains d ON d.id = r.domain ORDER BY r.window, r.n`

// mission is the query of the mission document.
const mission = `SELECT exe,name,cmdline,sha256,contime,domain,ip,port,uid,pexe,pname,pcmdline,psha256,conns,send,recv FROM connections`

// dump is everything that a stream left: the tables, the logs.
func dump(t testing.TB, dir string) string {
	t.Helper()
	db := openDB(t, dir)
	var b strings.Builder
	for _, q := range []struct{ name, text string }{
		{"connections", mission},
		{"records", base},
		{"windows", `SELECT w.id, start, "end", unattributed_sent, unattributed_received, reason, count FROM windows w LEFT JOIN losses ON window = w.id ORDER BY w.id, reason`},
		{"programs", `SELECT path, sha256, reason, name, length(cmdline), (SELECT path FROM executables WHERE id = script), script_kind FROM programs JOIN executables e ON e.id = executable ORDER BY 1, 4`},
		{"places", `SELECT boot, cgroup, places.name, e.path, sum(sent) FROM places JOIN records r ON r.place = places.id JOIN programs p ON p.id = r.program JOIN executables e ON e.id = p.executable GROUP BY 1, 2, 3, 4`},
		{"interpreters", `SELECT e.path, s.path, script_kind, s.sha256, s.reason, preload, sum(sent) FROM programs p JOIN executables e ON e.id = executable LEFT JOIN executables s ON s.id = script LEFT JOIN records r ON r.program = p.id WHERE script_kind <> '' OR preload <> '' GROUP BY 1, 2, 3, 4, 5, 6`},
		{"where", `SELECT p.path, p.kind, unit, owner, user_unit, session, runtime, container, p.name, pod, app, sum(sent) FROM places p JOIN records r ON place = p.id WHERE p.path <> '' GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11`},
		{"streams", `SELECT s.stream, program, host, boot, hook_set, started, sink, batch, flows FROM streams s JOIN positions p ON p.stream = s.id`},
	} {
		text := rows(t, db, q.text)
		if text == "" && (q.name == "interpreters" || q.name == "where") {
			continue
		}
		fmt.Fprintf(&b, "== %s\n%s", q.name, text)
	}
	for _, name := range []string{"conn.log", "error.log"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "== %s\n%s", name, shorten(string(text)))
	}
	return b.String()
}

func rows(t testing.TB, db *sql.DB, q string) string {
	t.Helper()
	rs, err := db.Query(q)
	if err != nil {
		t.Fatal(err)
	}
	defer rs.Close()
	columns, _ := rs.Columns()
	var b strings.Builder
	for rs.Next() {
		v := make([]any, len(columns))
		p := make([]any, len(columns))
		for i := range v {
			p[i] = &v[i]
		}
		if err := rs.Scan(p...); err != nil {
			t.Fatal(err)
		}
		for i, x := range v {
			if i > 0 {
				b.WriteString("|")
			}
			if x == nil {
				x = "NULL"
			}
			fmt.Fprint(&b, x)
		}
		b.WriteString("\n")
	}
	if err := rs.Err(); err != nil {
		t.Fatal(err)
	}
	return shorten(b.String())
}

// shorten replaces long runs of the letter that huge texts are made of, so that the golden files can be read.
func shorten(s string) string {
	for _, n := range []int{8192} {
		s = strings.ReplaceAll(s, strings.Repeat("A", n), fmt.Sprintf("<%d×A>", n))
	}
	return s
}
