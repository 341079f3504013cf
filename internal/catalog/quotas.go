package catalog

import (
	"context"
	"database/sql"
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
	v, err := b.values(c.host)
	if err != nil {
		return fmt.Errorf("record backup %s: %w", b.ID, err)
	}
	return c.tx(ctx, "record backup "+b.ID, func(ctx context.Context, q conn) error {
		// Of the same project one at a time: what is counted stays true until the record is there.
		if err := c.d.alone(ctx, q, "cairn quota "+b.Project); err != nil {
			return err
		}
		limits := map[string]int64{}
		maps.Copy(limits, defaults)
		if err := readLimits(ctx, q, b.Project, limits); err != nil {
			return err
		}
		used, err := readUsage(ctx, q, b.Project)
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
		_, err = q.exec(ctx, putBackup, v...)
		return err
	})
}

// BackupUsage returns what a project has of QuotaBackups and QuotaGigabytes.
func (c *Catalog) BackupUsage(ctx context.Context, project string) (map[string]int64, error) {
	var used map[string]int64
	err := c.tx(ctx, "count backups", func(ctx context.Context, q conn) (err error) {
		used, err = readUsage(ctx, q, project)
		return err
	})
	return used, err
}

func readUsage(ctx context.Context, q conn, project string) (map[string]int64, error) {
	var n, size int64
	err := q.row(ctx, []any{&n, &size}, `SELECT COUNT(*), CAST(COALESCE(SUM((size + 1073741823) / 1073741824), 0) AS BIGINT) FROM backups WHERE project = ?`, project)
	return map[string]int64{QuotaBackups: n, QuotaGigabytes: size}, err
}

// Limits returns the limits that were set for a project.
func (c *Catalog) Limits(ctx context.Context, project string) (map[string]int64, error) {
	limits := map[string]int64{}
	err := c.tx(ctx, "read quota", func(ctx context.Context, q conn) error { return readLimits(ctx, q, project, limits) })
	return limits, err
}

// readLimits puts the limits of a project over those that are there.
func readLimits(ctx context.Context, q conn, project string, limits map[string]int64) error {
	return q.rows(ctx, func(r *sql.Rows) error {
		var resource string
		var most int64
		err := r.Scan(&resource, &most)
		limits[resource] = most
		return err
	}, `SELECT resource, most FROM quotas WHERE project = ?`, project)
}

// SetLimits sets limits of a project, all or none; those that are not named stay.
func (c *Catalog) SetLimits(ctx context.Context, project string, limits map[string]int64) error {
	return c.tx(ctx, "set quota", func(ctx context.Context, q conn) error {
		for _, resource := range slices.Sorted(maps.Keys(limits)) {
			if _, err := q.exec(ctx, `INSERT INTO quotas (project, resource, most) VALUES (?, ?, ?)
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
