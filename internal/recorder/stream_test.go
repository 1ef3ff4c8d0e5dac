package recorder

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"

	"github.com/picosnitch/picosnitch/internal/event"
)

// epoch is the wall clock of the test streams: 2026-01-02 03:04:00 UTC.
const epoch = 1767323040

// script writes a stream.
type script struct {
	t     testing.TB
	b     bytes.Buffer
	at    int64
	batch uint64
	total event.Bytes
	lost  map[string]uint64
	unatt event.Bytes
}

func newScript(t testing.TB) *script {
	s := &script{t: t, at: epoch * 1e9}
	s.add(event.Event{Hello: &event.Hello{Version: 1, Stream: "s1", Program: "1.0", Host: "host", Boot: "boot", Started: epoch * 1e9, PID: 42, HookSet: "tracepoint", Bandwidth: true, SelfTest: "ok"}})
	return s
}

func (s *script) add(e event.Event) {
	e.At = s.at
	line, err := event.Append(nil, &e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.b.Write(line)
}

func id(pid int) event.ProcessID {
	return event.ProcessID{PID: uint32(pid), Start: uint64(pid) * 1000, Exec: 1}
}

func file(n int) event.FileID {
	return event.FileID{Device: 2049, Inode: uint64(n), Ctime: 1700000000000000000, Size: 1000}
}

func hash(n int) string { return fmt.Sprintf("%064x", n) }

// inode is a path's own.
func inode(path string) int { return int(crc32.ChecksumIEEE([]byte(path)) % 1e6) }

// process starts a process: its parent, path, and arguments.
func (s *script) process(pid, parent int, path string, argv ...string) {
	p := event.Process{ID: id(pid), Path: path, Argv: argv, Name: path[strings.LastIndex(path, "/")+1:], UID: 1000, File: file(inode(path)), Source: event.SourceExec, Started: s.at}
	if parent != 0 {
		p.Parent = id(parent)
	}
	s.add(event.Event{Process: &p})
}

func (s *script) hash(path string, n int) {
	s.add(event.Event{Executable: &event.Executable{File: file(inode(path)), Path: path, SHA256: hash(n)}})
}

func (s *script) flow(f event.Flow) {
	if f.Family == "" {
		f.Family = "inet"
	}
	if f.Protocol == "" && f.Family[0] == 'i' {
		f.Protocol = "tcp"
	}
	if f.Layer == "" {
		f.Layer = event.LayerPayload
	}
	s.total.Sent += f.Sent
	s.total.Received += f.Received
	s.add(event.Event{Flow: &f})
}

// tcp is a flow out of 10.0.0.1:40000 over TCP.
func (s *script) tcp(pid int, remote string, conns uint32, sent, received uint64) {
	s.flow(event.Flow{Process: id(pid), UID: 1000, Direction: event.Outbound, Local: ap("10.0.0.1:40000"), Remote: ap(remote), Peer: event.PeerSocket, NetNS: 4026531840, Conns: conns, Sent: sent, Received: received})
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// ledger closes a batch, one second after the one before.
func (s *script) ledger() { s.close(false) }

func (s *script) close(final bool) {
	s.at += 1e9
	s.batch++
	lost := make(map[string]uint64)
	for k, v := range s.lost {
		lost[k] = v
	}
	s.add(event.Event{Ledger: &event.Ledger{Batch: s.batch, Seen: s.total, Attributed: s.total, Unattributed: s.unatt, Events: s.batch * 10, Lost: lost, Final: final}})
}

func (s *script) end() []byte {
	s.close(true)
	return s.b.Bytes()
}
