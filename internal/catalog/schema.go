package catalog

// migrations[i] brings a catalog from schema version i to i+1, in either dialect.
// A step that was released is never changed: a later one mends it. INTEGER has 64
// bits. Each step works for a database of any size within a transaction.
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
		incremental         BOOLEAN NOT NULL,
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
		undecided           BOOLEAN NOT NULL
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
		overlay   BOOLEAN NOT NULL,
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
		made      BOOLEAN NOT NULL
	) STRICT;`,
	`ALTER TABLE backups ADD COLUMN retain_until INTEGER NOT NULL DEFAULT 0;`,
	`ALTER TABLE backups ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
	ALTER TABLE backups ADD COLUMN unwanted BOOLEAN NOT NULL DEFAULT FALSE;
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
	// Several agents. What was there is of the host "".
	`CREATE TABLE hosts (
		name     TEXT PRIMARY KEY,
		id       TEXT NOT NULL,
		version  TEXT NOT NULL,
		address  TEXT NOT NULL,
		beat     INTEGER NOT NULL,
		disabled TEXT NOT NULL DEFAULT ''
	) STRICT;
	ALTER TABLE backups ADD COLUMN host TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN host TEXT NOT NULL DEFAULT '';
	ALTER TABLE jobs ADD COLUMN offered BOOLEAN NOT NULL DEFAULT FALSE;
	CREATE INDEX jobs_offered ON jobs (created, id) WHERE offered;
	ALTER TABLE pins ADD COLUMN host TEXT NOT NULL DEFAULT '';
	CREATE TABLE settings_by_host (
		host  TEXT NOT NULL,
		key   TEXT NOT NULL,
		value TEXT NOT NULL,
		PRIMARY KEY (host, key)
	) STRICT;
	INSERT INTO settings_by_host (host, key, value) SELECT '', key, value FROM settings;
	DROP TABLE settings;
	ALTER TABLE settings_by_host RENAME TO settings;
	CREATE TABLE exports_by_host (
		host      TEXT NOT NULL,
		name      TEXT NOT NULL,
		backup_id TEXT NOT NULL,
		overlay   BOOLEAN NOT NULL,
		purpose   TEXT NOT NULL,
		created   INTEGER NOT NULL,
		PRIMARY KEY (host, name)
	) STRICT;
	INSERT INTO exports_by_host (host, name, backup_id, overlay, purpose, created)
		SELECT '', name, backup_id, overlay, purpose, created FROM exports;
	DROP TABLE exports;
	ALTER TABLE exports_by_host RENAME TO exports;
	CREATE TABLE checkpoints_by_host (
		host      TEXT NOT NULL,
		volume_id TEXT NOT NULL,
		name      TEXT NOT NULL,
		backup_id TEXT NOT NULL,
		PRIMARY KEY (host, volume_id, name)
	) STRICT;
	INSERT INTO checkpoints_by_host (host, volume_id, name, backup_id)
		SELECT '', volume_id, name, backup_id FROM checkpoints;
	DROP TABLE checkpoints;
	ALTER TABLE checkpoints_by_host RENAME TO checkpoints;
	CREATE TABLE unfinished_volumes_by_host (
		host      TEXT NOT NULL,
		volume_id TEXT NOT NULL,
		job_id    TEXT NOT NULL,
		PRIMARY KEY (host, volume_id)
	) STRICT;
	INSERT INTO unfinished_volumes_by_host (host, volume_id, job_id) SELECT '', volume_id, job_id FROM unfinished_volumes;
	DROP TABLE unfinished_volumes;
	ALTER TABLE unfinished_volumes_by_host RENAME TO unfinished_volumes;`,
	// Hosts call each other, and know of each other's volumes.
	`DROP INDEX jobs_offered;
	DELETE FROM jobs WHERE offered;
	ALTER TABLE jobs DROP COLUMN offered;
	CREATE TABLE volumes (
		host      TEXT NOT NULL,
		id        TEXT NOT NULL,
		kind      TEXT NOT NULL,
		project   TEXT NOT NULL,
		gigabytes INTEGER NOT NULL,
		epoch     INTEGER NOT NULL,
		open      BOOLEAN NOT NULL,
		data      TEXT NOT NULL,
		PRIMARY KEY (host, id)
	) STRICT;
	CREATE INDEX volumes_id ON volumes (id);
	CREATE INDEX volumes_project ON volumes (project);
	CREATE TABLE calls (
		id      TEXT PRIMARY KEY,
		host    TEXT NOT NULL,
		caller  TEXT NOT NULL,
		method  TEXT NOT NULL,
		request TEXT NOT NULL,
		state   TEXT NOT NULL,
		answer  TEXT NOT NULL,
		expires INTEGER NOT NULL
	) STRICT;
	CREATE INDEX calls_host ON calls (host, expires);
	ALTER TABLE checkpoints ADD COLUMN others TEXT NOT NULL DEFAULT '';`,
	`ALTER TABLE backups ADD COLUMN quiesced BOOLEAN NOT NULL DEFAULT FALSE;`,
}
