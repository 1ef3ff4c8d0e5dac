package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// tinyProgram is an ELF file that sends one datagram of n bytes to 127.0.0.1:port and ends: it lives for a
// fraction of a millisecond, which no Go program does. amd64 only.
func tinyProgram(port uint16, n uint32) []byte {
	const base, head = 0x400000, 64 + 56
	var c []byte
	le32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	emit := func(b ...[]byte) {
		for _, x := range b {
			c = append(c, x...)
		}
	}
	mov := func(reg byte, v uint32) { emit([]byte{0xb8 + reg}, le32(v)) } // mov r32, imm32
	const eax, edx, esi, edi = 0, 2, 6, 7
	syscall := []byte{0x0f, 0x05}
	mov(eax, unix.SYS_SOCKET)
	mov(edi, unix.AF_INET)
	mov(esi, unix.SOCK_DGRAM)
	emit([]byte{0x31, 0xd2}, syscall)      // xor edx, edx
	emit([]byte{0x89, 0xc7})               // mov edi, eax
	emit([]byte{0xbe}, le32(base))         // mov esi, base: the file itself is the payload
	mov(edx, n)                            //
	emit([]byte{0x45, 0x31, 0xd2})         // xor r10d, r10d
	emit([]byte{0x41, 0xb8}, le32(0))      // mov r8d, address of the name, set below
	name := len(c) - 4                     //
	emit([]byte{0x41, 0xb9}, le32(16))     // mov r9d, 16
	emit([]byte{0xb8}, le32(44))           // mov eax, sendto
	emit(syscall)                          //
	emit([]byte{0x31, 0xff})               // xor edi, edi
	emit([]byte{0xb8}, le32(231), syscall) // exit_group
	binary.LittleEndian.PutUint32(c[name:], base+head+uint32(len(c)))
	emit(rawName(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)))

	b := make([]byte, 0, max(head+len(c), int(n)))
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint16(b, 2)  // ET_EXEC
	b = binary.LittleEndian.AppendUint16(b, 62) // EM_X86_64
	b = append(b, le32(1)...)
	for _, v := range []uint64{base + head, 64, 0} { // entry, program headers, section headers
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = append(b, le32(0)...)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	b = append(b, le32(1)...) // PT_LOAD
	b = append(b, le32(5)...) // readable, executable
	size := uint64(max(head+len(c), int(n)))
	for _, v := range []uint64{0, base, base, size, size, 4096} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return append(b, append(c, make([]byte, int(size)-head-len(c))...)...)
}

// shortLived runs distinct programs that send one datagram each, one after the other.
func shortLived(number int, aged, keep bool) func(*stage) {
	return func(s *stage) {
		if runtime.GOARCH != "amd64" {
			lack("tiny programs", "written for amd64")
		}
		fd := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
		room(fd)
		at := bindTo(fd, unix.AF_INET, "")
		buf := make([]byte, 64<<10)
		write := func(i int) (string, uint32) {
			path, n := filepath.Join(s.dir, fmt.Sprintf("short-%d", i)), uint32(600+i)
			// The trailer makes every file another one even when this scenario runs again.
			program := append(tinyProgram(at.Port(), n), fmt.Sprintf("%s %d", path, os.Getpid())...)
			check("write program", os.WriteFile(path, program, 0o755))
			return path, n
		}
		if aged {
			for i := range number {
				write(i)
			}
			age()
		}
		for i := range number {
			path, n := filepath.Join(s.dir, fmt.Sprintf("short-%d", i)), uint32(600+i)
			if !aged {
				write(i)
			}
			cmd := exec.Command(path)
			check("run program", cmd.Run())
			got, err := recv(fd, buf, 0)
			check("receive", err)
			if got != int(n) {
				fail("receive", fmt.Errorf("%d bytes, not %d", got, n))
			}
			s.claims = append(s.claims, claim.Claim{
				Role: "short", PID: cmd.Process.Pid, Exe: path, File: path, Parent: s.self, Family: "inet", Protocol: "udp",
				Direction: "out", Remote: at.String(), Sent: uint64(n), Conns: 1, Unproved: !aged,
			})
			if !keep {
				program, err := os.ReadFile(path)
				check("read program", err)
				check("keep a copy", os.WriteFile(path+".kept", program, 0o644))
				check("remove program", os.Remove(path))
				c := &s.claims[len(s.claims)-1]
				c.File, c.Exe = path+".kept", path
				c.Unproved = true
			}
		}
	}
}

func shortScenarios() []scenario {
	return []scenario{
		{"short-lived-20", shortLived(20, true, true)},
		{"short-lived-new-20", shortLived(20, false, true)},
		{"short-lived-removed-20", shortLived(20, true, false)},
	}
}
