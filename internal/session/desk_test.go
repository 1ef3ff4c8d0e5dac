package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/test/desktop"
)

// asker is the recorder's end of a session process that runs in this test.
type asker struct {
	*errand.Conn
	t *testing.T

	mu    sync.Mutex
	done  map[uint64]string // reasons, by number; guarded by mu
	sums  map[uint64]string
	press []errand.Invoked
	state errand.State
}

func run(t *testing.T, o Options) *asker {
	t.Helper()
	ours, theirs, err := errand.Pair()
	if err != nil {
		t.Fatal(err)
	}
	a := &asker{t: t, done: map[uint64]string{}, sums: map[uint64]string{}}
	if a.Conn, err = errand.NewConn(ours); err != nil {
		t.Fatal(err)
	}
	conn, err := errand.NewConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := Run(ctx, conn, o); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	work.Go(a.listen)
	t.Cleanup(func() { cancel(); conn.Close(); a.Close(); work.Wait() })
	return a
}

func (a *asker) listen() {
	for {
		m, f, err := a.Receive()
		if err != nil {
			return
		}
		if f != nil {
			f.Close()
		}
		a.mu.Lock()
		switch {
		case m.Done != nil:
			a.done[m.Done.N], a.sums[m.Done.N] = m.Done.Reason, m.Done.SHA256
		case m.Invoked != nil:
			a.press = append(a.press, *m.Invoked)
		case m.State != nil:
			a.state = *m.State
		}
		a.mu.Unlock()
	}
}

func (a *asker) ask(m errand.Message) {
	a.t.Helper()
	if err := a.Send(m, nil, 5*time.Second); err != nil {
		a.t.Fatal(err)
	}
}

func (a *asker) show(n uint64, title, body string) {
	a.t.Helper()
	a.ask(errand.Message{Show: &errand.Show{N: n, Title: title, Body: body, Urgency: errand.Normal, Actions: []errand.Action{{Key: "mute", Label: "Mute"}}}})
}

func (a *asker) isDone(n uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.done[n]
	return ok
}

func (a *asker) await(n uint64) string {
	a.t.Helper()
	desktop.Until(a.t, fmt.Sprintf("the end of errand %d", n), func() bool { return a.isDone(n) })
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.done[n]
}

func (a *asker) problem() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.Problem
}

const hostile = `<b>bold</b> & <a href="file:///etc/passwd">x</a> <img src="/etc/passwd"/> %s 'q' "r" \u{202e} ` + "\u00e9"

// TestNoticeOnARealServer: every text arrives as it is, markup is not interpreted, and a button comes back.
func TestNoticeOnARealServer(t *testing.T) {
	bus := desktop.StartBus(t, t.TempDir(), nil)
	screen := desktop.StartScreen(t)
	dunst := desktop.Dunst(t, bus, screen)
	a := run(t, Options{Bus: bus.Path})
	a.ask(errand.Message{Hello: &errand.Hello{Desktop: true}})
	a.show(11, "New program on the network: <i>", hostile)
	if why := a.await(11); why != "" {
		t.Fatal(why)
	}
	desktop.Until(t, "the server's name", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.state.Server == "dunst" })
	if n := dunst.Count(t); n != 1 {
		t.Fatalf("%d notices, want 1", n)
	}
	desktop.Until(t, "the button", func() bool {
		dunst.Press(t)
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.press) > 0
	})
	if got := a.press[0]; got.N != 11 || got.Key != "mute" {
		t.Errorf("button %+v", got)
	}
	all := dunst.History(t)
	if len(all) != 1 || !strings.Contains(all[0].Summary, "<i>") {
		t.Fatalf("%+v", all)
	}
	// dunst keeps the body as it was sent: escaped, so that Pango shows every character.
	want := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;").Replace(hostile)
	if all[0].Body != want {
		t.Errorf("body %q, want %q", all[0].Body, want)
	}
}

// TestServerComesAndGoes: nothing is shown twice and nothing is lost, whatever happens to the server and the bus.
func TestServerComesAndGoes(t *testing.T) {
	dir := t.TempDir()
	a := run(t, Options{Bus: dir + "/bus"})
	a.ask(errand.Message{Hello: &errand.Hello{Desktop: true}})
	a.show(1, "before there is a bus", "")
	desktop.Until(t, "word of the missing bus", func() bool { return strings.Contains(a.problem(), "session bus") })

	bus := desktop.StartBus(t, dir, nil)
	desktop.Until(t, "word of the missing server", func() bool { return strings.Contains(a.problem(), "no notification server") })
	screen := desktop.StartScreen(t)
	dunst := desktop.Dunst(t, bus, screen)
	a.await(1)
	if n := dunst.Count(t); n != 1 {
		t.Errorf("%d notices, want the one from before", n)
	}

	// It hangs: the question stays with it, and is answered once.
	dunst.Hang()
	a.show(2, "while it hangs", "")
	desktop.Until(t, "word of the hung server", func() bool { return strings.Contains(a.problem(), "does not answer") })
	if a.isDone(2) {
		t.Error("done while the server hangs")
	}
	dunst.Wake()
	a.await(2)
	if n := dunst.Count(t); n != 2 {
		t.Errorf("%d notices after it woke up, want 2", n)
	}
	desktop.Until(t, "all is well", func() bool { return a.problem() == "" })

	// Killed while it hangs: the next server gets it.
	dunst.Hang()
	a.show(3, "for a server that dies", "")
	time.Sleep(300 * time.Millisecond)
	dunst.Kill()
	dunst = desktop.Dunst(t, bus, screen)
	a.await(3)
	if all := dunst.History(t); len(all) != 1 || all[0].Summary != "for a server that dies" {
		t.Errorf("the second server has %+v", all)
	}

	// The bus dies, and all on it.
	dunst.Kill()
	bus.Kill()
	a.show(4, "while there is no bus", "")
	desktop.Until(t, "word of the dead bus", func() bool { return a.problem() != "" })
	bus.Start(t)
	dunst = desktop.Dunst(t, bus, screen)
	a.await(4)
	if all := dunst.History(t); len(all) != 1 || all[0].Summary != "while there is no bus" {
		t.Errorf("the third server has %+v", all)
	}
}

// TestBusThatSaysNothing: a socket that accepts and never answers is given up and told.
func TestHungBus(t *testing.T) {
	bus := desktop.StartBus(t, t.TempDir(), nil)
	bus.Hang()
	defer bus.Wake()
	a := run(t, Options{Bus: bus.Path})
	a.ask(errand.Message{Hello: &errand.Hello{Desktop: true}})
	a.show(1, "x", "")
	desktop.Until(t, "word of the hung bus", func() bool { return a.problem() != "" })
	// Other errands go on.
	a.ask(errand.Message{Hash: &errand.File{N: 2, Path: "relative"}})
	if why := a.await(2); !strings.Contains(why, "gone") {
		t.Errorf("reason %q", why)
	}
}

// TestForgedButton: only the server that shows a notice speaks for the user.
func TestForgedButton(t *testing.T) {
	bus := desktop.StartBus(t, t.TempDir(), nil)
	dunst := desktop.Dunst(t, bus, desktop.StartScreen(t))
	a := run(t, Options{Bus: bus.Path})
	a.ask(errand.Message{Hello: &errand.Hello{Desktop: true}})
	a.show(7, "New program", "x")
	a.await(7)
	rogue, err := dbus.Connect(bus.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer rogue.Close()
	for id := range uint32(20) {
		if err := rogue.Emit(serverPath, serverName+".ActionInvoked", id, "mute"); err != nil {
			t.Fatal(err)
		}
		if err := rogue.Emit(serverPath, serverName+".ActionInvoked", "no number"); err != nil {
			t.Fatal(err)
		}
		if err := rogue.Emit("/org/freedesktop/DBus", "org.freedesktop.DBus.NameOwnerChanged", serverName, ":1.1", rogue.Names()[0]); err != nil {
			t.Fatal(err)
		}
	}
	a.show(8, "another", "y") // behind them on the bus
	a.await(8)
	a.mu.Lock()
	forged := len(a.press)
	a.mu.Unlock()
	if forged != 0 {
		t.Errorf("%d forged buttons were believed", forged)
	}
	desktop.Until(t, "the real button", func() bool {
		dunst.Press(t)
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.press) > 0
	})
}

func TestTexts(t *testing.T) {
	n := &errand.Show{Title: "T <b>", Body: "one & <i>\ntwo"}
	for _, c := range []struct {
		can         []string
		title, body string
	}{
		{[]string{"body", "body-markup"}, "T <b>", "one &amp; &lt;i&gt;\ntwo"},
		{[]string{"body"}, "T <b>", "one & <i>\ntwo"},
		{nil, "T <b>: one & <i>", ""},
	} {
		if title, body := texts(n, c.can); title != c.title || body != c.body {
			t.Errorf("%v: %q, %q", c.can, title, body)
		}
	}
}

// TestHash: the file that was meant, or a reason.
func TestHash(t *testing.T) {
	a := run(t, Options{Bus: t.TempDir() + "/bus"})
	path := filepath.Join(t.TempDir(), "prog\xff")
	if err := os.WriteFile(path, []byte("content"), 0o755); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	good := errand.File{N: 1, Path: event.Text([]byte(path)), Inode: st.Ino, Size: 7}
	for n, c := range map[uint64]struct {
		change func(*errand.File)
		reason string
	}{
		1: {func(*errand.File) {}, ""},
		2: {func(f *errand.File) { f.Size++ }, "replaced"},
		3: {func(f *errand.File) { f.Inode++ }, "replaced"},
		4: {func(f *errand.File) { f.Path = fifo; f.Inode = 0 }, "not a regular file"},
		5: {func(f *errand.File) { f.Path = "/nowhere/x" }, "no such file"},
		6: {func(f *errand.File) { f.Path = `/x\q` }, "not known"},
		7: {func(f *errand.File) { f.PID, f.Start = uint32(os.Getpid()), 1 }, ""}, // another process had that number: by its path
		8: {func(f *errand.File) { f.Path = "/dev/zero"; f.Inode = 0 }, "not a regular file"},
	} {
		f := good
		f.N = n
		c.change(&f)
		a.ask(errand.Message{Hash: &f})
		why := a.await(n)
		a.mu.Lock()
		sum := a.sums[n]
		a.mu.Unlock()
		if c.reason == "" && (why != "" || sum != "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73") || c.reason != "" && (sum != "" || !strings.Contains(why, c.reason)) {
			t.Errorf("%d: hash %q, reason %q", n, sum, why)
		}
	}
}
