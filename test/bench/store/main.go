// Command store measures the database with a year of data: its size, how long questions and writes take, and what deletion costs
// writers. `make bench-store` runs it. It compares with the limits of the mission, and ends with 1 when one of them is not kept.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/store"
)

func main() {
	rows := flag.Int("rows", 10_000_000, "raw rows")
	dir := flag.String("dir", "", "where the database is made and kept for the next time; default: a temporary folder")
	only := flag.String("only", "size,ask,product,write", "what is measured: a part of this list")
	flag.Parse()
	if err := run(context.Background(), *rows, *dir, strings.Split(*only, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench-store:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rows int, dir string, only []string) error {
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "bench-store"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, "snitch.db")
	if _, err := os.Stat(path + ".done"); err != nil {
		began := time.Now()
		s, err := open(ctx, path)
		if err != nil {
			return err
		}
		if err := errors.Join(generate(ctx, s, newWorld(), rows), s.Close()); err != nil {
			return err
		}
		fmt.Printf("%d rows written in %.0f s\n", rows, time.Since(began).Seconds())
		if err := os.WriteFile(path+".done", nil, 0o600); err != nil {
			return err
		}
	}
	failed := 0
	for _, part := range []struct {
		name string
		run  func() (int, error)
	}{
		{"size", func() (int, error) { return sizes(ctx, path, rows) }},
		{"ask", func() (int, error) { return askAll(ctx, path) }},
		{"product", func() (int, error) { return askProduct(ctx, path) }},
		{"write", func() (int, error) {
			// On a copy, so that the data is the same the next time.
			scratch := filepath.Join(dir, "scratch.db")
			defer removeAll(scratch)
			if err := copyFile(path, scratch); err != nil {
				return 0, err
			}
			return writes(ctx, scratch)
		}},
	} {
		if !slices.Contains(only, part.name) {
			continue
		}
		n, err := part.run()
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		failed += n
	}
	if failed > 0 {
		return fmt.Errorf("%d limits are not kept: see the marks in the lines above", failed)
	}
	fmt.Println("\nall limits are kept")
	return nil
}

func open(ctx context.Context, path string) (*store.SQLite, error) {
	return store.OpenSQLite(ctx, path, time.Second, func(text, hint string) { fmt.Println("told:", text, hint) })
}

func removeAll(path string) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(path + suffix)
	}
}

func copyFile(from, to string) error {
	removeAll(to)
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// sizes prints where the bytes go.
func sizes(ctx context.Context, path string, rows int) (failed int, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	found, err := db.QueryContext(ctx, "SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC")
	if err != nil {
		return 0, err
	}
	defer found.Close()
	var all, sums int64
	fmt.Println("\nbytes a raw row")
	for found.Next() {
		var name string
		var n int64
		if err := found.Scan(&name, &n); err != nil {
			return 0, err
		}
		all += n
		switch name {
		case "segments", "segments_bucket", "segment_actors", "segment_peers":
			sums += n
		}
		if n*1000 > all {
			fmt.Printf("  %-30s %6.2f\n", name, float64(n)/float64(rows))
		}
	}
	mark := ""
	if float64(all)/float64(rows) > 60 {
		mark, failed = "!", 1
	}
	fmt.Printf("  raw rows with all texts and indexes %.1f, their sums by hour and day %.1f, the file %.1f%s (limit 60)\n", float64(all-sums)/float64(rows), float64(sums)/float64(rows), float64(all)/float64(rows), mark)
	return failed, found.Err()
}
