package origin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rooted runs a tool of the system's on the machine below root.
func rooted(t *testing.T, args ...string) Tool {
	return func(ctx context.Context, path string, more ...string) ([]byte, int, error) {
		cmd := exec.CommandContext(ctx, path, append(append([]string(nil), args...), more...)...)
		cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
		out, err := cmd.Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return out, exit.ExitCode(), nil
		}
		return out, 0, err
	}
}

// other is a machine below a folder of the test's with another package manager than this one's.
func other(t *testing.T, tool string) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the package manager installs below a folder of the test's")
	}
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing (apt-get install rpm pacman-package-manager libarchive-tools)", tool)
	}
	return &host{t, t.TempDir()}
}

// lives goes through the life of a package with two versions.
func (h *host) lives(tool Tool, install func(version string)) {
	h.t.Helper()
	const path, odd = "/usr/bin/tool", "/opt/odd name/ä"
	ask := func(path string) Verdict {
		h.t.Helper()
		f := New(Options{Root: h.root, Tool: tool, Clock: later})
		return f.Find(h.t.Context(), []Query{{path, hashed(h.t, h.root+path)}})[0]
	}
	for _, version := range []string{"1.0-1", "1.1-1"} {
		install(version)
		for _, p := range []string{path, odd} {
			if v := ask(p); v.State != Shipped || v.Package != "tool" || v.Version != version {
				h.t.Errorf("%s %s: %+v", version, p, v)
			}
		}
	}
	if err := os.WriteFile(h.root+path, []byte("evil"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if v := ask(path); v.State != Differs || v.Package != "tool" {
		h.t.Errorf("tampered: %+v", v)
	}
	f := New(Options{Root: h.root, Tool: tool, Clock: later})
	if v := f.Find(h.t.Context(), []Query{{path, strings.Repeat("0", 64)}})[0]; v.State != Elsewhere {
		h.t.Errorf("of a container: %+v", v)
	}
	if err := os.WriteFile(h.root+"/usr/bin/own", []byte("own"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if v := ask("/usr/bin/own"); v.State != Unowned {
		h.t.Errorf("of no package: %+v", v)
	}
}

func TestRealRPM(t *testing.T) {
	h := other(t, "rpmbuild")
	build := t.TempDir()
	db := []string{"--root", h.root, "--dbpath", "/var/lib/rpm"}
	h.lives(rooted(t, db...), func(version string) {
		v, release, _ := strings.Cut(version, "-")
		spec := fmt.Sprintf(`Name: tool
Version: %s
Release: %s
Summary: a test
License: none
BuildArch: noarch
%%description
a test
%%install
mkdir -p %%{buildroot}/usr/bin "%%{buildroot}/opt/odd name"
echo %s > %%{buildroot}/usr/bin/tool
echo %[3]s > "%%{buildroot}/opt/odd name/ä"
%%files
/usr/bin/tool
"/opt/odd name/ä"
`, v, release, version)
		file := filepath.Join(build, "tool.spec")
		if err := os.WriteFile(file, []byte(spec), 0o644); err != nil {
			t.Fatal(err)
		}
		h.run("rpmbuild", "-bb", "--quiet", "--define", "_topdir "+build, "--define", "_build_id_links none", file)
		h.run("rpm", append(append([]string(nil), db...), "-U", filepath.Join(build, "RPMS/noarch/tool-"+version+".noarch.rpm"))...)
	})
}

func TestRealPacman(t *testing.T) {
	h := other(t, "pacman")
	conf := filepath.Join(h.root, "pacman.conf")
	if err := os.WriteFile(conf, []byte("[options]\nSigLevel = Never\nArchitecture = auto\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.root+"/var/lib/pacman", 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"--root", h.root, "--dbpath", h.root + "/var/lib/pacman", "--config", conf, "--noconfirm"}
	// With --root, pacman wants and tells paths of this machine.
	tool := func(ctx context.Context, path string, more ...string) ([]byte, int, error) {
		more = append([]string(nil), more...)
		more[len(more)-1] = h.root + more[len(more)-1]
		return rooted(t, args...)(ctx, path, more...)
	}
	h.lives(tool, func(version string) {
		dir := t.TempDir()
		for path, content := range map[string]string{
			".PKGINFO":       "pkgname = tool\npkgver = " + version + "\npkgdesc = a test\nurl = none\nbuilddate = 1\npackager = test\nsize = 1\narch = any\n",
			"usr/bin/tool":   version,
			"opt/odd name/ä": version,
		} {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		pkg := filepath.Join(h.root, "tool-"+version+"-any.pkg.tar.gz")
		// As makepkg does it.
		h.run("sh", "-ec", `cd "$1"
			LANG=C.UTF-8 bsdtar -czf .MTREE --format=mtree --options='!all,use-set,type,uid,gid,mode,time,size,md5,sha256,link' .PKGINFO usr opt
			LANG=C.UTF-8 bsdtar -czf "$2" .MTREE .PKGINFO usr opt`, "sh", dir, pkg)
		h.run("pacman", append(append([]string(nil), args...), "-U", pkg)...)
	})
}
