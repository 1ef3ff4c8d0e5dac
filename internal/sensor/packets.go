package sensor

import "time"

// packetIdle is how long the packet hooks stay on without being used.
const packetIdle = time.Minute

// packets is whether the hooks that look at packets are on.
type packets struct {
	wanted, on bool
	used       uint64
	since      time.Time // when used last changed
}

// switchPackets turns the packet hooks on when a socket asked for them.
func (l *loop) switchPackets() {
	if !l.packets.wanted || l.packets.on {
		return
	}
	l.packets.on, l.packets.since = true, time.Now()
	if err := l.hooks.Packets(true); err != nil {
		l.notice("warning", err.Error(), "the bytes and programs of raw sockets are right, their remote addresses are missing")
	}
}

// idlePackets turns the packet hooks off when nothing used them for a while.
func (l *loop) idlePackets(used uint64) {
	if used != l.packets.used {
		l.packets.used, l.packets.since = used, time.Now()
	}
	if l.packets.on && time.Since(l.packets.since) > packetIdle {
		l.packets.on, l.packets.wanted = false, false
		if err := l.hooks.Packets(false); err != nil {
			l.notice("warning", err.Error(), "")
		}
	}
}
