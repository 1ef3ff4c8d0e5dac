package kernel

import "testing"

// TestApart: a hardened service has a mount namespace of its own over the root of init; others are other machines to us.
func TestApart(t *testing.T) {
	report := func(device uint32, inode uint64, ns uint32) *bpfExecReport {
		return &bpfExecReport{RootDevice: device, RootInode: inode, MountNs: ns}
	}
	own, init := root{1, 2, 100}, root{1, 2, 1}
	for _, c := range []struct {
		name string
		s    surroundings
		r    *bpfExecReport
		want bool
	}{
		{"the sensor's", surroundings{own: own, init: init}, report(1, 2, 100), false},
		{"init's", surroundings{own: own, init: init}, report(1, 2, 1), false},
		{"a container's", surroundings{own: own, init: init}, report(9, 2, 7), true},
		{"a chroot", surroundings{own: own, init: init}, report(1, 77, 1), true},
		{"a mount namespace", surroundings{own: own, init: init}, report(1, 2, 8), true},
		{"init has another root than the sensor", surroundings{own: own, init: root{5, 6, 1}}, report(5, 6, 1), true},
		{"nothing is known", surroundings{}, report(1, 2, 1), true},
	} {
		if got := c.s.apart(c.r); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
