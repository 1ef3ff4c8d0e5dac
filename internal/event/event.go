// Package event is the vocabulary of the one stream that connects the sensor (root) with the recorder
// (no rights): what happened on this machine's sockets and who did it. It is the seam of the program: the
// same lines travel over the socketpair, into the file of `picosnitch record`, and out of it again in
// `picosnitch replay`. It imports nothing of ours, holds no behaviour but its own encoding, and carries no
// text that was not made safe by Text.
package event

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Version is the version of the stream; a reader refuses a greater one.
const Version = 1

// Event is one line of the stream. Exactly one of the pointers is set.
type Event struct {
	// At is the wall clock in nanoseconds since 1970 at which the sensor wrote the line.
	At int64 `json:"at"`

	Hello      *Hello      `json:"hello,omitempty"`
	Process    *Process    `json:"process,omitempty"`
	Exit       *Exit       `json:"exit,omitempty"`
	Executable *Executable `json:"executable,omitempty"`
	Modified   *Modified   `json:"modified,omitempty"`
	Flow       *Flow       `json:"flow,omitempty"`
	Name       *Name       `json:"name,omitempty"`
	Ledger     *Ledger     `json:"ledger,omitempty"`
	Notice     *Notice     `json:"notice,omitempty"`
}

// Hello opens a stream: a recorder that was started again gets another one, then every process and
// executable that later lines may name.
type Hello struct {
	Version   int    `json:"version"`
	Stream    string `json:"stream"`  // random, one per run of the sensor: batches are numbered within it
	Program   string `json:"program"` // version of picosnitch
	Host      string `json:"host"`
	Boot      string `json:"boot"`    // /proc/sys/kernel/random/boot_id
	Started   int64  `json:"started"` // wall clock, ns since 1970
	PID       int    `json:"pid"`     // of the sensor
	HookSet   string `json:"hook_set"`
	Why       string `json:"hook_set_why,omitempty"` // that one was taken
	Hooks     []Hook `json:"hooks,omitempty"`
	Bandwidth bool   `json:"bandwidth"` // false: flows carry no bytes
	SelfTest  string `json:"self_test"` // "ok", or what was wrong
	// Batch is the number of the first batch that follows; 0 means 1. A recorder that was started again is
	// sent some batches a second time: it must know a flow's batch before the ledger that closes it.
	Batch uint64 `json:"batch,omitempty"`
}

// Hook is one attach point and its state.
type Hook struct {
	Name     string `json:"name"`
	Attached bool   `json:"attached"`
	Waits    bool   `json:"waits,omitempty"` // off only because no socket needs it now
	Spare    bool   `json:"spare,omitempty"` // off, and nothing is lost without it
	Cost     string `json:"cost,omitempty"`  // what is not seen without it
	Error    string `json:"error,omitempty"` // why it is not attached
}

// ProcessID names one program image in one process: the pid alone is reused, the start time tells
// processes apart, and the exec count (task_struct.self_exec_id) tells the images of one process apart.
// The zero value means "not known".
type ProcessID struct {
	PID   uint32 // thread group id in the initial pid namespace
	Start uint64 // ns since boot, task_struct.start_boottime of the group leader
	Exec  uint32 // task_struct.self_exec_id
}

// IsZero reports whether the process is not known.
func (id ProcessID) IsZero() bool { return id == ProcessID{} }

// String is pid:start:exec.
func (id ProcessID) String() string {
	b, _ := id.AppendText(nil)
	return string(b)
}

// AppendText implements encoding.TextAppender.
func (id ProcessID) AppendText(b []byte) ([]byte, error) {
	if id.IsZero() {
		return b, nil
	}
	b = strconv.AppendUint(b, uint64(id.PID), 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, id.Start, 10)
	b = append(b, ':')
	return strconv.AppendUint(b, uint64(id.Exec), 10), nil
}

// MarshalText implements encoding.TextMarshaler.
func (id ProcessID) MarshalText() ([]byte, error) { return id.AppendText(nil) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ProcessID) UnmarshalText(text []byte) error {
	*id = ProcessID{}
	if len(text) == 0 {
		return nil
	}
	part := strings.Split(string(text), ":")
	if len(part) != 3 {
		return fmt.Errorf("process id %q: want pid:start:exec", text)
	}
	pid, err := strconv.ParseUint(part[0], 10, 32)
	if err != nil {
		return fmt.Errorf("process id %q: %w", text, err)
	}
	start, err := strconv.ParseUint(part[1], 10, 64)
	if err != nil {
		return fmt.Errorf("process id %q: %w", text, err)
	}
	exec, err := strconv.ParseUint(part[2], 10, 32)
	if err != nil {
		return fmt.Errorf("process id %q: %w", text, err)
	}
	*id = ProcessID{PID: uint32(pid), Start: start, Exec: uint32(exec)}
	return nil
}

// FileID is the identity of a file's content as far as the kernel tells it without reading the file: the same
// FileID means the same bytes. Device and inode alone are reused (inode(7)); the change time and the
// generation are not.
type FileID struct {
	Device     uint64 `json:"dev"` // as unix.Mkdev of stat's st_dev
	Inode      uint64 `json:"ino"`
	Generation uint32 `json:"gen,omitempty"` // 0 where the file system has none
	Ctime      int64  `json:"ctime"`         // ns since 1970
	Size       int64  `json:"size"`          // bytes
}

// IsZero reports whether the file is not known.
func (f FileID) IsZero() bool { return f == FileID{} }

// How the sensor learned of a process.
const (
	SourceExec     = "exec"     // seen at its exec
	SourceFork     = "fork"     // inherited from its parent at fork, no exec since
	SourceIterator = "iterator" // ran before the sensor; from the kernel's task iterator
	SourceProcfs   = "procfs"   // ran before the sensor, or its exec event was lost; from /proc
	SourceUnknown  = "unknown"  // only its number is known
)

// Process is one program image in one process. Processes are written before the first line that names them,
// with their ancestors before them.
type Process struct {
	ID      ProcessID `json:"id"`
	Parent  ProcessID `json:"parent,omitzero"` // the image that forked it; kept when the parent dies
	Path    string    `json:"path"`            // as the process's own root sees it; "" if not known
	Argv    []string  `json:"argv,omitempty"`
	ArgvCut bool      `json:"argv_cut,omitempty"` // Argv is only the beginning
	Name    string    `json:"name"`               // task_struct.comm at exec
	UID     uint32    `json:"uid"`                // real uid at exec, initial user namespace
	File    FileID    `json:"file,omitzero"`
	Mtime   int64     `json:"mtime,omitempty"`   // when File's content was last changed, as its owner may set it: ns since 1970
	Deleted bool      `json:"deleted,omitempty"` // the file had no name any more at exec (or is a memfd)
	Cgroup  uint64    `json:"cgroup,omitempty"`  // cgroup v2 id
	Place   *Place    `json:"place,omitempty"`   // where it ran at exec; nil: in no group, or not known. Shared: never changed
	Cwd     string    `json:"cwd,omitempty"`     // working directory at exec, as its own root sees it; "": outside of it, or not known
	Apart   bool      `json:"apart,omitempty"`   // its root or its mounts are neither the sensor's nor init's: Path may be another file there
	MountNS uint32    `json:"mnt_ns,omitempty"`  // inode number of the mount namespace
	Kernel  bool      `json:"kernel,omitempty"`  // a kernel thread
	Source  string    `json:"source"`
	Started int64     `json:"started"` // wall clock of the exec (or start), ns since 1970

	// What an interpreter runs. Script is a path as in Path (Script…File and …Argument) or the name of a module. A stream
	// that has Script without ScriptKind means ScriptFromFile.
	Script       string `json:"script,omitempty"`
	ScriptKind   string `json:"script_kind,omitempty"`   // one of Script…; "": the executable is no interpreter
	ScriptFile   FileID `json:"script_file,omitzero"`    // the digest is that of the Executable line with this File
	ScriptReason string `json:"script_reason,omitempty"` // why ScriptFile is zero, in words for the user

	// Preload is what LD_PRELOAD and LD_AUDIT were set to at exec ("LD_PRELOAD=/a.so LD_AUDIT=/b.so"): code that the
	// digest does not cover. The loader ignores them for setuid programs, and a static program has no loader.
	Preload    string `json:"preload,omitempty"`
	PreloadCut bool   `json:"preload_cut,omitempty"` // the environment was not seen to its end: there may be more
}

// How a script is known: Process.ScriptKind.
const (
	ScriptFromFile = "file"     // the kernel ran an interpreter for it (#!, binfmt_misc)
	ScriptArgument = "argument" // the interpreter was given its path
	ScriptCommand  = "command"  // the text itself is an argument (sh -c, perl -e): Script is ""
	ScriptModule   = "module"   // the interpreter was given a name to look up (python3 -m, java Main)
	ScriptStdin    = "stdin"    // the interpreter reads its input, a file, a pipe or a person: Script is ""
	ScriptUnknown  = "unknown"  // an interpreter whose arguments could not be read so far
)

// ScriptLabel names what an interpreter runs, to be shown behind the interpreter and " › "; "" if it is no interpreter.
func ScriptLabel(kind, name string) string {
	switch kind {
	case "", ScriptFromFile, ScriptArgument:
		return name
	case ScriptModule:
		return name + " (module)"
	}
	return "(" + kind + ")"
}

// Place is where a process ran, as the names of its control groups tell. Whoever may make control groups chooses their
// names: what stands below a user's own systemd (Owner is set), or inside of a container, is that user's or that container's
// word. Of nested containers the outermost is told, because its name is the word of this machine's root.
type Place struct {
	Kind      string `json:"kind,omitempty"`      // the most telling of the below: one of Place…; "": none
	Path      string `json:"path"`                // of the control group, from its hierarchy's root
	Unit      string `json:"unit,omitempty"`      // of the system's systemd (or OpenRC): "nginx.service"
	Owner     string `json:"owner,omitempty"`     // uid of the user whose own systemd runs it
	UserUnit  string `json:"user_unit,omitempty"` // unit of that systemd: "app-firefox-77.scope"
	Session   string `json:"session,omitempty"`   // of logind: "3"
	Runtime   string `json:"runtime,omitempty"`   // of the container or app: "docker", "podman", "lxc", "flatpak", …
	Container string `json:"container,omitempty"` // id, or the name where the runtime has no ids (lxc, nspawn)
	Name      string `json:"name,omitempty"`      // what people call the container
	Pod       string `json:"pod,omitempty"`       // uid of the Kubernetes pod
	App       string `json:"app,omitempty"`       // "org.mozilla.firefox", "firefox"
}

// Kinds of a Place.
const (
	PlaceContainer = "container"
	PlaceApp       = "app"     // flatpak or snap
	PlaceUser      = "user"    // a unit of a user's own systemd
	PlaceSession   = "session" // a login
	PlaceService   = "service" // a unit of the system
)

// Label names the place in a few words: "docker web", "nginx.service", "session 3"; "" if nothing is known.
func (p *Place) Label() string {
	if p == nil {
		return ""
	}
	switch p.Kind {
	case PlaceContainer:
		name := p.Name
		if name == "" {
			name = p.Container
			if len(name) == 64 { // as the runtimes themselves shorten their ids
				name = name[:12]
			}
		}
		if p.Runtime == "" {
			return "container " + name
		}
		return p.Runtime + " " + name
	case PlaceApp:
		return p.Runtime + " " + p.App
	case PlaceUser:
		return p.UserUnit
	case PlaceSession:
		return "session " + p.Session
	}
	return p.Unit
}

// Exit says that an image ended, with its process or because another image replaced it: no later line will name this
// image, unless it is introduced again.
type Exit struct {
	ID ProcessID `json:"id"`
}

// ReasonFUSE is the Executable.Reason of a file that root may not read and its user may: the session process of that user can
// hash it.
const ReasonFUSE = "unreadable: a file system only its user can read (FUSE)"

// Executable is the digest of a file that a process executes, or the reason why there is none. It may come
// after the flows of the process.
type Executable struct {
	File   FileID `json:"file,omitzero"`
	Path   string `json:"path"`             // as in Process.Path
	SHA256 string `json:"sha256,omitempty"` // lower-case hex
	// Reason is why SHA256 is empty, in words for the user; beside a SHA256, what that rests on.
	Reason string `json:"reason,omitempty"`
}

// Modified says that the content of a file that was executed is being changed in place. The digest of what is there now comes when it is
// executed again, under another FileID.
type Modified struct {
	File FileID    `json:"file,omitzero"` // as it was; Ctime and Size are 0 when no digest of it was made
	Path string    `json:"path"`          // as in Process.Path where a process of the stream runs it, else as the sensor sees it
	By   ProcessID `json:"by,omitzero"`   // who wrote first; zero if not known
}

// FamilyExec is the family of a flow that is no traffic: Process executed its program (Conns is 1). There is one for every program when
// "Every exe (not just conns)" is set; its remote port is shown as PortExec.
const (
	FamilyExec = "exec"
	PortExec   = -1
)

// Direction of a flow: who opened it.
const (
	Outbound         = "out"
	Inbound          = "in"
	DirectionUnknown = "" // open before the sensor, or has no direction
)

// Layer of the count.
const (
	LayerPayload = "payload" // what the program handed to or got from the socket
	LayerIP      = "ip"      // IPv4 raw sockets: received bytes include the IP header (raw(7))
	LayerFrame   = "frame"   // AF_PACKET: link-layer frames (packet(7))
)

// How the remote endpoint is known.
const (
	PeerSocket  = "socket"  // the socket is connected
	PeerMessage = "message" // the address of this very datagram
	PeerPacket  = "packet"  // the last packet of the socket: right in total, may be wrong for single datagrams
	PeerNone    = ""        // not known; the bytes are
)

// Flow is what moved since the last line for the same flow: one process image, one socket address pair.
type Flow struct {
	Process   ProcessID      `json:"process"`
	UID       uint32         `json:"uid"`      // at the time of the traffic
	Family    string         `json:"family"`   // "inet", "inet6", "packet", "vsock", … or "af-N"; FamilyExec
	Protocol  string         `json:"protocol"` // "tcp", "udp", "icmp", …, "ip-N"; "" for other families
	Direction string         `json:"direction,omitempty"`
	Layer     string         `json:"layer"`
	Local     netip.AddrPort `json:"local,omitzero"`
	Remote    netip.AddrPort `json:"remote,omitzero"` // zero: not known, see Peer
	Peer      string         `json:"peer,omitempty"`
	NetNS     uint32         `json:"net_ns,omitempty"` // inode number of the socket's network namespace
	Conns     uint32         `json:"conns,omitempty"`  // opened: connect (also a failed one), accept, first datagram
	Sent      uint64         `json:"sent,omitempty"`   // bytes
	Received  uint64         `json:"received,omitempty"`
}

// Name says what an address was called.
type Name struct {
	Address netip.Addr `json:"address"`
	Name    string     `json:"name"`              // in the usual order, www.example.com
	Process ProcessID  `json:"process,omitzero"`  // who asked, if known
	Source  string     `json:"source"`            // "dns", "resolver", "hosts", …
	Expires int64      `json:"expires,omitempty"` // wall clock, ns since 1970; 0: with the stream
}

// Bytes is a pair of totals.
type Bytes struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// Ledger closes a batch: every flow line since the ledger before it belongs to it. All its figures are totals
// since the start of the sensor.
type Ledger struct {
	Batch uint64 `json:"batch"` // 1, 2, … within the stream
	// Seen is counted in the kernel, independently of the flows.
	Seen Bytes `json:"seen"`
	// Attributed is the part of Seen that came out as flows of a known executable.
	Attributed Bytes `json:"attributed"`
	// Unattributed is the part of Seen that did not: flows of an unknown program, and what never came out.
	Unattributed Bytes  `json:"unattributed"`
	Events       uint64 `json:"events"` // kernel reports taken in: exec, fork, exit, flows
	// Lost counts, by reason (see Loss), what could not be seen, kept or resolved.
	Lost map[string]uint64 `json:"lost,omitempty"`
	// Final is set on the last ledger of a stream that ended in order.
	Final bool `json:"final,omitempty"`
}

// Notice is something that the user must know: written to error.log and shown.
type Notice struct {
	Level string `json:"level"` // "error", "warning" or "info"
	Text  string `json:"text"`  // what failed, for whom
	Hint  string `json:"hint,omitempty"`
}
