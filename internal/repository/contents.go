package repository

import "context"

// Contents is what one listing shows, each oldest first.
type Contents struct {
	// Backups are those available, and those unconfirmed, which have a root record
	// and no proof either way.
	Backups []Backup
	Trash   []Backup // deleted ones that no prune has taken yet
	Pins    []Pin    // of all agents
}

// Contents lists the repository. It reads the stores alone, with any k of them. A
// root record that no store has whole is reported by Check, not here.
func (r *Repository) Contents(ctx context.Context) (Contents, error) {
	var c Contents
	all, err := r.standings(ctx)
	if err != nil {
		return c, err
	}
	for _, s := range all {
		rec := s.root.rec
		switch {
		case rec.Pin == nil && s.state == Deleted:
			c.Trash = append(c.Trash, s.root.backup(s.state))
		case rec.Pin == nil:
			c.Backups = append(c.Backups, s.root.backup(s.state))
		case s.state != Deleted:
			c.Pins = append(c.Pins, Pin{
				ID: rec.BackupID, Backup: rec.Pin.Backup, Volume: rec.Volume,
				By: rec.Pin.By, Agent: rec.Pin.Agent, Since: rec.Created, State: s.state,
			})
		}
	}
	return c, nil
}

// Backups returns the backups that exist, as Contents does.
func (r *Repository) Backups(ctx context.Context) ([]Backup, error) {
	c, err := r.Contents(ctx)
	return c.Backups, err
}

// Trash returns the deleted backups that no prune has taken yet.
func (r *Repository) Trash(ctx context.Context) ([]Backup, error) {
	c, err := r.Contents(ctx)
	return c.Trash, err
}
