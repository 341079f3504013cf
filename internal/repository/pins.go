package repository

import (
	"context"
	"fmt"
	"time"
)

// A pin keeps what a backup reaches while somebody uses it: a guest that boots
// from an export must not lose its disk because the backup is deleted and two
// prunes have passed. It is a root record of its own, made by a session that
// reads nothing, as an undeletion is; a prune knows no difference. Deleting the
// backup leaves its pins, and removing a pin leaves the backup.

// pinRecord is in root records that are pins.
type pinRecord struct {
	Backup string `json:"backup"` // the backup's ID; the root record has one of its own
	By     string `json:"by"`
	Agent  string `json:"agent"`
}

// Pin is one use of a backup.
type Pin struct {
	ID     string // UUID, chosen by who made it
	Backup string // ID of the backup that is used
	Volume string
	By     string // the use, such as "exported as web-1"
	Agent  string // who made it: host name and process
	Since  time.Time
	State  State // unconfirmed: no proof that it was made, or that it was not
}

// Pin makes a pin with this ID on a backup that is live or in the trash. A pin
// that exists is left as it is, so that it can be called again when the outcome
// was unknown. Image opens a pin's ID as it opens a backup's. ErrNotFound, which is
// certain: there is no such backup, or a prune is removing it. ErrPruning: a prune
// is at work on packs of it, and while it is no pin can be made.
func (r *Repository) Pin(ctx context.Context, id, backup, by string) error {
	all, complete, err := r.survey(ctx)
	if err != nil {
		return err
	}
	var old *root
	for _, st := range all {
		switch rec := st.root.rec; {
		case rec.BackupID == id && rec.Pin == nil && st.state != Deleted:
			return fmt.Errorf("%s is a backup and cannot be made a pin: %w", id, ErrInvalid)
		case rec.BackupID == id && rec.Pin != nil && st.state == Available:
			return nil
		case rec.BackupID == backup && rec.Pin == nil:
			old = st.root
		}
	}
	switch {
	case old != nil:
		return r.pin(ctx, id, by, old)
	case !complete:
		return fmt.Errorf("backup %q is not on the stores that answer, and may be on the others: %w", backup, ErrTooFewStores)
	}
	return fmt.Errorf("pin backup %s: %w", backup, ErrNotFound)
}

func (r *Repository) pin(ctx context.Context, id, by string, old *root) error {
	_, err := r.renew(ctx, old, func(rt *Root) {
		rt.pin = &pinRecord{Backup: rt.BackupID, By: by, Agent: r.o.Agent}
		rt.BackupID, rt.Name, rt.Description = id, "", ""
		rt.Created, rt.Stats, rt.keep, rt.Attributes = r.o.Now(), Stats{}, retention{}, nil
	})
	if err != nil {
		return fmt.Errorf("pin backup %s: %w", old.rec.BackupID, err)
	}
	return nil
}

// Pins returns all pins, oldest first, those of all agents.
func (r *Repository) Pins(ctx context.Context) ([]Pin, error) {
	c, err := r.Contents(ctx)
	return c.Pins, err
}

// Unpin removes a pin: what only it reaches goes with the second prune from now.
// ErrNotFound: there is none with this ID.
func (r *Repository) Unpin(ctx context.Context, id string) error {
	st, err := r.find(ctx, id)
	if err != nil {
		return err
	}
	if st.root.rec.Pin == nil {
		return fmt.Errorf("%s is a backup and no pin: %w", id, ErrInvalid)
	}
	return r.Delete(ctx, id)
}
