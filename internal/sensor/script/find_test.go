package script

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

func TestFind(t *testing.T) {
	t.Parallel()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(root+"/"+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		if err := os.Symlink(to, root+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	put("srv/a.py", "a")
	put("srv/app.js", "js")
	put("srv/b\n\xff.sh", "odd")
	put("etc/only-inside", "inside")
	link("a.py", "srv/link.py")
	link("/etc/passwd", "srv/out") // there is none below this root
	link("/etc/only-inside", "srv/in")
	link("../../../../../etc/only-inside", "srv/up")
	link("loop", "srv/loop")
	if err := unix.Mkfifo(root+"/srv/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root+"/srv/a.py", &st); err != nil {
		t.Fatal(err)
	}
	later, long := time.Now().Add(time.Second).UnixNano(), strings.Repeat("x", 5000)
	for name, c := range map[string]struct {
		script, folder string
		started        int64
		suffixes       []string
		text, reason   string
	}{
		"absolute":                 {"/srv/a.py", "", later, nil, "a", ""},
		"relative":                 {"a.py", "/srv", later, nil, "a", ""},
		"with dots":                {"./../srv/./a.py", "/srv", later, nil, "a", ""},
		"link":                     {"link.py", "/srv", later, nil, "a", ""},
		"link that leads out":      {"out", "/srv", later, nil, "", ReasonGone},
		"link that leads in":       {"in", "/srv", later, nil, "inside", ""},
		"up and out":               {"up", "/srv", later, nil, "inside", ""},
		"name that leads out":      {"/../../../../../../etc/passwd", "", later, nil, "", ReasonGone},
		"link to itself":           {"loop", "/srv", later, nil, "", ReasonPrivate},
		"suffix":                   {"app", "/srv", later, []string{".mjs", ".js"}, "js", ""},
		"odd name":                 {`b\u{a}\xff.sh`, "/srv", later, nil, "odd", ""},
		"pipe":                     {"fifo", "/srv", later, nil, "", ReasonNoFile},
		"folder":                   {"/srv", "", later, nil, "", ReasonNoFile},
		"nothing":                  {"none", "/srv", later, nil, "", ReasonGone},
		"below a file":             {"/srv/a.py/x", "", later, nil, "", ReasonGone},
		"no folder":                {"a.py", "", later, nil, "", ReasonFolder},
		"proc":                     {"/proc/self/exe", "", later, nil, "", ReasonPrivate},
		"descriptor of the ended":  {"/dev/fd/3", "", later, nil, "", ReasonEnded},
		"not a name":               {`/srv/\q`, "", later, nil, "", ReasonName},
		"NUL":                      {`/srv/a.py\u{0}`, "", later, nil, "", ReasonName},
		"too long":                 {"/" + long, "", later, nil, "", ReasonName},
		"name of more than 255":    {"/" + long[:300], "", later, nil, "", ReasonErrno + ": file name too long"},
		"written after the start":  {"/srv/a.py", "", st.Ctim.Nano() - int64(time.Second), nil, "", ReasonChanged},
		"written at the start":     {"/srv/a.py", "", st.Ctim.Nano() + int64(10*time.Millisecond), nil, "", ReasonYoung},
		"written before the start": {"/srv/a.py", "", st.Ctim.Nano() + int64(2*young), nil, "a", ""},
		"started long ago":         {"/srv/a.py", "", 0, nil, "a", ""},
	} {
		got := Finder{Proc: "/nowhere", Root: root}.Find(Question{
			Started: c.started, Folder: c.folder, Machine: true, Meaning: Meaning{Kind: event.ScriptArgument, Name: c.script, Suffixes: c.suffixes},
		})
		if got.Reason != c.reason || (got.FD >= 0) != (c.reason == "") || got.ID.IsZero() != (c.reason != "") {
			t.Errorf("%s: %+v, want reason %q", name, got, c.reason)
		}
		if got.FD < 0 {
			continue
		}
		f := os.NewFile(uintptr(got.FD), name)
		text, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(text) != c.text {
			t.Errorf("%s: %q, %v; want %q", name, text, err, c.text)
		}
	}
	if got := (Finder{Proc: "/nowhere", Root: root}).Find(Question{Meaning: Meaning{Name: "/srv/a.py"}}); got.Reason != ReasonEnded {
		t.Errorf("a root that is not the machine's, of a process that ended: %+v", got)
	}
}

// TestFindExchangedLink: a link that was made to lead elsewhere leads to a file that is old enough, too.
func TestFindExchangedLink(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, d := range []string{"a/b", "srv"} {
		if err := os.MkdirAll(root+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"a/b/old", "a/other"} {
		if err := os.WriteFile(root+"/"+f, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := [][2]string{{"../a/b/hop", "srv/run"}, {"/srv/../a/b/./last", "a/b/hop"}, {"old", "a/b/last"}, {"srv", "dir"}}
	for _, l := range links {
		if err := os.Symlink(l[0], root+"/"+l[1]); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3 * young)
	started := time.Now().UnixNano()
	time.Sleep(3 * young)
	find := func(name string) string {
		f := Finder{Proc: "/nowhere", Root: root}.Find(Question{Started: started, Machine: true, Meaning: Meaning{Name: name}})
		if f.FD >= 0 {
			unix.Close(f.FD)
		}
		return f.Reason
	}
	for _, name := range []string{"/srv/run", "/dir/run", "/a/b/old"} {
		if why := find(name); why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
	for _, i := range []int{2, 1, 0} { // first the end of the chain; and back: it is another one
		l := links[i]
		for _, to := range []string{"/a/other", l[0]} {
			if err := os.Remove(root + "/" + l[1]); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(to, root+"/"+l[1]); err != nil {
				t.Fatal(err)
			}
			if why := find("/" + l[1]); why != ReasonChanged {
				t.Errorf("%s -> %s: %q, want %q", l[1], to, why, ReasonChanged)
			}
			if why := find("/srv/run"); why != ReasonChanged {
				t.Errorf("%s -> %s: /srv/run: %q, want %q", l[1], to, why, ReasonChanged)
			}
		}
	}
}

// TestFindThroughProcess: what a process sees that is not where we are; here it is this very process.
func TestFindThroughProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a.py", []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/proc/self", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	start, err := startTime(fd)
	if err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	q := Question{Process: event.ProcessID{PID: uint32(os.Getpid()), Start: start * tick}, Meaning: Meaning{Name: "a.py"}, Folder: dir}
	f := Finder{Proc: "/proc", Root: "/nowhere"}
	got := f.Find(q)
	if got.Reason != "" || got.Path != dir+"/a.py" {
		t.Errorf("%+v", got)
	}
	unix.Close(got.FD)
	q.Process.Start += tick // the number belongs to another one now
	if got := f.Find(q); got.Reason != ReasonEnded {
		t.Errorf("another process: %+v", got)
	}
}
