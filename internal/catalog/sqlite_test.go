package catalog

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestSQLite(t *testing.T) {
	name := sqliteTest(t)
	c := openTest(t, "sqlite:"+name)
	var mode, level string
	if err := c.db.QueryRowContext(t.Context(), `PRAGMA journal_mode`).Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal mode %q, %v", mode, err)
	}
	if err := c.db.QueryRowContext(t.Context(), `PRAGMA synchronous`).Scan(&level); err != nil || level != "2" {
		t.Errorf("synchronous %q, %v", level, err)
	}
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", fi, err)
	}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), junk); err == nil || !strings.Contains(err.Error(), "move the file away") {
		t.Errorf("junk: %v", err)
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("a catalog was made in a folder that is not there")
	}
}

// A full disk is told as one, with where it is.
func TestFull(t *testing.T) {
	name := sqliteTest(t)
	c := openTest(t, name)
	if _, err := c.db.ExecContext(t.Context(), `PRAGMA max_page_count = 1`); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = c.PutJob(t.Context(), Job{ID: strconv.Itoa(i), Error: strings.Repeat("x", 4096)})
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space on the disk of "+name) {
		t.Error(err)
	}
}
