package sqlserver

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
)

// MaxUnasked is how many bytes a server may send to who writes to it, beyond as many as it was sent: its answers to a writer are a few bytes each.
const MaxUnasked = 16 << 20

// maxMessage bounds one message of PostgreSQL's protocol: the library makes room for all of one before it looks at it.
const maxMessage = 32 << 20

// Bounded is a dial whose connections end with an error when the server sends more than most bytes beyond those that it was sent. The client
// libraries read on for as long as a server sends, and keep some of it.
func Bounded(most int64) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{KeepAliveConfig: keepAlive()}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		b := &boundConn{Conn: c, most: most}
		b.left.Store(most)
		return b, nil
	}
}

// boundConn counts. The libraries read and write at the same time.
type boundConn struct {
	net.Conn
	most int64
	left atomic.Int64
}

// Read implements net.Conn.
func (c *boundConn) Read(b []byte) (int, error) {
	if c.left.Load() < 0 {
		return 0, fmt.Errorf("the server sent %d MB that nobody asked for: is it the right one?", c.most>>20)
	}
	n, err := c.Conn.Read(b)
	c.left.Add(-int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *boundConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.left.Add(int64(n))
	return n, err
}
