package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// A host that beats every BeatEvery is up until it has not for DownAfter, both by
// the clock of the database: those of the hosts do not matter.
const (
	BeatEvery = 10 * time.Second
	DownAfter = time.Minute
)

// ErrHostTaken says that another agent beats under the host's name.
var ErrHostTaken = errors.New("another agent of that name uses the catalog: give each host a name of its own")

// ErrHostUp says that a host cannot be forgotten, as it would be back at once.
var ErrHostUp = errors.New("its agent runs: stop it first")

// Host is the record of one agent of those that share the catalog.
type Host struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"` // of the agent's state folder: another one is another agent
	Version  string    `json:"version"`
	Address  string    `json:"address"`            // of its API
	Beat     time.Time `json:"last_beat_at"`       // by the database's clock
	Up       bool      `json:"up"`                 // by the same
	Disabled string    `json:"disabled,omitempty"` // why it shall get no work; empty: it shall
}

// BeatHost records that the agent of a host is alive, and what it is. It takes
// Name, ID, Version and Address. While another ID beats under the name it is
// [ErrHostTaken]; the name of one that is down can be taken over, with its records.
func (c *Catalog) BeatHost(ctx context.Context, h Host) error {
	return c.do(ctx, "record that host "+h.Name+" is up", func(ctx context.Context) error {
		n, err := conn{c.db, c.d}.exec(ctx, `INSERT INTO hosts (name, id, version, address, beat) VALUES (?, ?, ?, ?, `+c.d.now+`)
			ON CONFLICT (name) DO UPDATE SET id = excluded.id, version = excluded.version, address = excluded.address, beat = excluded.beat
			WHERE hosts.id = excluded.id OR hosts.beat <= excluded.beat - ?`, h.Name, h.ID, h.Version, h.Address, int64(DownAfter))
		if err == nil && n == 0 {
			err = ErrHostTaken
		}
		return err
	})
}

// Hosts returns all hosts by name.
func (c *Catalog) Hosts(ctx context.Context) ([]Host, error) {
	return list(ctx, c, "list hosts", func(r *sql.Rows) (h Host, err error) {
		var beat int64
		err = r.Scan(&h.Name, &h.ID, &h.Version, &h.Address, &beat, &h.Up, &h.Disabled)
		h.Beat = moment(beat)
		return h, err
	}, `SELECT name, id, version, address, beat, beat > `+c.d.now+` - ?, disabled FROM hosts ORDER BY name`, int64(DownAfter))
}

// DisableHost records why a host shall get no work; with an empty reason it gets
// work again.
func (c *Catalog) DisableHost(ctx context.Context, name, reason string) error {
	return c.one(ctx, "disable host "+name, `UPDATE hosts SET disabled = ? WHERE name = ?`, reason, name)
}

// ForgetHost forgets a host that is down, and what it told of its volumes: [ErrHostUp] otherwise. Its jobs, exports,
// pins, checkpoints and settings stay: should it come back, it finds what is its
// own to clean up, and should it not, [Catalog.For] shows them to another.
func (c *Catalog) ForgetHost(ctx context.Context, name string) error {
	return c.tx(ctx, "forget host "+name, func(ctx context.Context, q conn) error {
		n, err := q.exec(ctx, `DELETE FROM hosts WHERE name = ? AND beat <= `+c.d.now+` - ?`, name, int64(DownAfter))
		if err == nil && n > 0 {
			_, err = q.exec(ctx, `DELETE FROM volumes WHERE host = ?`, name)
			return err
		}
		if err != nil {
			return err
		}
		var id string
		if err = q.row(ctx, []any{&id}, `SELECT id FROM hosts WHERE name = ?`, name); errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("agent %s: %w", id, ErrHostUp)
	})
}
