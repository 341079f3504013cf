package catalog

import (
	"context"
	"database/sql"
)

// Pin is a mark in the repository that a backup is used by an export. It is
// recorded before it is made, and forgotten when it has been removed.
type Pin struct {
	ID     string
	Backup string // ID
	Export string // name
	Made   bool   // the repository has it
}

// PutPin records a pin of the host's.
func (c *Catalog) PutPin(ctx context.Context, p Pin) error {
	return c.exec(ctx, "record pin "+p.ID, `INSERT INTO pins (id, backup_id, export, made, host) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET backup_id = excluded.backup_id, export = excluded.export, made = excluded.made, host = excluded.host`,
		p.ID, p.Backup, p.Export, p.Made, c.host)
}

// RemovePin forgets a pin; one that is not there is forgotten already.
func (c *Catalog) RemovePin(ctx context.Context, id string) error {
	return c.exec(ctx, "forget pin "+id, `DELETE FROM pins WHERE id = ?`, id)
}

// Pins returns all pins of the host's exports.
func (c *Catalog) Pins(ctx context.Context) ([]Pin, error) {
	return list(ctx, c, "list pins", func(r *sql.Rows) (p Pin, err error) {
		return p, r.Scan(&p.ID, &p.Backup, &p.Export, &p.Made)
	}, `SELECT id, backup_id, export, made FROM pins WHERE host = ? ORDER BY export, id`, c.host)
}
