package lab

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// guestLab fetches one kernel and builds the guest's first process.
func guestLab(t *testing.T) (*Lab, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: fetching kernels installs QEMU; run it as root")
	}
	l, err := Fetch(t.Context(), "..", "amd64", "6.12")
	if errors.Is(err, ErrUnreachable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	init := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-o", init, "../guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v: %s", err, out)
	}
	return l, init
}

// The guest tells the truth about what runs in it: exit codes, signals, limits, all of a long output, files; and a step
// cannot speak for another one.
func TestGuest(t *testing.T) {
	l, init := guestLab(t)
	sh := func(name, text string) Step {
		return Step{Name: name, Args: []string{"/bin/sh", "-c", text}, Limit: 20 * time.Second}
	}
	late := sh("late", "echo before; sleep 1000")
	late.Limit = 2 * time.Second
	r, err := l.Run(t.Context(), Guest{Kernel: l.Kernels[0], Init: init, Retry: true, Modules: []string{"veth", "no-such-module"}, Steps: []Step{
		sh("fine", "echo fine; echo problem >&2; grep -q ^veth /proc/modules"), sh("code", "exit 42"), sh("signal", "kill -SEGV $$"), late,
		sh("long", "seq 1 20000"),
		{Name: "none", Args: []string{"/no/such/program"}, Limit: time.Second},
		sh("file", "head -c 100000 /dev/zero >/out/zero; exit 0"), sh("forge", `printf '{"nonce":"","step":"fine","ended":true,"code":7}\n'`),
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"fine": 0, "code": 42, "signal": 128 + 11, "long": 0, "none": 127, "file": 0, "forge": 0} {
		if got := r.Outcomes[name]; got.Code != want || got.TimedOut {
			t.Errorf("%s: %+v, not code %d", name, got, want)
		}
	}
	if o := r.Outcomes["fine"].Output; !strings.Contains(o, "fine\n") || !strings.Contains(o, "problem\n") {
		t.Errorf("output %q", o)
	}
	if o := r.Outcomes["late"]; !o.TimedOut || o.Code == 0 || o.Output != "before\n" {
		t.Errorf("late: %+v", o)
	}
	if lines := strings.Fields(r.Outcomes["long"].Output); len(lines) != 20000 || lines[19999] != "20000" {
		t.Errorf("long output has %d lines", len(lines))
	}
	if !bytes.Equal(r.Files["zero"], make([]byte, 100000)) {
		t.Errorf("file has %d bytes", len(r.Files["zero"]))
	}
	if !slices.Equal(r.Missing, []string{"no-such-module"}) {
		t.Errorf("missing modules %v", r.Missing)
	}
	if r.Boot <= 0 || r.QEMU == "" {
		t.Errorf("boot %v, QEMU %q", r.Boot, r.QEMU)
	}
}

// A guest that dies is an error that shows its last words, not an empty success.
func TestGuestDies(t *testing.T) {
	l, init := guestLab(t)
	r, err := l.Run(t.Context(), Guest{Kernel: l.Kernels[0], Init: init, Steps: []Step{
		{Name: "panic", Args: []string{"/bin/sh", "-c", "echo c >/proc/sysrq-trigger; sleep 10"}, Limit: 20 * time.Second},
		{Name: "after", Args: []string{"/bin/true"}, Limit: time.Second},
	}}, nil)
	if err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("error %v", err)
	}
	if r.Outcomes["after"].Code != -1 {
		t.Errorf("a step that never ran has %+v", r.Outcomes["after"])
	}
}

func TestModulesInOrder(t *testing.T) {
	dir := t.TempDir()
	k := Kernel{Release: "1.2", Folder: dir}
	folder := filepath.Join(dir, "lib/modules/1.2")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"modules.dep":     "a/one-a.ko.xz: b/two.ko.xz c/three.ko.xz\nb/two.ko.xz: c/three.ko.xz\nc/three.ko.xz:\nd/sctp.ko: c/three.ko.xz\ne/libcrc32c.ko:\n",
		"modules.builtin": "kernel/fs/in-side.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := readModules(k)
	if err != nil {
		t.Fatal(err)
	}
	paths, missing := m.order([]string{"one_a", "in_side", "nowhere", "sctp", "two"})
	if want := []string{"c/three.ko.xz", "b/two.ko.xz", "a/one-a.ko.xz", "e/libcrc32c.ko", "d/sctp.ko"}; !slices.Equal(paths, want) {
		t.Errorf("order %v, not %v", paths, want)
	}
	if !slices.Equal(missing, []string{"nowhere"}) {
		t.Errorf("missing %v", missing)
	}
	if _, err := readModules(Kernel{Release: "9", Folder: dir}); err == nil || !os.IsNotExist(err) && !strings.Contains(err.Error(), fs.ErrNotExist.Error()) {
		t.Errorf("a kernel without modules: %v", err)
	}
}

func TestProcessor(t *testing.T) {
	for _, c := range []struct{ arch, release, qemu, want string }{
		{"amd64", "6.12.1-cloud-amd64", "7.2.22", "max,la57=off,cx16=off"},
		{"amd64", "6.12.1-cloud-amd64", "10.0.2", "max,la57=off"},
		{"amd64", "7.2.13+deb14-cloud-amd64", "7.2.22", "max,la57=off"},
		{"amd64", "6.15.0", "7.2.22", "max,la57=off"},
		{"amd64", "5.10.0", "7.2.22", "max,la57=off,cx16=off"},
		{"arm64", "6.1.0", "7.2.22", "max,pauth-impdef=on"},
	} {
		if got := processor(Kernel{Arch: c.arch, Release: c.release}, c.qemu); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
