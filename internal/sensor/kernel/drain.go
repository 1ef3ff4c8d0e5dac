package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Handler takes what the kernel tells of processes, in the order in which it happened.
type Handler interface {
	Exec(event.Process)
	Fork(child, parent event.ProcessID, at int64)
	Exit(event.ProcessID)
	// WantPacket says that a socket showed up whose peers only packets tell.
	WantPacket()
}

// swap is a kernel table that can be replaced by an empty one.
type swap struct {
	outer       *ebpf.Map
	used, spare table
}

// maps are both.
func (s *swap) maps() [2]*table { return [2]*table{&s.used, &s.spare} }

// table is one of its two maps, and what reads it without a system call on the map itself, if the set needs that.
type table struct {
	*ebpf.Map
	reader reader
}

// buffers are kept from drain to drain, so that a drain allocates nothing in the steady state.
type buffers struct {
	record  ringbuf.Record
	reports []bpfFlowReport
	read    []byte
	flow    event.Flow
	keys    []bpfFlowKey
	totals  []bpfTotalKey
	counts  []bpfCounts
}

const batch = 512 // entries of a table a system call

// Wake ends a Wait, this one or the next. It may be called from any goroutine until Close.
func (h *Hooks) Wake() error {
	if _, err := unix.Write(h.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("wake the reader: %w", err)
	}
	return nil
}

// Wait blocks until the kernel wakes the reader, because a ring buffer fills, until Wake, or until the timeout. It waits in Go's poller: to be
// in a system call for long costs the runtime some sixty looks at whether it has come back, for each time.
func (h *Hooks) Wait(timeout time.Duration) error {
	if err := h.epoll.SetReadDeadline(time.Now().Add(max(timeout, 0))); err != nil {
		return fmt.Errorf("wait for the kernel: %w", err)
	}
	c, err := h.epoll.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for the kernel: %w", err)
	}
	var failed error
	err = c.Read(func(fd uintptr) bool {
		var ev [3]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), ev[:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			failed = err
		}
		return n > 0 || failed != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("wait for the kernel: %w", err)
	}
	return nil
}

// processesMax bounds one call of Processes: more than a ring of 256 KiB can hold.
const processesMax = 16384

// Processes hands the waiting reports of exec, fork and exit to the handler and returns how many there were.
func (h *Hooks) Processes(to Handler) (int, error) {
	n := 0
	h.processes.SetDeadline(time.Unix(1, 0)) // in the past: read what is there
	for {
		if n == processesMax {
			return n, nil
		}
		err := h.processes.ReadInto(&h.buffers.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("read ring buffer: %w", err)
		}
		if err := h.decodeProcess(h.buffers.record.RawSample, to); err != nil {
			return n, err
		}
		n++
	}
}

// Found hands all processes that run now to the callback, kernel threads included, without their arguments. It must be called
// before Processes, because only it learns what the sensor and init take for the root.
func (h *Hooks) Found(to func(event.Process)) error {
	var reports [][]byte
	err := h.iterate("find_processes", func(b []byte) (int, error) {
		_, n, err := h.decodeExec(b)
		if err != nil || n == 0 {
			return n, err
		}
		reports = append(reports, bytes.Clone(b[:n]))
		if r, err := view[bpfExecReport](b); err == nil {
			switch int(r.Process.Pid) {
			case os.Getpid():
				h.surroundings.own = rootOf(&r)
			case 1:
				h.surroundings.init = rootOf(&r)
			}
		}
		return n, nil
	})
	for _, b := range reports {
		p, _, e := h.decodeExec(b)
		if e != nil {
			return errors.Join(err, e)
		}
		to(p)
	}
	return err
}

// releasedMax is how many reports one call of Released takes at most: a machine that closes sockets faster than they are
// read must not keep the caller there.
const releasedMax = 4096

// Released hands the flows of sockets that were released to emit, after all process reports that came before them to
// the handler. It returns whether more may be waiting. The flow is valid during the call only.
func (h *Hooks) Released(to Handler, emit func(*event.Flow)) (more bool, err error) {
	h.released.SetDeadline(time.Unix(1, 0))
	more = true
	for len(h.buffers.reports) < releasedMax {
		err = h.released.ReadInto(&h.buffers.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			more, err = false, nil
			break
		}
		if err != nil {
			more, err = false, fmt.Errorf("read ring buffer: %w", err)
			break
		}
		var r bpfFlowReport
		if r, err = decodeReport(h.buffers.record.RawSample); err != nil {
			break
		}
		h.buffers.reports = append(h.buffers.reports, r)
	}
	return more && err == nil, errors.Join(err, h.emit(to, emit))
}

// emit resolves nothing itself: it makes sure that the processes of the collected reports are known first. The kernel has forgotten what is in
// the reports, so they are handed on whatever goes wrong.
func (h *Hooks) emit(to Handler, emit func(*event.Flow)) error {
	if len(h.buffers.reports) == 0 {
		return nil
	}
	_, err := h.Processes(to)
	for i := range h.buffers.reports {
		r := &h.buffers.reports[i]
		decodeFlow(&r.Key, &r.Counts, &h.buffers.flow)
		emit(&h.buffers.flow)
	}
	h.buffers.reports = h.buffers.reports[:0]
	return err
}

// Drain hands everything that was counted since the last drain to emit: released sockets, live sockets, tables.
func (h *Hooks) Drain(to Handler, emit func(*event.Flow)) error {
	// What the ring holds now, and not what is added meanwhile. What goes wrong with one source keeps nobody from the others.
	var errs []error
	for range h.ring/int(unsafe.Sizeof(bpfFlowReport{}))/releasedMax + 1 {
		more, err := h.Released(to, emit)
		errs = append(errs, err)
		if !more {
			break
		}
	}
	return errors.Join(append(errs, h.drainSockets(to, emit), h.drainTables(to, emit))...)
}

// drainSockets takes what live sockets have counted.
func (h *Hooks) drainSockets(to Handler, emit func(*event.Flow)) error {
	if h.drains == nil {
		return nil
	}
	r, err := h.drains.Open()
	if err != nil {
		return fmt.Errorf("iterate over sockets: %w", err)
	}
	err = h.readAll(r, func(b []byte) (int, error) {
		const size = int(unsafe.Sizeof(bpfFlowReport{}))
		if len(b) < size {
			return 0, nil
		}
		report, err := decodeReport(b[:size])
		if err == nil {
			h.buffers.reports = append(h.buffers.reports, report)
		}
		return size, err
	})
	err = errors.Join(err, r.Close())
	return errors.Join(err, h.emit(to, emit))
}

// Finish takes off what counts bytes, then the rest, which reports the sockets that are closed meanwhile, and drains all.
func (h *Hooks) Finish(to Handler, emit func(*event.Flow)) error {
	return errors.Join(
		h.detach(func(a *attachment) bool { return a.when != always }),
		h.Drain(to, emit),
		h.Detach(),
		h.Drain(to, emit),
	)
}

func (h *Hooks) iterate(program string, each func([]byte) (int, error)) error {
	it, err := attachIter(h.collection.Programs[program])
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("iterate: %w", err)
	}
	defer r.Close()
	return h.readAll(r, each)
}

// readAll cuts what an iterator writes into records; each returns the size of the record at the front, 0 for not whole.
func (h *Hooks) readAll(r io.Reader, each func([]byte) (int, error)) error {
	if h.buffers.read == nil {
		h.buffers.read = make([]byte, 64<<10)
	}
	have := 0
	for {
		n, err := r.Read(h.buffers.read[have:])
		if errors.Is(err, unix.EAGAIN) {
			continue // the kernel pauses after a million objects without output (bpf_seq_read())
		}
		have += n
		at := 0
		for at < have {
			size, e := each(h.buffers.read[at:have])
			if e != nil {
				return e
			}
			if size == 0 {
				break
			}
			at += size
		}
		have = copy(h.buffers.read, h.buffers.read[at:have])
		if errors.Is(err, io.EOF) {
			if have != 0 {
				return fmt.Errorf("iterate: %d bytes of half a record at the end", have)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("iterate: %w", err)
		}
		if have == len(h.buffers.read) {
			return errors.New("iterate: a record is larger than the buffer")
		}
	}
}

// drainTables swaps each table for its empty twin and reads the old one. The kernel's update of a map of maps returns
// only when no running program can still hold the old table.
func (h *Hooks) drainTables(to Handler, emit func(*event.Flow)) error {
	used, err := h.tally(bpfTallyTALLY_TABLE)
	if err != nil || used == h.tableUsed {
		return err
	}
	if err := h.drainBoth(to, emit); err != nil {
		return err // and again at the next drain: what is left in a table comes out then
	}
	h.tableUsed = used
	return nil
}

func (h *Hooks) drainBoth(to Handler, emit func(*event.Flow)) error {
	for i := range h.tables {
		t := &h.tables[i]
		if err := t.outer.Put(uint32(0), t.spare.Map); err != nil {
			return fmt.Errorf("swap tables: %w", err)
		}
		t.used, t.spare = t.spare, t.used
	}
	// The processes of everything in the old tables are known now or never.
	_, failed := h.Processes(to)
	if h.buffers.keys == nil {
		h.buffers.keys = make([]bpfFlowKey, batch)
		h.buffers.totals = make([]bpfTotalKey, batch)
		h.buffers.counts = make([]bpfCounts, batch)
	}
	now := time.Now()
	flow := func(k *bpfFlowKey, c *bpfCounts) {
		// A flow whose opening the kernel has counted is remembered too: where counts do not stay in socket states, it comes again.
		if isDatagram(k) && h.datagrams.first(k, now) && c.Conns == 0 && c.Continued == 0 {
			c.Conns = 1
		}
		decodeFlow(k, c, &h.buffers.flow)
		emit(&h.buffers.flow)
	}
	total := func(k *bpfFlowKey, c *bpfCounts) {
		decodeFlow(k, c, &h.buffers.flow)
		emit(&h.buffers.flow)
	}
	if h.reads {
		return errors.Join(failed, h.readTable(h.tables[0].spare.reader, flow), h.readTable(h.tables[1].spare.reader, total))
	}
	return errors.Join(failed,
		empty(h.tables[0].spare.Map, h.buffers.keys, h.buffers.counts, flow),
		empty(h.tables[1].spare.Map, h.buffers.totals, h.buffers.counts, func(k *bpfTotalKey, c *bpfCounts) {
			var key bpfFlowKey
			key.Process = k.Process
			key.Uid, key.Family, key.Protocol = k.Uid, k.Family, k.Protocol
			total(&key, c)
		}))
}

// readTable takes every entry out of a table by its iterator. The kernel may pass over some when its buffer, of eight pages, was full.
func (h *Hooks) readTable(table reader, each func(*bpfFlowKey, *bpfCounts)) error {
	const size = int(unsafe.Sizeof(bpfFlowReport{}))
	for {
		n := 0
		r, err := table.Open()
		if err != nil {
			return fmt.Errorf("iterate over a table: %w", err)
		}
		err = h.readAll(r, func(b []byte) (int, error) {
			if len(b) < size {
				return 0, nil
			}
			report, err := decodeReport(b[:size])
			if err == nil {
				each(&report.Key, &report.Counts)
				n += size
			}
			return size, err
		})
		if err = errors.Join(err, r.Close()); err != nil || n < os.Getpagesize() {
			return err
		}
	}
}

// empty takes every entry out of a map that nobody writes to.
func empty[K any](m *ebpf.Map, keys []K, counts []bpfCounts, each func(*K, *bpfCounts)) error {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookupAndDelete(&cursor, keys, counts, nil)
		for i := range n {
			each(&keys[i], &counts[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("read table: a bucket holds more than %d entries", len(keys))
		}
		if err != nil {
			return fmt.Errorf("read table: %w", err)
		}
	}
}
