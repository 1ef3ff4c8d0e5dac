package kernel

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// TestReaderOfATableIsRefused refuses each of the four iterators in turn, as a kernel without memory or descriptors might: the tables are read
// without any of them then, whichever of its two maps is to be read.
func TestReaderOfATableIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: loading BPF programs needs it")
	}
	h, err := Load(Options{HookSet: SetKprobe, Bandwidth: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	// Nothing is attached, so nobody else writes to the tables.
	drain := func(t *testing.T, conns uint32) (got []uint32) {
		t.Helper()
		key := bpfFlowKey{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP}
		if err := h.tables[0].used.Put(&key, &bpfCounts{Conns: conns}); err != nil {
			t.Fatal(err)
		}
		h.tableUsed = ^uint64(0) // as if something was counted
		if err := h.drainTables(nobody{}, func(f *event.Flow) { got = append(got, f.Conns) }); err != nil {
			t.Fatalf("drain %d: %v", conns, err)
		}
		return got
	}
	complete := func(t *testing.T) {
		t.Helper()
		for n := range uint32(4) {
			if got := drain(t, n+1); !slices.Equal(got, []uint32{n + 1}) {
				t.Errorf("drain %d: connections %v", n+1, got)
			}
		}
	}
	t.Run("as the kernel has it", func(t *testing.T) {
		if h.reads == (h.noReaders != nil) {
			t.Errorf("read by iterators: %v, told %v", h.reads, h.noReaders)
		}
		t.Logf("told: %v", h.noReaders)
		complete(t)
	})

	var programs []string
	for _, p := range readers() {
		programs = append(programs, p[:]...)
	}
	refused := errors.New("refused for the test")
	for _, without := range append(slices.Clone(programs), "") {
		t.Run("without "+without, func(t *testing.T) {
			if err := h.closeReaders(); err != nil {
				t.Fatal(err)
			}
			var made []*counted
			err := h.attachReaders(func(_ *table, program string) (reader, error) {
				if program == without {
					return nil, refused
				}
				made = append(made, &counted{program: program})
				return made[len(made)-1], nil
			})
			if without == "" {
				if err != nil || !h.reads {
					t.Fatalf("read by iterators: %v, %v", h.reads, err)
				}
				for n := range uint32(4) {
					if got := drain(t, n+1); got != nil {
						t.Errorf("drain %d: connections %v, though the iterators told of none", n+1, got)
					}
				}
				for _, r := range made {
					if r.opened != 2 {
						t.Errorf("%s: read %d times in four drains", r.program, r.opened)
					}
				}
				return
			}
			if !errors.Is(err, refused) || h.reads {
				t.Errorf("read by iterators: %v, %v", h.reads, err)
			}
			if want := slices.Index(programs, without); len(made) != want {
				t.Errorf("%d iterators before the one that is refused, want %d", len(made), want)
			}
			for _, r := range made {
				if r.closed != 1 {
					t.Errorf("%s: closed %d times", r.program, r.closed)
				}
			}
			complete(t)
		})
	}
}

// counted stands for an iterator over an empty table.
type counted struct {
	program        string
	opened, closed int
}

func (c *counted) Open() (io.ReadCloser, error) {
	c.opened++
	return io.NopCloser(strings.NewReader("")), nil
}

func (c *counted) Close() error {
	c.closed++
	return nil
}

// nobody takes what the kernel tells of processes: nothing, when nothing is attached.
type nobody struct{}

func (nobody) Exec(event.Process)                           {}
func (nobody) Fork(event.ProcessID, event.ProcessID, int64) {}
func (nobody) Exit(event.ProcessID)                         {}
func (nobody) WantPacket()                                  {}
