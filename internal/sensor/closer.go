package sensor

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// closer closes descriptors whose file systems may be asked at each close(2), also of what was only read: overlayfs asks its layers, and
// one of FUSE, which a stranger serves, may never answer (fuse_flush). Nobody else waits for that.
type closer struct {
	mu      sync.Mutex // guards all below
	queue   []int
	running bool
	since   time.Time // when the close that is under way began
}

const (
	// closingMax is how many descriptors may wait before no more of the kind are taken in.
	closingMax = 256
	// closeSlow is after how long one is said to hang.
	closeSlow = 5 * time.Second
)

// close takes in a descriptor, and does not wait.
func (c *closer) close(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, fd)
	if !c.running {
		c.running, c.since = true, time.Now()
		go c.run()
	}
}

func (c *closer) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		fd := c.queue[0]
		c.queue = c.queue[1:]
		c.since = time.Now()
		c.mu.Unlock()
		unix.Close(fd)
		c.mu.Lock()
	}
	c.queue, c.running = nil, false
}

// room reports whether more may be opened that must be closed here.
func (c *closer) room() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) < closingMax
}

// hangs reports whether a close does not come back.
func (c *closer) hangs() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running && time.Since(c.since) > closeSlow
}
