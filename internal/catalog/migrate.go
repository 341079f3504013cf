package catalog

import (
	"context"
	"database/sql"
	"fmt"
)

// migrate brings the catalog to this program's schema, in one transaction. Of
// several programs that come at once one does it, and the others find it done.
func (c *Catalog) migrate(ctx context.Context) error {
	// Without the transaction first: an up-to-date schema needs no right to change it.
	have, err := c.schemaVersion(ctx, conn{c.db, c.d})
	if err != nil || have == len(migrations) {
		return err
	}
	tx, err := c.db.BeginTx(ctx, &sql.TxOptions{Isolation: c.d.level})
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing; before, the error that led here matters
	q := conn{tx, c.d}
	if err = c.d.begin(ctx, q); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if have, err = c.schemaVersion(ctx, q); err != nil || have == len(migrations) {
		return err
	}
	for v := have; v < len(migrations); v++ {
		// Several statements: they go as they are.
		if _, err = tx.ExecContext(ctx, c.d.schema(migrations[v])); err != nil {
			return fmt.Errorf("upgrade from schema version %d: %w", v, err)
		}
	}
	if err = c.d.setVersion(ctx, q, len(migrations)); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if err = tx.Commit(); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	return nil
}

// schemaVersion returns a version that this program can work with or upgrade.
func (c *Catalog) schemaVersion(ctx context.Context, q conn) (int, error) {
	v, err := c.d.version(ctx, q)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read its version: %w", err)
	case v > len(migrations):
		return 0, fmt.Errorf("schema version %d, this program knows up to %d: %w", v, len(migrations), ErrNewer)
	case v < 0:
		return 0, fmt.Errorf("schema version %d is not one of Cairn's: move the file away (of PostgreSQL: give an empty database) to have the backups read again from the repository", v)
	default:
		return v, nil
	}
}
