package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/daemon"
	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/reader/country"
	"github.com/picosnitch/picosnitch/internal/reader/query"
	"github.com/picosnitch/picosnitch/internal/reader/remote"
	"github.com/picosnitch/picosnitch/internal/reader/report"
)

// asked are the flags that questions share.
type asked struct {
	file         string
	from         string // a SQL server: its URL, or configured
	timeout      time.Duration
	since, until string
	where        []string
	utc          bool
	countryDB    string

	countries *country.Database // nil: not asked about
	path      string            // of the database that was opened; "": an SQL server
}

func (a *asked) flags(c *cobra.Command) {
	c.Flags().StringVar(&a.file, "file", "", "read the database `FILE` instead of snitch.db in picosnitch's folder")
	c.Flags().StringVar(&a.from, "from", "", "ask the SQL server at `URL` instead: postgres://USER@HOST/DATABASE?table=NAME, mysql://…, or config: \"DB sql server\" of config.json (the password: PGPASSWORD, ~/.pgpass, MYSQL_PWD)")
	c.Flags().DurationVar(&a.timeout, "timeout", remote.DefaultTimeout, "with --from: `TIME` that the server may work on a question")
	c.Flags().StringVar(&a.since, "since", "", "from this `TIME`: 2026-01-31, \"2026-01-31 15:04\", today, yesterday, or how long ago: 24h, 7d (default: everything)")
	c.Flags().StringVar(&a.until, "until", "", "up to this `TIME`; the day of a date alone is included")
	c.Flags().StringArrayVar(&a.where, "where", nil, "only what the `FILTER` says: exe=/usr/bin/curl, port!=443, \"domain~example\", name=a|b; may be given again, then all must hold")
	c.Flags().BoolVar(&a.utc, "utc", false, "times and days of UTC instead of the local ones")
	c.Flags().StringVar(&a.countryDB, "country-db", "", "find countries in this `FILE` (default: PICOSNITCH_COUNTRY_DB, else what is installed)")
}

func (a *asked) read() (r query.Range, where []query.Filter, zone *time.Location, err error) {
	zone = time.Local
	if a.utc {
		zone = time.UTC
	}
	now := time.Now().In(zone)
	if a.since != "" {
		t, err := report.ParseTime(a.since, now, false)
		if err != nil {
			return r, nil, nil, fmt.Errorf("%w: --since: %w", errUsage, err)
		}
		r.Since = t.Unix()
	}
	if a.until != "" {
		t, err := report.ParseTime(a.until, now, true)
		if err != nil {
			return r, nil, nil, fmt.Errorf("%w: --until: %w", errUsage, err)
		}
		r.Until = t.Unix()
		if r.Until <= r.Since {
			return r, nil, nil, fmt.Errorf("%w: --until %q is not after --since %q", errUsage, a.until, a.since)
		}
	}
	for _, s := range a.where {
		f, err := query.ParseFilter(s)
		if err != nil {
			return r, nil, nil, fmt.Errorf("%w: --where: %w", errUsage, err)
		}
		if err := userNumbers(&f); err != nil {
			return r, nil, nil, fmt.Errorf("%w: --where %q: %w", errUsage, s, err)
		}
		where = append(where, f)
	}
	return r, where, zone, nil
}

// open opens what the questions go to. The countries of addresses are looked up only for a question that is about them.
func (a *asked) open(ctx context.Context, env Env, by query.Dimension, where []query.Filter) (_ query.Source, err error) {
	var o query.Options
	if by == query.Country || slices.ContainsFunc(where, func(f query.Filter) bool { return f.By == query.Country }) {
		file := a.countryDB
		if file == "" {
			file = env.Getenv("PICOSNITCH_COUNTRY_DB")
		}
		if a.countries, err = country.Open(file, "/"); err != nil {
			return nil, err
		}
		o.Country = a.countries.Of
	}
	if a.from != "" {
		return a.openServer(ctx, env, o)
	}
	return a.openLocal(ctx, env, o)
}

func (a *asked) openLocal(ctx context.Context, env Env, o query.Options) (*query.Local, error) {
	path := a.file
	if path == "" {
		place, err := daemon.FindPlace(env.Getenv)
		if err != nil {
			return nil, err
		}
		path = filepath.Join(place.Dir, "snitch.db")
	}
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file: name the database itself", event.Text([]byte(path)))
	} else if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: has picosnitch run, and as which user? --file or PICOSNITCH_DIR names another place", event.Text([]byte(path)))
	}
	a.path = path
	l, err := query.OpenLocal(ctx, path, o)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: it is readable by root and by the group of the user whose folder it is in", err)
	}
	return l, a.explain(err)
}

// explain says of an answer's error what to do.
func (a *asked) explain(err error) error {
	switch {
	case errors.Is(err, query.ErrQuestion):
		return fmt.Errorf("%w: %w", errUsage, err)
	case query.Damaged(err):
		return a.damaged(fmt.Sprint(": ", err))
	}
	return err
}

// damaged says what to do with a database that is.
func (a *asked) damaged(why string) error {
	path := event.Text([]byte(a.path))
	return fmt.Errorf("%s is damaged%s: stop picosnitch and move it away, a new one is made; `sqlite3 %s .recover` may save what is in it", path, why, shellWord(a.path))
}

// openServer connects to what --from says.
func (a *asked) openServer(ctx context.Context, env Env, o query.Options) (query.Source, error) {
	if a.file != "" {
		return nil, fmt.Errorf("%w: --file and --from are two places: use one of them", errUsage)
	}
	if a.timeout <= 0 {
		return nil, fmt.Errorf("%w: --timeout %v: use a time above zero: 30s, 10m", errUsage, a.timeout)
	}
	var s config.Server
	passFile := ""
	if a.from == "config" {
		c, path, err := daemon.ReadConfig(env.Getenv)
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("%w: it is root's, because it holds passwords: run it as root, or give --from a URL", err)
		}
		if err != nil {
			return nil, err
		}
		if s = c.SQLServer; s.Client == "" {
			return nil, fmt.Errorf("%w: --from config: %q is not set in %s", errUsage, config.KeySQLServer, path)
		}
	} else {
		var err error
		if s, err = config.ServerURL(a.from); err != nil {
			return nil, fmt.Errorf("%w: --from: %w", errUsage, err)
		}
		if passFile = env.Getenv("PGPASSFILE"); passFile == "" {
			passFile = filepath.Join(env.Getenv("HOME"), ".pgpass")
		}
	}
	r := remote.Settings{Postgres: s.Dialect == config.DialectPostgres, Native: s.Client != "pymysql", Table: s.Table, Params: make(map[string]string), PassFile: passFile, Timeout: a.timeout}
	for k, v := range s.Params {
		r.Params[k] = v.Reveal()
	}
	if r.Password = env.Getenv("MYSQL_PWD"); r.Postgres {
		r.Password = env.Getenv("PGPASSWORD")
	}
	return remote.Open(ctx, r, time.Local, o)
}

// unsure is an error if countries could not be looked up: the answer has them as unknown.
func (a *asked) unsure() error {
	if a.countries == nil {
		return nil
	}
	return errors.Join(a.countries.Err(), a.countries.Close())
}

func reportCommand(env Env) *cobra.Command {
	var a asked
	var by, period, format, order string
	var limit int
	var exact bool
	c := &cobra.Command{
		Use:   "report",
		Short: "show who moved how much: by program, user, port, domain, …",
		Long: `Show who moved how much, by one of:
exe, sha256, name, cmdline, script, parent, place (or unit, container), user (or
uid), family, protocol, direction, port, domain, ip (or address), country, host.
Domains begin with the greatest part: com.example.www. With --period, for each
day, week or month of the local calendar. It needs no root and no running
picosnitch.`,
		Example: `  picosnitch report --since today
  picosnitch report --by domain --where exe=/usr/bin/curl --since 7d
  picosnitch report --by user --period month --format csv
  picosnitch report --by host --from postgres://reader@db.example.com/fleet`,
		RunE: func(c *cobra.Command, _ []string) error {
			r, where, zone, err := a.read()
			if err != nil {
				return err
			}
			q := query.Question{Where: where, Range: r, Limit: limit}
			if by != "all" {
				if q.By, err = query.ParseDimension(by); err != nil {
					return fmt.Errorf("%w: --by: %w", errUsage, err)
				}
			}
			orders := map[string]query.Order{"bytes": query.ByBytes, "sent": query.BySent, "received": query.ByReceived, "conns": query.ByConns}
			var ok bool
			if q.Order, ok = orders[order]; !ok {
				return fmt.Errorf("%w: --order %q is none of bytes sent received conns", errUsage, order)
			}
			f, err := report.ParseFormat(format, report.Table, report.CSV, report.JSON)
			if err != nil {
				return fmt.Errorf("%w: --format: %w", errUsage, err)
			}
			steps := map[string]query.Step{"minute": query.Minute, "hour": query.Hour, "day": query.Day, "week": query.Week, "month": query.Month}
			step, ok := steps[period]
			if !ok && period != "" {
				return fmt.Errorf("%w: --period %q is none of minute hour day week month", errUsage, period)
			}
			if limit < 1 || limit > query.MaxRows {
				return fmt.Errorf("%w: --limit is %d: use 1 to %d", errUsage, limit, query.MaxRows)
			}
			ctx := c.Context()
			l, err := a.open(ctx, env, q.By, where)
			if err != nil {
				return err
			}
			defer l.Close()
			x := report.Context{By: q.By, Range: r, Zone: zone, Exact: exact, Width: width(env.Stdout)}
			if a.from == "" { // a number of another host is another user
				x.Label = userLabel()
			}
			if x.Lost, err = l.Lost(ctx, r); err != nil {
				return a.explain(err)
			}
			w := bufio.NewWriter(env.Stdout)
			if period == "" {
				answer, err := l.Totals(ctx, q)
				if err != nil {
					return a.explain(err)
				}
				if err = report.Totals(w, f, x, answer); err == nil {
					err = w.Flush()
				}
				return errors.Join(err, a.unsure())
			}
			line, err := l.Timeline(ctx, q, step, zone)
			if err != nil {
				return a.explain(err)
			}
			if err = report.Timeline(w, f, x, step, line); err == nil {
				err = w.Flush()
			}
			return errors.Join(err, a.unsure())
		},
	}
	a.flags(c)
	c.Flags().StringVar(&by, "by", "exe", "sum up by `WHAT`, or all")
	c.Flags().StringVar(&period, "period", "", "for each `STEP`: day, week, month, hour or minute")
	c.Flags().StringVar(&format, "format", "table", "write as `FORMAT`: table, csv or json")
	c.Flags().StringVar(&order, "order", "bytes", "greatest first by `WHAT`: bytes, sent, received or conns")
	c.Flags().IntVar(&limit, "limit", 20, "show this many `ROWS`; the others are added up")
	c.Flags().BoolVar(&exact, "exact", false, "whole numbers of bytes in the table, too")
	return c
}

// userNumbers turns names of users into their numbers, which are what the log has.
func userNumbers(f *query.Filter) error {
	if f.By != query.User || f.Match == query.Contains {
		return nil
	}
	for i, v := range f.Values {
		if _, err := strconv.ParseUint(v, 10, 32); err == nil {
			continue
		}
		u, err := user.Lookup(v)
		if err != nil {
			return fmt.Errorf("there is no user %q here: use the number (uid)", v)
		}
		f.Values[i] = u.Uid
	}
	return nil
}

// width is that of the terminal that a table goes to, in columns; 0: it goes elsewhere.
func width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// userLabel shows a user's name beside the number.
func userLabel() func(query.Dimension, string) string {
	return func(by query.Dimension, value string) string {
		if by == query.User {
			if u, err := user.LookupId(value); err == nil {
				return value + " (" + u.Username + ")"
			}
		}
		return value
	}
}

func exportCommand(env Env) *cobra.Command {
	var a asked
	var format, output string
	c := &cobra.Command{
		Use:   "export",
		Short: "write single rows of the connection log as CSV or JSON lines",
		Long: `Write the rows of the connection log, one a line, as CSV or JSON. The first 16
fields of CSV are those of conn.log. A text that a spreadsheet would take for a
formula begins with an apostrophe there. It needs no root and no running
picosnitch.`,
		RunE: func(c *cobra.Command, _ []string) error {
			r, where, zone, err := a.read()
			if err != nil {
				return err
			}
			f, err := report.ParseFormat(format, report.CSV, report.JSON)
			if err != nil {
				return fmt.Errorf("%w: --format: %w", errUsage, err)
			}
			ctx := c.Context()
			l, err := a.open(ctx, env, query.None, where)
			if err != nil {
				return err
			}
			defer l.Close()
			to := env.Stdout
			if output != "" && output != "-" {
				file, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if errors.Is(err, os.ErrExist) {
					return fmt.Errorf("%s exists already: export writes over nothing", output)
				}
				if err != nil {
					return err
				}
				defer file.Close()
				to = file
			}
			progress := newProgress(env, to)
			w := bufio.NewWriterSize(to, 1<<16)
			out := report.NewRecords(w, f, zone)
			n := 0
			err = l.Records(ctx, where, r, func(x *query.Record, done float64) error {
				n++
				progress.show(done, n)
				return out.Write(x)
			})
			for _, end := range []func() error{out.Close, w.Flush} { // both, but the same error once
				if e := end(); err == nil {
					err = e
				}
			}
			err = errors.Join(err, a.unsure())
			progress.end(n)
			if err == nil && to != env.Stdout {
				err = to.(*os.File).Close()
			}
			return a.explain(err)
		},
	}
	a.flags(c)
	c.Flags().StringVar(&format, "format", "csv", "write as `FORMAT`: csv or json (one object a line)")
	c.Flags().StringVarP(&output, "output", "o", "", "write to this `FILE`, which must not exist yet, instead of standard output")
	return c
}

// progress is a line on a terminal that says how far a long work is. It is silent where nobody could see it, or where it
// would be among the output.
type progress struct {
	to   io.Writer // nil: silent
	last time.Time
}

func newProgress(env Env, output io.Writer) *progress {
	if !isTerminal(env.Stderr) || isTerminal(output) {
		return &progress{}
	}
	return &progress{to: env.Stderr, last: time.Now()}
}

func (p *progress) show(done float64, rows int) {
	if p.to == nil || rows%1024 != 0 || time.Since(p.last) < 200*time.Millisecond {
		return
	}
	p.last = time.Now()
	fmt.Fprintf(p.to, "\r%3.0f %%, %d rows\x1b[K", done*100, rows)
}

func (p *progress) end(rows int) {
	if p.to != nil {
		fmt.Fprintf(p.to, "\r%d rows\x1b[K\n", rows)
	}
}

func dbCommand(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "db",
		Short: "examine the database",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q of `picosnitch db`", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(env.Stderr)
			c.Help()
			return &codeError{ExitUsage, errQuiet}
		},
	}
	var a asked
	check := &cobra.Command{
		Use:   "check",
		Short: "check that the file is whole, and that all sums are right",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			l, err := a.openLocal(ctx, env, query.Options{})
			if err != nil {
				return err
			}
			defer l.Close()
			show := func(string, float64) {}
			if isTerminal(env.Stderr) {
				show = func(what string, done float64) { fmt.Fprintf(env.Stderr, "\r%s: %3.0f %%\x1b[K", what, done*100) }
				defer fmt.Fprint(env.Stderr, "\r\x1b[K")
			}
			r, err := l.Check(ctx, show)
			if err != nil {
				return a.explain(err)
			}
			if isTerminal(env.Stderr) {
				fmt.Fprint(env.Stderr, "\r\x1b[K")
			}
			for _, p := range r.Problems {
				fmt.Fprintln(env.Stdout, p)
			}
			fmt.Fprintln(env.Stdout, compared(r))
			if len(r.Problems) > 0 {
				return a.damaged("")
			}
			fmt.Fprintln(env.Stdout, "ok")
			return nil
		},
	}
	check.Flags().StringVar(&a.file, "file", "", "read the database `FILE` instead of snitch.db in picosnitch's folder")
	c.AddCommand(check)
	return c
}

// compared says what a check did.
func compared(r query.Report) string {
	many := func(n int64, what string) string {
		if n == 1 {
			return "1 " + what
		}
		return fmt.Sprintf("%d %ss", n, what)
	}
	if r.Hours+r.Days == 0 {
		return "no hour is summed up yet: there was nothing to compare"
	}
	their := "their"
	if r.Days == 1 {
		their = "its"
	}
	return fmt.Sprintf("compared %s of sums with %s, and %s of sums with %s hours", many(r.Hours, "hour"), many(r.RawRows, "raw row"), many(r.Days, "day"), their)
}
