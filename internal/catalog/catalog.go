// Package catalog keeps the agent's records in SQL: backups, jobs, exports,
// the checkpoints that the agent asked for, and settings.
//
// The catalog is a convenience, not the truth about backups: that is in the
// repository, and a lost catalog is filled again from it. What only the
// catalog knows are jobs, exports and the failure of backups that never were.
package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"syscall"
	"time"

	"modernc.org/sqlite" // the driver "sqlite", in pure Go
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrNotFound says that no record has the ID or name that was asked for.
var ErrNotFound = errors.New("there is no such record in the catalog")

// ErrNewer says that a newer Cairn made or upgraded the catalog.
var ErrNewer = errors.New("the catalog was written by a newer version of Cairn: install that version or a later one, or move the file away to have the backups read again from the repository")

// Catalog is an open catalog. Its methods may be called concurrently, each is
// one transaction, and a change is on stable storage when its method returns.
type Catalog struct {
	db   *sql.DB
	name string // of the file
}

// Open opens the catalog in the file name, makes it when it is not there, and
// upgrades an older one. A catalog of a newer version is refused with
// [ErrNewer] and not touched. One process at a time should have it open.
func Open(ctx context.Context, name string) (*Catalog, error) {
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
	if err := migrate(ctx, db); err != nil {
		if e, ok := errors.AsType[*sqlite.Error](err); ok && (e.Code()&0xff == sqlite3.SQLITE_NOTADB || e.Code()&0xff == sqlite3.SQLITE_CORRUPT) {
			err = fmt.Errorf("%w: it is damaged: move the file away to have the backups read again from the repository", err)
		}
		return nil, errors.Join(fmt.Errorf("open catalog %s: %w", name, err), db.Close())
	}
	return &Catalog{db: db, name: name}, nil
}

// Close closes the catalog.
func (c *Catalog) Close() error {
	if err := c.db.Close(); err != nil {
		return fmt.Errorf("close catalog: %w", err)
	}
	return nil
}

// Setting returns the value that was set for key, "" if none was.
func (c *Catalog) Setting(ctx context.Context, key string) (string, error) {
	var v string
	err := c.db.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = ?`, key).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read setting %s: %w", key, err)
	}
	return v, nil
}

// SetSetting sets the value of key.
func (c *Catalog) SetSetting(ctx context.Context, key, value string) error {
	return c.exec(ctx, "set setting "+key,
		`INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
}

// exec runs one statement; op names it in errors.
func (c *Catalog) exec(ctx context.Context, op, query string, args ...any) error {
	if _, err := c.db.ExecContext(ctx, query, args...); err != nil {
		return c.explain(op, err)
	}
	return nil
}

// explain makes an error of SQLite one of ours. A full disk is syscall.ENOSPC,
// as anywhere else.
func (c *Catalog) explain(op string, err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code()&0xff == sqlite3.SQLITE_FULL {
		return fmt.Errorf("%s: %w: free some space on the disk of %s", op, syscall.ENOSPC, c.name)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// one is exec for a statement that must change a record: [ErrNotFound] otherwise.
func (c *Catalog) one(ctx context.Context, op, query string, args ...any) error {
	res, err := c.db.ExecContext(ctx, query, args...)
	if err != nil {
		return c.explain(op, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if n == 0 {
		return fmt.Errorf("%s: %w", op, ErrNotFound)
	}
	return nil
}

// rows runs a query and calls scan for each row. The only connection is busy
// meanwhile, so scan must not use the catalog.
func (c *Catalog) rows(ctx context.Context, op string, scan func(*sql.Rows) error, query string, args ...any) (err error) {
	rows, err := c.db.QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() {
		if cerr := rows.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("%s: %w", op, cerr)
		}
	}()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// Times are stored as nanoseconds since 1970, 0 = none: exact, and in order.

func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
