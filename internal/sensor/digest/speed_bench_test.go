package digest

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkHashSpeed compares the hashing of a file of 1 GB, which is in the page cache, with sha256sum(1) at the same low priority: the best of three each. Run it with
// -benchtime 1x.
func BenchmarkHashSpeed(b *testing.B) {
	const size = 1 << 30
	path := filepath.Join(b.TempDir(), "large")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 1<<20)
	rand.Read(block)
	for range size / len(block) {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	for range b.N {
		best := func(run func()) time.Duration {
			fastest := time.Hour
			for range 3 {
				began := time.Now()
				run()
				fastest = min(fastest, time.Since(began))
			}
			return fastest
		}
		theirs := best(func() {
			cmd := exec.Command("sha256sum", path)
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			// As the digester's own: else a busy machine is what is measured.
			if err := unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, niceness); err != nil {
				b.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
		})
		ours := best(func() {
			d := start(b, Options{})
			if r := want(b, d, onDisk(b, path)); r.Executable.SHA256 == "" {
				b.Fatalf("%+v", r)
			}
		})
		b.ReportMetric(size/ours.Seconds()/1e6, "MB/s")
		b.ReportMetric(size/theirs.Seconds()/1e6, "sha256sum-MB/s")
		b.ReportMetric(theirs.Seconds()/ours.Seconds(), "ratio")
	}
}
