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

// PutPin records a pin.
func (c *Catalog) PutPin(ctx context.Context, p Pin) error {
	return c.exec(ctx, "record pin "+p.ID, `INSERT OR REPLACE INTO pins (id, backup_id, export, made) VALUES (?, ?, ?, ?)`, p.ID, p.Backup, p.Export, p.Made)
}

// RemovePin forgets a pin; one that is not there is forgotten already.
func (c *Catalog) RemovePin(ctx context.Context, id string) error {
	return c.exec(ctx, "forget pin "+id, `DELETE FROM pins WHERE id = ?`, id)
}

// Pins returns all pins.
func (c *Catalog) Pins(ctx context.Context) ([]Pin, error) {
	var l []Pin
	err := c.rows(ctx, "list pins", func(r *sql.Rows) error {
		var p Pin
		err := r.Scan(&p.ID, &p.Backup, &p.Export, &p.Made)
		l = append(l, p)
		return err
	}, `SELECT id, backup_id, export, made FROM pins ORDER BY export, id`)
	return l, err
}
