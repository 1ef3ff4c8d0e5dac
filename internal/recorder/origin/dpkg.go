package origin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// dpkg is the database in /var/lib/dpkg: info/PACKAGE.list has the paths of a package, info/PACKAGE.md5sums their checksums, and
// diversions which of them are somewhere else (dpkg(1), deb-md5sums(5), dpkg-divert(1)). All of it is readable for everybody.
type dpkg struct {
	root  string
	clock func() time.Time
}

// Bounds of what is read of a database, in bytes. The status of a large desktop has 8 MB, its longest list 4 MB.
const (
	maxList   = 64 << 20
	maxStatus = 128 << 20
)

// settled is for how long after a change of its status dpkg counts as being at work: it writes the checksums of a
// package some time after its files.
const settled = 10 * time.Second

func (d *dpkg) dir() string { return d.root + "/var/lib/dpkg" }

func (d *dpkg) present() bool {
	_, err := os.Stat(d.dir() + "/status")
	return err == nil
}

func (d *dpkg) stamp() string {
	s := "dpkg"
	for _, name := range []string{"status", "info", "diversions"} {
		if st, err := os.Stat(filepath.Join(d.dir(), name)); err == nil {
			s += fmt.Sprintf(" %d:%d", st.ModTime().UnixNano(), st.Size())
		}
	}
	return s
}

func (d *dpkg) busy() bool {
	if entries, err := os.ReadDir(d.dir() + "/updates"); err == nil && len(entries) > 0 {
		return true // changes of the status that are not in the file yet
	}
	if _, err := os.Stat(d.dir() + "/tmp.ci"); err == nil {
		return true // a package is being unpacked
	}
	st, err := os.Stat(d.dir() + "/status")
	age := time.Duration(0)
	if err == nil {
		age = d.clock().Sub(st.ModTime())
	}
	return err != nil || age >= 0 && age < settled
}

// diversion says that the file that packages list as from is at to, but for the files of one package.
type diversion struct{ from, to, by string }

func (d *dpkg) diversions() []diversion {
	data, err := slurp(d.dir()+"/diversions", maxList)
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	var all []diversion
	for ; len(lines) >= 3; lines = lines[3:] {
		all = append(all, diversion{lines[0], lines[1], lines[2]}) // by is ":" for one of the administrator's
	}
	return all
}

// merged reports whether /bin, /sbin and /lib are links into /usr: packages list one name, the kernel tells the other.
func (d *dpkg) merged() bool {
	to, err := os.Readlink(d.root + "/bin")
	return err == nil && strings.Trim(to, "/") == "usr/bin"
}

// aliases are the names under which a package may list a path.
func aliases(path string, merged bool) []string {
	all := []string{path}
	if !merged {
		return all
	}
	for _, top := range []string{"/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/"} {
		if rest, ok := strings.CutPrefix(path, "/usr"+top); ok {
			return append(all, top+rest)
		}
		if strings.HasPrefix(path, top) {
			return append(all, "/usr"+path)
		}
	}
	return all
}

// needle is a line to be looked for in the lists of packages.
type needle struct {
	path int    // index of what it is for
	name string // as a package lists it
	line []byte // with newlines
	only string // counts only for this package; "": for all
	not  string // does not count for this package
}

func (d *dpkg) needles(paths []string) []needle {
	diverted := d.diversions()
	merged := d.merged()
	var all []needle
	add := func(i int, path, only, not string) {
		for _, name := range aliases(path, merged) {
			all = append(all, needle{i, name, []byte("\n" + name + "\n"), only, not})
		}
	}
	for i, path := range paths {
		only := ""
		for _, v := range diverted {
			if slices.Contains(aliases(v.from, merged), path) {
				only = v.by // the others' file is elsewhere
			}
			if slices.Contains(aliases(v.to, merged), path) {
				add(i, v.from, "", v.by)
			}
		}
		add(i, path, only, "")
	}
	return all
}

func (d *dpkg) find(ctx context.Context, paths []string) []found {
	answers := make([]found, len(paths))
	entries, err := os.ReadDir(d.dir() + "/info")
	if err != nil {
		for i := range answers {
			answers[i] = found{Verdict: Verdict{Reason: err.Error()}}
		}
		return answers
	}
	for i := range answers {
		answers[i].State = Unowned
	}
	needles := d.needles(paths)
	type owner struct{ pkg, name string }
	owners := make([][]owner, len(paths))
	var buf bytes.Buffer
	for _, e := range entries {
		pkg, ok := strings.CutSuffix(e.Name(), ".list")
		if !ok || ctx.Err() != nil {
			continue
		}
		if err := d.readInto(&buf, e.Name()); err != nil {
			continue // removed since
		}
		name, _, _ := strings.Cut(pkg, ":")
		for _, n := range needles {
			if n.only != "" && n.only != name || n.not == name || !bytes.Contains(buf.Bytes(), n.line) {
				continue
			}
			owners[n.path] = append(owners[n.path], owner{pkg, n.name})
		}
	}
	if err := ctx.Err(); err != nil {
		for i := range answers {
			answers[i] = found{Verdict: Verdict{Reason: err.Error()}}
		}
		return answers
	}
	var status []byte
	for i := range paths {
		for _, o := range owners[i] {
			if status == nil {
				if status, err = slurp(d.dir()+"/status", maxStatus); err != nil {
					status = []byte{}
				}
			}
			a := &answers[i]
			version, conffile := paragraph(status, o.pkg, o.name)
			a.State, a.Package, a.Version = Shipped, o.pkg, version
			if conffile {
				a.State = Conffile
				continue
			}
			if sum := d.sum(&buf, o.pkg, o.name); sum != "" {
				a.sums = append(a.sums, sum)
			}
			a.sum = asMD5
		}
	}
	return answers
}

// readInto reads a file of info, with a newline before it.
func (d *dpkg) readInto(buf *bytes.Buffer, name string) error {
	f, err := os.Open(filepath.Join(d.dir(), "info", name))
	if err != nil {
		return err
	}
	defer f.Close()
	buf.Reset()
	buf.WriteByte('\n')
	st, err := f.Stat()
	if err != nil || st.Size() > maxList {
		return fmt.Errorf("%s: too large", name)
	}
	_, err = buf.ReadFrom(f)
	return err
}

// sum is the checksum of a file, or "".
func (d *dpkg) sum(buf *bytes.Buffer, pkg, name string) string {
	if err := d.readInto(buf, pkg+".md5sums"); err != nil {
		return ""
	}
	line := []byte("  " + strings.TrimPrefix(name, "/") + "\n")
	rest := append(buf.Bytes(), '\n')
	for {
		i := bytes.Index(rest, line)
		if i < 0 {
			return ""
		}
		if i > 32 && rest[i-33] == '\n' {
			return string(rest[i-32 : i])
		}
		rest = rest[i+1:]
	}
}

// paragraph is the version of a package in the status, and whether a path is one of its configuration files.
func paragraph(status []byte, pkg, path string) (version string, conffile bool) {
	name, arch, _ := strings.Cut(pkg, ":")
	head := []byte("Package: " + name + "\n")
	for rest := status; ; {
		i := bytes.Index(rest, head)
		if i < 0 {
			return version, conffile
		}
		if i > 0 && rest[i-1] != '\n' {
			rest = rest[i+1:]
			continue
		}
		end := bytes.Index(rest[i:], []byte("\n\n"))
		if end < 0 {
			end = len(rest) - i
		}
		text := string(rest[i : i+end])
		rest = rest[i+end:]
		if arch != "" && !strings.Contains(text, "\nArchitecture: "+arch+"\n") {
			continue
		}
		in := false
		for line := range strings.SplitSeq(text, "\n") {
			if v, ok := strings.CutPrefix(line, "Version: "); ok {
				version = v
			}
			if in && strings.HasPrefix(line, " "+path+" ") {
				conffile = true
			}
			in = line == "Conffiles:" || in && strings.HasPrefix(line, " ")
		}
		return version, conffile
	}
}
