package kernel

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestLayout compares the Go types that reports are copied into with the types in the committed object.
func TestLayout(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]any{
		"flow_report": bpfFlowReport{}, "exec_report": bpfExecReport{}, "fork_report": bpfForkReport{},
		"exit_report": bpfExitReport{}, "flow_key": bpfFlowKey{}, "total_key": bpfTotalKey{}, "counts": bpfCounts{},
	} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(name, &s); err != nil {
			t.Fatal(err)
		}
		typ := reflect.TypeOf(v)
		if int(s.Size) != int(typ.Size()) {
			t.Errorf("%s: %d bytes in the object, %d in Go", name, s.Size, typ.Size())
		}
		for _, m := range s.Members {
			f, ok := typ.FieldByNameFunc(func(n string) bool { return strings.EqualFold(n, strings.ReplaceAll(m.Name, "_", "")) })
			if !ok || f.Offset != uintptr(m.Offset.Bytes()) {
				t.Errorf("%s.%s: offset %d in the object, %d in Go (there: %v)", name, m.Name, m.Offset.Bytes(), f.Offset, ok)
			}
		}
	}
}

func raw[T any](v *T) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)))
}

func execBytes(path, argv, script string) []byte {
	r := bpfExecReport{Kind: uint32(bpfKindKIND_EXEC), PathLen: uint16(len(path)), ArgvLen: uint16(len(argv)), ScriptLen: uint16(len(script)), ArgvTotal: uint32(len(argv))}
	r.Process.Pid, r.Process.Start, r.Process.Exec = 7, 8, 9
	r.Size = uint32(int(unsafe.Sizeof(r)) + len(path) + len(argv) + len(script))
	return append(raw(&r), path+argv+script...)
}

func FuzzProcess(f *testing.F) {
	f.Add(execBytes("/bin/sh", "sh\x00-c\x00\x00", "/tmp/s"))
	f.Add(execBytes("", "", ""))
	f.Add(execBytes("/\xff\n", "\x00\x00\x00", "")[:90])
	f.Add([]byte{})
	f.Add([]byte{6, 0, 0, 0, 8, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newCollector()
		if err := new(Hooks).decodeProcess(b, c); err == nil && len(c.execs) == 1 {
			p := c.execs[0]
			for _, s := range append([]string{p.Path, p.Name, p.Script}, p.Argv...) {
				if strings.ContainsAny(s, "\n\x00\x1b") || !strings.EqualFold(strings.ToValidUTF8(s, "?"), s) {
					t.Errorf("text %q is not safe", s)
				}
			}
		}
	})
}

func TestDecodeExec(t *testing.T) {
	b := execBytes("/usr/bin/env", "env\x00\x00a b\x00", "/x")
	p, n, err := new(Hooks).decodeExec(b)
	if err != nil || n != len(b) {
		t.Fatal(n, err)
	}
	if p.Path != "/usr/bin/env" || !reflect.DeepEqual(p.Argv, []string{"env", "", "a b"}) || p.Script != "/x" || p.ArgvCut {
		t.Errorf("%+v", p)
	}
	if _, n, err := new(Hooks).decodeExec(b[:len(b)-1]); n != 0 || err != nil {
		t.Errorf("half a report: %d, %v", n, err)
	}
	b[4]++
	if _, _, err := new(Hooks).decodeExec(b); err == nil {
		t.Error("a report with a wrong size was taken")
	}
}

// TestDecodeCutScript: the kernel copies 1023 bytes, and does not tell whether there were more.
func TestDecodeCutScript(t *testing.T) {
	for n, cut := range map[int]bool{1022: false, 1023: true} {
		script := strings.Repeat("/", n)
		p, _, err := new(Hooks).decodeExec(execBytes("/bin/sh", "sh\x00", script))
		if want := map[bool]string{false: script, true: script + "…"}[cut]; err != nil || p.Script != want {
			t.Errorf("%d bytes: %q, %v", n, p.Script, err)
		}
	}
}

func TestDecodeFlow(t *testing.T) {
	mapped := func(s string) (b [16]uint8) { return netip.MustParseAddr(s).As16() }
	for name, c := range map[string]struct {
		key  bpfFlowKey
		want event.Flow
	}{
		"dual-stack socket speaks IPv4": {
			bpfFlowKey{Family: unix.AF_INET6, Protocol: 6, Remote: mapped("::ffff:1.2.3.4"), Local: mapped("::"), RemotePort: swap16(443), Peer: 1, Direction: 1},
			event.Flow{Family: "inet", Protocol: "tcp", Direction: "out", Layer: "payload", Peer: "socket", Remote: netip.MustParseAddrPort("1.2.3.4:443")},
		},
		"unknown peer": {
			bpfFlowKey{Family: unix.AF_INET, Protocol: 17, Local: [16]uint8{127, 0, 0, 1}, LocalPort: swap16(53), Direction: 2},
			event.Flow{Family: "inet", Protocol: "udp", Direction: "in", Layer: "payload", Local: netip.MustParseAddrPort("127.0.0.1:53")},
		},
		"raw protocol": {
			bpfFlowKey{Family: unix.AF_INET, Protocol: 253, Type: unix.SOCK_RAW, Remote: [16]uint8{10, 0, 0, 1}, Peer: 3},
			event.Flow{Family: "inet", Protocol: "ip-253", Layer: "ip", Peer: "packet", Remote: netip.MustParseAddrPort("10.0.0.1:0")},
		},
		"frames":         {bpfFlowKey{Family: unix.AF_PACKET}, event.Flow{Family: "packet", Layer: "frame"}},
		"unnamed family": {bpfFlowKey{Family: 45}, event.Flow{Family: "af-45", Layer: "payload"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got event.Flow
			decodeFlow(&c.key, &bpfCounts{}, &got)
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestDecodeFlowAllocatesNothing(t *testing.T) {
	k := bpfFlowKey{Family: unix.AF_INET, Protocol: 6, Remote: [16]uint8{1, 2, 3, 4}, Peer: 1}
	var f event.Flow
	if n := testing.AllocsPerRun(100, func() { decodeFlow(&k, &bpfCounts{}, &f) }); n != 0 {
		t.Errorf("%v allocations a flow", n)
	}
}

func TestDatagramsCountOnce(t *testing.T) {
	d := newDatagrams()
	k := bpfFlowKey{RemotePort: 1}
	now := time.Unix(0, 0)
	if !d.first(&k, now) || d.first(&k, now.Add(datagramsIdle)) || !d.first(&k, now.Add(2*datagramsIdle+1)) {
		t.Error("a flow opens once, and again after it was idle")
	}
	for i := range 3 * datagramsMax {
		k := bpfFlowKey{Uid: uint32(i)}
		d.first(&k, now)
	}
	if len(d.seen) > datagramsMax {
		t.Errorf("%d flows remembered, at most %d", len(d.seen), datagramsMax)
	}
}
