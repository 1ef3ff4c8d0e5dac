package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// Senders without a program: the kernel moves these bytes by itself, on behalf of a mount or a disk. Here is the program that
// sets that up and the server that counts what arrives.

// kernelExe is what stands for the kernel in the records.
const kernelExe = "[kernel]"

// kernelPeer is the client's end of a connection that the kernel uses; the server is this program.
type kernelPeer struct {
	fd             int
	local          netip.AddrPort
	remote         netip.AddrPort
	sent, received uint64
}

func (k *kernelPeer) read(b []byte) error {
	for len(b) > 0 {
		n, err := again(func() (int, error) { return recv(k.fd, b, 0) })
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		k.received += uint64(n)
		b = b[n:]
	}
	return nil
}

func (k *kernelPeer) write(b []byte) error {
	for len(b) > 0 {
		n, err := again(func() (int, error) { return sendto(k.fd, b, unix.MSG_NOSIGNAL) })
		if err != nil {
			return err
		}
		k.sent += uint64(n)
		b = b[n:]
	}
	return nil
}

// served adds what the server counted.
func (k *kernelPeer) served(r *role) {
	r.add(claim.Claim{Protocol: "tcp", Direction: "in", Local: k.local.String(), Remote: k.remote.String(), Sent: k.sent, Received: k.received, Conns: 1})
}

// nbd lets the kernel read a network block device whose server is this program (linux/nbd.h, Documentation of nbd's protocol).
func nbd(r *role) {
	const (
		setSock, setBlockSize, doIt, clearSock, setSizeBlocks, disconnect = 0xab00, 0xab01, 0xab03, 0xab04, 0xab07, 0xab08
		blocks, block                                                     = 1024, 4096
		requestMagic, replyMagic                                          = 0x25609513, 0x67446698
		requestSize                                                       = 28
	)
	device, err := os.OpenFile("/dev/nbd0", os.O_RDWR, 0)
	if err != nil {
		lack("network block device", err.Error())
	}
	l, at := listen(r)
	c := open(r.p.Family, unix.SOCK_STREAM, 0)
	check("connect", retry(func() error { return unix.Connect(c, sockaddr(at)) }))
	a := accept(l)
	k := &kernelPeer{fd: a, local: at, remote: remoteOf(a)}
	control := func(what string, command, value uintptr) {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), command, value); errno != 0 {
			fail(what, errno)
		}
	}
	control("set block size", setBlockSize, block)
	control("set size", setSizeBlocks, blocks)
	control("set socket", setSock, uintptr(c))
	served := make(chan error, 1)
	go func() {
		header := make([]byte, requestSize)
		for {
			if err := k.read(header); err != nil {
				served <- err
				return
			}
			if magic := binary.BigEndian.Uint32(header); magic != requestMagic {
				served <- fmt.Errorf("request %x", magic)
				return
			}
			switch kind := binary.BigEndian.Uint16(header[6:]); kind {
			case 0: // read
				reply := make([]byte, 16+binary.BigEndian.Uint32(header[24:]))
				binary.BigEndian.PutUint32(reply, replyMagic)
				copy(reply[8:], header[8:16])
				if err := k.write(reply); err != nil {
					served <- err
					return
				}
			case 2: // end
				served <- nil
				return
			default:
				served <- fmt.Errorf("request of kind %d", kind)
				return
			}
		}
	}()
	ran := make(chan struct{})
	go func() {
		unix.Syscall(unix.SYS_IOCTL, device.Fd(), doIt, 0)
		close(ran)
	}()
	disk := openDisk("/dev/nbd0", blocks*block)
	n, err := io.Copy(io.Discard, io.LimitReader(disk, blocks*block))
	check("read disk", err)
	if n != blocks*block {
		fail("read disk", fmt.Errorf("%d bytes of %d", n, blocks*block))
	}
	check("close disk", disk.Close())
	control("disconnect", disconnect, 0)
	check("serve", <-served)
	<-ran
	control("clear socket", clearSock, 0)
	k.served(r)
	// The kernel's workers move these bytes over a socket that this program opened and gave away: they are its own.
	r.add(claim.Claim{Protocol: "tcp", Direction: "out", Local: k.remote.String(), Remote: at.String(), Sent: k.received, Received: k.sent, Conns: 1})
}

// openDisk waits until the disk has its size, which comes with the connection.
func openDisk(path string, size int64) *os.File {
	for until := time.Now().Add(patience()); ; time.Sleep(20 * time.Millisecond) {
		disk, err := os.Open(path)
		check("open disk", err)
		if n, err := disk.Seek(0, io.SeekEnd); err == nil && n == size {
			_, err := disk.Seek(0, io.SeekStart)
			check("seek", err)
			return disk
		}
		check("close disk", disk.Close())
		if time.Now().After(until) {
			fail("open disk", fmt.Errorf("it has no size"))
		}
	}
}

// nfs lets the kernel mount a file system from a server that is this program, and that answers the first calls (RFC 5531):
// the kernel's own threads send and receive. That the mount then fails is the end of the scenario.
func nfs(r *role) {
	l, at := listen(r)
	k := &kernelPeer{local: at}
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.fd = accept(l)
		k.remote = remoteOf(k.fd)
		for {
			mark := make([]byte, 4)
			if k.read(mark) != nil {
				return
			}
			call := make([]byte, binary.BigEndian.Uint32(mark)&^(1<<31))
			if k.read(call) != nil {
				return
			}
			reply := make([]byte, 4+24)
			binary.BigEndian.PutUint32(reply, 1<<31|24)
			copy(reply[4:8], call)                       // transaction
			binary.BigEndian.PutUint32(reply[8:], 1)     // a reply
			if binary.BigEndian.Uint32(call[20:]) != 0 { // not the null procedure
				binary.BigEndian.PutUint32(reply[24:], 3) // procedure unavailable
			}
			if k.write(reply) != nil {
				return
			}
		}
	}()
	dir, err := os.MkdirTemp("", "nfs")
	check("make folder", err)
	// mount.nfs(8) would fill this in; the kernel takes it as text.
	options := fmt.Sprintf("addr=%s,port=%d,vers=4.1,proto=tcp,clientaddr=%s,soft,timeo=50,retrans=1", at.Addr(), at.Port(), at.Addr())
	err = unix.Mount(at.Addr().String()+":/", dir, "nfs4", 0, options)
	switch {
	case err == nil:
		fail("mount", fmt.Errorf("a server that knows nothing was mounted"))
	case err == unix.ENODEV:
		lack("NFS", err.Error())
	}
	unix.Close(l)
	select {
	case <-done:
	default:
		// The kernel keeps its connection for a while; what it moved is what the server counted.
		if k.received == 0 {
			fail("mount", fmt.Errorf("%w, and the kernel sent nothing", err))
		}
	}
	k.served(r)
	// The socket is the kernel's. It sends in the context of mount(2), and receives in a thread of its own.
	limit := "a socket that the kernel opens: its direction is that of its first byte"
	r.add(claim.Claim{Protocol: "tcp", Remote: at.String(), Sent: k.received, Conns: claim.NotStated, Limit: limit})
	r.add(claim.Claim{Exe: kernelExe, Kernel: true, Family: "inet", Protocol: "tcp", Remote: at.String(), Received: k.sent, Conns: claim.NotStated, Limit: limit})
}

func kernelScenarios() []scenario {
	alone := func(role string) func(*stage) {
		return func(s *stage) { s.take(s.start("gen-server", role, param{})) }
	}
	return []scenario{{"kernel-nbd", alone("nbd")}, {"kernel-nfs", alone("nfs")}}
}
