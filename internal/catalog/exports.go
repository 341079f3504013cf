package catalog

import (
	"context"
	"database/sql"
	"time"
)

// Export is a backup that a host's agent serves over NBD, also after a restart.
type Export struct {
	Name    string
	Backup  string // ID
	Overlay bool   // writable over a local overlay
	Purpose string // in the words of whoever asked for it; may be empty
	Created time.Time
}

// PutExport records an export of the host's.
func (c *Catalog) PutExport(ctx context.Context, e Export) error {
	return c.exec(ctx, "record export "+e.Name, `INSERT INTO exports (host, name, backup_id, overlay, purpose, created) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (host, name) DO UPDATE SET backup_id = excluded.backup_id, overlay = excluded.overlay, purpose = excluded.purpose, created = excluded.created`,
		c.host, e.Name, e.Backup, e.Overlay, e.Purpose, stamp(e.Created))
}

// RemoveExport forgets an export; one that is not there is forgotten already.
func (c *Catalog) RemoveExport(ctx context.Context, name string) error {
	return c.exec(ctx, "forget export "+name, `DELETE FROM exports WHERE host = ? AND name = ?`, c.host, name)
}

// Exports returns all exports of the host by name.
func (c *Catalog) Exports(ctx context.Context) ([]Export, error) {
	return list(ctx, c, "list exports", func(r *sql.Rows) (e Export, err error) {
		var created int64
		err = r.Scan(&e.Name, &e.Backup, &e.Overlay, &e.Purpose, &created)
		e.Created = moment(created)
		return e, err
	}, `SELECT name, backup_id, overlay, purpose, created FROM exports WHERE host = ? ORDER BY name`, c.host)
}
