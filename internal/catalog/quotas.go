package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// What of backups a quota limits. The agent limits other things as well, by names
// of its own.
const (
	QuotaBackups   = "backups"
	QuotaGigabytes = "backup_gigabytes" // GiB of the volumes that were backed up, each rounded up
)

const gib = 1 << 30

// QuotaError says that a backup would be too much for its project.
type QuotaError struct {
	Resource               string // QuotaBackups or QuotaGigabytes
	Limit, Used, Requested int64
}

// Error returns a sentence.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("the project may have %d %s, and has %d", e.Limit, e.Resource, e.Used)
}

// AddBackup writes the record of a new backup if its project's quota has room for
// it: [*QuotaError] otherwise. What a project uses is counted from its records, in the
// same transaction, whatever their state: there is no figure beside them that could
// drift. Limits that nobody set are those of defaults; one below zero is none.
func (c *Catalog) AddBackup(ctx context.Context, b Backup, defaults map[string]int64) error {
	v, err := b.values()
	if err != nil {
		return fmt.Errorf("record backup %s: %w", b.ID, err)
	}
	return c.tx(ctx, "record backup "+b.ID, func(tx *sql.Tx) error {
		limits := maps.Clone(defaults)
		if err := readLimits(ctx, tx, b.Project, limits); err != nil {
			return err
		}
		used, err := readUsage(ctx, tx, b.Project)
		if err != nil {
			return err
		}
		for _, x := range []struct {
			resource string
			more     int64
		}{{QuotaBackups, 1}, {QuotaGigabytes, (b.Size + gib - 1) / gib}} {
			most, ok := limits[x.resource]
			if ok && most >= 0 && used[x.resource] > most-x.more {
				return &QuotaError{x.resource, most, used[x.resource], x.more}
			}
		}
		_, err = tx.ExecContext(ctx, putBackup, v...)
		return err
	})
}

// BackupUsage returns what a project has of QuotaBackups and QuotaGigabytes.
func (c *Catalog) BackupUsage(ctx context.Context, project string) (map[string]int64, error) {
	var used map[string]int64
	err := c.tx(ctx, "count backups", func(tx *sql.Tx) (err error) {
		used, err = readUsage(ctx, tx, project)
		return err
	})
	return used, err
}

func readUsage(ctx context.Context, tx *sql.Tx, project string) (map[string]int64, error) {
	var n, size int64
	err := tx.QueryRowContext(ctx, `SELECT COUNT(*), COALESCE(SUM((size + 1073741823) / 1073741824), 0) FROM backups WHERE project = ?`, project).Scan(&n, &size)
	return map[string]int64{QuotaBackups: n, QuotaGigabytes: size}, err
}

// Limits returns the limits that were set for a project.
func (c *Catalog) Limits(ctx context.Context, project string) (map[string]int64, error) {
	limits := map[string]int64{}
	err := c.tx(ctx, "read quota", func(tx *sql.Tx) error { return readLimits(ctx, tx, project, limits) })
	return limits, err
}

// readLimits puts the limits of a project over those that are there.
func readLimits(ctx context.Context, tx *sql.Tx, project string, limits map[string]int64) (err error) {
	rows, err := tx.QueryContext(ctx, `SELECT resource, most FROM quotas WHERE project = ?`, project)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var resource string
		var most int64
		if err := rows.Scan(&resource, &most); err != nil {
			return err
		}
		limits[resource] = most
	}
	return rows.Err()
}

// SetLimits sets limits of a project, all or none; those that are not named stay.
func (c *Catalog) SetLimits(ctx context.Context, project string, limits map[string]int64) error {
	return c.tx(ctx, "set quota", func(tx *sql.Tx) error {
		for _, resource := range slices.Sorted(maps.Keys(limits)) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO quotas (project, resource, most) VALUES (?, ?, ?)
				ON CONFLICT (project, resource) DO UPDATE SET most = excluded.most`, project, resource, limits[resource]); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveLimits forgets what was set for a project.
func (c *Catalog) RemoveLimits(ctx context.Context, project string) error {
	return c.exec(ctx, "forget quota", `DELETE FROM quotas WHERE project = ?`, project)
}

// tx runs f in a transaction, which is committed when f returns nil.
func (c *Catalog) tx(ctx context.Context, op string, f func(tx *sql.Tx) error) error {
	tx, err := c.db.BeginTx(ctx, nil)
	if err != nil {
		return c.explain(op, err)
	}
	if err = f(tx); err != nil {
		_ = tx.Rollback() // the error that led here matters
		return c.explain(op, err)
	}
	if err = tx.Commit(); err != nil {
		return c.explain(op, err)
	}
	return nil
}
