// Package servers starts throw-away SQL servers for tests and benchmarks: real ones, from Debian's packages, in a directory of
// their own, on a free port and a unix socket, without rights, and ends them. It downloads nothing and touches no server of
// the system's.
package servers

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// ErrMissing says that the server's package is not installed.
var ErrMissing = errors.New("not installed: test/deps.sh postgresql mariadb-server")

// ErrNotFetched says that a server is not there that is no package of this system.
var ErrNotFetched = errors.New("not fetched: test/servers/mysql.sh")

// Server is one that runs, or did.
type Server struct {
	Kind   string // "postgres", "mariadb" or "mysql"
	Dir    string // its own; Files are in it
	Port   int    // on 127.0.0.1
	Socket string // directory (PostgreSQL) or path (the others)
	Admin  string // account that may do everything, over the socket and without a password

	password string   // of Admin, over TCP; "": over the socket, without one
	binary   string   // the server
	client   []string // of "mariadb" and "mysql": the client with what it is run by
	args     []string
	cmd      *exec.Cmd
	ended    chan struct{}
	words    *bytes.Buffer
}

// limit is how long a server may take to answer.
const limit = 60 * time.Second

// account is who runs the server: as root, one of the system's without rights.
func account() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// place makes the directory: short, because the path of a socket is.
func place() (string, error) {
	dir, err := os.MkdirTemp("/tmp", "pss")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	cred, err := account()
	if err != nil {
		return "", err
	}
	if cred != nil {
		err = os.Chown(dir, int(cred.Uid), int(cred.Gid))
	}
	return dir, errors.Join(err, certificates(dir))
}

func command(dir, name string, args ...string) (*exec.Cmd, error) {
	cred, err := account()
	if err != nil {
		return nil, err
	}
	c := exec.Command(name, args...)
	c.Dir = dir
	c.Env = []string{"HOME=" + dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return c, nil
}

func run(dir, name string, args ...string) error {
	c, err := command(dir, name, args...)
	if err != nil {
		return err
	}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, out)
	}
	return nil
}

// StartPostgres starts a PostgreSQL server; settings are lines of its configuration.
func StartPostgres(settings ...string) (*Server, error) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return nil, fmt.Errorf("postgresql: %w", ErrMissing)
	}
	bin := bins[len(bins)-1]
	dir, err := place()
	if err != nil {
		return nil, err
	}
	s := &Server{Kind: "postgres", Dir: dir, Socket: dir, Admin: "postgres", binary: filepath.Join(bin, "postgres")}
	if s.Port, err = freePort(); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	err = run(dir, filepath.Join(bin, "initdb"), "-D", data, "-U", s.Admin, "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "-N")
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s.args = []string{"-D", data, "-k", dir, "-p", strconv.Itoa(s.Port), "-c", "listen_addresses=127.0.0.1", "-c", "ssl=on", "-c", "ssl_cert_file=" + dir + "/server.pem", "-c", "ssl_key_file=" + dir + "/server.key"}
	for _, line := range settings {
		s.args = append(s.args, "-c", line)
	}
	return s.begin()
}

// StartMariaDB starts a MariaDB server; settings are options of its command line.
func StartMariaDB(settings ...string) (*Server, error) {
	const daemon, install = "/usr/sbin/mariadbd", "/usr/bin/mariadb-install-db"
	for _, f := range []string{daemon, install} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("mariadb-server: %w", ErrMissing)
		}
	}
	dir, err := place()
	if err != nil {
		return nil, err
	}
	s := &Server{Kind: "mariadb", Dir: dir, Socket: filepath.Join(dir, "sock"), Admin: "root", binary: daemon, client: []string{"/usr/bin/mariadb"}}
	if s.Port, err = freePort(); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if err = run(dir, install, "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=64M"); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s.args = append([]string{"--no-defaults", "--datadir=" + data, "--socket=" + s.Socket, "--port=" + strconv.Itoa(s.Port), "--bind-address=127.0.0.1", "--pid-file=" + filepath.Join(dir, "pid"), "--innodb-log-file-size=64M", "--ssl-ca=" + dir + "/ca.pem", "--ssl-cert=" + dir + "/server.pem", "--ssl-key=" + dir + "/server.key"}, settings...)
	return s.begin()
}

// StartMySQL starts the MySQL server that test/servers/mysql.sh fetched; ErrNotFetched if it did not.
func StartMySQL(settings ...string) (*Server, error) {
	root := os.Getenv("PICOSNITCH_MYSQL")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		root = filepath.Join(cache, "picosnitch/mysql")
	}
	root = filepath.Join(root, "root")
	if _, err := os.Stat(filepath.Join(root, "complete")); err != nil {
		return nil, fmt.Errorf("mysql: %w", ErrNotFetched)
	}
	dir, err := place()
	if err != nil {
		return nil, err
	}
	// Its libraries are newer than the system's: they come with their own loader, and from where the server's account can read them.
	copied := filepath.Join(dir, "mysql")
	if err := os.CopyFS(copied, os.DirFS(root)); err != nil {
		return nil, err
	}
	loaders, _ := filepath.Glob(filepath.Join(copied, "usr/lib*/ld-linux*"))
	libraries, _ := filepath.Glob(filepath.Join(copied, "usr/lib/*-linux-gnu"))
	if len(loaders) == 0 || len(libraries) == 0 {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("%s has no loader or no libraries: remove it, and run test/servers/mysql.sh", root)
	}
	by := []string{"--library-path", libraries[0]}
	s := &Server{Kind: "mysql", Dir: dir, Socket: filepath.Join(dir, "sock"), Admin: "root", binary: loaders[0]}
	s.client = append([]string{s.binary}, append(by, filepath.Join(copied, "usr/bin/mysql"))...)
	if s.Port, err = freePort(); err != nil {
		return nil, err
	}
	data, share := filepath.Join(dir, "data"), filepath.Join(copied, "usr/share/mysql")
	s.args = append(by, filepath.Join(copied, "usr/sbin/mysqld"), "--no-defaults", "--datadir="+data, "--lc-messages-dir="+share, "--character-sets-dir="+share+"/charsets", "--secure-file-priv=")
	if err = run(dir, s.binary, append(s.args, "--initialize-insecure")...); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s.args = append(s.args, "--socket="+s.Socket, "--port="+strconv.Itoa(s.Port), "--bind-address=127.0.0.1", "--mysqlx=OFF", "--pid-file="+filepath.Join(dir, "pid"), "--innodb-redo-log-capacity=64M", "--disable-log-bin",
		"--ssl-ca="+dir+"/ca.pem", "--ssl-cert="+dir+"/server.pem", "--ssl-key="+dir+"/server.key")
	s.args = append(s.args, settings...)
	return s.begin()
}

func (s *Server) begin() (*Server, error) {
	if err := s.Start(); err != nil {
		s.Remove()
		return nil, err
	}
	return s, nil
}

// Start starts the server again after Kill or Stop, and waits until it answers.
func (s *Server) Start() error {
	c, err := command(s.Dir, s.binary, s.args...)
	if err != nil {
		return err
	}
	s.words = &bytes.Buffer{}
	c.Stdout, c.Stderr = s.words, s.words
	if err := c.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = c, make(chan struct{})
	go func(c *exec.Cmd, ended chan struct{}) {
		c.Wait()
		close(ended)
	}(c, s.ended)
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			return fmt.Errorf("%s ended: %s", s.binary, s.words)
		default:
		}
		if s.answers() {
			return nil
		}
	}
	return fmt.Errorf("%s does not answer: %s", s.binary, s.words)
}

// answers looks whether a query is answered; a listening port alone may still refuse.
func (s *Server) answers() bool {
	if s.client != nil {
		return run(s.Dir, s.client[0], append(s.client[1:], "--no-defaults", "-S", s.Socket, "-u", s.Admin, "-e", "SELECT 1")...) == nil
	}
	return run(s.Dir, filepath.Join(filepath.Dir(s.binary), "psql"), "-h", s.Socket, "-p", strconv.Itoa(s.Port), "-U", s.Admin, "-d", "postgres", "-c", "SELECT 1") == nil
}

// SQL runs statements as the administrator, with the server's own client, in a database ("" for none). It returns the rows, columns
// separated by tabs.
func (s *Server) SQL(database, text string) (string, error) {
	var c *exec.Cmd
	var err error
	if s.client != nil {
		args := []string{"--no-defaults", "-S", s.Socket, "-u", s.Admin, "-N", "-B", "--default-character-set=utf8mb4", "-e", text}
		if s.password != "" {
			args = append(args, "--protocol=tcp", "-h", "127.0.0.1", "-P", strconv.Itoa(s.Port), "-p"+s.password)
		}
		if database != "" {
			args = append(args, database)
		}
		c, err = command(s.Dir, s.client[0], append(s.client[1:], args...)...)
	} else {
		if database == "" {
			database = "postgres"
		}
		c, err = command(s.Dir, filepath.Join(filepath.Dir(s.binary), "psql"), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", s.Socket, "-p", strconv.Itoa(s.Port), "-U", s.Admin, "-d", database, "-c", text)
	}
	if err != nil {
		return "", err
	}
	if s.password != "" && s.Kind == "postgres" {
		c.Args = append(c.Args, "-h", "127.0.0.1")
		c.Env = append(c.Env, "PGPASSWORD="+s.password)
	}
	var out, words bytes.Buffer
	c.Stdout, c.Stderr = &out, &words
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", text, err, &words)
	}
	return out.String(), nil
}

// As is the server as another account sees it, over TCP and with a password.
func (s *Server) As(user, password string) *Server {
	c := *s
	c.Admin, c.password = user, password
	return &c
}

// Kill ends all processes of the server at once, as a crash of the machine would.
func (s *Server) Kill() { s.signal(syscall.SIGKILL) }

// Stop ends it in order.
func (s *Server) Stop() { s.signal(syscall.SIGTERM) }

func (s *Server) signal(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	if sig == syscall.SIGKILL {
		backends := children(s.cmd.Process.Pid) // each in a group of its own
		syscall.Kill(-s.cmd.Process.Pid, sig)
		for _, pid := range backends {
			syscall.Kill(pid, sig)
		}
	} else {
		if s.Kind == "postgres" {
			sig = syscall.SIGINT // fast: do not wait for clients
		}
		s.cmd.Process.Signal(sig)
	}
	select {
	case <-s.ended:
	case <-time.After(limit):
		syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.ended
	}
	s.cmd = nil
}

// children are the processes that pid started.
func children(pid int) (all []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var parent, child int
		if i := bytes.LastIndexByte(b, ')'); i > 0 {
			fmt.Sscanf(string(b[i+1:]), " %c %d", new(rune), &parent)
			fmt.Sscan(string(b), &child)
		}
		if parent == pid {
			all = append(all, child)
		}
	}
	return all
}

// CPU is the time that all processes of the server have computed so far, those that ended not counted. It is exact to 10 ms per process.
func (s *Server) CPU() (sum time.Duration) {
	if s.cmd == nil {
		return 0
	}
	for _, pid := range append(children(s.cmd.Process.Pid), s.cmd.Process.Pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// Fields 14 and 15 of proc_pid_stat(5), in ticks of USER_HZ, which is 100 on all that we run on.
		if f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); len(f) > 12 {
			for _, n := range f[11:13] {
				ticks, _ := strconv.ParseInt(string(n), 10, 64)
				sum += time.Duration(ticks) * (time.Second / 100)
			}
		}
	}
	return sum
}

// Remove ends the server and deletes its directory.
func (s *Server) Remove() {
	s.Kill()
	os.RemoveAll(s.Dir)
}
