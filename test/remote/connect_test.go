package remote_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/spool"
	"github.com/picosnitch/picosnitch/test/windows"
)

// TestUnixSocket: the server on this machine, over its socket.
func TestUnixSocket(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		s := g.settings()
		if g.dialect == remote.Postgres {
			s.Params["host"] = g.Socket
		} else {
			delete(s.Params, "host")
			s.Params["unix_socket"] = g.Socket
		}
		r := start(t, s, spoolDir(t))
		if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
			t.Fatal(err)
		}
		delivered(t, r)
		r.Close()
		if n := g.number(t, "SELECT count(*) FROM connections"); n != 10 {
			t.Errorf("%d rows", n)
		}
	})
}

// TestTLS: the server is who it must be, or nothing is sent: not to one whose certificate another authority signed, not to one that is
// right and reached by a name that is not in it, and not without TLS.
func TestTLS(t *testing.T) {
	targets(t, func(t *testing.T, g *target) {
		other := filepath.Join(t.TempDir(), "other.pem")
		strange, err := os.ReadFile("testdata/other-ca.pem")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(other, strange, 0o644); err != nil {
			t.Fatal(err)
		}
		// The same server at an address that its certificate does not have.
		alias := forward(t, "127.0.0.2:0", fmt.Sprintf("127.0.0.1:%d", g.Port))
		_, port, _ := strings.Cut(alias, ":")
		type params = map[string]string
		full, chain, plain := params{"sslmode": "verify-full"}, params{"sslmode": "verify-ca"}, params{"sslmode": "disable"}
		ca := "sslrootcert"
		if g.dialect == remote.MySQL {
			g.ask(t, "ALTER USER "+g.user+"@'%' REQUIRE SSL") // what arrives was encrypted
			full, chain, plain = params{"ssl_verify_identity": "true"}, params{}, params{"ssl_disabled": "true"}
			ca = "ssl_ca"
		}
		for n, c := range []struct {
			how, more params
			ok        bool
			why       string
		}{
			{full, params{ca: g.CA(), "host": "localhost"}, true, ""},
			{full, params{ca: g.CA()}, true, ""},
			{chain, params{ca: g.CA()}, true, ""},
			{full, params{ca: g.CA(), "host": "127.0.0.2", "port": port}, false, "127.0.0.2"},
			{chain, params{ca: g.CA(), "host": "127.0.0.2", "port": port}, true, ""}, // the chain is all that was asked for
			{chain, params{ca: other}, false, "x509"},
			{full, params{ca: other}, false, "x509"},
			{plain, params{}, false, "TLS"},
		} {
			s := g.settings()
			s.Table = fmt.Sprintf("tls%d", n)
			maps.Copy(s.Params, c.how)
			maps.Copy(s.Params, c.more)
			if c.why == "TLS" && g.dialect == remote.Postgres {
				continue // whether it takes a connection without it is in the server's pg_hba.conf
			}
			r := start(t, s, spoolDir(t))
			if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
				t.Fatal(err)
			}
			if c.ok {
				delivered(t, r)
				if g.dialect == remote.Postgres && g.number(t, "SELECT count(*) FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()") == 0 {
					t.Errorf("%d: no connection is encrypted", n)
				}
			} else {
				until(t, r, "two failures", func() bool { return r.Status().Failures >= 2 })
				if c.why != "TLS" && !strings.Contains(r.Status().Error, c.why) {
					t.Errorf("%d: %+v", n, r.Status())
				}
				if r.Status().Delivered.Records > 0 {
					t.Errorf("%d: delivered", n)
				}
			}
			r.Close()
		}
		// A server without TLS, or somebody between who takes it away.
		naked := forward(t, "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d", g.Port), withoutTLS(g.dialect == remote.Postgres))
		_, port, _ = strings.Cut(naked, ":")
		s := g.settings()
		maps.Copy(s.Params, full)
		maps.Copy(s.Params, params{ca: g.CA(), "port": port})
		r := start(t, s, spoolDir(t))
		if err := r.Write(t.Context(), windows.New(windows.Shape{}).Window(1, 10)); err != nil {
			t.Fatal(err)
		}
		until(t, r, "two failures", func() bool { return r.Status().Failures >= 2 })
		if st := r.Status(); !strings.Contains(st.Error, "TLS") {
			t.Errorf("%+v", st)
		}
		r.Close()
	})
}

// forward passes connections at an address on to another one, and returns the address. change sees what the server says first.
func forward(t *testing.T, at, to string, change ...func([]byte) []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer s.Close()
				go io.Copy(s, c)
				for _, f := range change {
					b := make([]byte, 4096)
					n, err := s.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(f(b[:n])); err != nil {
						return
					}
				}
				io.Copy(c, s)
			}()
		}
	}()
	return l.Addr().String()
}

// withoutTLS changes a server's first words to those of one that has no TLS.
func withoutTLS(postgres bool) func([]byte) []byte {
	return func(b []byte) []byte {
		if postgres { // the answer to SSLRequest
			return []byte("N")
		}
		// The greeting: version, thread, 8 bytes, a filler, and the lower two bytes of what the server can; CLIENT_SSL is 0x800.
		if end := bytes.IndexByte(b[5:], 0); end > 0 {
			b[5+end+1+4+8+1+1] &^= 0x08
		}
		return b
	}
}

// TestRefused: settings that can never work are an error at once, and show nothing of the password.
func TestRefused(t *testing.T) {
	file := t.TempDir() + "/x"
	if err := os.WriteFile(file, []byte("no certificate"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, s := range []remote.Settings{
		{Dialect: "oracle"},
		{Dialect: remote.Postgres, Params: map[string]string{"ssl_ca": "x"}},
		{Dialect: remote.MySQL, Params: map[string]string{"sslmode": "x"}},
		{Dialect: remote.Postgres, Params: map[string]string{"port": "http", "password": secret}},
		{Dialect: remote.Postgres, Params: map[string]string{"sslmode": "verify-full", "sslrootcert": file, "host": "h", "password": secret}},
		{Dialect: remote.MySQL, Params: map[string]string{"ssl_ca": file, "password": secret}},
		{Dialect: remote.MySQL, Params: map[string]string{"unix_socket": "/x", "ssl": "true"}},
	} {
		s.Limit = spool.MinLimit
		_, err := remote.Open(s, remote.Options{Dir: spoolDir(t)})
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v: %v", s.Params, err)
		}
	}
}
