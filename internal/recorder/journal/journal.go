// Package journal is the way of the notices into the systemd journal, with a field for each thing that is known, by the journal's own
// protocol. It belongs to the recorder's wing. It never waits: what the journal does not take at once is dropped and
// counted. Where there is no journal it drops everything.
package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// Socket is where the journal listens: systemd-journald.service(8).
const Socket = "/run/systemd/journal/socket"

// messageID marks our messages, of whatever kind: sd_id128(3), journalctl MESSAGE_ID=….
const messageID = "7069636f736e697463686e6f74696365"

// Way is the way into the journal.
type Way struct {
	socket  string
	dropped atomic.Uint64
}

// New returns a Way to the journal at socket.
func New(socket string) *Way { return &Way{socket: socket} }

// Name implements notify.Way.
func (*Way) Name() string { return "journal" }

// Dropped implements notify.Way.
func (w *Way) Dropped() uint64 { return w.dropped.Load() }

// Offer implements notify.Way.
func (w *Way) Offer(n notify.Notice) {
	if err := w.send(entry(&n)); err != nil {
		w.dropped.Add(1)
	}
}

// send sends one datagram. The socket is made anew for each: they are few, and a journal that was restarted has another one.
func (w *Way) send(data []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, data, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: w.socket})
}

// entry is a message as https://systemd.io/JOURNAL_NATIVE_PROTOCOL wants it.
func entry(n *notify.Notice) []byte {
	var b bytes.Buffer
	text := n.Title
	if n.Body != "" {
		text += "\n" + n.Body
	}
	for _, f := range []struct{ key, value string }{
		{"MESSAGE", text},
		{"PRIORITY", priority(n)},
		{"SYSLOG_IDENTIFIER", "picosnitch"},
		{"MESSAGE_ID", messageID},
		{"PICOSNITCH_KIND", string(n.Kind)},
		{"PICOSNITCH_COUNT", fmt.Sprint(n.Count)},
		{"PICOSNITCH_NAME", n.Name},
		{"PICOSNITCH_EXE", n.Path},
		{"PICOSNITCH_SHA256", n.SHA256},
		{"PICOSNITCH_BEFORE", n.Before},
		{"PICOSNITCH_SCRIPT", n.Script},
		{"PICOSNITCH_PARENT", n.Parent},
		{"PICOSNITCH_REMOTE", n.Remote},
		{"PICOSNITCH_ORIGIN", n.Origin},
		{"PICOSNITCH_DETAIL", n.Detail},
	} {
		field(&b, f.key, f.value)
	}
	return b.Bytes()
}

// field writes one field. A value with a newline goes with its length, so that no text can make a field of its own.
func field(b *bytes.Buffer, key, value string) {
	switch {
	case value == "":
	case strings.ContainsRune(value, '\n'):
		b.WriteString(key + "\n")
		_ = binary.Write(b, binary.LittleEndian, uint64(len(value))) // a Buffer takes everything
		b.WriteString(value + "\n")
	default:
		b.WriteString(key + "=" + value + "\n")
	}
}

// priority is that of syslog(3).
func priority(n *notify.Notice) string {
	switch {
	case n.Urgency == notify.Critical:
		return "2"
	case n.Kind == notify.Loss || n.Kind == notify.Failure:
		return "3"
	case n.Urgency == notify.Low:
		return "6"
	}
	return "5"
}
