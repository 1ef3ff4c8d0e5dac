// Package remote measures the copy off the machine against a real PostgreSQL server that it starts: an outage of a million records, how
// fast it catches up over loopback, how large records are in the spool and on the server, what memory it takes, and how long questions to the server
// take; then sizes and rate on MariaDB. It prints one figure per line. The windows are those of a busy desktop: 300 programs, 5,000 names, 20,000 addresses.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/picosnitch/picosnitch/internal/reader/query"
	reader "github.com/picosnitch/picosnitch/internal/reader/remote"
	"github.com/picosnitch/picosnitch/internal/recorder/remote"
	"github.com/picosnitch/picosnitch/test/servers"
	"github.com/picosnitch/picosnitch/test/windows"
)

const (
	records   = 1_000_000
	perWindow = 2_000
	goal      = 50_000 // records per second
	memory    = 24 << 20
)

func main() {
	if err := errors.Join(run(), mariadb()); err != nil {
		fmt.Fprintln(os.Stderr, "bench remote:", err)
		os.Exit(1)
	}
}

func run() error {
	debug.SetMemoryLimit(memory) // as the recorder does
	debug.SetGCPercent(50)
	dir, err := os.MkdirTemp("", "benchremote")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := servers.StartPostgres("shared_buffers=128MB", "max_wal_size=4GB")
	if err != nil {
		return err
	}
	defer s.Remove()
	for _, q := range []string{"CREATE ROLE pico LOGIN PASSWORD 'pico'", "CREATE DATABASE pico OWNER pico"} {
		if _, err := s.SQL("", q); err != nil {
			return err
		}
	}
	s.Stop()
	o := remote.Settings{Client: "postgres", Dialect: remote.Postgres, Limit: 1 << 30, Params: map[string]string{
		"host": "127.0.0.1", "port": strconv.Itoa(s.Port), "user": "pico", "password": "pico", "database": "pico",
	}}
	r, err := remote.Open(o, remote.Options{Dir: filepath.Join(dir, "spool"), Zone: time.UTC, Linger: time.Second})
	if err != nil {
		return err
	}
	m := windows.New(windows.Shape{})
	before := resident()
	begin := time.Now()
	for n := range records / perWindow {
		if err := r.Write(context.Background(), m.Window(n+1, perWindow)); err != nil {
			return err
		}
	}
	spooled := time.Since(begin)
	st := r.Status()
	fmt.Printf("spool            %10.0f records/s\n", records/spooled.Seconds())
	fmt.Printf("spool            %10.1f bytes per record\n", float64(st.Bytes)/records)
	fmt.Printf("memory           %10.1f MB resident before, %.1f MB after an outage of %d records\n", mb(before), mb(resident()), records)
	if st.Dropped.Records > 0 || st.Waiting.Records != records {
		return fmt.Errorf("%+v", st)
	}
	if err := s.Start(); err != nil {
		return err
	}
	for r.Status().Delivered.Records == 0 {
		time.Sleep(time.Millisecond)
	}
	begin, first := time.Now(), r.Status().Delivered.Records
	ours, theirs := used(), s.CPU()
	most := int64(0)
	for r.Status().Frames > 0 {
		most = max(most, resident())
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(begin)
	rate := float64(records-first) / took.Seconds()
	ours, theirs = used()-ours, s.CPU()-theirs
	fmt.Printf("catch up         %10.0f records/s (goal %d)\n", rate, goal)
	fmt.Printf("catch up         %10.2f s, of which this process computed %.2f s and the server %.2f s (%d CPUs)\n", took.Seconds(), ours.Seconds(), theirs.Seconds(), runtime.NumCPU())
	fmt.Printf("memory           %10.1f MB resident at most while catching up\n", mb(most))
	if err := r.Close(); err != nil {
		return err
	}
	out, err := s.SQL("pico", "SELECT count(*), count(DISTINCT net_ns), pg_table_size('connections'), pg_indexes_size('connections'), pg_total_relation_size('connections_batches') FROM connections")
	if err != nil {
		return err
	}
	var count, distinct, table, index, batches int64
	if _, err := fmt.Sscan(strings.TrimSpace(out), &count, &distinct, &table, &index, &batches); err != nil {
		return err
	}
	fmt.Printf("server           %10.1f bytes per record in the table, %.1f in its index, %.1f in the table of batches\n", float64(table)/records, float64(index)/records, float64(batches)/records)
	if count != records || distinct != records/perWindow {
		return fmt.Errorf("the server has %d records of %d windows, want %d of %d", count, distinct, records, records/perWindow)
	}
	if err := ask(s); err != nil {
		return err
	}
	if rate < goal {
		return fmt.Errorf("%.0f records/s are less than %d", rate, goal)
	}
	return nil
}

// ask measures questions over all records, as `picosnitch report --from` asks them.
func ask(s *servers.Server) error {
	r, err := reader.Open(context.Background(), reader.Settings{Postgres: true, Params: map[string]string{
		"host": "127.0.0.1", "port": strconv.Itoa(s.Port), "user": "pico", "password": "pico", "database": "pico",
	}}, time.UTC, query.Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	for _, by := range []query.Dimension{query.Exe, query.Domain, query.Port, query.Place} {
		begin := time.Now()
		a, err := r.Totals(context.Background(), query.Question{By: by, Limit: 20})
		if err != nil {
			return err
		}
		fmt.Printf("ask              %10.2f s for the totals of %d records by %s: %d values\n", time.Since(begin).Seconds(), records, by, a.Values)
	}
	begin := time.Now()
	_, err = r.Timeline(context.Background(), query.Question{By: query.Exe, Limit: 20}, query.Hour, time.UTC)
	fmt.Printf("ask              %10.2f s for a time line by hours\n", time.Since(begin).Seconds())
	return err
}

// mariadb measures a smaller number of records.
func mariadb() error {
	const some = records / 5
	dir, err := os.MkdirTemp("", "benchremote")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := servers.StartMariaDB("--innodb-buffer-pool-size=128M")
	if err != nil {
		return err
	}
	defer s.Remove()
	if _, err := s.SQL("", "CREATE DATABASE pico; CREATE USER pico@'%' IDENTIFIED BY 'pico'; GRANT CREATE, INSERT, SELECT ON pico.* TO pico@'%'"); err != nil {
		return err
	}
	o := remote.Settings{Client: "mariadb", Dialect: remote.MySQL, Limit: 1 << 30, Params: map[string]string{
		"host": "127.0.0.1", "port": strconv.Itoa(s.Port), "user": "pico", "password": "pico", "database": "pico",
	}}
	r, err := remote.Open(o, remote.Options{Dir: filepath.Join(dir, "spool"), Zone: time.UTC, Linger: time.Second})
	if err != nil {
		return err
	}
	m := windows.New(windows.Shape{})
	begin := time.Now()
	for n := range some / perWindow {
		if err := r.Write(context.Background(), m.Window(n+1, perWindow)); err != nil {
			return err
		}
	}
	for r.Status().Frames > 0 {
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Printf("MariaDB          %10.0f records/s\n", some/time.Since(begin).Seconds())
	if err := r.Close(); err != nil {
		return err
	}
	out, err := s.SQL("pico", "SELECT (SELECT count(*) FROM connections), sum(data_length), sum(index_length) FROM information_schema.tables WHERE table_name = 'connections'")
	if err != nil {
		return err
	}
	var count, table, index int64
	if _, err := fmt.Sscan(strings.TrimSpace(out), &count, &table, &index); err != nil {
		return err
	}
	fmt.Printf("MariaDB          %10.1f bytes per record in the table, %.1f in its index\n", float64(table)/some, float64(index)/some)
	if count != some {
		return fmt.Errorf("MariaDB has %d records, want %d", count, some)
	}
	return nil
}

// used is the CPU time of this process.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func mb(n int64) float64 { return float64(n) / (1 << 20) }

// resident is the memory of this process, in bytes.
func resident() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}
