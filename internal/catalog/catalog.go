// Package catalog keeps the agent's records in SQL: backups, jobs, exports,
// the checkpoints that the agent asked for, settings, quotas, and the hosts
// that share it. The database is SQLite, for one agent, or PostgreSQL, for
// several: SCHEMA.md says what is in it.
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
	"time"
)

// ErrNotFound says that no record has the ID or name that was asked for.
var ErrNotFound = errors.New("there is no such record in the catalog")

// ErrNewer says that a newer Cairn made or upgraded the catalog.
var ErrNewer = errors.New("the catalog was written by a newer version of Cairn: install that version or a later one, or move the file away (of PostgreSQL: give an empty database) to have the backups read again from the repository")

// ErrUnavailable says that the database did not answer. Whether a change was
// made is not known then. The next call tries to reach it again.
var ErrUnavailable = errors.New("the database of the catalog does not answer")

// ErrText says that a text cannot be recorded.
var ErrText = errors.New("it has a zero byte or is not UTF-8: leave such characters out")

// Catalog is an open catalog, as one host sees it. Its methods may be called
// concurrently, each is one transaction, and a change is on stable storage
// when its method returns.
type Catalog struct {
	db   *sql.DB
	d    *dialect
	name string // of the file or the database, without secrets
	host string // whose records are meant where each host has its own
}

// Open opens the catalog that where says: a file name or sqlite:FILE, or
// postgres://USER@HOST:PORT/DATABASE, whose password may come from PGPASSWORD
// or PGPASSFILE instead. It makes the schema when there is none, and upgrades
// an older one. A catalog of a newer version is refused with [ErrNewer] and not
// touched. A file should be open in one process at a time; a database of
// PostgreSQL may be in many, each of which takes [Catalog.For] its host.
//
// The catalog is that of the host "", which is right for an agent that has a
// catalog for itself.
func Open(ctx context.Context, where string) (*Catalog, error) {
	c, err := open(ctx, where)
	if err != nil {
		return nil, err
	}
	if err := c.migrate(ctx); err != nil {
		return nil, errors.Join(c.explain("open catalog "+c.name, err), c.db.Close())
	}
	return c, nil
}

func open(ctx context.Context, where string) (*Catalog, error) {
	p, err := parsePlace(where)
	if err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	if p.postgres != nil {
		return openPostgres(p.postgres), nil
	}
	return openSQLite(ctx, p.file)
}

// For returns the same open catalog as host sees it: exports, pins, unfinished
// volumes, checkpoints and settings are its own, and what it writes is marked as
// its. Closing one closes all.
func (c *Catalog) For(host string) *Catalog {
	v := *c
	v.host = host
	return &v
}

// Host returns the host as which the catalog is seen.
func (c *Catalog) Host() string { return c.host }

// Name returns where the catalog is, for people: without secrets.
func (c *Catalog) Name() string { return c.name }

// Shared says whether the agents of several hosts may have the catalog open.
func (c *Catalog) Shared() bool { return c.d == postgresDialect }

// Close closes the catalog.
func (c *Catalog) Close() error {
	if err := c.db.Close(); err != nil {
		return fmt.Errorf("close catalog: %w", err)
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
