package remote

import (
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// serve lets each connection to a new port be served by one, and returns the port.
func serve(t *testing.T, one func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
				one(c)
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// servePostgres is a server that gives the same answer to every statement.
func servePostgres(t *testing.T, answer func(b *pgproto3.Backend)) string {
	return serve(t, func(c net.Conn) {
		b := pgproto3.NewBackend(c, c)
		if _, err := b.ReceiveStartupMessage(); err != nil {
			return
		}
		b.Send(&pgproto3.AuthenticationOk{})
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		for b.Flush() == nil {
			m, err := b.Receive()
			if err != nil {
				return
			}
			switch m.(type) {
			case *pgproto3.Parse:
				b.Send(&pgproto3.ParseComplete{})
			case *pgproto3.Bind:
				b.Send(&pgproto3.BindComplete{})
			case *pgproto3.Describe:
				b.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("x"), DataTypeOID: 25, TypeModifier: -1, DataTypeSize: -1}}})
			case *pgproto3.Execute:
				answer(b)
				b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
			case *pgproto3.Sync:
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			}
		}
	})
}

// told opens a copy to a server of the dialect at the port, gives it something to deliver, and returns the first error that it tells of. Meanwhile
// it looks at the memory: peak is the most that was in use, in bytes.
func told(t *testing.T, dialect, client, port string) (text string, peak uint64) {
	t.Helper()
	params := map[string]string{"host": "127.0.0.1", "port": port, "user": "u"}
	if dialect == Postgres {
		params["sslmode"] = "disable"
	}
	r, err := Open(Settings{Client: client, Dialect: dialect, Params: params, Limit: 16 << 20}, Options{Dir: filepath.Join(t.TempDir(), "spool"), Zone: time.UTC, Wait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Write(t.Context(), &flow.Window{Losses: map[string]uint64{"x": 1}, Position: flow.Position{Stream: "s", Batch: 1}}); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapInuse)
		if text = r.Status().Error; text != "" {
			return text, peak
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nothing is told within 10 s")
	return "", 0
}

// TestHostilePostgres: whoever answers in the server's place can neither end the recorder nor fill its memory.
func TestHostilePostgres(t *testing.T) {
	big := make([]byte, 1<<20)
	endless := func(m pgproto3.BackendMessage) func(b *pgproto3.Backend) {
		return func(b *pgproto3.Backend) {
			for range 400 {
				b.Send(m)
				if b.Flush() != nil {
					return
				}
			}
		}
	}
	for _, c := range []struct {
		name, want string
		answer     func(b *pgproto3.Backend)
	}{
		{"too few columns", "1 columns instead of 2", func(b *pgproto3.Backend) { b.Send(&pgproto3.DataRow{Values: [][]byte{[]byte("1")}}) }},
		{"no column", "0 columns instead of 2", func(b *pgproto3.Backend) { b.Send(&pgproto3.DataRow{}) }},
		{"no row", "not to be seen", func(*pgproto3.Backend) {}},
		{"endless rows", "much more than was asked for", endless(&pgproto3.DataRow{Values: [][]byte{big, big}})},
		{"endless notices", "16 MB that nobody asked for", endless(&pgproto3.NoticeResponse{Message: string(big)})},
		{"endless empty rows", "much more than was asked for", func(b *pgproto3.Backend) {
			for range 1 << 20 {
				b.Send(&pgproto3.DataRow{Values: [][]byte{nil, nil}})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, peak := told(t, Postgres, "psycopg", servePostgres(t, c.answer))
			if !strings.Contains(text, c.want) {
				t.Errorf("told: %q, want %q", text, c.want)
			}
			if peak > 100<<20 {
				t.Errorf("%d MB are in use", peak>>20)
			}
		})
	}
}

// TestHostileLast: an answer without a row to the question how far the server is.
func TestHostileLast(t *testing.T) {
	port := servePostgres(t, func(*pgproto3.Backend) {})
	s := Settings{Dialect: Postgres, Params: map[string]string{"host": "127.0.0.1", "port": port, "user": "u", "sslmode": "disable"}}
	c, err := connectPostgres(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.last(t.Context(), "chain"); err == nil || !strings.Contains(err.Error(), "0 rows instead of 1") {
		t.Error(err)
	}
}

// TestHostileMySQL: packets that the client library does not expect.
func TestHostileMySQL(t *testing.T) {
	packet := func(sequence byte, b string) []byte {
		return append([]byte{byte(len(b)), byte(len(b) >> 8), byte(len(b) >> 16), sequence}, b...)
	}
	// Version, connection, salt, capabilities (4.1, secure, plugin), charset, status, capabilities, length of the salt, the rest of it, plugin.
	hello := packet(0, "\x0a8.0.0\x00\x01\x00\x00\x0012345678\x00\x00\x82\x2d\x02\x00\x08\x00\x15"+strings.Repeat("\x00", 10)+"123456789012\x00mysql_native_password\x00")
	for _, c := range []struct{ name, answer, want string }{
		{"too short", "\x00\x00", "its answer is none to what was asked"},
		{"as many columns as there are numbers", "\xfe\xff\xff\xff\xff\xff\xff\xff\x7f", "its answer is none to what was asked"},
		{"empty", "", "invalid connection"},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := serve(t, func(conn net.Conn) {
				b := make([]byte, 64<<10)
				conn.Write(hello)
				conn.Read(b)
				conn.Write(packet(2, "\x00\x00\x00\x02\x00\x00\x00"))
				for {
					n, err := conn.Read(b)
					if err != nil {
						return
					}
					end := "\xfe\x00\x00\x02\x00"
					switch question := string(b[:n]); {
					case strings.Contains(question, "@@max_allowed_packet"):
						conn.Write(slices.Concat(packet(1, "\x01"), packet(2, "column"), packet(3, end), packet(4, "\x0867108864"), packet(5, end)))
					case strings.Contains(question, "SET "):
						conn.Write(packet(1, "\x00\x00\x00\x02\x00\x00\x00"))
					default:
						conn.Write(packet(1, c.answer))
					}
				}
			})
			if text, _ := told(t, MySQL, "pymysql", port); !strings.Contains(text, c.want) {
				t.Errorf("told: %q, want %q", text, c.want)
			}
		})
	}
}
