package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	b, _ := os.ReadFile("/proc/kallsyms")
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "tracepoint_srcu") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Logf("this kernel: %t", preemptible("/proc/kallsyms"))
}
