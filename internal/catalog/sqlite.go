package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"syscall"

	"modernc.org/sqlite" // the driver "sqlite", in pure Go
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteDialect needs no locks of its own: a transaction has the only connection,
// and takes the file's write lock when it begins.
var sqliteDialect = &dialect{
	schema: strings.NewReplacer(" BOOLEAN", " INTEGER", " FALSE", " 0").Replace,
	query:  func(query string) string { return query },
	now:    `(CAST(unixepoch('subsec') * 1000 AS INTEGER) * 1000000)`,
	version: func(ctx context.Context, q conn) (v int, err error) {
		return v, q.row(ctx, []any{&v}, `PRAGMA user_version`)
	},
	setVersion: func(ctx context.Context, q conn, v int) error {
		_, err := q.exec(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, v))
		return err
	},
	begin:   func(context.Context, conn) error { return nil },
	alone:   func(context.Context, conn, string) error { return nil },
	notify:  func(context.Context, conn, string) error { return nil },
	again:   func(error) bool { return false },
	explain: explainSQLite,
}

func openSQLite(_ context.Context, name string) (*Catalog, error) {
	// The driver would make the file with the mode of the umask.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	if cerr := f.Close(); cerr != nil {
		return nil, fmt.Errorf("open catalog %s: %w", name, cerr)
	}
	q := url.Values{"_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)",
	}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: name, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", name, err)
	}
	// SQLite has one writer at a time. One connection makes the others wait
	// in Go, in order, instead of in SQLite's busy loop.
	db.SetMaxOpenConns(1)
	return &Catalog{db: db, d: sqliteDialect, name: name}, nil
}

// explainSQLite makes an error of SQLite one of ours. A full disk is
// syscall.ENOSPC, as anywhere else.
func explainSQLite(name string, err error) error {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: free some space on the disk of %s", syscall.ENOSPC, name)
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("%w: %s is damaged: move the file away to have the backups read again from the repository", err, name)
	default:
		return err
	}
}
