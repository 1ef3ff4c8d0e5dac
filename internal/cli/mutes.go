package cli

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/picosnitch/picosnitch/internal/daemon"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder"
)

func mutesCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "mutes",
		Short: "list what was muted on the desktop with a notice's button",
		RunE: func(*cobra.Command, []string) error {
			all, err := daemon.Mutes(env.Getenv)
			if err != nil {
				return err
			}
			if len(all) == 0 {
				fmt.Fprintln(env.Stdout, "nothing is muted")
			}
			for i, m := range all {
				fmt.Fprintf(env.Stdout, "%d  %s\n", i+1, muteLine(m))
			}
			return nil
		},
	}
}

func muteLine(m recorder.Mute) string {
	return event.Text(fmt.Appendf(nil, "%s  uid %d  %q  %s", time.Unix(0, m.At).Format(time.DateTime), m.UID, m.Title, m.Path))
}

func unmuteCommand(env Env) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "unmute NUMBER",
		Short: "show again what was muted: a NUMBER of `picosnitch mutes`",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(env, c); err != nil {
				return err
			}
			number := 0
			if all == (len(args) == 1) {
				return fmt.Errorf("%w: name one NUMBER of `picosnitch mutes`, or use --all", errUsage)
			}
			if !all {
				var err error
				if number, err = strconv.Atoi(args[0]); err != nil || number < 1 {
					return fmt.Errorf("%w: %q is no number of `picosnitch mutes`", errUsage, args[0])
				}
			}
			gone, err := daemon.Unmute(env.Getenv, func(n int, _ recorder.Mute) bool { return !all && n != number })
			if err != nil {
				return err
			}
			if len(gone) == 0 && !all {
				return &codeError{ExitUsage, errors.New("there is no such number: see `picosnitch mutes`")}
			}
			for _, m := range gone {
				fmt.Fprintf(env.Stdout, "shown again: %s\n", muteLine(m))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "show everything again")
	return c
}
