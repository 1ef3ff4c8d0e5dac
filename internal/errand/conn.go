package errand

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conn sends and receives messages. Any goroutine may send while one receives.
type Conn struct {
	c    *net.UnixConn
	in   []byte
	oob  []byte
	send sync.Mutex // one deadline at a time
}

// Pair makes the two ends of a connection: the one of the recorder, the one of the session process.
func Pair() (recorder, session *os.File, err error) {
	fd, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(fd[0]), "session"), os.NewFile(uintptr(fd[1]), "recorder"), nil
}

// NewConn takes a socket of Pair over: f is closed.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%T is no unix socket", c)
	}
	return &Conn{c: u, in: make([]byte, MaxMessage+1), oob: make([]byte, unix.CmsgSpace(16*4))}, nil
}

// Send sends a message, with the descriptor of file if that is not nil, or gives up after wait: then nothing was sent.
func (c *Conn) Send(m Message, file *os.File, wait time.Duration) error {
	if err := m.check(); err != nil {
		return err
	}
	b, err := encode(m)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: it has %d bytes, at most %d", ErrMessage, len(b), MaxMessage)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	c.send.Lock()
	defer c.send.Unlock()
	if err := c.c.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, _, err = c.c.WriteMsgUnix(b, rights, nil)
	return err
}

// encode writes < > & as they are: six bytes for one made a message too long.
func encode(m Message) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Receive waits for a message. A file that came with it is the caller's to close. io.EOF: the other side ended. A message that is
// none is ErrMessage, and the next one can be received.
func (c *Conn) Receive() (Message, *os.File, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.in, c.oob)
	file := rights(c.oob[:oobn])
	if err == nil && n == 0 || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		err = io.EOF
	}
	var m Message
	if err == nil && (n > MaxMessage || flags&unix.MSG_TRUNC != 0) {
		err = fmt.Errorf("%w: it is longer than %d bytes", ErrMessage, MaxMessage)
	}
	if err == nil {
		if err = json.Unmarshal(c.in[:n], &m); err != nil {
			err = fmt.Errorf("%w: %w", ErrMessage, err)
		} else {
			err = m.check()
		}
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return Message{}, nil, err
	}
	return m, file, nil
}

// rights is the one descriptor that came with a message; of more, all are closed.
func rights(oob []byte) *os.File {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range all {
		if got, err := unix.ParseUnixRights(&all[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	if len(fds) == 1 {
		return os.NewFile(uintptr(fds[0]), "file of the session")
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil
}

// Close closes the connection; a Receive that waits returns.
func (c *Conn) Close() error { return c.c.Close() }
