package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// archive writes the "newc" form of cpio(5), which the kernel unpacks as its first file system.
type archive struct {
	w    io.Writer
	made map[string]bool
	ino  int
}

// entry writes one file; mode has the type bits of stat(2).
func (a *archive) entry(name string, mode uint32, size int64, content io.Reader) error {
	if dir := path.Dir(name); dir != "." && !a.made[dir] {
		if err := a.entry(dir, 0o040755, 0, nil); err != nil {
			return err
		}
	}
	if a.made[name] || name == "." || name == "" {
		return nil
	}
	a.made[name] = true
	a.ino++
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
	if _, err := io.WriteString(a.w, h+pad(len(h))); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	n, err := io.Copy(a.w, content)
	if err == nil && n != size {
		err = fmt.Errorf("%s changed while it was packed", name)
	}
	if err == nil {
		_, err = io.WriteString(a.w, pad(int(n)))
	}
	return err
}

func pad(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

func (a *archive) text(name, content string) error {
	return a.entry(name, 0o100644, int64(len(content)), strings.NewReader(content))
}

// file packs a file or, with everything below it, a folder. A link is followed, those within a folder stay links.
func (a *archive) file(name, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		to := strings.TrimPrefix(path.Join(name, rel), "/")
		if p != from && d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return a.entry(to, 0o120777, int64(len(target)), strings.NewReader(target))
		}
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		if info.IsDir() {
			return a.entry(to, 0o040755, 0, nil)
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		return a.entry(to, 0o100000|uint32(info.Mode().Perm()), info.Size(), f)
	})
}

func (a *archive) end() error {
	a.made = map[string]bool{}
	return a.entry("TRAILER!!!", 0, 0, nil)
}

// modules is what depmod(8) knows of one kernel.
type modules struct {
	folder  string
	needs   map[string][]string // path → paths, last needed first
	paths   map[string]string   // name → path
	builtin map[string]bool
}

// moduleName is the name by which modprobe knows the file.
func moduleName(p string) string {
	name, _, _ := strings.Cut(path.Base(p), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func readModules(k Kernel) (*modules, error) {
	m := &modules{folder: filepath.Join(k.Folder, "lib/modules", k.Release), needs: map[string][]string{}, paths: map[string]string{}, builtin: map[string]bool{}}
	deps, err := os.ReadFile(filepath.Join(m.folder, "modules.dep"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(deps)) {
		p, needs, ok := strings.Cut(line, ":")
		if ok {
			m.needs[p] = strings.Fields(needs)
			m.paths[moduleName(p)] = p
		}
	}
	builtin, err := os.ReadFile(filepath.Join(m.folder, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(builtin)) {
		m.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return m, nil
}

// soft are modules that others use without naming them, by crypto aliases mostly.
func soft(name string) []string {
	return map[string][]string{
		"sctp":  {"crc32c_generic", "crc32c_cryptoapi", "libcrc32c"},
		"tls":   {"aes_generic", "ghash_generic", "ctr", "gcm", "aesni_intel"},
		"btrfs": {"crc32c_generic", "crc32c_intel", "libcrc32c", "xxhash_generic", "blake2b_generic", "sha256_generic"},
	}[name]
}

// order lists the files to load for the wanted modules, and those that this kernel lacks.
func (m *modules) order(want []string) (paths, missing []string) {
	var add func(p string)
	add = func(p string) {
		if slices.Contains(paths, p) {
			return
		}
		for _, d := range slices.Backward(m.needs[p]) {
			add(d)
		}
		paths = append(paths, p)
	}
	for _, w := range want {
		for _, s := range soft(w) {
			if p := m.paths[s]; p != "" {
				add(p)
			}
		}
		if p := m.paths[w]; p != "" {
			add(p)
		} else if !m.builtin[w] {
			missing = append(missing, w)
		}
	}
	return paths, missing
}

// unpack returns the module's content. The guest cannot decompress: its busybox is too small for it.
func (m *modules) unpack(p string) ([]byte, error) {
	file := filepath.Join(m.folder, p)
	for suffix, program := range map[string][]string{".xz": {"xz", "-dc"}, ".zst": {"zstd", "-dcq"}, ".gz": {"gzip", "-dc"}} {
		if strings.HasSuffix(p, suffix) {
			out, err := exec.Command(program[0], append(program[1:], file)...).Output()
			if err != nil {
				return nil, fmt.Errorf("unpack module %s: %w", p, err)
			}
			return out, nil
		}
	}
	return os.ReadFile(file)
}

// initrd writes the guest's first file system to file.
func (l *Lab) initrd(g Guest, file string, job []byte) (missing []string, err error) {
	out, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	w := bufio.NewWriterSize(out, 1<<20)
	a := &archive{w: w, made: map[string]bool{}}
	m, err := readModules(g.Kernel)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "run", "etc", "mnt", "root", "usr/bin", "var/log", "modules", "out"} {
		if err := a.entry(d, 0o040755, 0, nil); err != nil {
			return nil, err
		}
	}
	paths, missing := m.order(g.Modules)
	for i, p := range paths {
		content, err := m.unpack(p)
		if err != nil {
			return nil, err
		}
		// The number keeps the order.
		if err := a.text(fmt.Sprintf("modules/%03d-%s.ko", i, moduleName(p)), string(content)); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct{ name, content string }{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"},
		{"etc/group", "root:x:0:\nnogroup:x:65534:\n"},
		{"etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
		{"job.json", string(job)},
	} {
		if err := a.text(f.name, f.content); err != nil {
			return nil, err
		}
	}
	files := map[string]string{"/bin/busybox": l.busybox, "/init": g.Init}
	for to, from := range g.Files {
		files[to] = from
	}
	for to, from := range files {
		if err := a.file(to, from); err != nil {
			return nil, fmt.Errorf("put %s into the guest: %w", from, err)
		}
	}
	if g.Userland {
		if err := a.file("/", l.userland); err != nil {
			return nil, fmt.Errorf("put %s into the guest: %w", l.userland, err)
		}
	}
	return missing, errors.Join(a.end(), w.Flush(), out.Close())
}
