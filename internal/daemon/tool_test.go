package daemon

import (
	"strings"
	"testing"
	"time"
)

func TestPackageTool(t *testing.T) {
	out, code, err := packageTool(t.Context(), "/bin/sh", "-c", "echo $LC_ALL-$HOME; exit 3")
	if string(out) != "C-\n" || code != 3 || err != nil {
		t.Errorf("%q %d %v", out, code, err)
	}
	if _, _, err := packageTool(t.Context(), "/no/such/tool"); err == nil {
		t.Error("a tool that is not there gives an answer")
	}
	if _, _, err := packageTool(t.Context(), "/bin/sh", "-c", "kill -9 $$"); err == nil {
		t.Error("a tool that was killed gives an answer")
	}
	if _, _, err := packageTool(t.Context(), "/bin/sh", "-c", "head -c 17000000 /dev/zero"); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("endless: %v", err)
	}
	start := time.Now()
	if _, _, err := packageTool(t.Context(), "/bin/sh", "-c", "sleep 60 & sleep 60"); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("hangs: %v", err)
	}
	if d := time.Since(start); d > toolTime+3*time.Second {
		t.Errorf("it was waited for %v", d)
	}
}
