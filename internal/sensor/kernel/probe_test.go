package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPreemptible(t *testing.T) {
	for symbols, want := range map[string]bool{
		"": false,
		"ffffffff81000000 T _text\nffffffff83123450 D tracepoint_srcu\n":             true,
		"0000000000000000 B tracepoint_srcu\n0000000000000000 T other\n":             true,
		"ffffffff83123450 d tracepoint_srcu\n":                                       false,
		"ffffffff83123450 D not_tracepoint_srcu\nffffffff83123450 tracepoint_srcu\n": false,
		" tracepoint_srcu\n":                             false,
		"ffffffff83123450 D tracepoint_srcu\t[module]\n": false,
	} {
		path := filepath.Join(t.TempDir(), "kallsyms")
		if err := os.WriteFile(path, []byte(symbols), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := preemptible(path); got != want {
			t.Errorf("%q: %t", symbols, got)
		}
	}
	if preemptible("/nowhere") {
		t.Error("no symbols")
	}
}

// TestOrder: what is found by trial must lead to what is known of the kernels' versions.
func TestOrder(t *testing.T) {
	k, err := probe()
	if err != nil {
		t.Fatal(err)
	}
	order, why := k.order()
	if lock, symbol := k.tracepointLock(), preemptible("/proc/kallsyms"); k.fastLocks() && lock != symbol {
		t.Errorf("the lock of tracepoints: %t in the types, %t among the symbols; a service sees the types only", lock, symbol)
	}
	t.Logf("%q: %s (fast locks: %t)", order, why, k.fastLocks())
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	// The program never asks for the version; the test does.
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	want := SetTracepoint
	switch {
	case major < 6 || major == 6 && minor < 5:
		want = SetFexit
	case major >= 7:
		want = SetKprobe
	}
	if order[0] != want {
		t.Errorf("kernel %d.%d: %s comes first, not %s", major, minor, order[0], want)
	}
}
