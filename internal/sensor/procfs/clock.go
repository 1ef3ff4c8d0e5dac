package procfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// WallOffset is what must be added to a ktime (CLOCK_BOOTTIME: ns since boot, suspend included; what
// bpf_ktime_get_boot_ns and task_struct.start_boottime count) to get the wall clock in ns since 1970. It changes
// whenever the wall clock is set or slewed: ask again for every batch.
func WallOffset() (int64, error) {
	best, offset := int64(-1), int64(0)
	// The clocks are read one after the other: of a few tries the fastest has the least between them.
	for range 5 {
		var before, wall, after unix.Timespec
		for _, c := range []struct {
			id int32
			t  *unix.Timespec
		}{{unix.CLOCK_BOOTTIME, &before}, {unix.CLOCK_REALTIME, &wall}, {unix.CLOCK_BOOTTIME, &after}} {
			if err := unix.ClockGettime(c.id, c.t); err != nil {
				return 0, fmt.Errorf("read clock %d: %w", c.id, err)
			}
		}
		if took := after.Nano() - before.Nano(); best < 0 || took < best {
			best, offset = took, wall.Nano()-before.Nano()-took/2
		}
	}
	return offset, nil
}
