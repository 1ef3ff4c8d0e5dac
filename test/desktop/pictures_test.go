package desktop

import (
	"context"
	"flag"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/errand"
	"github.com/picosnitch/picosnitch/internal/recorder/desk"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
	"github.com/picosnitch/picosnitch/internal/session"
)

var pictures = flag.String("pictures", "", "leave pictures of the notices in this folder")

// happened is what happened, one of each kind. The test fails when a kind is missing.
func happened() []notify.Notice {
	sum, before := "6b3b6d2b3a1f0c55aa", "d0bb9bb5da3e8c41bb"
	return []notify.Notice{
		{Kind: notify.NewProgram, Name: "curl", Path: "/usr/bin/curl", SHA256: sum, Parent: "/usr/bin/bash", Remote: "deb.debian.org (151.101.2.132:443)", Origin: "from package curl 7.88.1-10, unchanged"},
		{Kind: notify.Executed, Name: "htop", Path: "/usr/bin/htop", SHA256: sum, Parent: "/usr/bin/bash", Origin: "from package htop 3.2.2-2, unchanged"},
		{Kind: notify.NewParent, Name: "make", Path: "/usr/bin/make", SHA256: sum, Origin: "from package make 4.3-4.1, unchanged"},
		{Kind: notify.NewScript, Name: "python3.11", Path: "/usr/bin/python3.11", Script: "/home/ann/bin/backup.py", SHA256: sum, Remote: "192.0.2.7:22"},
		{Kind: notify.Upgraded, Name: "firefox", Path: "/usr/lib/firefox/firefox", SHA256: sum, Before: before, Origin: "from package firefox-esr 128.3.1, unchanged"},
		{Kind: notify.Changed, Name: "sync <b>&", Path: "/home/ann/.local/bin/sync <b>&amp;\\u{202e}", SHA256: sum, Before: before, Origin: "of no package"},
		{Kind: notify.ChangedScript, Name: "bash", Path: "/usr/bin/bash", Script: "/home/ann/bin/deploy", SHA256: sum, Before: before},
		{Kind: notify.Tampered, Name: "sshd", Path: "/usr/sbin/sshd", SHA256: sum, Before: before, Origin: "differs from package openssh-server 9.2p1-2", Hint: "if you did not do it: install package openssh-server again, and find out who did"},
		{Kind: notify.Modified, Name: "agent", Path: "/opt/agent/agent", SHA256: sum, Detail: "written to by /usr/bin/dd"},
		{Kind: notify.DataLimit, Key: "80 % of 50 GB per month, all programs over wwan0", Detail: "all programs over wwan0: 40.1 GB of 50 GB per month used", Hint: "9.87 GB left until Thursday, 17 December 00:00"},
		{Kind: notify.Failure, Key: "x", Detail: "the session bus of uid 1001 does not answer", Hint: "see picosnitch status"},
		{Kind: notify.Loss, Key: "exec", Detail: "program starts that the kernel did not report because the ring buffer was full: 12", Hint: "raise \"Perf ring buffer (pages)\""},
		{Kind: notify.Suspicious, Name: "miner", Path: "/tmp/.x/miner", SHA256: sum, Detail: "41 of 70 scanners say malicious, 2 suspicious"},
	}
}

// chain is desk and session process on a bus: what a recorder has before a desktop.
func chain(t *testing.T, bus *Bus) *desk.Desk {
	t.Helper()
	doorOurs, doorTheirs := pair(t)
	ours, theirs := pair(t)
	d, err := desk.New(desk.Options{Desktop: true, Mutes: filepath.Join(t.TempDir(), desk.MutesName)})
	if err != nil {
		t.Fatal(err)
	}
	outer, err := errand.NewDoor(doorOurs)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := errand.NewDoor(doorTheirs)
	if err != nil {
		t.Fatal(err)
	}
	d.Listen(inner)
	conn, err := errand.NewConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); session.Run(ctx, conn, session.Options{Bus: bus.Path}) }()
	t.Cleanup(func() { cancel(); d.Close(); outer.Close(); <-done })
	if err := outer.Pass(1000, ours, time.Second); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	return d
}

// told is the notice that the Decider makes of a thing.
func told(t *testing.T, n notify.Notice) notify.Notice {
	t.Helper()
	decider := notify.New(notify.Options{})
	decider.Add(n, 1e18)
	due := decider.Due(1e18 + 1e9)
	if len(due) != 1 {
		t.Fatalf("%s: %d notices", n.Kind, len(due))
	}
	return due[0]
}

// TestEveryKindIsShown shows a notice of each kind on a real server, through Decider, desk and session process. With
// -pictures DIR it leaves a picture for the documentation.
func TestEveryKindIsShown(t *testing.T) {
	bus := StartBus(t, t.TempDir(), nil)
	screen := StartScreenOf(t, 460, 1900)
	dunst := Dunst(t, bus, screen)
	d := chain(t, bus)
	seen := map[notify.Kind]bool{}
	shown := 0
	for _, n := range happened() {
		seen[n.Kind] = true
		d.Desktop().Offer(told(t, n))
		shown++
		Until(t, string(n.Kind), func() bool { return dunst.Count(t) == shown })
	}
	for _, f := range notify.Kinds() {
		if !seen[f.Kind] {
			t.Errorf("kind %s is not shown", f.Kind)
		}
	}
	if *pictures != "" {
		time.Sleep(500 * time.Millisecond)
		screen.Shot(t, filepath.Join(*pictures, "notices.png"))
	}
	for _, n := range dunst.History(t) {
		if strings.Contains(n.Body, "<b>") {
			t.Errorf("markup of a stranger's: %q", n.Body)
		}
	}
}

// TestOtherServers: what dunst understands, others do too.
func TestOtherServers(t *testing.T) {
	for _, pattern := range []string{"/usr/lib/*/xfce4/notifyd/xfce4-notifyd", "/usr/lib/notification-daemon/notification-daemon"} {
		name, path := filepath.Base(pattern), pattern
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			path = found[0] // the directory is called after the architecture
		}
		t.Run(name, func(t *testing.T) {
			bus := StartBus(t, t.TempDir(), nil)
			screen := StartScreenOf(t, 640, 480)
			Serve(t, path, bus, screen)
			d := chain(t, bus)
			for _, n := range happened()[4:6] {
				d.Desktop().Offer(told(t, n))
			}
			Until(t, "its end", func() bool {
				s := d.Status()
				return len(s) == 1 && s[0].Waiting == 0 && s[0].Server != "" && s[0].Problem == ""
			})
			if n := d.Desktop().Dropped(); n != 0 {
				t.Errorf("%d were refused", n)
			}
			if *pictures != "" {
				time.Sleep(1500 * time.Millisecond)
				screen.Shot(t, filepath.Join(*pictures, name+".png"))
			}
		})
	}
}
