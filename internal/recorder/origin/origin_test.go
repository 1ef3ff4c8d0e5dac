package origin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picosnitch/picosnitch/internal/event"
)

// later is a clock that makes the databases look as if nobody worked on them.
func later() time.Time { return time.Now().Add(time.Hour) }

func hashed(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// host is a machine below a folder, with the dpkg of this one.
type host struct {
	t    *testing.T
	root string
}

func newHost(t *testing.T) *host {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: dpkg installs below a folder of the test's")
	}
	h := &host{t, t.TempDir()}
	for _, d := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(h.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(h.root, "bin")); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) run(name string, args ...string) {
	h.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "DPKG_MAINTSCRIPT_PACKAGE=")
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// deb builds a package; files are content by path, conffiles paths of them.
func (h *host) deb(pkg, version string, files map[string]string, conffiles ...string) string {
	h.t.Helper()
	dir := filepath.Join(h.t.TempDir(), pkg)
	for path, content := range files {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	control := filepath.Join(dir, "DEBIAN")
	if err := os.MkdirAll(control, 0o755); err != nil {
		h.t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(control, name), []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	write("control", fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Test <test@example.com>\nDescription: a test\n", pkg, version))
	if len(conffiles) > 0 {
		write("conffiles", strings.Join(conffiles, "\n")+"\n")
	}
	out := filepath.Join(h.t.TempDir(), pkg+"_"+version+".deb")
	h.run("dpkg-deb", "--root-owner-group", "-b", dir, out)
	return out
}

func (h *host) dpkg(args ...string) {
	h.t.Helper()
	h.run("dpkg", append([]string{"--root=" + h.root, "--force-not-root", "--force-script-chrootless", "--log=" + os.DevNull}, args...)...)
}

func (h *host) find(path, sum string) Verdict {
	h.t.Helper()
	f := New(Options{Root: h.root, Clock: later})
	if sum == "" {
		sum = hashed(h.t, h.root+path)
	}
	return f.Find(h.t.Context(), []Query{{event.Text([]byte(path)), sum}})[0]
}

func (h *host) want(path, sum string, want State, pkg string) {
	h.t.Helper()
	if v := h.find(path, sum); v.State != want || v.Package != pkg || v.Unsettled {
		h.t.Errorf("%s: %d %q (%s), want %d %q", path, v.State, v.Package, v.String(), want, pkg)
	}
}

// TestDpkg goes through the life of a package with the real dpkg.
func TestDpkg(t *testing.T) {
	h := newHost(t)
	const tool, odd = "/usr/bin/tool", "/opt/odd \\ name\xff/*[x]"
	files := func(v string) map[string]string {
		return map[string]string{tool: "#!/bin/sh\n# " + v + "\n", odd: v, "/bin/old-place": v, "/etc/init.d/conf": v}
	}
	h.dpkg("-i", h.deb("tool", "1.0", files("1"), "/etc/init.d/conf"))
	first := hashed(t, h.root+tool)
	h.want(tool, "", Shipped, "tool")
	h.want(odd, "", Shipped, "tool")
	h.want("/usr/bin/old-place", "", Shipped, "tool") // the package lists /bin/old-place
	h.want("/etc/init.d/conf", "", Conffile, "tool")
	h.want("/usr/bin/too", strings.Repeat("0", 64), Unowned, "")
	h.want("/usr/bin", strings.Repeat("0", 64), Unknown, "tool") // a folder
	h.want(tool, strings.Repeat("0", 64), Elsewhere, "tool")
	if v := h.find(tool, ""); v.Version != "1.0" || v.String() != "from package tool 1.0, unchanged" {
		t.Errorf("%q", v.String())
	}

	// An upgrade.
	h.dpkg("-i", h.deb("tool", "1.1", files("2"), "/etc/init.d/conf"))
	h.want(tool, "", Shipped, "tool")
	h.want(tool, first, Elsewhere, "tool")
	if v := h.find(tool, ""); v.Version != "1.1" {
		t.Errorf("%+v", v)
	}

	// Somebody writes to it.
	if err := os.WriteFile(h.root+tool, []byte("evil"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.want(tool, "", Differs, "tool")
	if v := h.find(tool, ""); v.String() != "differs from package tool 1.1" {
		t.Errorf("%q", v.String())
	}

	// Another package diverts it and puts its own there; ours is installed again.
	h.run("dpkg-divert", "--root", h.root, "--package", "wrapper", "--rename", "--divert", tool+".real", "--add", tool)
	h.dpkg("-i", h.deb("wrapper", "3", map[string]string{tool: "wrapper"}))
	h.dpkg("-i", h.deb("tool", "1.2", files("3"), "/etc/init.d/conf"))
	h.want(tool, "", Shipped, "wrapper")
	h.want(tool+".real", "", Shipped, "tool")
	if err := os.WriteFile(h.root+tool+".real", []byte("evil"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.want(tool+".real", "", Differs, "tool")
	if err := os.WriteFile(h.root+tool, []byte("#!/bin/sh\n# 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.want(tool, "", Differs, "wrapper") // the bytes of the other one do not count

	// The administrator diverts a file of a package away, and puts something there.
	h.run("dpkg-divert", "--root", h.root, "--local", "--rename", "--divert", "/usr/bin/old-place.dist", "--add", "/bin/old-place")
	if _, err := os.Stat(h.root + "/usr/bin/old-place.dist"); err != nil {
		t.Fatal(err)
	}
	h.want("/usr/bin/old-place.dist", "", Shipped, "tool")
	if err := os.WriteFile(h.root+"/usr/bin/old-place", []byte("local"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.want("/usr/bin/old-place", "", Unowned, "")

	// Removed.
	h.dpkg("-r", "tool")
	if err := os.WriteFile(h.root+odd, []byte("3"), 0o755); !errors.Is(err, os.ErrNotExist) && err != nil {
		t.Fatal(err)
	}
	h.want("/opt/gone", strings.Repeat("0", 64), Unowned, "")
	h.want(tool+".real", hashedOr(h.root+tool+".real"), Unowned, "")
	h.want("/etc/init.d/conf", "", Conffile, "tool")
}

func hashedOr(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return strings.Repeat("0", 64)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// TestUnsettled: while dpkg works, its checksums may be those of the file before.
func TestUnsettled(t *testing.T) {
	h := newHost(t)
	h.dpkg("-i", h.deb("tool", "1", map[string]string{"/usr/bin/tool": "1"}))
	ask := func(clock func() time.Time) Verdict {
		f := New(Options{Root: h.root, Clock: clock})
		return f.Find(t.Context(), []Query{{"/usr/bin/tool", hashed(t, h.root+"/usr/bin/tool")}})[0]
	}
	if v := ask(time.Now); v.State != Shipped || v.Unsettled {
		t.Errorf("as shipped, just installed: %+v", v)
	}
	if err := os.WriteFile(h.root+"/usr/bin/tool", []byte("2"), 0o755); err != nil {
		t.Fatal(err)
	}
	if v := ask(time.Now); v.State != Differs || !v.Unsettled {
		t.Errorf("another one, dpkg was at work a moment ago: %+v", v)
	}
	if v := ask(later); v.State != Differs || v.Unsettled {
		t.Errorf("another one, and dpkg was idle: %+v", v)
	}
	if err := os.WriteFile(h.root+"/var/lib/dpkg/updates/0000", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if v := ask(later); !v.Unsettled {
		t.Errorf("dpkg has changes that are not in its status: %+v", v)
	}
}

// TestCache: an answer is kept only while the database is the same, and never for other bytes.
func TestCache(t *testing.T) {
	h := newHost(t)
	h.dpkg("-i", h.deb("tool", "1", map[string]string{"/usr/bin/tool": "1"}))
	f := New(Options{Root: h.root, Clock: later})
	ask := func() Verdict {
		return f.Find(t.Context(), []Query{{"/usr/bin/tool", hashed(t, h.root+"/usr/bin/tool")}})[0]
	}
	if v := ask(); v.State != Shipped || len(f.cache) != 1 {
		t.Fatalf("%+v", v)
	}
	if v := ask(); v.State != Shipped {
		t.Errorf("%+v", v)
	}
	os.WriteFile(h.root+"/usr/bin/tool", []byte("2"), 0o755)
	if v := ask(); v.State != Differs {
		t.Errorf("other bytes: %+v", v)
	}
	h.dpkg("-i", h.deb("tool", "2", map[string]string{"/usr/bin/tool": "2"}))
	if v := ask(); v.State != Shipped || v.Version != "2" {
		t.Errorf("after an upgrade: %+v", v)
	}
}

// TestThisMachine: every answer about real packages is the one of dpkg's own tools.
func TestThisMachine(t *testing.T) {
	if _, err := os.Stat("/var/lib/dpkg/status"); err != nil {
		t.Skip("needs dpkg")
	}
	f := New(Options{Clock: later})
	var queries []Query
	dirs, err := filepath.Glob("/usr/bin/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range dirs {
		if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o004 != 0 && st.Size() < 1<<20 && len(queries) < 200 {
			queries = append(queries, Query{path, hashed(t, path)})
		}
	}
	start := time.Now()
	answers := f.Find(t.Context(), queries)
	t.Logf("%d files in %v", len(queries), time.Since(start))
	start = time.Now()
	New(Options{Clock: later}).Find(t.Context(), []Query{{"/usr/bin/no-such-program", strings.Repeat("0", 64)}})
	t.Logf("one file in %v", time.Since(start))
	args := []string{"-S", "--"}
	for _, q := range queries {
		args = append(args, q.Path, strings.TrimPrefix(q.Path, "/usr"))
	}
	out, _ := exec.Command("dpkg-query", args...).Output() // it fails when one of them has no owner
	owner := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if pkg, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok && !strings.HasPrefix(pkg, "diversion by ") {
			owner["/usr"+strings.TrimPrefix(path, "/usr")] = pkg
		}
	}
	count := map[State]int{}
	for i, q := range queries {
		count[answers[i].State]++
		pkg := strings.Split(answers[i].Package, ":")[0]
		if want := owner[q.Path]; (want == "") != (pkg == "") || !strings.Contains(want, pkg) {
			t.Errorf("%s: %+v, dpkg-query says %q", q.Path, answers[i], want)
		}
	}
	t.Logf("%v", count)
	if count[Shipped] < 20 {
		t.Errorf("only %d of %d files are as shipped", count[Shipped], len(queries))
	}
}

func TestRPM(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{"/var/lib/rpm/rpmdb.sqlite": "", "/usr/bin/tool": "evil"} {
		if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const out = "P\ttool\t1.0-1\t8\n" +
		"F\taabb\t\t/usr/bin/tool\nF\tccdd\tcn\t/etc/tool.conf\nF\t\t\t/usr/share/tool\n"
	tool := func(_ context.Context, path string, args ...string) ([]byte, int, error) {
		if path != rpmTool || args[len(args)-2] != "--" {
			t.Errorf("asked %s %q", path, args)
		}
		if strings.Contains(args[len(args)-1], "tool") {
			return []byte(out), 0, nil
		}
		if strings.Contains(args[len(args)-1], "broken") {
			return nil, 0, errors.New("it was killed")
		}
		return []byte("file is not owned by any package\n"), 1, nil
	}
	f := New(Options{Root: root, Tool: tool, Clock: later})
	for _, tc := range []struct {
		path, sum string
		want      State
	}{
		{"/usr/bin/tool", "aabb", Shipped},
		{"/usr/bin/tool", hashed(t, root+"/usr/bin/tool"), Differs},
		{"/usr/bin/tool", "aabc", Elsewhere},
		{"/etc/tool.conf", "1", Conffile},
		{"/usr/share/tool", "1", Unknown},
		{"/usr/bin/other", "1", Unowned},
		{"/usr/bin/broken", "1", Unknown},
	} {
		if v := f.Find(t.Context(), []Query{{tc.path, tc.sum}})[0]; v.State != tc.want {
			t.Errorf("%s: %+v", tc.path, v)
		}
	}
}

func TestNoDatabase(t *testing.T) {
	f := New(Options{Root: t.TempDir()})
	if v := f.Find(t.Context(), []Query{{"/usr/bin/x", "1"}})[0]; v.State != Unknown || v.Reason == "" {
		t.Errorf("%+v", v)
	}
}

func TestRaw(t *testing.T) {
	for _, s := range []string{"/usr/bin/x", "/a\\b", "/\xff\xfe", "/\u202e", "/a\nb", `/\x41`, "/日本"} {
		if got, ok := raw(event.Text([]byte(s))); !ok || got != s {
			t.Errorf("%q: %q %v", s, got, ok)
		}
	}
	for _, s := range []string{`\`, `\x`, `\xg0`, `\u{`, `\u{}`, `\u{110000}`, `\q`} {
		if got, ok := raw(s); ok {
			t.Errorf("%q is taken for %q", s, got)
		}
	}
}

// FuzzParagraph: hostile databases are no reason to end.
func FuzzDatabase(f *testing.F) {
	f.Add([]byte("Package: x\nVersion: 1\nConffiles:\n /etc/x 00\n\nPackage: y\n"), []byte("a\nb\nc\nd"), []byte("00112233445566778899aabbccddeeff  usr/bin/x\n"), "P\tx\t1\t8\nF\t00\t\t/usr/bin/x\n")
	f.Fuzz(func(t *testing.T, status, diversions, sums []byte, rpm string) {
		root := t.TempDir()
		d := &dpkg{root: root, clock: time.Now}
		os.MkdirAll(d.dir()+"/info", 0o755)
		for name, data := range map[string][]byte{"status": status, "diversions": diversions, "info/x.md5sums": sums, "info/x.list": []byte("/.\n/usr/bin/x\n")} {
			os.WriteFile(filepath.Join(d.dir(), name), data, 0o644)
		}
		d.find(t.Context(), []string{"/usr/bin/x"})
		parseRPM(rpm, "/usr/bin/x")
		octal(rpm)
	})
}
