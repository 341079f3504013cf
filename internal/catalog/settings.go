package catalog

import (
	"context"
	"database/sql"
	"errors"
)

// shared is the host of the settings that all hosts have in common.
const shared = ""

// Setting returns the value that the host set for key, "" if none was.
func (c *Catalog) Setting(ctx context.Context, key string) (string, error) {
	var v string
	err := c.do(ctx, "read setting "+key, func(ctx context.Context) error {
		err := conn{c.db, c.d}.row(ctx, []any{&v}, `SELECT value FROM settings WHERE host = ? AND key = ?`, c.host, key)
		if errors.Is(err, sql.ErrNoRows) {
			v, err = "", nil
		}
		return err
	})
	return v, err
}

// SetSetting sets the host's value of key.
func (c *Catalog) SetSetting(ctx context.Context, key, value string) error {
	return c.exec(ctx, "set setting "+key,
		`INSERT INTO settings (host, key, value) VALUES (?, ?, ?) ON CONFLICT (host, key) DO UPDATE SET value = excluded.value`, c.host, key, value)
}

// SharedSetting returns what all hosts have set for key. Where nothing is set, it
// is set to first: of several hosts that come at once all get the same.
func (c *Catalog) SharedSetting(ctx context.Context, key, first string) (string, error) {
	var v string
	err := c.tx(ctx, "set setting "+key, func(ctx context.Context, q conn) error {
		if _, err := q.exec(ctx, `INSERT INTO settings (host, key, value) VALUES (?, ?, ?)
			ON CONFLICT (host, key) DO UPDATE SET value = excluded.value WHERE settings.value = ''`, shared, key, first); err != nil {
			return err
		}
		return q.row(ctx, []any{&v}, `SELECT value FROM settings WHERE host = ? AND key = ?`, shared, key)
	})
	return v, err
}
