// Package house checks the shape of the program: which package may import which, that every package says what it
// is for, that no state hides outside of values, and that no file grows beyond what one can read.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/picosnitch/picosnitch/"

// edges says what a package may import of ours: itself and everything on its line. Data flows one way, so a wing never
// appears on the line of another; a room is wired by the one file above it. A package that is not here is an error.
func edges() map[string][]string {
	return map[string][]string{
		"cmd/picosnitch": {"internal/cli"},

		// On top: only daemon starts processes, only cli knows everything.
		"internal/cli":    {"internal/reader/country", "internal/reader/query", "internal/reader/remote", "internal/reader/report", "internal/daemon", "internal/config", "internal/event", "internal/sensor", "internal/recorder"},
		"internal/daemon": {"internal/reader/country", "internal/reader/query", "internal/config", "internal/event", "internal/errand", "internal/sensor", "internal/recorder", "internal/session"},
		"internal/config": {"internal/event"},

		// The root wing.
		"internal/sensor": {
			"internal/event", "internal/sensor/kernel", "internal/sensor/identity", "internal/sensor/fanotify", "internal/sensor/digest",
			"internal/sensor/procfs", "internal/sensor/place", "internal/sensor/script", "internal/sensor/outlet",
		},
		"internal/sensor/place":    {"internal/event"},
		"internal/sensor/script":   {"internal/event"},
		"internal/sensor/kernel":   {"internal/event", "internal/sensor/place"},
		"internal/sensor/identity": {"internal/event"},
		"internal/sensor/fanotify": {"internal/event"},
		"internal/sensor/digest":   {"internal/event"},
		"internal/sensor/procfs":   {"internal/event"},
		"internal/sensor/outlet":   {"internal/event"},

		// The recorder's wing: names → flow → store, in the direction of the data.
		"internal/recorder":        {"internal/event", "internal/schema", "internal/recorder/names", "internal/recorder/flow", "internal/recorder/store", "internal/recorder/spool", "internal/recorder/remote", "internal/recorder/feed", "internal/recorder/known", "internal/recorder/logfile", "internal/recorder/origin", "internal/recorder/notify", "internal/recorder/desk", "internal/recorder/journal", "internal/recorder/virustotal", "internal/recorder/links", "internal/recorder/budget", "internal/errand"},
		"internal/recorder/names":  {"internal/event"},
		"internal/recorder/flow":   {"internal/event"},
		"internal/recorder/store":  {"internal/event", "internal/schema", "internal/schema/rollup", "internal/recorder/flow"},
		"internal/recorder/spool":  {},
		"internal/recorder/remote": {"internal/event", "internal/schema", "internal/sqlserver", "internal/recorder/flow", "internal/recorder/store", "internal/recorder/spool"},
		"internal/recorder/feed":   {"internal/event"},
		// What is new or changed → where it is from → what is told.
		"internal/recorder/logfile":    {},
		"internal/recorder/known":      {"internal/event", "internal/recorder/flow", "internal/recorder/logfile", "internal/recorder/notify"},
		"internal/recorder/origin":     {"internal/event"},
		"internal/recorder/notify":     {"internal/event"},
		"internal/recorder/desk":       {"internal/event", "internal/errand", "internal/recorder/notify"},
		"internal/recorder/journal":    {"internal/recorder/notify"},
		"internal/recorder/virustotal": {},
		"internal/recorder/links":      {},
		"internal/recorder/budget":     {"internal/event", "internal/recorder/flow", "internal/recorder/notify"},

		// The desktop user's wing: one room.
		"internal/session": {"internal/event", "internal/errand"},

		// Everybody's wing: nothing here writes.
		"internal/reader/country": {},
		"internal/reader/query":   {"internal/reader/country", "internal/schema", "internal/schema/rollup"},
		"internal/reader/remote":  {"internal/reader/query", "internal/schema", "internal/sqlserver"},
		"internal/reader/report":  {"internal/reader/query"},

		// The things that wings share.
		"internal/event":         {},
		"internal/errand":        {},
		"internal/schema":        {},
		"internal/schema/rollup": {},
		"internal/sqlserver":     {},
	}
}

type goPackage struct {
	ImportPath, Dir, Doc      string
	Imports                   []string
	GoFiles, IgnoredGoFiles   []string
	TestGoFiles, XTestGoFiles []string
}

func list(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	var all []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImportsFlowOneWay(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		seen[name] = true
		for _, e := range violations(name, p.Imports) {
			t.Error(e)
		}
	}
	for name := range edges() {
		if !seen[name] {
			t.Errorf("%s is in the table but not in the house", name)
		}
	}
}

// violations names the imports of package name that go against the flow.
func violations(name string, imports []string) []string {
	// Tests and tools run the program from outside; they may look at the vocabulary of the stream.
	if strings.HasPrefix(name, "test/") {
		return nil
	}
	allowed, ok := edges()[name]
	if !ok {
		return []string{fmt.Sprintf("%s is not in the table of test/house: say there what it may import", name)}
	}
	var bad []string
	for _, i := range imports {
		ours, mine := strings.CutPrefix(i, module)
		if mine && !slices.Contains(allowed, ours) {
			bad = append(bad, fmt.Sprintf("%s imports %s: that is against the flow of the data (test/house)", name, ours))
		}
		if i == "os/exec" && name != "internal/daemon" && name != "internal/cli" {
			bad = append(bad, fmt.Sprintf("%s imports os/exec: only daemon and cli start processes", name))
		}
		if (i == "net/http" || strings.HasPrefix(i, "database/sql")) && strings.HasPrefix(name, "internal/sensor") {
			bad = append(bad, fmt.Sprintf("%s imports %s: the root wing opens no network connection and no database", name, i))
		}
	}
	return bad
}

func TestTableCatchesWrongImports(t *testing.T) {
	for name, i := range map[string]string{
		"internal/event":           module + "internal/schema",
		"internal/sensor":          module + "internal/recorder",
		"internal/sensor/kernel":   module + "internal/sensor",
		"internal/sensor/digest":   module + "internal/sensor/identity",
		"internal/recorder":        module + "internal/config",
		"internal/recorder/store":  module + "internal/sensor",
		"internal/config":          module + "internal/daemon",
		"internal/sensor/procfs":   "os/exec",
		"internal/sensor/identity": "net/http",
		"internal/unheard/of":      "fmt",
	} {
		if len(violations(name, []string{i})) == 0 {
			t.Errorf("%s may import %s", name, i)
		}
	}
}

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for _, p := range list(t) {
		doc := p.Doc
		if len(p.GoFiles) == 0 { // only tests: the comment stands there
			doc = testDoc(t, p)
		}
		name := filepath.Base(p.ImportPath)
		if !strings.HasPrefix(doc, "Package "+name+" ") && !strings.HasPrefix(doc, "Command "+name+" ") {
			t.Errorf("%s: the package comment must begin with \"Package %s \" and say its one job; it is %q", p.ImportPath, name, doc)
		}
		for _, word := range []string{"util", "utils", "common", "helpers", "types", "manager", "misc"} {
			if name == word {
				t.Errorf("%s: a package is named for what it gives", p.ImportPath)
			}
		}
	}
}

func testDoc(t *testing.T, p goPackage) string {
	t.Helper()
	for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if file.Doc != nil {
			return file.Doc.Text()
		}
	}
	return ""
}

// files calls visit for every hand-written Go file of the program.
func files(t *testing.T, visit func(path string, data []byte)) {
	t.Helper()
	n := 0
	for _, top := range []string{"cmd", "internal", "test", "bpf"} {
		err := filepath.WalkDir(filepath.Join(root(t), top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !slices.Contains([]string{".go", ".c", ".h"}, filepath.Ext(path)) || d.Name() == "vmlinux.h" {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil || bytes.Contains(data[:min(len(data), 300)], []byte("DO NOT EDIT")) {
				return err
			}
			n++
			rel, err := filepath.Rel(root(t), path)
			visit(rel, data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 20 {
		t.Fatalf("found only %d files", n)
	}
}

func TestNoHiddenState(t *testing.T) {
	files(t, func(path string, data []byte) {
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "test/") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, data, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range hiddenState(file) {
			t.Errorf("%s: %s", path, bad)
		}
	})
}

// hiddenState finds init functions and package-level variables. Errors to compare with, embedded files and checks that a type
// implements an interface are none: nothing changes them.
func hiddenState(file *ast.File) []string {
	var bad []string
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				bad = append(bad, "func init: nothing may happen before main")
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			embedded := d.Doc != nil && slices.ContainsFunc(d.Doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
			for _, s := range d.Specs {
				v, ok := s.(*ast.ValueSpec)
				if !ok {
					continue
				}
				for i, n := range v.Names {
					if n.Name == "_" || embedded || isError(v, i) {
						continue
					}
					bad = append(bad, "var "+n.Name+": no state outside of values (a function that returns it will do)")
				}
			}
		}
	}
	return bad
}

// isError accepts ErrX = errors.New(…), fmt.Errorf(…) or other.ErrX.
func isError(v *ast.ValueSpec, i int) bool {
	if i >= len(v.Values) {
		return false
	}
	switch e := v.Values[i].(type) {
	case *ast.SelectorExpr:
		return strings.HasPrefix(e.Sel.Name, "Err")
	case *ast.CallExpr:
		sel, ok := e.Fun.(*ast.SelectorExpr)
		return ok && (fmt.Sprint(sel.X) == "errors" || fmt.Sprint(sel.X) == "fmt" && sel.Sel.Name == "Errorf")
	}
	return false
}

func TestHiddenStateIsFound(t *testing.T) {
	for src, want := range map[string]int{
		"package x\nvar cache = map[string]int{}": 1,
		"package x\nvar n int":                    1,
		"package x\n// doc\nvar s string":         1,
		"package x\n//go:embed f\nvar s string":   0,
		"package x\nfunc init() {}":               1,
		"package x\nvar ErrX = errors.New(\"x\")": 0,
		"package x\nvar _ I = T{}":                0,
		"package x\nfunc (t T) init() {}":         0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", src, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if got := hiddenState(file); len(got) != want {
			t.Errorf("%q: %v", src, got)
		}
	}
}

func TestFilesStayReadable(t *testing.T) {
	files(t, func(path string, data []byte) {
		most := 500
		if strings.HasSuffix(path, "_test.go") {
			most = 600 // a table of cases is read by looking something up
		}
		if n := bytes.Count(data, []byte("\n")); n > most {
			t.Errorf("%s has %d lines, at most %d: split it", path, n, most)
		}
	})
}

func TestMainIsThin(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root(t), "cmd/picosnitch/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(data, []byte("\n")); n > 30 {
		t.Errorf("main.go has %d lines, at most 30", n)
	}
}
