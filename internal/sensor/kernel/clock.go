package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

// wall turns the kernel's time since boot into the wall clock, both in ns. The difference is taken anew each time: the
// wall clock may have been set.
func wall(ktime uint64) int64 {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return 0
	}
	return time.Now().UnixNano() - (boot.Nano() - int64(ktime))
}
