package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/picosnitch/picosnitch/internal/event"
)

const long = `picosnitch shows which program sent or received which bytes, to whom, and keeps
a log of it. It is a monitor, not a firewall: it never blocks and never delays.`

const after = `
Files, in ~/.config/picosnitch of the user who calls sudo (of the first user of
the machine, if root calls it without sudo):
  config.json  settings; made on the first run    snitch.db  the connection log
  record.json  every program seen so far          exe.log    its history
  conn.log     text log, if switched on           error.log  what was lost, what
                                                             went wrong

Environment:
  PICOSNITCH_DIR         the folder, instead of ~/.config/picosnitch
  PICOSNITCH_RUN_DIR     where pid file and live feed are, instead of /run
  PICOSNITCH_COUNTRY_DB  the database of countries, instead of what is installed
  PICOSNITCH_LIVE        1: live lines although the output is no terminal
  sudo keeps none of them: sudo PICOSNITCH_DIR=/a/folder picosnitch start

Exit codes:
  0  done                            4  the kernel lacks what picosnitch needs
  1  failed; the message says what   5  root is needed
  2  config or command line wrong    6  nothing can be recorded: the folder, or
  3  already running, not running       a right, is missing
                                     130  the second Ctrl-C: left at once
`

// helpWidth is how wide help is: it is read on terminals of 80 columns, too.
const helpWidth = 80

// usageTemplate is cobra's, with flags that fit, and what else there is to know behind the list of commands.
func usageTemplate(root *cobra.Command) string {
	t := strings.TrimRight(root.UsageTemplate(), "\n")
	t = strings.ReplaceAll(t, "Flags.FlagUsages |", fmt.Sprintf("Flags.FlagUsagesWrapped %d |", helpWidth))
	return t + "\n{{if not .HasParent}}" + after + "{{end}}"
}

// helpCommand is cobra's, but a command that does not exist is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "show how a command is used",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 || about.Hidden || about == root && len(args) > 0 {
				return unknown(root, args)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// later are the commands of the mission that are not there yet.
func later() []string { return []string{"view", "top", "dash"} }

// unknown says what may have been meant by a command that there is not.
func unknown(root *cobra.Command, args []string) error {
	name := strings.Join(args, " ")
	if slices.Contains(later(), args[0]) {
		return fmt.Errorf("%w: `picosnitch %s` is not built yet: see `picosnitch report --help` and `picosnitch export --help`", errUsage, args[0])
	}
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("%w: unknown command %q, did you mean `picosnitch %s`? See `picosnitch help`", errUsage, name, near[0])
	}
	return fmt.Errorf("%w: unknown command %q: see `picosnitch help`", errUsage, name)
}

// noArguments refuses arguments.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q is too much", args[0])
	}
	return nil
}

// oneFile wants one argument, a FILE.
func oneFile(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return errors.New("name " + what)
		case 1:
			return nil
		}
		return fmt.Errorf("%q is too much: name one FILE", args[1])
	}
}

func needRoot(env Env, c *cobra.Command) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("`picosnitch %s` %w: run: %s", c.Name(), errNotRoot, asRoot(env, env.args...))
	}
	return nil
}

// asRoot is the command line that runs picosnitch as root, for a shell.
func asRoot(env Env, args ...string) string {
	line := []string{}
	if os.Geteuid() != 0 {
		line = append(line, "sudo")
		for _, k := range []string{"PICOSNITCH_DIR", "PICOSNITCH_RUN_DIR", "PICOSNITCH_UNIT"} { // sudo(8) drops them
			if v := env.Getenv(k); v != "" {
				line = append(line, k+"="+shellWord(v))
			}
		}
	}
	line = append(line, shellWord(program()))
	for _, a := range args {
		line = append(line, shellWord(a))
	}
	return strings.Join(line, " ")
}

// program is what to call picosnitch by: its name where sudo's search path has it, else its full path.
func program() string {
	exe, err := os.Executable()
	if err != nil {
		return "picosnitch"
	}
	found, err := exec.LookPath("picosnitch")
	if err != nil || !slices.Contains([]string{"/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"}, filepath.Dir(found)) {
		return exe
	}
	a, err1 := os.Stat(found)
	b, err2 := os.Stat(exe)
	if err1 != nil || err2 != nil || !os.SameFile(a, b) {
		return exe
	}
	return "picosnitch"
}

// shellWord quotes a word for a shell, and what a terminal must not see for the reader.
func shellWord(s string) string {
	s = event.Text([]byte(s))
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=,@%", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
