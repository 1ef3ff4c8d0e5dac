package recorder

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	_ "time/tzdata" // the tests need the zone where the machine has no table of them
)

// zone is the local time of the tests: two hours before UTC's, so that the two cannot be taken for each other.
const zone = "Etc/GMT-2"

// TestMain sets the local time: SQLite's idea of it comes from the environment at the start of the process.
func TestMain(m *testing.M) {
	if path := os.Getenv(killedEnv); path != "" {
		beKilled(path)
		return
	}
	if os.Getenv("TZ") != zone {
		c := exec.Command("/proc/self/exe", os.Args[1:]...)
		c.Env = append(os.Environ(), "TZ="+zone)
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "with TZ="+zone+":", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
