package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairnbackup/cairn/nbd"
)

// Verify says whether a snapshot still shows its point in time. If so, everything that
// was read from it until now was good. If not, the error wraps ErrBroken, and what was
// read may be newer: qemu serves it without a word, so ask when all is read, before it
// counts.
func (d *Disk) Verify(ctx context.Context, id string) error {
	return d.with(ctx, func(m *monitor) error {
		v, err := look(ctx, m)
		if err != nil {
			return err
		}
		if err = d.inPlace(v, id); err != nil {
			return err
		}
		err = d.probe(ctx, m, id)
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackLimit)
		defer cancel()
		return errors.Join(err, d.removeProbe(rctx, m))
	})
}

// inPlace checks that the guest's writes go through the snapshot's filter.
func (d *Disk) inPlace(v *view, id string) error {
	filter := d.stem(id) + kindFilter
	if !v.hasExport(d.stem(id) + kindExport + id) {
		return fmt.Errorf("qemu: the guest has no snapshot %s: was it restarted? (%w)", id, ErrNoSnapshot)
	}
	for _, dev := range v.devices {
		if dev.Inserted != nil && dev.Qdev != "" && v.standsOn(dev.Inserted.Name, filter) {
			return nil
		}
	}
	return fmt.Errorf("qemu: the disk %s was taken from the guest while snapshot %s lasted (%w)", d.Node, id, ErrBroken)
}

// standsOn reports whether a node is, or leads down to, another.
func (v *view) standsOn(name, other string) bool {
	for range v.nodes {
		if name == other {
			return true
		}
		if name = v.files[name]; name == "" {
			break
		}
	}
	return name == other
}

// probe reads a sector through the filter itself, which refuses that once it could not
// save something: the only way to learn of that. Nobody else may read there, as qemu
// before 9.1 crashes when two readers meet; the monitor, which this holds, sees to it.
func (d *Disk) probe(ctx context.Context, m *monitor, id string) error {
	access := d.stem(id) + kindAccess
	if err := m.call(ctx, "blockdev-add", map[string]any{
		"driver": "snapshot-access", "node-name": access, "file": d.stem(id) + kindFilter,
	}, nil); err != nil {
		return err
	}
	if err := m.call(ctx, "block-export-add", map[string]any{
		"type": "nbd", "id": access, "node-name": access, "name": access, "writable": false,
	}, nil); err != nil {
		return err
	}
	c, err := nbd.Dial(ctx, nbd.URI(d.socket(), access), nbd.ClientOptions{DialTimeout: 10 * time.Second})
	if err != nil {
		return fmt.Errorf("qemu: look at snapshot %s: %w", id, err)
	}
	err = c.ReadAt(ctx, make([]byte, min(512, c.Size())), 0)
	var answer nbd.Error
	switch {
	case errors.As(err, &answer):
		err = fmt.Errorf("qemu: what the guest overwrote could not be saved (no room in %s, or too slow), so that snapshot %s is lost; the guest was not harmed (%w)", d.Dir, id, ErrBroken)
	case err != nil:
		err = fmt.Errorf("qemu: look at snapshot %s: %w", id, err)
	}
	return errors.Join(err, c.Close())
}

// removeProbe takes the probe out again, also one that was made in part. If the
// connection is gone, the next Sweep does.
func (d *Disk) removeProbe(ctx context.Context, m *monitor) error {
	s := &sweep{d: d, m: m}
	for _, step := range []func(context.Context){s.look, s.endExports, s.look, s.removeAccess} {
		if step(ctx); s.dead {
			break
		}
	}
	return errors.Join(s.errs...)
}
