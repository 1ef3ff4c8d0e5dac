package monitor

import (
	"bufio"
	"database/sql"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // the driver
)

// Row is one record, from any of the places where the monitor writes it. The view and conn.log do not hold the
// fields of the second block.
type Row struct {
	Exe, Name, Cmdline, SHA256     string
	UID                            uint32
	PExe, PName, PCmdline, PSHA256 string
	Remote                         string // address:port, ":port" without an address
	Sent, Received, Conns          uint64

	Family, Protocol, Direction, Layer, Peer, Local string
}

// OpenDB opens a database read-only, also while a monitor writes to it.
func OpenDB(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

// Database is the path of snitch.db.
func (m *Monitor) Database() string { return filepath.Join(m.Dir, "snitch.db") }

// Rows reads the base tables of snitch.db.
func (m *Monitor) Rows() ([]Row, error) {
	return m.query(`SELECT e.path, p.name, p.cmdline, e.sha256, r.uid,
		coalesce(pe.path, ''), coalesce(pp.name, ''), coalesce(pp.cmdline, ''), coalesce(pe.sha256, ''),
		coalesce(remote.ip, ''), r.remote_port, r.sent, r.received, r.conns,
		k.family, k.protocol, k.direction, k.layer, k.peer, coalesce(local.ip, ''), r.local_port
		FROM records r JOIN programs p ON p.id = r.program JOIN executables e ON e.id = p.executable JOIN kinds k ON k.id = r.kind
		LEFT JOIN programs pp ON pp.id = p.parent LEFT JOIN executables pe ON pe.id = pp.executable
		LEFT JOIN addresses remote ON remote.id = r.remote LEFT JOIN addresses local ON local.id = r.local`)
}

// View reads the flat view of snitch.db.
func (m *Monitor) View() ([]Row, error) {
	return m.query(`SELECT exe, name, cmdline, sha256, uid, pexe, pname, pcmdline, psha256, ip, port, send, recv, conns,
		'', '', '', '', '', '', 0 FROM connections`)
}

func (m *Monitor) query(text string) ([]Row, error) {
	db, err := OpenDB(m.Database())
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.Query(text)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	defer rows.Close()
	var all []Row
	for rows.Next() {
		var r Row
		var ip, local string
		var port, localPort uint16
		err := rows.Scan(&r.Exe, &r.Name, &r.Cmdline, &r.SHA256, &r.UID, &r.PExe, &r.PName, &r.PCmdline, &r.PSHA256, &ip, &port, &r.Sent, &r.Received, &r.Conns,
			&r.Family, &r.Protocol, &r.Direction, &r.Layer, &r.Peer, &local, &localPort)
		if err != nil {
			return nil, fmt.Errorf("read records: %w", err)
		}
		r.Remote, r.Local = endpoint(ip, port), endpoint(local, localPort)
		all = append(all, r)
	}
	return all, rows.Err()
}

// endpoint joins an address and a port as the claims do.
func endpoint(ip string, port uint16) string {
	if a, err := netip.ParseAddr(ip); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return ip + ":" + strconv.Itoa(int(port))
}

// Text reads conn.log: the mission's 16 fields, separated by commas.
func (m *Monitor) Text() ([]Row, error) {
	f, err := os.Open(filepath.Join(m.Dir, "conn.log"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Row
	s := bufio.NewScanner(f)
	s.Buffer(nil, 8<<20)
	for n := 1; s.Scan(); n++ {
		v := strings.Split(s.Text(), ",")
		if len(v) != 16 {
			return nil, fmt.Errorf("conn.log:%d: %d fields, not 16: %.300q", n, len(v), s.Text())
		}
		r := Row{Exe: v[0], Name: v[1], Cmdline: v[2], SHA256: v[3], PExe: v[9], PName: v[10], PCmdline: v[11], PSHA256: v[12]}
		var number [5]uint64
		for i, at := range []int{7, 8, 13, 14, 15} {
			if number[i], err = strconv.ParseUint(v[at], 10, 64); err != nil {
				return nil, fmt.Errorf("conn.log:%d: field %d: %w", n, at+1, err)
			}
		}
		r.Remote, r.UID = endpoint(v[6], uint16(number[0])), uint32(number[1])
		r.Conns, r.Sent, r.Received = number[2], number[3], number[4]
		all = append(all, r)
	}
	return all, s.Err()
}

// Intact runs SQLite's own check of a database.
func Intact(path string) error {
	db, err := OpenDB(path)
	if err != nil {
		return err
	}
	defer db.Close()
	var answer string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&answer); err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	if answer != "ok" {
		return fmt.Errorf("check %s: %s", path, answer)
	}
	return nil
}

// Sums adds up by executable: a quick look at a database of many records.
func Sums(path string) (map[string]Row, error) {
	db, err := OpenDB(path)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.Query(`SELECT exe, sum(send), sum(recv), sum(conns) FROM connections GROUP BY exe`)
	if err != nil {
		return nil, fmt.Errorf("sum up: %w", err)
	}
	defer rows.Close()
	all := make(map[string]Row)
	for rows.Next() {
		var r Row
		if err := rows.Scan(&r.Exe, &r.Sent, &r.Received, &r.Conns); err != nil {
			return nil, fmt.Errorf("sum up: %w", err)
		}
		all[r.Exe] = r
	}
	return all, rows.Err()
}
