package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	pgConnections = 8 // of one agent
	pgConnect     = 10 * time.Second
	pgStatement   = 30 * time.Second
	pgMethod      = time.Minute      // for a server that hangs
	pgSilence     = 20 * time.Second // for a server that went away without a word: it acknowledges nothing that is sent
)

// postgresDialect runs transactions at READ COMMITTED. Those that check and then
// write wait for each other with an advisory lock: fifty at once against a quota
// queue up, where SERIALIZABLE would abort and repeat nearly all of them, again and
// again, and others with them that happened to read the same page of an index.
// A count taken behind the lock sees all that was committed before, which no
// snapshot from before the wait would: the level is therefore not left to the
// server's configuration.
var postgresDialect = &dialect{
	// Texts sort by their bytes, as in SQLite, whatever the database's collation.
	schema:     strings.NewReplacer(" INTEGER", " BIGINT", " TEXT", ` TEXT COLLATE "C"`, ") STRICT", ")").Replace,
	query:      placeholders,
	now:        `(CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) * 1000)`,
	skip:       ` FOR UPDATE SKIP LOCKED`,
	level:      sql.LevelReadCommitted,
	timeout:    pgMethod,
	version:    pgVersion,
	setVersion: pgSetVersion,
	begin: func(ctx context.Context, q conn) error {
		// The first to come does the upgrade, of a large catalog perhaps; the others wait for it.
		if _, err := q.exec(ctx, `SET LOCAL statement_timeout = '10min'`); err != nil {
			return err
		}
		return lock(ctx, q, "cairn schema")
	},
	alone: lock,
	again: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && (e.Code == "40001" || e.Code == "40P01") // serialization failure, deadlock
	},
	explain: explainPostgres,
	notify: func(ctx context.Context, q conn, host string) error {
		_, err := q.exec(ctx, `SELECT pg_notify(?, ?)`, pgChannel, host)
		return err
	},
	listen: pgListen,
}

// pgChannel is what agents listen at. The message is the host that is meant.
const pgChannel = "cairn"

// pgListen keeps one connection for itself.
func pgListen(ctx context.Context, db *sql.DB, host string, heard func()) (err error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Raw(func(driverConn any) error {
		driven, ok := driverConn.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("a connection of the kind %T", driverConn)
		}
		conn := driven.Conn()
		if _, err := conn.Exec(ctx, "LISTEN "+pgChannel); err != nil {
			return err
		}
		heard() // of what came before
		for {
			n, err := conn.WaitForNotification(ctx)
			if err != nil {
				// It listens still, and may be in the middle of a message: nobody else gets it.
				return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
			}
			if n.Payload == host {
				heard()
			}
		}
	})
}

// lock waits until no other transaction has locked the same, and keeps it until
// its transaction ends. Two things of one hash only wait more than they need.
func lock(ctx context.Context, q conn, about string) error {
	h := fnv.New64a()
	_, _ = h.Write([]byte(about))                                              // never fails
	_, err := q.exec(ctx, `SELECT pg_advisory_xact_lock(?)`, int64(h.Sum64())) //nolint:gosec // any 64 bits do
	return err
}

func pgVersion(ctx context.Context, q conn) (v int, err error) {
	var there bool
	// Not to_regclass: in a transaction that waited for an upgrade it answers from
	// what the session has cached before.
	if err = q.row(ctx, []any{&there}, `SELECT EXISTS (SELECT 1 FROM pg_tables
		WHERE tablename = 'schema_version' AND schemaname = ANY (current_schemas(FALSE)))`); err != nil || !there {
		return 0, err
	}
	if err = q.row(ctx, []any{&v}, `SELECT version FROM schema_version`); errors.Is(err, sql.ErrNoRows) {
		err = errors.New("its table schema_version is empty: give an empty database to have the backups read again from the repository")
	}
	return v, err
}

func pgSetVersion(ctx context.Context, q conn, v int) error {
	if _, err := q.exec(ctx, `CREATE TABLE IF NOT EXISTS schema_version (one BOOLEAN PRIMARY KEY CHECK (one), version BIGINT NOT NULL)`); err != nil {
		return err
	}
	_, err := q.exec(ctx, `INSERT INTO schema_version (one, version) VALUES (TRUE, ?) ON CONFLICT (one) DO UPDATE SET version = excluded.version`, v)
	return err
}

func openPostgres(cfg *pgx.ConnConfig) *Catalog {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = pgConnect
	}
	cfg.DialFunc = newDialer(cfg.ConnectTimeout).dial
	ms := strconv.FormatInt(pgStatement.Milliseconds(), 10)
	for name, value := range map[string]string{
		"application_name": "cairn", "statement_timeout": ms,
		// An agent that hangs in a transaction must not hold up the others for ever.
		"idle_in_transaction_session_timeout": ms,
	} {
		if cfg.RuntimeParams[name] == "" {
			cfg.RuntimeParams[name] = value
		}
	}
	db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		// A server may be told to acknowledge before it has written.
		_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`)
		if err == nil {
			// Nor is it to keep the sessions of a host that is gone for hours, and what they have locked.
			_, err = conn.Exec(ctx, `SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false), set_config('tcp_keepalives_count', '3', false)
				WHERE CAST(current_setting('tcp_keepalives_idle') AS INTEGER) > 30`)
		}
		return err
	}))
	db.SetMaxOpenConns(pgConnections)
	db.SetMaxIdleConns(pgConnections)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return &Catalog{db: db, d: postgresDialect, name: display(cfg)}
}

// explainPostgres makes an error of PostgreSQL one of ours.
func explainPostgres(name string, err error) error {
	err = flat(err)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch class := e.Code[:min(2, len(e.Code))]; {
		case e.Code == "53100":
			return fmt.Errorf("%w: free some space on the disk of the server of %s: %w", syscall.ENOSPC, name, err)
		case class == "28" || class == "3D":
			return fmt.Errorf("%s lets nobody in: check user, password and database: %w", name, err)
		case e.Code == "42P07":
			return fmt.Errorf("%s has tables of something else: give a database of its own: %w", name, err)
		case e.Code == "42501" || e.Code == "42P01" || e.Code == "42703":
			return fmt.Errorf("%s does not let the user at Cairn's tables, or they were changed: %w", name, err)
		case e.Code == "54000":
			return fmt.Errorf("a name is too long for the database: %w", err)
		case class == "08" || class == "40" || class == "53" || class == "57" || class == "58" || e.Code == "25P03" || e.Code == "25006":
			return unavailable(name, err)
		default:
			return err
		}
	}
	if connectionLost(err) {
		return unavailable(name, err)
	}
	return err
}

// flatError is an error on one line: the driver puts each address that it tried on
// one of its own.
type flatError struct{ error }

func flat(err error) error {
	if strings.ContainsRune(err.Error(), '\n') {
		return flatError{err}
	}
	return err
}

func (e flatError) Error() string {
	return strings.NewReplacer(":\n\t", ": ", "\n\t", "; ", "\n", "; ").Replace(e.error.Error())
}

func (e flatError) Unwrap() error { return e.error }

func unavailable(name string, err error) error {
	return fmt.Errorf("%w: check %s (%w)", ErrUnavailable, name, err)
}

func connectionLost(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, driver.ErrBadConn, sql.ErrConnDone, pgconn.ErrConnClosed, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	_, connect := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err)
	return connect || network
}
