package digest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

func TestCache(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := start(t, Options{Cache: 2})
	var ps []event.Process
	for i := range 3 {
		ps = append(ps, file(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Append(nil, i)))
	}
	age(t)
	for _, p := range ps {
		if r := want(t, d, p); r.Executable.SHA256 == "" {
			t.Fatalf("no digest: %+v", r)
		}
	}
	again := ps[2]
	again.ID.PID, again.Path = 77, "/another/name"
	if exe, known := d.Want(again); !known || exe.SHA256 != sumOf(t, filepath.Join(dir, "2")) || exe.Path != again.Path {
		t.Errorf("another process with the same file: %+v, %v", exe, known)
	}
	if _, known := d.Want(ps[0]); known {
		t.Error("the oldest of three results was kept in a cache of two")
	}
	receive(t, d)
	if s := d.Stats(); s.Evicted != 2 || s.Cached != 2 || s.Hashed != 4 || s.Hits != 1 {
		t.Errorf("stats %+v; want 2 evicted, 2 cached, 4 hashed, 1 hit", s)
	}
	d.Forget(Inode{ps[0].File.Device, ps[0].File.Inode})
	if _, known := d.Want(ps[0]); known {
		t.Error("a forgotten file is still known")
	}
	receive(t, d)
}

// TestFreshChangeTimeIsNotKept: a second change within the same tick of the clock would not be seen.
func TestFreshChangeTimeIsNotKept(t *testing.T) {
	t.Parallel()
	d := New(Options{})
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	for _, c := range []struct {
		age  time.Duration
		kept bool
	}{{0, false}, {-fresh / 2, false}, {2 * fresh, true}, {-time.Hour, true}} {
		p.File.Ctime = time.Now().Add(-c.age).UnixNano()
		j := &job{key: keyOf(p), askers: []asker{{p, -1, None(), nil}}}
		d.finish(context.Background(), j, event.Executable{File: p.File, SHA256: "x"}, "", 1, nil)
		<-d.results
		if _, known := d.Want(p); known != c.kept {
			t.Errorf("changed %v ago: kept %v, want %v", c.age, known, c.kept)
		}
	}
}

func TestQueueIsBoundedAndSaysSo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(Options{Queue: 2}) // nobody works yet
	var ps []event.Process
	for i := range 3 {
		ps = append(ps, file(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Append(nil, i)))
	}
	for _, p := range []event.Process{ps[0], ps[1], ps[0], ps[1]} { // the same again takes no room
		if exe, known := d.Want(p); known {
			t.Fatalf("known too early: %+v", exe)
		}
	}
	exe, known := d.Want(ps[2])
	if !known || exe.Reason != ReasonBusy || exe.File != ps[2].File {
		t.Errorf("third of a queue of two: %+v, %v", exe, known)
	}
	if s := d.Stats(); s.Failed[ReasonBusy] != 1 || s.Waiting != 2 {
		t.Errorf("stats %+v; want one refused, two waiting", s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	receive(t, d)
	receive(t, d)
	if r := want(t, d, ps[2]); r.Executable.SHA256 == "" {
		t.Errorf("refused once, wanted again: %+v", r)
	}
}

// TestAnotherProcessHelps: the first process with the file is gone, the second still shows it.
func TestAnotherProcessHelps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "prog")
	alive := sleeper(t, path)
	age(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	alive.File = fileID(t, fmt.Sprintf("/proc/%d/exe", alive.ID.PID))
	gone := alive
	gone.ID = event.ProcessID{PID: alive.ID.PID, Start: 1, Exec: 1}

	d := New(Options{})
	d.Want(gone)
	d.Want(alive)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if r := receive(t, d); r.Executable.SHA256 == "" || r.Process != gone.ID {
		t.Errorf("got %+v", r)
	}
}

// TestFailureIsOfTheProcess: it is remembered for the process, and not for others with the same file.
func TestFailureIsOfTheProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "prog")
	alive := sleeper(t, path)
	age(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	alive.File = fileID(t, fmt.Sprintf("/proc/%d/exe", alive.ID.PID))
	gone := alive
	gone.ID = event.ProcessID{PID: alive.ID.PID, Start: 1, Exec: 1}
	gone.Started = gone.File.Ctime + int64(time.Hour) // the unlink moved the change time: on a slow machine to just after the start
	d := start(t, Options{})
	reason(t, want(t, d, gone), ReasonGone)
	if exe, known := d.Want(gone); !known || exe.Reason != ReasonGone {
		t.Errorf("the same again: %+v, %v; want to be told at once", exe, known)
	}
	if r := want(t, d, alive); r.Executable.SHA256 == "" {
		t.Errorf("another process with the same file: %+v", r)
	}
}

// TestLateComerIsTriedAgain: a process that joined a job after its last try gets a job of its own.
func TestLateComerIsTriedAgain(t *testing.T) {
	t.Parallel()
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	late := p
	late.ID.PID = 9
	d := New(Options{})
	j := &job{key: keyOf(p), askers: []asker{{p, -1, None(), nil}, {late, -1, None(), nil}}}
	d.finish(context.Background(), j, event.Executable{}, "", 1, because(ReasonGone))
	if _, known := d.Want(p); !known {
		t.Error("the failure of the process that was tried is not known")
	}
	if s := d.Stats(); s.Waiting != 1 {
		t.Errorf("%d jobs wait, want the late comer's", s.Waiting)
	}
}

// TestOlderFileHelps: a file that is executed all the time while its job waits is too young for the first ones only.
func TestOlderFileHelps(t *testing.T) {
	t.Parallel()
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	p.ID.Start = 1 << 62 // has ended
	d := New(Options{})
	for i := range 2 * maxAskers {
		young := p
		young.ID.PID, young.Started = uint32(100+i), p.File.Ctime
		d.Want(young)
	}
	p.ID.PID = 99
	d.Want(p)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if r := receive(t, d); r.Executable.SHA256 != sumOf(t, p.Path) {
		t.Errorf("got %+v, want the digest that the last process proves", r)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := start(t, Options{Workers: 2})
	var ps []event.Process
	for i := range 300 {
		ps = append(ps, file(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Append(nil, i)))
	}
	age(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, p := range ps {
				d.Want(p)
			}
		})
	}
	got := map[event.FileID]string{}
	for len(got) < len(ps) {
		r := receive(t, d)
		got[r.Executable.File] = r.Executable.SHA256
	}
	wg.Wait()
	for i, p := range ps {
		if got[p.File] != sumOf(t, filepath.Join(dir, fmt.Sprint(i))) {
			t.Fatalf("file %d: digest %q", i, got[p.File])
		}
	}
	if s := d.Stats(); s.Hashed != 300 {
		t.Errorf("%d files read, want each once", s.Hashed)
	}
}

func TestWantOfKnownAllocatesNothing(t *testing.T) {
	d := start(t, Options{})
	p := file(t, filepath.Join(t.TempDir(), "prog"), []byte("x"))
	age(t)
	want(t, d, p)
	if n := testing.AllocsPerRun(100, func() {
		if _, known := d.Want(p); !known {
			t.Error("not known")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkDigest is to be compared with BenchmarkSHA256Sum: the same file.
func BenchmarkDigest(b *testing.B) {
	p := file(b, filepath.Join(b.TempDir(), "prog"), make([]byte, 256<<20))
	d := start(b, Options{Cache: 1})
	b.SetBytes(p.File.Size)
	for i := 0; b.Loop(); i++ {
		d.Forget(Inode{p.File.Device, p.File.Inode})
		p.ID.Exec = uint32(i)
		if r := want(b, d, p); r.Executable.SHA256 == "" {
			b.Fatalf("%+v", r)
		}
	}
}

// BenchmarkSHA256Sum is the measure of BenchmarkDigest.
func BenchmarkSHA256Sum(b *testing.B) {
	p := file(b, filepath.Join(b.TempDir(), "prog"), make([]byte, 256<<20))
	b.SetBytes(p.File.Size)
	for b.Loop() {
		if err := exec.Command("sha256sum", p.Path).Run(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWrittenWhileItWaits: a job learns what file it reads when it opens it, but what is told of that file before, since it was wanted, counts.
// Two writes within a tick of the clock leave the same times, so the notice alone tells; here it comes without a write.
func TestWrittenWhileItWaits(t *testing.T) {
	t.Parallel()
	for _, held := range []bool{true, false} {
		for _, c := range []struct {
			name          string
			before, after func(*Digester, Inode)
			kept          bool
		}{
			{name: "nothing", kept: true},
			{name: "before it was wanted", before: (*Digester).Forget, kept: true},
			{name: "while it waits", after: (*Digester).Forget},
			{name: "twice", before: (*Digester).Forget, after: (*Digester).Forget},
			{name: "another file", after: func(d *Digester, i Inode) { d.Forget(Inode{i.Device, i.Number + 1}) }, kept: true},
			{name: "any file", after: func(d *Digester, _ Inode) { d.ForgetAll() }},
			{name: "more files than are remembered", after: func(d *Digester, i Inode) {
				d.Forget(i)
				for n := range uint64(forgottenMax) {
					d.Forget(Inode{i.Device + 1, n})
				}
			}},
		} {
			t.Run(fmt.Sprintf("%s, held %v", c.name, held), func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "prog")
				p := file(t, path, []byte("x"))
				age(t)
				inode := Inode{p.File.Device, p.File.Inode}
				given := None()
				if held {
					fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
					if err != nil {
						t.Fatal(err)
					}
					given = Descriptor{FD: fd, Vouched: true, Since: time.Now()}
				}
				d := New(Options{}) // nobody works yet
				if c.before != nil {
					c.before(d, inode)
				}
				if exe, known := d.WantFile(p, given); known {
					t.Fatalf("known too early: %+v", exe)
				}
				if c.after != nil {
					c.after(d, inode)
				}
				ctx, cancel := context.WithCancel(context.Background())
				var wg sync.WaitGroup
				wg.Go(func() { _ = d.Run(ctx) })
				defer wg.Wait()
				defer cancel()
				r := receive(t, d)
				sum := r.Unconfirmed
				if c.kept {
					sum = r.Executable.SHA256
				} else if r.Executable.SHA256 != "" || r.Executable.Reason != ReasonTouched {
					t.Errorf("written to since it was wanted, and believed: %+v", r)
				}
				if sum != sumOf(t, path) || r.Vouched != held || !r.Since.Equal(given.Since) || r.Source != inode {
					t.Errorf("result %+v", r)
				}
				if known := d.Known(inode, p.File.Ctime, p.File.Size); known != c.kept {
					t.Errorf("the file is known: %v, want %v", known, c.kept)
				}
				other := p
				other.ID.PID = 77
				if exe, known := d.Want(other); known != c.kept {
					t.Errorf("another process with the same file: %+v, %v, want %v", exe, known, c.kept)
				}
				if !c.kept { // wanted after the write, it is read anew and kept
					if r := receive(t, d); r.Executable.SHA256 != sum || !d.Known(inode, p.File.Ctime, p.File.Size) {
						t.Errorf("wanted again: %+v", r)
					}
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if len(d.forgotten) != 0 {
					t.Errorf("%d written files are remembered for no job", len(d.forgotten))
				}
			})
		}
	}
}
