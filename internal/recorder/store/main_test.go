package store

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"testing"
)

// readEnv makes the test binary a reader of the database that it names: it prints the number of records.
const readEnv = "STORE_TEST_READ"

func TestMain(m *testing.M) {
	if path := os.Getenv(readEnv); path != "" {
		n, err := countRecords(path)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(n)
		return
	}
	os.Exit(m.Run())
}

// countRecords reads as the readers' wing does: read-only.
func countRecords(path string) (n int, err error) {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(2000)")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	if rows, err := db.Query("PRAGMA foreign_key_check"); err != nil {
		return 0, err
	} else if bad := rows.Next(); bad || rows.Close() != nil {
		return 0, errors.New("a row refers to one that does not exist")
	}
	err = db.QueryRow("SELECT count(*) FROM connections").Scan(&n)
	return n, err
}

func openPlain(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(2000)")
	if err != nil {
		t.Fatal(err)
	}
	return db
}
