package script

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/event"
)

func file(name string, suffixes ...string) Meaning {
	return Meaning{Kind: event.ScriptArgument, Name: name, Suffixes: suffixes}
}

func module(name string) Meaning { return Meaning{Kind: event.ScriptModule, Name: name} }

func TestOf(t *testing.T) {
	t.Parallel()
	command, stdin, unknown, none := Meaning{Kind: event.ScriptCommand}, Meaning{Kind: event.ScriptStdin}, Meaning{Kind: event.ScriptUnknown}, Meaning{}
	js := []string{".js", ".json", ".mjs", ".cjs"}
	for _, c := range []struct {
		exe  string
		argv string // one argument a word; '_' is a space in one, '∅' an empty one
		want Meaning
	}{
		{"/usr/bin/python3.12", "python3 backup.py --fast", file("backup.py")},
		{"/usr/bin/python3.12", "python3 -u -B /srv/backup.py -c x", file("/srv/backup.py")},
		{"/usr/bin/python3.12", "python3 -Wignore -X dev a.py", file("a.py")},
		{"/usr/bin/python3.12", "python3 -W ignore --check-hash-based-pycs never a.py", file("a.py")},
		{"/usr/bin/python3.12", "python3 -c import_os a.py", command},
		{"/usr/bin/python3.12", "python3 -Bcimport_os", command},
		{"/usr/bin/python3.12", "python3 -m http.server 80", module("http.server")},
		{"/usr/bin/python3.12", "python3 -Im pip install x", module("pip")},
		{"/usr/bin/python3.12", "python3 -mpip install x", module("pip")},
		{"/usr/bin/python3.12", "python3 - a.py", stdin},
		{"/usr/bin/python3.12", "python3", stdin},
		{"/usr/bin/python3.12", "python3 -- -odd.py", file("-odd.py")},
		{"/usr/bin/python2.7", "python -Qnew a.py", file("a.py")},
		{"/usr/bin/pypy3", "pypy3 a.py", file("a.py")},
		{"/opt/python3-dbg", "python3-dbg a.py", file("a.py")},
		{"/usr/bin/dash", "sh x.sh", file("x.sh")},
		{"/usr/bin/dash", "sh -c curl_x", command},
		{"/usr/bin/dash", "sh -ec curl_x sh", command},
		{"/usr/bin/bash", "bash -e -o pipefail x.sh -c y", file("x.sh")},
		{"/usr/bin/bash", "bash -eo pipefail x.sh", file("x.sh")},
		{"/usr/bin/bash", "bash -eo pipefail -c x", command},
		{"/usr/bin/bash", "bash +o posix +x x.sh", file("x.sh")},
		{"/usr/bin/bash", "bash --norc --rcfile /etc/rc x.sh", file("x.sh")},
		{"/usr/bin/bash", "bash -O extglob x.sh", file("x.sh")},
		{"/usr/bin/bash", "bash - x.sh", file("x.sh")},
		{"/usr/bin/bash", "-bash", stdin},
		{"/usr/bin/bash", "bash -s a b", stdin},
		{"/usr/bin/bash", "bash --login -i", stdin},
		{"/usr/bin/zsh", "zsh --emulate sh x.sh", file("x.sh")},
		{"/usr/bin/fish", "fish -C init x.fish", file("x.fish")},
		{"/usr/bin/fish", "fish --command=x", command},
		{"/usr/bin/busybox", "sh x.sh", file("x.sh")},
		{"/usr/bin/busybox", "-sh", stdin},
		{"/usr/bin/busybox", "busybox sh -c x", command},
		{"/usr/bin/busybox", "/bin/busybox ash /x.sh", file("/x.sh")},
		{"/usr/bin/busybox", "busybox wget http://x", none},
		{"/usr/bin/busybox", "busybox", none},
		{"/usr/bin/perl", "perl x.pl", file("x.pl")},
		{"/usr/bin/perl5.36.0", "perl -w -I lib -Mstrict x.pl", file("x.pl")},
		{"/usr/bin/perl", "perl -e print_1 x.pl", command},
		{"/usr/bin/perl", "perl -lane print_1 x", command},
		{"/usr/bin/perl", "perl -l012 -0777 -pi.bak -e s/a/b/ x", command},
		{"/usr/bin/perl", "perl -pi.bak x.pl", file("x.pl")},
		{"/usr/bin/perl", "perl -d:Trace x.pl", file("x.pl")},
		{"/usr/bin/perl", "perl -F: -ne x y", command},
		{"/usr/bin/perl", "perl -CSDA x.pl", file("x.pl")},
		{"/usr/bin/perl", "perl -", stdin},
		{"/usr/bin/ruby3.1", "ruby -W0 -r json -Ilib x.rb", file("x.rb")},
		{"/usr/bin/ruby3.1", "ruby -C /srv -C app x.rb", Meaning{Kind: event.ScriptArgument, Name: "x.rb", Folder: "/srv/app"}},
		{"/usr/bin/ruby3.1", "ruby -ne puts_1 x", command},
		{"/usr/bin/ruby3.1", "ruby -E UTF-8 --encoding utf-8 x.rb", file("x.rb")},
		{"/usr/bin/node", "node app", file("app", js...)},
		{"/usr/bin/node", "node --require ./a -r ./b --max-old-space-size=99 app.js x", file("app.js", js...)},
		{"/usr/bin/node", "node --inspect app.js", file("app.js", js...)},
		{"/usr/bin/node", "node inspect app.js", file("app.js", js...)},
		{"/usr/bin/node", "node -e 1 app.js", command},
		{"/usr/bin/node", "node --eval=1", command},
		{"/usr/bin/node", "node -pe 1", command},
		{"/usr/bin/node", "node -", stdin},
		{"/usr/bin/node", "node", stdin},
		{"/usr/bin/deno", "deno run --allow-net a.ts", file("a.ts")},
		{"/usr/bin/deno", "deno eval x", command},
		{"/usr/bin/bun", "bun a.ts", file("a.ts", ".js", ".ts", ".tsx", ".jsx", ".mjs")},
		{"/usr/bin/php8.2", "php -d a=b -c /etc/php.ini x.php", file("x.php")},
		{"/usr/bin/php8.2", "php -f x.php -- -r", file("x.php")},
		{"/usr/bin/php8.2", "php -r echo_1;", command},
		{"/usr/bin/php8.2", "php -S 127.0.0.1:80 -t /srv router.php", file("router.php")},
		{"/usr/bin/php8.2", "php < x", file("<")},
		{"/usr/bin/lua5.4", "lua -e x=1 x.lua", file("x.lua")},
		{"/usr/bin/lua5.4", "lua -e x=1", command},
		{"/usr/bin/lua5.4", "lua -l socket x.lua", file("x.lua")},
		{"/usr/bin/luajit-2.1.0-beta", "luajit -jv x.lua", none}, // a name that we do not know
		{"/usr/bin/luajit", "luajit -jv x.lua", file("x.lua")},
		{"/usr/bin/tclsh8.6", "tclsh -encoding utf-8 x.tcl", file("x.tcl")},
		{"/usr/bin/expect", "expect -c set_x x.exp", file("x.exp")},
		{"/usr/bin/expect", "expect -f x.exp", file("x.exp")},
		{"/usr/bin/gawk", "gawk -F : -v a=b {print} file", command},
		{"/usr/bin/gawk", "gawk -f x.awk file", file("x.awk")},
		{"/usr/bin/gawk", "gawk --file=x.awk file", file("x.awk")},
		{"/usr/bin/mawk", "awk", none},
		{"/usr/lib/jvm/java-17-openjdk-amd64/bin/java", "java -Xmx1g -Dx=y -cp a:b -jar app.jar -cp c", file("app.jar")},
		{"/usr/bin/java", "java --class-path a:b com.example.Main x", module("com.example.Main")},
		{"/usr/bin/java", "java --module-path a -m m/com.example.Main", module("m/com.example.Main")},
		{"/usr/bin/java", "java Hello.java x", file("Hello.java")},
		{"/usr/bin/java", "java @args", unknown},
		{"/usr/bin/java", "java -version", none},
		{"/usr/bin/Rscript", "Rscript --vanilla x.R", file("x.R")},
		{"/usr/bin/julia", "julia -O3 --project x.jl y.jl", file("y.jl")},
		{"/usr/bin/pwsh", "pwsh -NoProfile -File x.ps1", file("x.ps1")},
		{"/usr/bin/mono", "mono --debug app.exe", file("app.exe")},
		{"/usr/bin/dotnet", "dotnet app.dll x", file("app.dll", ".dll")},
		{"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2 --library-path /x --argv0 sh /usr/bin/curl x", file("/usr/bin/curl")},
		{"/usr/bin/qemu-aarch64-static", "qemu-aarch64-static -L /x ./prog y", file("./prog")},
		{"/usr/bin/curl", "curl -m 10 x", none},
		{"/usr/bin/env", "env python3 x.py", none}, // it executes python3, which is the next image
		{"", "python3 x.py", none},
		// What is missing, empty, and not text.
		{"/usr/bin/python3", "", none},
		{"/usr/bin/python3", "python3 ∅", stdin},
		{"/usr/bin/python3", "python3 -W", stdin},
		{"/usr/bin/python3", "python3 -c", stdin},
		{"/usr/bin/python3", "python3 -m", stdin},
		{"/usr/bin/python3", `python3 a\u{a}b\xff\\.py`, file(`a\u{a}b\xff\\.py`)},
		{"/usr/bin/bash", "bash --rcfile", stdin},
		{"/usr/bin/java", "java -jar", none},
	} {
		t.Run(strings.ReplaceAll(c.argv, "/", "|"), func(t *testing.T) {
			p := event.Process{Path: c.exe, Source: event.SourceExec}
			for a := range strings.FieldsSeq(c.argv) {
				p.Argv = append(p.Argv, strings.ReplaceAll(strings.ReplaceAll(a, "_", " "), "∅", ""))
			}
			if diff := cmp.Diff(c.want, New().Of(&p)); diff != "" {
				t.Errorf("%s %q (-want +got):\n%s", c.exe, p.Argv, diff)
			}
		})
	}
}

func TestCutArguments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		argv []string
		want string
	}{
		{nil, event.ScriptUnknown},
		{[]string{"python3"}, event.ScriptUnknown},
		{[]string{"python3", "/a/very/lo"}, event.ScriptUnknown},
		{[]string{"python3", "a.py", "xxx"}, event.ScriptArgument},
		{[]string{"python3", "-c", "import x; xxx"}, event.ScriptCommand},
		{[]string{"python3", "-m", "xxx"}, event.ScriptUnknown},
	} {
		p := event.Process{Path: "/usr/bin/python3", Source: event.SourceExec, Argv: c.argv, ArgvCut: true}
		if m := New().Of(&p); m.Kind != c.want || m.Kind == event.ScriptUnknown && m.Name != "" {
			t.Errorf("%q: %+v, want %s", c.argv, m, c.want)
		}
	}
}

func TestKernelsWord(t *testing.T) {
	t.Parallel()
	p := event.Process{Path: "/usr/bin/python3", Argv: []string{"python3", "-c", "lies"}, Script: "/srv/a.py", Source: event.SourceExec}
	if m := New().Of(&p); m.Kind != event.ScriptFromFile || m.Name != "/srv/a.py" {
		t.Errorf("%+v", m)
	}
}

// TestKernelsWordCut: a path that filled the room in the kernel's report is no file's.
func TestKernelsWordCut(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]bool{
		"/" + strings.Repeat("x", 1022) + "…":    true,
		"/" + strings.Repeat(`\xff`, 1022) + "…": true,
		"/" + strings.Repeat("x", 1021):          false,
		"/" + strings.Repeat(`\xff`, 1021):       false,
		"/x…":                                    false,
	} {
		p := event.Process{Path: "/bin/sh", Script: script, Source: event.SourceExec}
		if m := New().Of(&p); m.Cut != want || m.Name != script {
			t.Errorf("%d bytes: %+v", len(script), m)
		}
	}
}

// TestRewritten: what /proc tells of a program that ran before us may have been rewritten by it.
func TestRewritten(t *testing.T) {
	t.Parallel()
	p := event.Process{Path: "/usr/bin/python3", Argv: []string{"gunicorn: master [app]"}, Source: event.SourceIterator}
	if m := New().Of(&p); m.Kind != event.ScriptUnknown {
		t.Errorf("%+v", m)
	}
	p.Argv = []string{"-bash"}
	p.Path = "/usr/bin/bash"
	if m := New().Of(&p); m.Kind != event.ScriptStdin {
		t.Errorf("%+v", m)
	}
}

func FuzzOf(f *testing.F) {
	f.Add("/bin/python3", "python3\x00-c\x00x", true)
	f.Add("/bin/busybox", "busybox\x00sh", false)
	interpreters := New()
	f.Fuzz(func(t *testing.T, exe, argv string, cut bool) {
		p := event.Process{Path: exe, Argv: strings.Split(argv, "\x00"), ArgvCut: cut, Source: event.SourceExec}
		m := interpreters.Of(&p)
		if (m.Kind == event.ScriptCommand || m.Kind == event.ScriptStdin || m.Kind == event.ScriptUnknown || m.Kind == "") && m.Name != "" {
			t.Errorf("%+v", m)
		}
	})
}

func BenchmarkOf(b *testing.B) {
	interpreters := New()
	p := event.Process{Path: "/usr/bin/python3.12", Argv: []string{"python3", "-u", "-W", "ignore", "a.py"}, Source: event.SourceExec}
	b.ReportAllocs()
	for b.Loop() {
		interpreters.Of(&p)
	}
}
