package serve

import (
	"context"
	"strings"

	"github.com/cairnbackup/cairn/blockmap"
)

// Bounds of a volume's checkpoints, besides maxCheckpoints. Those whose names are IDs
// are the control plane's, of its backups; nobody else can use up what these need.
const (
	maxOthers      = 64 // whose names are no IDs
	keptForBackups = 32 // of maxCheckpoints; snapshots do not get these either
)

// createCheckpoint makes the present of a volume, which may be in use, a position.
func (p *plane) createCheckpoint(ctx context.Context, ref, name string) (Checkpoint, error) {
	if err := checkName("checkpoint", name); err != nil {
		return Checkpoint{}, err
	}
	e, v, unlock, err := p.change(ctx, ref)
	if err != nil {
		return Checkpoint{}, err
	}
	defer unlock()
	if err = roomFor(e.title(), v.Checkpoints(), name); err != nil {
		return Checkpoint{}, err
	}
	defer e.refresh(v)
	if err = v.AddCheckpoint(name); err != nil {
		return Checkpoint{}, err
	}
	for _, c := range positions(v) {
		if c.Name == name {
			return c, nil
		}
	}
	return Checkpoint{}, refuse(CodeInternal, "volume %s has lost its checkpoint %s again", e.title(), name) // nobody else drops one meanwhile
}

// roomFor refuses a further checkpoint of a volume that has its name already, or has
// too many. A snapshot's own position has the name "".
func roomFor(title string, cs []blockmap.Checkpoint, name string) error {
	_, backups := parseID(name)
	others := 0
	for _, c := range cs {
		if c.Name == name {
			return refuse(CodeConflict, "volume %s has a checkpoint %s already: drop it, or choose another name", title, name)
		}
		if _, id := parseID(c.Name); !id && !strings.HasPrefix(c.Name, snapshotPosition) {
			others++
		}
	}
	switch {
	case len(cs) >= maxCheckpoints, !backups && len(cs) >= maxCheckpoints-keptForBackups:
		return refuse(CodeConflict, "volume %s has %d checkpoints, and that is the limit: delete snapshots, checkpoints that nobody needs, or backups whose checkpoints it keeps", title, len(cs))
	case name != "" && !backups && others >= maxOthers:
		return refuse(CodeConflict, "volume %s has %d checkpoints that are not of backups, and that is the limit: cairn checkpoint list shows them, delete some", title, others)
	}
	return nil
}

// aliasCheckpoint adds a checkpoint at a snapshot's position.
func (p *plane) aliasCheckpoint(ctx context.Context, ref, name string) error {
	if err := checkName("checkpoint", name); err != nil {
		return err
	}
	e, v, sn, unlock, err := p.changeSnapshot(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if err = roomFor(e.title(), v.Checkpoints(), name); err != nil {
		return err
	}
	defer e.refresh(v)
	return v.AliasCheckpoint(sn.id, name)
}

// dropCheckpoint forgets a checkpoint that is no snapshot's position.
func (p *plane) dropCheckpoint(ctx context.Context, ref, name string) error {
	e, v, unlock, err := p.change(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if strings.HasPrefix(name, snapshotPosition) {
		return refuse(CodeInvalid, "checkpoint %s is a snapshot's position: delete the snapshot instead", clip(name))
	}
	for _, c := range v.Checkpoints() {
		if c.Name == name {
			defer e.refresh(v)
			return v.DropCheckpoint(name)
		}
	}
	return refuse(CodeNotFound, "volume %s has no checkpoint %q: cairn checkpoint list shows those there are", e.title(), clip(name))
}
