package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/picosnitch/picosnitch/internal/daemon"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/reader/query"
	"github.com/picosnitch/picosnitch/internal/recorder"
	"github.com/picosnitch/picosnitch/internal/sensor"
)

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{errors.New("x"), ExitFailure},
		{fmt.Errorf("a: %w", errUsage), ExitUsage},
		{fmt.Errorf("a: %w", daemon.ErrConfig), ExitUsage},
		{fmt.Errorf("a: %w", &daemon.RunningError{PID: 1}), ExitState},
		{daemon.ErrNotRunning, ExitState},
		{fmt.Errorf("a: %w", sensor.ErrHooks), ExitUnsupported},
		{errors.ErrUnsupported, ExitUnsupported},
		{fmt.Errorf("a %w", errNotRoot), ExitNotRoot},
		{&codeError{4, errQuiet}, 4},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

// The codes of help and README are the ones of the code.
func TestExitCodesAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []int{ExitOK, ExitFailure, ExitUsage, ExitState, ExitUnsupported, ExitNotRoot, ExitRecorder, ExitInterrupted} {
		if !strings.Contains(after, fmt.Sprintf("  %d  ", c)) {
			t.Errorf("help lacks exit code %d", c)
		}
		if !strings.Contains(string(readme), fmt.Sprintf("\n| %d | ", c)) {
			t.Errorf("README.md lacks exit code %d", c)
		}
	}
}

// Every help text fits a terminal of 80 columns.
func TestHelpFits(t *testing.T) {
	var show func(words []string)
	show = func(words []string) {
		var out, errs bytes.Buffer
		if code := Run(append(words, "--help"), Env{Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }}); code != ExitOK || errs.Len() > 0 {
			t.Fatalf("%q --help: %d, %s", words, code, &errs)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > helpWidth {
				t.Errorf("picosnitch %s --help: a line of %d columns: %s", strings.Join(words, " "), n, line)
			}
		}
		about, _, err := commands(Env{Getenv: os.Getenv}).Find(words)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range about.Commands() {
			if !c.Hidden {
				show(append(slices.Clone(words), c.Name()))
			}
		}
	}
	show(nil)
}

// What a report can be asked by is in its help.
func TestReportHelpHasEveryDimension(t *testing.T) {
	c, _, err := commands(Env{Getenv: os.Getenv}).Find([]string{"report"})
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(strings.Fields(c.Long), " "); !strings.Contains(text, query.DimensionList()) {
		t.Errorf("the help of report lacks what it can be asked by, %q:\n%s", query.DimensionList(), text)
	}
}

func TestAsRoot(t *testing.T) {
	env := Env{Getenv: func(k string) string { return map[string]string{"PICOSNITCH_DIR": "/a b/it's"}[k] }}
	got := asRoot(env, "record", "--for", "10s", "my file\x1b[31m")
	if want := ` record --for 10s 'my file\u{1b}[31m'`; !strings.HasSuffix(got, want) {
		t.Errorf("%s does not end in %s", got, want)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := exe + " record"
	if os.Geteuid() != 0 {
		want = `sudo PICOSNITCH_DIR='/a b/it'\''s' ` + want
	}
	if !strings.HasPrefix(got, want) {
		t.Errorf("%s does not begin with %s", got, want)
	}
}

// Every command of the program is in the README, and none that is not.
func TestCommandsAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands(Env{}).Commands() {
		if !c.Hidden && !strings.Contains(string(readme), "`"+c.Name()) && !strings.Contains(string(readme), "picosnitch "+c.Name()) {
			t.Errorf("README.md lacks %s", c.Name())
		}
	}
}

func TestStatusShowsEveryLoss(t *testing.T) {
	s := recorder.Status{Bandwidth: true, Lost: map[string]uint64{"new\x1breason": 9}, SelfTest: "ok", Program: "\x1b[31mred"}
	for i, l := range event.Losses() {
		s.Lost[l.Key] = uint64(1000 + i)
	}
	s.Unattributed = event.Bytes{Sent: 71, Received: 72}
	var out bytes.Buffer
	printStatus(&out, s)
	for i, l := range event.Losses() {
		if !strings.Contains(out.String(), fmt.Sprintf("%d %s", 1000+i, l.Text)) {
			t.Errorf("%s is not shown", l.Key)
		}
	}
	for _, want := range []string{`9 new\u{1b}reason`, "71 bytes sent, 72 received"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "lost           nothing") {
		t.Errorf("status:\n%q", &out)
	}
	out.Reset()
	printStatus(&out, recorder.Status{})
	for _, want := range []string{"not counted", "lost           nothing"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status lacks %q:\n%s", want, &out)
		}
	}
}

func TestReportShowsWhatIsMissing(t *testing.T) {
	var out bytes.Buffer
	printReport(&out, sensor.Report{
		Features: []sensor.Check{{Name: "BTF", Detail: "not there", Hint: "CONFIG_DEBUG_INFO_BTF"}},
		Hooks:    []event.Hook{{Name: "a", Attached: true}, {Name: "b", Cost: "peers", Error: "refused"}, {Name: "long", Spare: true, Cost: "nothing is lost", Error: "old"}},
	})
	for _, want := range []string{"hook set  none", "NO  BTF", "→ CONFIG_DEBUG_INFO_BTF", "ok   a", "refused; not seen without it: peers", "old; nothing is lost"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("report lacks %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), " \n") {
		t.Errorf("a line ends with a blank:\n%q", &out)
	}
	out.Reset()
	printStatus(&out, recorder.Status{Hooks: []event.Hook{{Name: "long", Spare: true, Cost: "nothing is lost", Error: "old"}}})
	if want := "long is off (old): nothing is lost\n"; !strings.Contains(out.String(), want) {
		t.Errorf("status lacks %q:\n%s", want, &out)
	}
}

func TestCheckSaysWhatItCompared(t *testing.T) {
	for want, r := range map[string]query.Report{
		"no hour is summed up yet: there was nothing to compare":                       {RawRows: 3},
		"compared 1 hour of sums with 0 raw rows, and 0 days of sums with their hours": {Hours: 1},
		"compared 25 hours of sums with 1 raw row, and 1 day of sums with its hours":   {Hours: 25, RawRows: 1, Days: 1},
	} {
		if got := compared(r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestUnitQuotes(t *testing.T) {
	env := map[string]string{"PICOSNITCH_DIR": "/a b/100%"}
	text := unit("/opt/my $tools/picosnitch", daemon.Place{Owner: daemon.Account{UID: 1000}, Dir: "/a b/100%", RunDir: "/run"}, func(k string) string { return env[k] })
	for _, want := range []string{
		`ExecStart="/opt/my $$tools/picosnitch" start-no-daemon` + "\n",
		`Environment="PICOSNITCH_DIR=/a b/100%%"` + "\n",
		`ReadWritePaths="/a b/100%%" /run` + "\n",
		"Environment=SUDO_UID=1000\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("unit lacks %q:\n%s", want, text)
		}
	}
	if regexp.MustCompile("@[A-Z]+@").MatchString(text) {
		t.Errorf("a place is not filled in:\n%s", text)
	}
}

func TestOfferSystemctl(t *testing.T) {
	file := filepath.Join(t.TempDir(), "picosnitch.service")
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	var out bytes.Buffer
	env := Env{Stdin: stdin, Stderr: &out, Getenv: func(k string) string {
		return map[string]string{"PICOSNITCH_UNIT": file}[k]
	}}
	if done, err := offerSystemctl(env, "start"); done || err != nil || out.Len() > 0 {
		t.Errorf("without a unit: %v, %v, %s", done, err, &out)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if done, err := offerSystemctl(env, "start"); done || err != nil || !strings.Contains(out.String(), "systemctl start picosnitch") {
		t.Errorf("without a terminal: %v, %v, %s", done, err, &out)
	}
}

func TestLimited(t *testing.T) {
	var out bytes.Buffer
	l := &limited{to: &out, left: 10}
	for range 5 {
		if n, err := l.Write([]byte("1234")); n != 4 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := out.String(); !strings.HasPrefix(got, "12341234picosnitch: ") || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
}
