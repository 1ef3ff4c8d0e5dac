// Package query answers typed questions about what was recorded: totals by any dimension with filters, time lines, first and last
// seen, search, single records. It belongs to everybody's wing: all user interfaces ask it, nothing in it writes, and no SQL text
// is outside of it, reader/remote, schema, recorder/store and recorder/remote. It needs no root and no running recorder. It does not print (reader/report does).
//
// An answer's size is bounded whatever the range: a question says how many rows it wants, and gets the sum of the others.
package query

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/reader/country"
	"github.com/picosnitch/picosnitch/internal/schema/rollup"
)

// Sum is what was moved: connections that were opened, bytes sent, bytes received.
type Sum = rollup.Sum

// Dimension is something that totals can be grouped and filtered by.
type Dimension string

// Dimensions.
const (
	Exe       Dimension = "exe"       // path of the executable
	SHA256    Dimension = "sha256"    // of the executable
	Name      Dimension = "name"      // of the process
	Cmdline   Dimension = "cmdline"   // command line
	Script    Dimension = "script"    // what the executable ran as its interpreter
	Parent    Dimension = "parent"    // path of the parent's executable
	Place     Dimension = "place"     // unit or container
	User      Dimension = "user"      // uid
	Family    Dimension = "family"    // inet, inet6, packet, …
	Protocol  Dimension = "protocol"  // tcp, udp, …
	Direction Dimension = "direction" // out, in, or empty
	Port      Dimension = "port"      // of the service: see rollup.ServicePort
	Domain    Dimension = "domain"    // in reverse notation
	Address   Dimension = "ip"        // remote address
	Country   Dimension = "country"   // of the remote address: two letters, or a label of package country
	Host      Dimension = "host"      // which host sent the row; only an SQL server has more than one
	None      Dimension = ""          // no grouping: one row with everything
)

// Dimensions are all that a question can name.
func Dimensions() []Dimension {
	return []Dimension{Exe, SHA256, Name, Cmdline, Script, Parent, Place, User, Family, Protocol, Direction, Port, Domain, Address, Country, Host}
}

// ParseDimension reads a dimension as a user writes it.
func ParseDimension(s string) (Dimension, error) {
	d := Dimension(strings.ToLower(s))
	switch d {
	case "unit", "container":
		d = Place
	case "address", "remote":
		d = Address
	case "uid":
		d = User
	case "executable":
		d = Exe
	case "process":
		d = Name
	}
	if !slices.Contains(Dimensions(), d) {
		return "", questionError(fmt.Sprintf("%q is none of %s", s, DimensionList()))
	}
	return d, nil
}

// DimensionList are all dimensions, in words for the user, with their other names.
func DimensionList() string {
	names := make([]string, 0, len(Dimensions()))
	for _, d := range Dimensions() {
		name := string(d)
		switch d {
		case Place:
			name += " (or unit, container)"
		case Address:
			name += " (or address)"
		case User:
			name += " (or uid)"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// ErrQuestion is returned for a question that makes no sense; the text says why.
var ErrQuestion = errors.New("the question cannot be answered")

// questionError is an ErrQuestion whose text is enough.
type questionError string

func (e questionError) Error() string { return string(e) }

func (questionError) Is(target error) bool { return target == ErrQuestion }

// Match is how a filter compares.
type Match int

// Ways to compare. Contains does not distinguish between upper and lower case letters of ASCII.
const (
	Equal Match = iota
	NotEqual
	Contains
)

// Filter keeps what has one of the values in a dimension. Filters of a question must all hold.
type Filter struct {
	By     Dimension
	Match  Match
	Values []string
}

// ParseFilter reads "exe=/usr/bin/curl", "port!=443" or "domain~example". Several values are separate filters, or one with "|" between
// them where none of them has that character in it.
func ParseFilter(s string) (Filter, error) {
	i := strings.IndexAny(s, "=!~")
	if i < 0 {
		return Filter{}, questionError(fmt.Sprintf("the filter %q has none of = != ~ in it: use for example exe=/usr/bin/curl, port!=443, domain~example", s))
	}
	by, err := ParseDimension(strings.TrimSpace(s[:i]))
	if err != nil {
		return Filter{}, err
	}
	f := Filter{By: by}
	rest := s[i:]
	switch {
	case strings.HasPrefix(rest, "!="):
		f.Match, rest = NotEqual, rest[2:]
	case rest[0] == '=':
		rest = rest[1:]
	case rest[0] == '~':
		f.Match, rest = Contains, rest[1:]
	default:
		return Filter{}, questionError(fmt.Sprintf("the filter %q has none of = != ~ in it: use for example exe=/usr/bin/curl, port!=443, domain~example", s))
	}
	f.Values = strings.Split(rest, "|")
	if f.By == Country && f.Match != Contains {
		for i, v := range f.Values {
			if f.Values[i], err = country.Normal(v); err != nil {
				return Filter{}, questionError(fmt.Sprintf("the filter %q: %v", s, err))
			}
		}
	}
	if f.By == Address && f.Match != Contains {
		for i, v := range f.Values {
			if f.Values[i], err = address(v); err != nil {
				return Filter{}, questionError(fmt.Sprintf("the filter %q: %v", s, err))
			}
		}
	}
	return f, nil
}

// address is an address as it is in the log. Empty is what has none.
func address(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return "", fmt.Errorf("%q is no address: use for example 192.0.2.1 or 2001:db8::1, or ip~192.0.2. for those that have that in them", s)
	}
	return a.String(), nil
}

// Check reports a filter that makes no sense.
func (f *Filter) Check() error {
	if f.By != Port {
		return nil
	}
	if f.Match == Contains {
		return fmt.Errorf("%w: a port is a whole number: use port= or port!=", ErrQuestion)
	}
	for _, v := range f.Values {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return fmt.Errorf("%w: the port %q is no whole number", ErrQuestion, v)
		}
		if n < -1 || n > 65535 {
			return fmt.Errorf("%w: there is no port %s: use 0 to 65535, or -1 for programs that were executed", ErrQuestion, v)
		}
	}
	return nil
}

// Matches compares a text; it is for what is not compared as a number or by an index.
func (f *Filter) Matches(text string) bool {
	for _, v := range f.Values {
		if f.Match == Contains {
			if strings.Contains(strings.ToLower(text), strings.ToLower(v)) {
				return true
			}
		} else if text == v || (f.By == Domain && v != "" && text == Reverse(v)) {
			return f.Match == Equal
		}
	}
	return f.Match == NotEqual
}

// Reverse turns www.example.com into com.example.www, and back.
func Reverse(name string) string {
	parts := strings.Split(name, ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".")
}

// Range is a range of time: what was moved from Since (unix seconds, inclusive) to Until (exclusive). A record belongs to
// the last second of its window. The zero value is everything.
type Range struct {
	Since, Until int64 // Until 0: no end
}

// End is the end of the range, also when there is none.
func (r Range) End() int64 {
	if r.Until == 0 {
		return 1 << 60
	}
	return r.Until
}

// Order of rows.
type Order int

// Orders; all are descending.
const (
	ByBytes Order = iota // sent and received
	BySent
	ByReceived
	ByConns
)

// Of is what rows are ordered by.
func (o Order) Of(s Sum) uint64 {
	switch o {
	case BySent:
		return s.Sent
	case ByReceived:
		return s.Received
	case ByConns:
		return s.Conns
	}
	return s.Sent + s.Received
}

// Question asks for totals.
type Question struct {
	By    Dimension
	Where []Filter
	Range Range
	Order Order
	Limit int // rows; 0: MaxRows
}

// MaxRows bounds the rows of an answer.
const MaxRows = 10_000

// Row is the total of one value of a dimension. Value is "" where it is not known.
type Row struct {
	Value string
	Sum   Sum
}

// Answer is what a question gets.
type Answer struct {
	Rows   []Row
	Values int // how many values there are
	Others Sum // of the values that are not among Rows
	Total  Sum // of everything that passes the filters
	// Rounded is true when the range begins or ends within an hour of which only the sum is kept any more: that hour is counted
	// as a whole or not at all.
	Rounded bool
}

// Step is the length of the intervals of a time line.
type Step int

// Steps. Days, weeks (from Monday) and months are those of the zone; hours are of UTC.
const (
	Minute Step = iota
	Hour
	Day
	Week
	Month
)

// Series is one value's line.
type Series struct {
	Value string
	Sums  []Sum // by interval
}

// Timeline is how totals came about.
type Timeline struct {
	Starts  []int64 // of the intervals, unix seconds
	End     int64   // of the last one
	Series  []Series
	Others  []Sum // of the values that have no series
	Rounded bool  // as in Answer
	Undated Sum   // of rows whose time cannot be read: the table is another program's too
}

// MaxIntervals bounds the intervals of a time line.
const MaxIntervals = 5000

// Seen is when a value was met.
type Seen struct {
	First, Last int64 // unix seconds; 0: never
	Rounded     bool  // to the hour: the raw rows are gone
}

// Found is a value that holds the text that was searched for.
type Found struct {
	By    Dimension
	Value string
}

// Record is one raw row, with everything that is known of it. What is not known is "" or 0.
type Record struct {
	Start        int64  `json:"start"` // of its window, unix seconds
	End          int64  `json:"end"`
	Host         string `json:"host"`
	Exe          string `json:"exe"`
	Name         string `json:"name"`
	Cmdline      string `json:"cmdline"`
	SHA256       string `json:"sha256"`
	Script       string `json:"script"`
	ParentExe    string `json:"parent_exe"`
	ParentName   string `json:"parent_name"`
	ParentCmd    string `json:"parent_cmdline"`
	ParentSHA256 string `json:"parent_sha256"`
	Place        string `json:"place"`
	UID          int64  `json:"uid"`
	Family       string `json:"family"`
	Protocol     string `json:"protocol"`
	Direction    string `json:"direction"`
	LocalIP      string `json:"local_ip"`
	LocalPort    int64  `json:"local_port"`
	Domain       string `json:"domain"` // in reverse notation
	RemoteIP     string `json:"ip"`
	RemotePort   int64  `json:"port"`
	Conns        uint64 `json:"conns"`
	Sent         uint64 `json:"sent"` // bytes
	Received     uint64 `json:"received"`
}

// Lost is what could not be seen, kept or attributed.
type Lost struct {
	Reasons  map[string]uint64 // counts by event.Loss.Key
	Sent     uint64            // bytes that no record holds
	Received uint64
}

// Source is where the answers come from: the local file, or a SQL server.
type Source interface {
	// Totals sums up by a dimension.
	Totals(ctx context.Context, q Question) (Answer, error)
	// Timeline sums up by a dimension and by intervals.
	Timeline(ctx context.Context, q Question, step Step, zone *time.Location) (Timeline, error)
	// Seen says when what passes the filters was first and last seen.
	Seen(ctx context.Context, where []Filter) (Seen, error)
	// Lost says what could not be seen, kept or attributed.
	Lost(ctx context.Context, r Range) (Lost, error)
	// Search finds values that contain a text, at most limit of each dimension.
	Search(ctx context.Context, text string, limit int) ([]Found, error)
	// Records calls a function for raw rows, oldest first by hour. The record is only good until the function returns. done is how
	// much of the range is read, from 0 to 1.
	Records(ctx context.Context, where []Filter, r Range, each func(r *Record, done float64) error) error
	Close() error
}

// Options of a source.
type Options struct {
	// Country says where an address is (country.Database.Of); nil: questions by country are an error.
	Country func(netip.Addr) string
}

// CountryOf says where an address is that is a text; "" if that is not known.
func (o *Options) CountryOf(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || o.Country == nil {
		return ""
	}
	return o.Country(a)
}
