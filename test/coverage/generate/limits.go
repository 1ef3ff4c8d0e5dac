package main

import (
	"unsafe"

	"github.com/picosnitch/picosnitch/test/coverage/claim"
	"golang.org/x/sys/unix"
)

// tlsKeys is struct tls12_crypto_info_aes_gcm_128 of linux/tls.h.
type tlsKeys struct {
	version, cipher uint16
	iv, key         [8]byte
	key2            [8]byte
	salt            [4]byte
	sequence        [8]byte
}

const (
	solTLS   = 282
	tlsTX    = 1
	tlsRX    = 2
	tls12    = 0x0303
	aesGCM   = 51
	tlsChunk = 16 << 10
)

// kernelTLS turns a connection into one that the kernel encrypts.
func kernelTLS(fd int, direction int) {
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err != nil && err != unix.EEXIST {
		lack("kernel TLS", err.Error())
	}
	k := tlsKeys{version: tls12, cipher: aesGCM}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), solTLS, uintptr(direction), uintptr(unsafe.Pointer(&k)), unsafe.Sizeof(k), 0)
	if errno != 0 {
		check("set keys", errno)
	}
}

// tlsServer receives records that the kernel decrypts. Where the monitor counts how far the reader moved in the stream it sees what crossed the
// network: 29 bytes more in every record (header 5, nonce 8, tag 16).
func tlsServer(r *role) {
	l, at := listen(r)
	r.ready(at.String())
	fd := accept(l)
	peer := remoteOf(fd)
	kernelTLS(fd, tlsRX)
	r.ready("keyed")
	buf := make([]byte, tlsChunk)
	take := func(most int) (int, error) { return recv(fd, buf[:most], 0) }
	if r.p.Recv == "splice" {
		to := newDrain()
		defer to.close()
		take = func(int) (int, error) { return to.splice(fd) }
	}
	var received uint64
	for range r.p.Count {
		for got := 0; got < tlsChunk; {
			n, err := again(func() (int, error) { return take(tlsChunk - got) })
			check("receive", err)
			got += n
			received += uint64(n)
		}
	}
	r.add(claim.Claim{
		Protocol: "tcp", Direction: "in", Remote: peer.String(), Received: received, Conns: 1,
		Limit: "kernel TLS: received bytes are those of the encrypted records", Expect: &claim.Bytes{Received: received + uint64(r.p.Count)*29}, Either: true,
	})
}

func tlsClient(r *role) {
	fd := dial(r)
	at := endsOf(fd)
	r.ready("connected")
	r.await()
	kernelTLS(fd, tlsTX)
	buf := make([]byte, tlsChunk)
	var sent uint64
	for range r.p.Count {
		n, err := again(func() (int, error) { return sendto(fd, buf, 0) })
		check("send", err)
		sent += uint64(n)
	}
	r.stream(at, "out", sent, 0, 1)
	r.await()
}

// vsock is one program that talks to itself over the virtual machine sockets' loopback.
func vsock(r *role) {
	l := open(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	const local = 1 // VMADDR_CID_LOCAL
	if err := unix.Bind(l, &unix.SockaddrVM{CID: local, Port: unix.VMADDR_PORT_ANY}); err != nil {
		lack("loopback of virtual machine sockets", err.Error())
	}
	sa, err := unix.Getsockname(l)
	check("get own address", err)
	check("listen", unix.Listen(l, 1))
	c := open(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err := unix.Connect(c, &unix.SockaddrVM{CID: local, Port: sa.(*unix.SockaddrVM).Port}); err != nil {
		lack("loopback of virtual machine sockets", err.Error())
	}
	a := accept(l)
	sent := sendStream(c, "send", 10_000)
	check("shut down", unix.Shutdown(c, unix.SHUT_WR))
	received := recvStream(a, "recv")
	r.add(claim.Claim{Family: "vsock", Sent: sent, Received: received, Conns: claim.NotStated})
}

// xdp sends frames through an AF_XDP socket in copy mode: no hook of ours sees their bytes.
func xdp(r *role) {
	const frame, frames, size = 2048, 64, 1000
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		lack("AF_XDP", err.Error())
	}
	memory := area(frame * frames)
	set := func(option int, p unsafe.Pointer, n uintptr) {
		if _, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option), uintptr(p), n, 0); errno != 0 {
			check("set up AF_XDP", errno)
		}
	}
	reg := unix.XDPUmemReg{Addr: address(memory), Len: frame * frames, Size: frame}
	set(unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg))
	n := uint32(frames)
	for _, option := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
		set(option, unsafe.Pointer(&n), unsafe.Sizeof(n))
	}
	var off unix.XDPMmapOffsets
	length := uint32(unsafe.Sizeof(off))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS, uintptr(unsafe.Pointer(&off)), uintptr(unsafe.Pointer(&length)), 0); errno != 0 {
		check("get offsets", errno)
	}
	tx, err := unix.Mmap(fd, unix.XDP_PGOFF_TX_RING, int(off.Tx.Desc)+frames*int(unsafe.Sizeof(unix.XDPDesc{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	check("map ring", err)
	const copyMode = 1 << 1 // XDP_COPY
	if err := unix.Bind(fd, &unix.SockaddrXDP{Flags: copyMode, Ifindex: loopbackIndex}); err != nil {
		lack("bind AF_XDP to lo", err.Error())
	}
	for i := range frames {
		d := (*unix.XDPDesc)(unsafe.Pointer(&tx[off.Tx.Desc+uint64(i)*uint64(unsafe.Sizeof(unix.XDPDesc{}))]))
		d.Addr, d.Len = uint64(i*frame), size
	}
	*(*uint32)(unsafe.Pointer(&tx[off.Tx.Producer])) = frames
	consumer := (*uint32)(unsafe.Pointer(&tx[off.Tx.Consumer]))
	for range 100 {
		if _, err := sendto(fd, nil, unix.MSG_DONTWAIT); err != nil && err != unix.EAGAIN && err != unix.EBUSY {
			check("kick ring", err)
		}
		if *consumer == frames {
			break
		}
	}
	r.add(claim.Claim{
		Family: "xdp", Sent: uint64(*consumer) * size, Conns: claim.NotStated,
		Limit: "AF_XDP: the frames leave through a mapped ring that no hook sees", Expect: &claim.Bytes{},
	})
}

func limitScenarios() []scenario {
	return []scenario{
		{"vsock", func(s *stage) { s.take(s.start("gen-client", "vsock", param{})) }},
		{"xdp", func(s *stage) {
			ownNamespace(nil)
			s.take(s.start("gen-client", "xdp", param{}))
		}},
		{"kernel-tls", tlsBy("recv")},
		{"kernel-tls-splice", tlsBy("splice")},
	}
}

func tlsBy(way string) func(*stage) {
	return func(s *stage) {
		srv := s.start("gen-server", "tls-server", param{Count: 20, Recv: way})
		cl := s.start("gen-client", "tls-client", param{Addr: srv.ready(), Count: 20})
		cl.ready()
		srv.ready()
		cl.release()
		s.take(srv)
		cl.release()
		s.take(cl)
	}
}
