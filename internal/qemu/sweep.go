package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// pollExports is how often it is looked whether an export has ended.
const pollExports = 5 * time.Millisecond

// DropSnapshot ends a snapshot, and whoever reads it. What does not exist, or is gone
// with the guest, is no error. While a younger snapshot of the disk lasts, the filter
// of this one stays below its filter, and its fleece grows.
func (d *Disk) DropSnapshot(ctx context.Context, id string) error {
	return d.Sweep(ctx, func(other string) bool { return other != id }, nil)
}

// DropCheckpoint stops tracking changes since a checkpoint. What does not exist, or is
// gone with the guest, is no error.
func (d *Disk) DropCheckpoint(ctx context.Context, name string) error {
	return d.Sweep(ctx, nil, func(other string) bool { return other != name })
}

// Sweep takes out of qemu the snapshots and checkpoints of this volume that are not to
// be kept, and whatever an unfinished one has left there; nil keeps all. Of all that
// can be taken out, nothing is left because something else could not. A guest that has
// ended has nothing of ours.
func (d *Disk) Sweep(ctx context.Context, snapshot, checkpoint func(string) bool) error {
	stray := d.check()
	if stray == nil {
		stray = d.removeStray()
	}
	err := d.with(ctx, func(m *monitor) error {
		s := &sweep{d: d, m: m, keep: snapshot}
		s.run(ctx, checkpoint)
		return errors.Join(s.errs...)
	})
	if errors.Is(err, ErrEnded) {
		err = d.removeSocket()
	}
	return errors.Join(stray, err)
}

// sweep is one run. A refusal of qemu's is noted, and the run goes on; after another
// error, the connection is gone, it ends.
type sweep struct {
	d    *Disk
	m    *monitor
	keep func(string) bool
	v    *view
	errs []error
	dead bool
}

func (s *sweep) run(ctx context.Context, checkpoint func(string) bool) {
	for _, step := range []func(context.Context){
		s.look, s.endExports,
		s.look, s.removeAccess,
		s.look, s.peel,
		s.look, s.closeFiles,
		s.look, func(ctx context.Context) { s.note(s.d.stopServer(ctx, s.m, s.v)) },
		func(ctx context.Context) { s.removeCheckpoints(ctx, checkpoint) },
	} {
		if step(ctx); s.dead {
			return
		}
	}
}

func (s *sweep) note(err error) bool {
	if err == nil {
		return true
	}
	s.errs = append(s.errs, err)
	s.dead = s.dead || !refused(err)
	return false
}

// do executes a command, unless the connection is gone.
func (s *sweep) do(ctx context.Context, command string, args map[string]any) bool {
	return !s.dead && s.note(s.m.call(ctx, command, args, nil))
}

func (s *sweep) look(ctx context.Context) {
	v, err := look(ctx, s.m)
	if err != nil {
		s.note(err)
		s.dead = true // without it nothing can be judged
		return
	}
	s.v = v
}

// lives reports whether something belongs to a snapshot that goes on.
func (s *sweep) lives(name string) bool {
	stem, ok := s.d.stemOf(name)
	if !ok {
		return true // not ours
	}
	for _, e := range s.v.exports {
		if strings.HasPrefix(e.ID, stem+kindExport) {
			return true
		}
	}
	return false
}

// endExports hangs up on those who read what is not kept.
func (s *sweep) endExports(ctx context.Context) {
	for _, e := range s.v.exports {
		stem, ok := s.d.stemOf(e.ID)
		id, isSnapshot := s.d.snapshotID(e.ID)
		switch {
		case !ok, isSnapshot && (s.keep == nil || s.keep(id)), !isSnapshot && e.ID != stem+kindAccess:
			continue
		}
		if s.do(ctx, "block-export-del", map[string]any{"id": e.ID, "mode": "hard"}) {
			s.note(awaitEnd(ctx, s.m, e.ID))
		}
	}
}

// awaitEnd waits until an export that was told to end has ended: then its node is free.
func awaitEnd(ctx context.Context, m *monitor, id string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	for {
		v := &view{}
		if err := m.call(ctx, "query-block-exports", nil, &v.exports); err != nil {
			return err
		}
		if !v.hasExport(id) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("qemu: the export %s does not end: %w", id, context.Cause(ctx))
		case <-time.After(pollExports):
		}
	}
}

// removeAccess removes what a Verify has left that was killed.
func (s *sweep) removeAccess(ctx context.Context) {
	for _, n := range s.v.nodes {
		if stem, ok := s.d.stemOf(n.Name); ok && n.Name == stem+kindAccess {
			s.removeNode(ctx, n.Name)
		}
	}
}

func (s *sweep) removeNode(ctx context.Context, name string) bool {
	return s.do(ctx, "blockdev-del", map[string]any{"node-name": name})
}

// peel takes filters out, from the device downward, as only the topmost can be, and
// removes each with its fleece before the next, which qemu would not let go of below it.
// One below that of a snapshot that goes on, or below another program's, stays for now.
func (s *sweep) peel(ctx context.Context) {
	for !s.dead && (s.removeDead(ctx) || s.liftDevices(ctx)) {
		s.look(ctx)
	}
}

// removeDead removes what nothing stands on any more.
func (s *sweep) removeDead(ctx context.Context) (changed bool) {
	for _, n := range s.v.nodes {
		if (s.isDead(n.Name, kindFilter) || s.isDead(n.Name, kindFleece)) && s.v.parents[n.Name] == 0 {
			changed = s.removeNode(ctx, n.Name) || changed
		}
	}
	return changed
}

// liftDevices puts devices on what is below a filter, unless a block job has put one of
// its own in between meanwhile.
func (s *sweep) liftDevices(ctx context.Context) (changed bool) {
	for _, dev := range s.v.devices {
		if dev.Inserted == nil || dev.Qdev == "" || !s.isDead(dev.Inserted.Name, kindFilter) || !s.v.stands(dev) {
			continue
		}
		if below := s.v.files[dev.Inserted.Name]; below != "" && !s.dead {
			changed = s.note(setDrive(ctx, s.m, dev, below)) || changed
		}
	}
	return changed
}

// isDead reports whether a node is one of a kind, of a snapshot that is over.
func (s *sweep) isDead(name, kind string) bool {
	stem, ok := s.d.stemOf(name)
	return ok && name == stem+kind && !s.lives(name)
}

// closeFiles closes descriptors that were on their way into qemu: no snapshot needs
// them when it is made.
func (s *sweep) closeFiles(ctx context.Context) {
	for _, set := range s.v.fdsets {
		for _, fd := range set.FDs {
			if _, ok := s.d.stemOf(fd.Opaque); ok {
				s.do(ctx, "remove-fd", map[string]any{"fdset-id": set.ID})
				break
			}
		}
	}
	if s.dead {
		return
	}
	// No command lists these; that there is none is the rule.
	if err := s.m.call(ctx, "closefd", map[string]any{"fdname": listenerName}, nil); !refused(err) {
		s.note(err)
	}
}

func (s *sweep) removeCheckpoints(ctx context.Context, keep func(string) bool) {
	if keep == nil {
		return
	}
	t, err := s.v.resolve(s.d.Node)
	if errors.Is(err, ErrNoDisk) {
		return // with what it tracked
	}
	if !s.note(err) {
		return
	}
	for _, c := range s.d.checkpoints(t.base) {
		if !keep(c.Name) {
			s.do(ctx, "block-dirty-bitmap-remove", map[string]any{"node": t.base.Name, "name": c.bitmap})
		}
	}
}
