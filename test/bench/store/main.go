// Command store measures the database with a year of data: its size, how long questions and writes take, and what deletion costs
// writers. `make bench-store` runs it. It is no test: it compares with the limits of the mission and says so.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

func main() {
	rows := flag.Int("rows", 10_000_000, "raw rows")
	dir := flag.String("dir", "", "where the database is made, and kept; default: a temporary folder")
	flag.Parse()
	if err := run(context.Background(), *rows, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench-store:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rows int, dir string) error {
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "bench-store"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	path := filepath.Join(dir, "snitch.db")
	began := time.Now()
	s, err := store.OpenSQLite(ctx, path, time.Second, func(text, hint string) { fmt.Println("told:", text, hint) })
	if err != nil {
		return err
	}
	if _, err := os.Stat(path + ".done"); err != nil {
		if err := generate(ctx, s, newWorld(), rows); err != nil {
			return err
		}
		fmt.Printf("%d rows in %.0f s\n", rows, time.Since(began).Seconds())
		os.WriteFile(path+".done", nil, 0o600)
	}
	if err := s.Close(); err != nil {
		return err
	}
	return nil
}
