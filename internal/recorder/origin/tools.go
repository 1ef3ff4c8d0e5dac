package origin

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// rpm is asked through its own tool: its database has had four formats.
type rpm struct {
	root  string
	tool  Tool
	clock func() time.Time
}

const rpmTool = "/usr/bin/rpm"

// databases are where rpm has kept it.
func (r *rpm) databases() []string {
	var all []string
	for _, dir := range []string{"/var/lib/rpm/", "/usr/lib/sysimage/rpm/"} {
		for _, name := range []string{"rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db", "Packages"} {
			all = append(all, r.root+dir+name)
		}
	}
	return all
}

func (r *rpm) present() bool { return r.tool != nil && r.stamp() != "rpm" }

func (r *rpm) stamp() string {
	s := "rpm"
	for _, path := range r.databases() {
		if st, err := os.Stat(path); err == nil {
			s += fmt.Sprintf(" %d:%d", st.ModTime().UnixNano(), st.Size())
		}
	}
	return s
}

func (r *rpm) busy() bool {
	for _, path := range r.databases() {
		if st, err := os.Stat(path); err == nil {
			if age := r.clock().Sub(st.ModTime()); age >= 0 && age < settled {
				return true
			}
		}
	}
	return false
}

// rpmFormat gives a line per package and, behind it, a line per file of it.
const rpmFormat = `P\t%{NAME}\t%{VERSION}-%{RELEASE}\t%{FILEDIGESTALGO}\n[F\t%{FILEDIGESTS}\t%{FILEFLAGS:fflags}\t%{FILENAMES}\n]`

func (r *rpm) find(ctx context.Context, paths []string) []found {
	answers := make([]found, len(paths))
	for i, path := range paths {
		out, code, err := r.tool(ctx, rpmTool, "-qf", "--qf", rpmFormat, "--", path)
		switch {
		case err != nil:
			answers[i] = found{Verdict: Verdict{Reason: "rpm: " + err.Error()}}
		case code != 0 && !strings.Contains(string(out), "P\t"):
			answers[i] = found{Verdict: Verdict{State: Unowned}}
		default:
			answers[i] = parseRPM(string(out), path)
		}
	}
	return answers
}

func parseRPM(out, path string) found {
	a := found{Verdict: Verdict{State: Unowned}}
	pkg, version, algorithm := "", "", ""
	for line := range strings.SplitSeq(out, "\n") {
		f := strings.SplitN(line, "\t", 4)
		if len(f) != 4 {
			continue
		}
		if f[0] == "P" {
			pkg, version, algorithm = f[1], f[2], f[3]
			continue
		}
		if f[0] != "F" || f[3] != path {
			continue
		}
		a.Package, a.Version, a.State = pkg, version, Shipped
		if strings.Contains(f[2], "c") {
			a.State = Conffile
		}
		if f[1] != "" {
			a.sums = append(a.sums, f[1])
		}
		switch algorithm {
		case "8": // RFC 4880, 9.4
			a.sum = asSHA256
		case "1", "(none)":
			a.sum = asMD5
		default:
			a.State, a.Reason, a.sum = Unknown, "rpm's digest algorithm "+algorithm, asSHA256
		}
	}
	return a
}

// pacman is asked through its own tool for the owner; the checksums are in the mtree of the package.
type pacman struct {
	root string
	tool Tool
}

const (
	pacmanTool = "/usr/bin/pacman"
	pacmanDir  = "/var/lib/pacman"
)

func (p *pacman) present() bool {
	_, err := os.Stat(p.root + pacmanDir + "/local")
	return p.tool != nil && err == nil
}

func (p *pacman) stamp() string {
	st, err := os.Stat(p.root + pacmanDir + "/local")
	if err != nil {
		return "pacman"
	}
	return fmt.Sprintf("pacman %d", st.ModTime().UnixNano())
}

func (p *pacman) busy() bool {
	_, err := os.Stat(p.root + pacmanDir + "/db.lck")
	return err == nil
}

func (p *pacman) find(ctx context.Context, paths []string) []found {
	answers := make([]found, len(paths))
	for i, path := range paths {
		out, code, err := p.tool(ctx, pacmanTool, "-Qo", "--", path)
		if err != nil {
			answers[i] = found{Verdict: Verdict{Reason: "pacman: " + err.Error()}}
			continue
		}
		// "/usr/bin/bash is owned by bash 5.2.026-2"
		_, owner, ok := strings.Cut(strings.TrimSpace(string(out)), " is owned by ")
		pkg, version, ok2 := strings.Cut(owner, " ")
		if code != 0 || !ok || !ok2 || strings.ContainsAny(owner, "/\n") {
			answers[i] = found{Verdict: Verdict{State: Unowned}}
			continue
		}
		a := found{Verdict: Verdict{State: Shipped, Package: pkg, Version: version}, sum: asSHA256}
		sum, err := p.mtree(pkg+"-"+version, path)
		if err != nil {
			a.State, a.Reason = Unknown, err.Error()
		} else if sum != "" {
			a.sums = []string{sum}
		}
		answers[i] = a
	}
	return answers
}

// mtree reads the sha256 of a path from the mtree(5) of a package.
func (p *pacman) mtree(pkg, path string) (string, error) {
	f, err := os.Open(p.root + pacmanDir + "/local/" + pkg + "/mtree")
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return "", fmt.Errorf("mtree of %s: %w", pkg, err)
	}
	lines := bufio.NewScanner(io.LimitReader(z, maxList))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || octal(words[0]) != "."+path {
			continue
		}
		for _, w := range words[1:] {
			if sum, ok := strings.CutPrefix(w, "sha256digest="); ok {
				return sum, nil
			}
		}
		return "", nil
	}
	return "", lines.Err()
}

// octal resolves the \ooo of mtree(5).
func octal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// raw gives the bytes that event.Text made printable.
func raw(s string) (string, bool) {
	if !strings.Contains(s, `\`) {
		return s, true
	}
	var b strings.Builder
	for len(s) > 0 {
		if s[0] != '\\' {
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		switch {
		case strings.HasPrefix(s, `\\`):
			b.WriteByte('\\')
			s = s[2:]
		case strings.HasPrefix(s, `\x`) && len(s) >= 4:
			n, err := strconv.ParseUint(s[2:4], 16, 8)
			if err != nil {
				return "", false
			}
			b.WriteByte(byte(n))
			s = s[4:]
		case strings.HasPrefix(s, `\u{`):
			digits, rest, ok := strings.Cut(s[3:], "}")
			n, err := strconv.ParseUint(digits, 16, 32)
			if !ok || err != nil || !utf8.ValidRune(rune(n)) {
				return "", false
			}
			b.WriteRune(rune(n))
			s = rest
		default:
			return "", false
		}
	}
	return b.String(), !strings.Contains(b.String(), "\x00")
}
