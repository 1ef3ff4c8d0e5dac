package errand

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Door is how a recorder gets its ends of the sessions' connections: the daemon, which starts the session processes,
// passes them in. A recorder that was started again gets all of them again.
type Door struct{ c *net.UnixConn }

// NewDoor takes a socket of Pair over: f is closed.
func NewDoor(f *os.File) (*Door, error) {
	c, err := NewConn(f)
	if err != nil {
		return nil, err
	}
	return &Door{c.c}, nil
}

// Pass passes the recorder's end of the connection to the session process of uid. A recorder that does not read gets it not.
func (d *Door) Pass(uid uint32, end *os.File, wait time.Duration) error {
	if err := d.c.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, _, err := d.c.WriteMsgUnix(binary.LittleEndian.AppendUint32(nil, uid), unix.UnixRights(int(end.Fd())), nil)
	return err
}

// Take waits for the next session. io.EOF: there will be none.
func (d *Door) Take() (uid uint32, c *Conn, err error) {
	var b [8]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := d.c.ReadMsgUnix(b[:], oob)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || err == nil && n == 0:
		return 0, nil, io.EOF
	case err != nil:
		return 0, nil, err
	}
	file := rights(oob[:oobn])
	if n != 4 || file == nil {
		if file != nil {
			file.Close()
		}
		return 0, nil, fmt.Errorf("%w: a session without a connection", ErrMessage)
	}
	c, err = NewConn(file)
	return binary.LittleEndian.Uint32(b[:4]), c, err
}

// Close closes the door; a Take that waits returns.
func (d *Door) Close() error { return d.c.Close() }
