package catalog

import (
	"context"
	"database/sql"
	"fmt"
)

// migrations[i] brings a catalog from schema version i to i+1. A step that was
// released is never changed: a later one mends it.
var migrations = []string{
	`CREATE TABLE settings (
		key   TEXT PRIMARY KEY,
		value TEXT NOT NULL
	) STRICT;
	CREATE TABLE backups (
		id                  TEXT PRIMARY KEY,
		name                TEXT NOT NULL,
		description         TEXT NOT NULL,
		project             TEXT NOT NULL,
		status              TEXT NOT NULL,
		volume_id           TEXT NOT NULL,
		volume              TEXT NOT NULL,
		snapshot_id         TEXT NOT NULL,
		size                INTEGER NOT NULL,
		incremental         INTEGER NOT NULL,
		parent              TEXT NOT NULL,
		bytes_read          INTEGER NOT NULL,
		bytes_audited       INTEGER NOT NULL,
		bytes_changed       INTEGER NOT NULL,
		bytes_new           INTEGER NOT NULL,
		bytes_stored        INTEGER NOT NULL,
		bytes_shards        INTEGER NOT NULL,
		duration_ns         INTEGER NOT NULL,
		full_compare_reason TEXT NOT NULL,
		created             INTEGER NOT NULL,
		fail_reason         TEXT NOT NULL,
		warning             TEXT NOT NULL,
		session             TEXT NOT NULL,
		checkpoint          TEXT NOT NULL,
		undecided           INTEGER NOT NULL
	) STRICT;
	CREATE INDEX backups_volume ON backups (volume_id, created);
	CREATE INDEX backups_name ON backups (name);
	CREATE TABLE jobs (
		id        TEXT PRIMARY KEY,
		kind      TEXT NOT NULL,
		state     TEXT NOT NULL,
		volume_id TEXT NOT NULL,
		volume    TEXT NOT NULL,
		backup_id TEXT NOT NULL,
		target    TEXT NOT NULL,
		owner     TEXT NOT NULL,
		error     TEXT NOT NULL,
		progress  TEXT NOT NULL,
		result    TEXT NOT NULL,
		created   INTEGER NOT NULL,
		started   INTEGER NOT NULL,
		finished  INTEGER NOT NULL
	) STRICT;
	CREATE INDEX jobs_state ON jobs (state);
	CREATE INDEX jobs_created ON jobs (created);
	CREATE TABLE exports (
		name      TEXT PRIMARY KEY,
		backup_id TEXT NOT NULL,
		overlay   INTEGER NOT NULL,
		purpose   TEXT NOT NULL,
		created   INTEGER NOT NULL
	) STRICT;
	CREATE TABLE checkpoints (
		name      TEXT NOT NULL,
		volume_id TEXT NOT NULL,
		backup_id TEXT NOT NULL,
		PRIMARY KEY (volume_id, name)
	) STRICT;
	CREATE TABLE unfinished_volumes (
		volume_id TEXT PRIMARY KEY,
		job_id    TEXT NOT NULL
	) STRICT;`,
	`ALTER TABLE jobs ADD COLUMN code TEXT NOT NULL DEFAULT '';`,
	`CREATE TABLE pins (
		id        TEXT PRIMARY KEY,
		backup_id TEXT NOT NULL,
		export    TEXT NOT NULL,
		made      INTEGER NOT NULL
	) STRICT;`,
	`ALTER TABLE backups ADD COLUMN retain_until INTEGER NOT NULL DEFAULT 0;`,
	`ALTER TABLE backups ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
	ALTER TABLE backups ADD COLUMN unwanted INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE backups ADD COLUMN container TEXT NOT NULL DEFAULT '';
	ALTER TABLE backups ADD COLUMN metadata TEXT NOT NULL DEFAULT '';
	ALTER TABLE backups ADD COLUMN volume_notes TEXT NOT NULL DEFAULT '';
	ALTER TABLE backups ADD COLUMN stored_as TEXT NOT NULL DEFAULT '';
	ALTER TABLE backups ADD COLUMN data_time INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE backups ADD COLUMN updated INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE backups ADD COLUMN shown TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN snapshot_id TEXT NOT NULL DEFAULT '';
	CREATE INDEX backups_project ON backups (project, created);
	CREATE INDEX backups_parent ON backups (parent);
	CREATE TABLE quotas (
		project  TEXT NOT NULL,
		resource TEXT NOT NULL,
		most     INTEGER NOT NULL,
		PRIMARY KEY (project, resource)
	) STRICT;`,
}

// migrate brings db to this program's schema, in one transaction.
func migrate(ctx context.Context, db *sql.DB) error {
	var have int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&have); err != nil {
		return fmt.Errorf("read its version: %w", err)
	}
	if have > len(migrations) {
		return fmt.Errorf("schema version %d, this program knows up to %d: %w", have, len(migrations), ErrNewer)
	}
	if have < 0 {
		return fmt.Errorf("schema version %d is not one of Cairn's: move the file away to have the backups read again from the repository", have)
	}
	if have == len(migrations) {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing; before, the error that led here matters
	for v := have; v < len(migrations); v++ {
		if _, err := tx.ExecContext(ctx, migrations[v]); err != nil {
			return fmt.Errorf("upgrade from schema version %d: %w", v, err)
		}
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, len(migrations))); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	return nil
}
