package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
)

// script counts by tracepoints what programs hand to sockets and get from them: the best that a short bpftrace script does without kprobes.
const script = `tracepoint:sock:sock_send_length /args->ret > 0 && args->family != 1 && args->family != 16/ { @sent[pid, comm] = sum(args->ret); }
tracepoint:sock:sock_recv_length /args->ret > 0 && args->family != 1 && args->family != 16 && !(args->flags & 0x2002)/ { @received[pid, comm] = sum(args->ret); }
`

func tools(folder string) []tool {
	return []tool{
		{
			name: "nethogs", counts: "packets on the devices (lengths with headers, acknowledgements and retransmissions), TCP and UDP", packages: []string{"nethogs"},
			version: []string{"nethogs", "-V"}, warm: 2 * time.Second, after: 3 * time.Second,
			start: func(string) *exec.Cmd {
				return exec.Command("nethogs", "-t", "-v", "2", "-d", "1", "-C", "here0", "lo")
			},
			read: readNethogs,
		},
		{
			name: "bpftrace script", counts: "bytes that the program hands to the socket and gets from it", packages: []string{"bpftrace"},
			version: []string{"bpftrace", "--version"}, warm: 6 * time.Second, after: time.Second,
			start: func(string) *exec.Cmd {
				path := filepath.Join(folder, "script.bt")
				_ = os.WriteFile(path, []byte(script), 0o644) // bpftrace says if it is not there
				return exec.Command("bpftrace", path)
			},
			read: readBpftrace,
		},
		{
			name: "tcplife (BCC, libbpf-tools)", counts: "payload of TCP connections, in KiB, when they end", packages: []string{"libbpf-tools"},
			version: []string{"dpkg-query", "-W", "-f", "libbpf-tools ${Version}", "libbpf-tools"}, warm: 3 * time.Second, after: 2 * time.Second,
			start: func(string) *exec.Cmd { return exec.Command("tcplife") },
			read:  readTCPLife,
		},
	}
}

// readNethogs reads trace mode: path/pid/uid, sent, received, again each second, totals so far.
func readNethogs(out string) []line {
	last := map[string]line{}
	for text := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(text), "\t")
		if len(f) != 3 {
			continue
		}
		who := strings.Split(f[0], "/")
		if len(who) < 3 {
			continue
		}
		pid, err := strconv.Atoi(who[len(who)-2])
		sent, err1 := strconv.ParseFloat(f[1], 64)
		received, err2 := strconv.ParseFloat(f[2], 64)
		if err != nil || err1 != nil || err2 != nil || pid == 0 {
			continue
		}
		last[f[0]] = line{pid: pid, name: strings.Join(who[:len(who)-2], "/"), Bytes: claim.Bytes{Sent: uint64(sent), Received: uint64(received)}}
	}
	var all []line
	for _, l := range last {
		all = append(all, l)
	}
	return all
}

// readBpftrace reads its maps: @sent[pid, comm]: n.
func readBpftrace(out string) []line {
	var all []line
	for text := range strings.Lines(out) {
		key, number, ok := strings.Cut(strings.TrimSpace(text), "]: ")
		kind, who, ok2 := strings.Cut(key, "[")
		pid, comm, ok3 := strings.Cut(who, ", ")
		n, err := strconv.ParseUint(number, 10, 64)
		p, err2 := strconv.Atoi(pid)
		if !ok || !ok2 || !ok3 || err != nil || err2 != nil {
			continue
		}
		l := line{pid: p, name: comm}
		if kind == "@sent" {
			l.Sent = n
		} else {
			l.Received = n
		}
		all = append(all, l)
	}
	return all
}

// readTCPLife reads PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS.
func readTCPLife(out string) []line {
	const kib = 1024
	var all []line
	for text := range strings.Lines(out) {
		f := strings.Fields(text)
		if len(f) != 9 {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		sent, err1 := strconv.ParseFloat(f[6], 64)
		received, err2 := strconv.ParseFloat(f[7], 64)
		if err != nil || err1 != nil || err2 != nil {
			continue
		}
		all = append(all, line{pid: pid, name: f[1], Bytes: claim.Bytes{Sent: uint64(sent * kib), Received: uint64(received * kib)}})
	}
	return all
}
