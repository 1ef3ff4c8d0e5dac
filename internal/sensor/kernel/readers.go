package kernel

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf/link"
)

// reader is a *link.Iter.
type reader interface {
	Open() (io.ReadCloser, error)
	Close() error
}

// readers are the programs that read the tables, where the set needs them.
func readers() [2][2]string {
	return [2][2]string{{"drain_flow_table_0", "drain_flow_table_1"}, {"drain_total_table_0", "drain_total_table_1"}}
}

// attachReaders makes the iterators over both maps of each table: over all, or, when one is not to be had, over none, so that every drain goes the
// same way. Without them reading takes system calls, during which the kernel skips kprobes.
func (h *Hooks) attachReaders(attach func(t *table, program string) (reader, error)) error {
	for i := range h.tables {
		for n, t := range h.tables[i].maps() {
			r, err := attach(t, readers()[i][n])
			if err != nil {
				return errors.Join(err, h.closeReaders())
			}
			t.reader = r
		}
	}
	h.reads = true
	return nil
}

func (h *Hooks) attachReader(t *table, program string) (reader, error) {
	p := h.collection.Programs[program]
	if p == nil {
		return nil, fmt.Errorf("the kernel refuses the program: %w", h.refused[program])
	}
	it, err := link.AttachIter(link.IterOptions{Program: p, Map: t.Map})
	if err != nil {
		return nil, fmt.Errorf("iterate over a table: %w", err)
	}
	return it, nil
}

// closeReaders leaves no table with an iterator.
func (h *Hooks) closeReaders() error {
	h.reads = false
	var errs []error
	for i := range h.tables {
		for _, t := range h.tables[i].maps() {
			if t.reader != nil {
				errs = append(errs, t.reader.Close())
				t.reader = nil
			}
		}
	}
	return errors.Join(errs...)
}
