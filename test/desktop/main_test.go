package desktop

import (
	"os"
	"testing"

	"github.com/picosnitch/picosnitch/internal/errand"
)

func pair(t *testing.T) (*os.File, *os.File) {
	t.Helper()
	a, b, err := errand.Pair()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}
