package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

var errShort = errors.New("report from the kernel is too short")

func attachIter(p *ebpf.Program) (*link.Iter, error) {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return nil, fmt.Errorf("iterate: %w", err)
	}
	return it, nil
}

// view reads a fixed-size report at the front of b. The generated types have the kernel's layout (structs.HostLayout).
func view[T any](b []byte) (T, error) {
	var v T
	if len(b) < int(unsafe.Sizeof(v)) {
		return v, errShort
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), b)
	return v, nil
}

func decodeReport(b []byte) (bpfFlowReport, error) {
	r, err := view[bpfFlowReport](b)
	if err == nil && (r.Kind != uint32(bpfKindKIND_FLOW) || r.Size != uint32(unsafe.Sizeof(r))) {
		err = fmt.Errorf("flow report from the kernel: kind %d, size %d", r.Kind, r.Size)
	}
	return r, err
}

func (h *Hooks) decodeProcess(b []byte, to Handler) error {
	if len(b) < 8 {
		return errShort
	}
	switch bpfKind(binary.NativeEndian.Uint32(b)) {
	case bpfKindKIND_EXEC:
		p, _, err := h.decodeExec(b)
		if err != nil {
			return err
		}
		to.Exec(p)
	case bpfKindKIND_FORK:
		r, err := view[bpfForkReport](b)
		if err != nil {
			return err
		}
		to.Fork(event.ProcessID{PID: r.Process.Pid, Start: r.Process.Start, Exec: r.Process.Exec},
			event.ProcessID{PID: r.Parent.Pid, Start: r.Parent.Start, Exec: r.Parent.Exec}, wall(r.Ktime))
	case bpfKindKIND_EXIT:
		r, err := view[bpfExitReport](b)
		if err != nil {
			return err
		}
		to.Exit(event.ProcessID{PID: r.Process.Pid, Start: r.Process.Start, Exec: r.Process.Exec})
	case bpfKindKIND_WANT_PACKET:
		to.WantPacket()
	default:
		return fmt.Errorf("report from the kernel: kind %d", binary.NativeEndian.Uint32(b))
	}
	return nil
}

const (
	flagPathCut      = 1
	flagDisconnected = 2
	flagNoArgv       = 4
	flagKernel       = 8
	flagEnvCut       = 16
	flagCgroupCut    = 32
)

// scriptMax is SCRIPT_MAX of bpf/maps.h.
const scriptMax = 1024

// decodeExec returns the process and the size of its report; 0 when b ends before it does.
func (h *Hooks) decodeExec(b []byte) (event.Process, int, error) {
	r, err := view[bpfExecReport](b)
	if err != nil {
		return event.Process{}, 0, nil
	}
	const header = int(unsafe.Sizeof(bpfExecReport{}))
	size := header + int(r.PathLen) + int(r.ArgvLen) + int(r.ScriptLen) + int(r.CwdLen) + int(r.CgroupLen) + int(r.Cgroup1Len) + int(r.PreloadLen)
	if (r.Kind != uint32(bpfKindKIND_EXEC) && r.Kind != uint32(bpfKindKIND_FOUND)) || size != int(r.Size) {
		return event.Process{}, 0, fmt.Errorf("exec report from the kernel: kind %d, size %d of %d", r.Kind, r.Size, size)
	}
	if len(b) < size {
		return event.Process{}, 0, nil
	}
	rest := b[header:size]
	next := func(n uint16) (part []byte) {
		part, rest = rest[:n], rest[n:]
		return part
	}
	path, argv, script, cwd, cgroup, cgroup1, preload := next(r.PathLen), next(r.ArgvLen), next(r.ScriptLen), next(r.CwdLen), next(r.CgroupLen), next(r.Cgroup1Len), next(r.PreloadLen)
	p := event.Process{
		ID:      event.ProcessID{PID: r.Process.Pid, Start: r.Process.Start, Exec: r.Process.Exec},
		Parent:  event.ProcessID{PID: r.Parent.Pid, Start: r.Parent.Start, Exec: r.Parent.Exec},
		Path:    event.Text(path),
		Name:    event.Text(untilNUL(r.Comm[:])),
		Script:  event.Text(script),
		UID:     r.Uid,
		Cgroup:  r.Cgroup,
		MountNS: r.MountNs,
		Kernel:  r.Flags&flagKernel != 0,
		Place:   h.surroundings.place(cgroup, cgroup1, r.Flags&flagCgroupCut != 0),
		Cwd:     event.Text(cwd),
		Apart:   h.surroundings.apart(&r),
		Source:  event.SourceExec,
		Started: wall(r.Ktime),
	}
	if r.Flags&flagPathCut != 0 {
		p.Path = "…" + p.Path
	}
	if len(script) >= scriptMax-1 { // with its NUL it filled the room; whether there was more is not told
		p.Script += "…"
	}
	if r.Inode != 0 {
		p.File = event.FileID{
			Device: unix.Mkdev(uint32(r.Device>>20), uint32(r.Device&(1<<20-1))), Inode: r.Inode, Generation: r.Generation,
			Ctime: r.CtimeSec*1e9 + int64(r.CtimeNsec), Size: int64(r.FileSize),
		}
		p.Mtime = r.MtimeSec*1e9 + int64(r.MtimeNsec)
		p.Deleted = r.Links == 0 || r.Flags&flagDisconnected != 0
	}
	if r.Kind == uint32(bpfKindKIND_FOUND) {
		p.Source = event.SourceIterator
		p.Started = wall(p.ID.Start)
	} else {
		p.Preload, p.PreloadCut = event.Text(bytes.ReplaceAll(bytes.TrimSuffix(preload, []byte{0}), []byte{0}, []byte{' '})), r.Flags&flagEnvCut != 0
		p.Argv, p.ArgvCut = splitArgv(argv), uint32(r.ArgvLen) < r.ArgvTotal || r.Flags&flagNoArgv != 0
	}
	return p, size, nil
}

func untilNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// splitArgv cuts the kernel's block of NUL-terminated arguments.
func splitArgv(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	b = bytes.TrimSuffix(b, []byte{0})
	var argv []string
	for arg := range bytes.SplitSeq(b, []byte{0}) {
		argv = append(argv, event.Text(arg))
	}
	return argv
}

// decodeFlow fills f, all of it.
func decodeFlow(k *bpfFlowKey, c *bpfCounts, f *event.Flow) {
	*f = event.Flow{
		Process: event.ProcessID{PID: k.Process.Pid, Start: k.Process.Start, Exec: k.Process.Exec},
		UID:     k.Uid, NetNS: k.NetNs, Layer: event.LayerPayload,
		Conns: c.Conns, Sent: c.Sent, Received: c.Received,
	}
	switch bpfDirection(k.Direction) {
	case bpfDirectionDIRECTION_OUT:
		f.Direction = event.Outbound
	case bpfDirectionDIRECTION_IN:
		f.Direction = event.Inbound
	}
	switch k.Family {
	case unix.AF_INET:
		f.Family = "inet"
		f.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(k.Local[:4])), swap16(k.LocalPort))
		f.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(k.Remote[:4])), swap16(k.RemotePort))
	case unix.AF_INET6:
		f.Family = "inet6"
		remote := netip.AddrFrom16(k.Remote)
		local := netip.AddrFrom16(k.Local)
		if remote.Is4In6() || local.Is4In6() { // a dual-stack socket that speaks IPv4
			f.Family = "inet"
			if local.IsUnspecified() {
				local = netip.IPv4Unspecified()
			}
			if remote.IsUnspecified() {
				remote = netip.IPv4Unspecified()
			}
		}
		f.Local = netip.AddrPortFrom(local.Unmap(), swap16(k.LocalPort))
		f.Remote = netip.AddrPortFrom(remote.Unmap(), swap16(k.RemotePort))
	default:
		f.Family = familyName(k.Family)
	}
	switch bpfPeer(k.Peer) {
	case bpfPeerPEER_SOCKET:
		f.Peer = event.PeerSocket
	case bpfPeerPEER_MESSAGE:
		f.Peer = event.PeerMessage
	case bpfPeerPEER_PACKET:
		f.Peer = event.PeerPacket
	default:
		f.Remote = netip.AddrPort{}
	}
	if k.Family == unix.AF_INET || k.Family == unix.AF_INET6 {
		f.Protocol = protocolName(k.Protocol)
		if k.Type == unix.SOCK_RAW {
			f.Layer = event.LayerIP
		}
		if f.Local.Addr().IsUnspecified() && f.Local.Port() == 0 {
			f.Local = netip.AddrPort{}
		}
	}
	if k.Family == unix.AF_PACKET {
		f.Layer = event.LayerFrame
	}
}

func swap16(v uint16) uint16 { return v<<8 | v>>8 }

// protocolName follows /etc/protocols where people know the name.
func protocolName(p uint16) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_MPTCP:
		return "mptcp"
	case unix.IPPROTO_UDPLITE:
		return "udplite"
	case unix.IPPROTO_DCCP:
		return "dccp"
	case unix.IPPROTO_IGMP:
		return "igmp"
	case unix.IPPROTO_GRE:
		return "gre"
	case unix.IPPROTO_ESP:
		return "esp"
	}
	return "ip-" + strconv.Itoa(int(p))
}

// familyName follows address_families(7).
func familyName(f uint16) string {
	switch f {
	case unix.AF_PACKET:
		return "packet"
	case unix.AF_VSOCK:
		return "vsock"
	case unix.AF_BLUETOOTH:
		return "bluetooth"
	case unix.AF_CAN:
		return "can"
	case unix.AF_XDP:
		return "xdp"
	case unix.AF_TIPC:
		return "tipc"
	case unix.AF_SMC:
		return "smc"
	case unix.AF_UNSPEC:
		return ""
	}
	return "af-" + strconv.Itoa(int(f))
}
