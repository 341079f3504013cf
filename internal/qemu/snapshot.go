package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/nbd"
)

const (
	granularity = clusterSize
	// maxFilters is how many filters a disk may have on top of each other, those of
	// dropped snapshots included. qemu describes what is below each twice, so that
	// its time for that, in which the guest waits, doubles with each.
	maxFilters = 4
	// guestWait is how long a write of the guest may wait for what it overwrites to
	// be saved, in seconds; then the snapshot breaks. A guest's own patience with a
	// disk is 30 seconds, of some kinds.
	guestWait = 10
)

// SnapshotOptions say what snapshot is wanted.
type SnapshotOptions struct {
	ID string
	// Checkpoint is the name of the one that begins with this snapshot; "" for none.
	Checkpoint string
	// Since are the names of earlier checkpoints: the snapshot tells what changed
	// since each.
	Since []string
	// Around, if set, calls instant, which takes some milliseconds, while the
	// guest's file systems are at rest.
	Around func(ctx context.Context, instant func(context.Context) error) error
}

// Snapshot is a point in time of a disk, served by qemu until DropSnapshot or the
// guest's end. Call Verify when all is read: not before is it known that it was good.
type Snapshot struct {
	ID      string
	URI     string // of the NBD export, read-only
	Size    int64
	Created time.Time
	// Since are the checkpoints for which the export has a metadata context, called
	// nbd.ContextDirtyBitmap and the checkpoint's name: what it says is dirty may
	// differ from the disk of that time, all else does not.
	Since []string
	// Lost are the other ones that were asked for, with the reason. A checkpoint
	// that can never tell anything again was removed.
	Lost map[string]string
}

// Snapshot makes a snapshot. After an error, or when ctx ended, nothing of it is left;
// if that could not be achieved the error says so, and Sweep catches up.
func (d *Disk) Snapshot(ctx context.Context, o SnapshotOptions) (Snapshot, error) {
	if err := o.check(); err != nil {
		return Snapshot{}, err
	}
	var s Snapshot
	begun := false
	err := d.with(ctx, func(m *monitor) error {
		t, err := d.ready(ctx, m, o)
		if err != nil {
			return err
		}
		begun = true
		s, err = d.take(ctx, m, t, o)
		return err
	})
	if err != nil && begun {
		err = errors.Join(err, d.rollback(ctx, o))
	}
	if err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

func (o SnapshotOptions) check() error {
	if err := validName("ID of a snapshot", o.ID); err != nil {
		return err
	}
	names := o.Since
	if o.Checkpoint != "" {
		names = append(slices.Clone(names), o.Checkpoint)
	}
	for _, name := range names {
		if err := validName("name of a checkpoint", name); err != nil {
			return err
		}
	}
	return nil
}

// ready finds the disk, or says why no such snapshot can be taken of it. It changes
// nothing.
func (d *Disk) ready(ctx context.Context, m *monitor, o SnapshotOptions) (target, error) {
	if err := d.Room(); err != nil {
		return target{}, err
	}
	if err := checkState(ctx, m); err != nil {
		return target{}, err
	}
	v, err := look(ctx, m)
	if err != nil {
		return target{}, err
	}
	t, err := v.resolve(d.Node)
	if err != nil {
		return target{}, err
	}
	if err := checkVersion(ctx, m, t); err != nil {
		return target{}, err
	}
	if !v.stands(t.device) {
		return target{}, fmt.Errorf("qemu: a block job (a move of the storage, a commit) works on %s: try again when it is done (%w)", d.Node, ErrBusy)
	}
	if t.filters >= maxFilters {
		return target{}, fmt.Errorf("qemu: %s has %d snapshots, or dropped ones below a younger one that lasts: drop some first (%w)", d.Node, t.filters, ErrBusy)
	}
	if _, exists := v.node(d.stem(o.ID) + kindFleece); exists {
		return target{}, fmt.Errorf("qemu: %s has a snapshot %s, or what is left of one, already", d.Node, o.ID)
	}
	if _, exists := d.checkpoint(t.base, o.Checkpoint); exists {
		return target{}, fmt.Errorf("qemu: %s has a checkpoint %s already", d.Node, o.Checkpoint)
	}
	return t, nil
}

// take does what a snapshot is made of. The order is what makes it correct without a
// transaction: the new checkpoint's bitmap begins before the instant, and the earlier
// ones are copied after it, so that both may only say too much.
func (d *Disk) take(ctx context.Context, m *monitor, t target, o SnapshotOptions) (Snapshot, error) {
	s := Snapshot{ID: o.ID, URI: nbd.URI(d.socket(), o.ID), Size: t.base.Image.Size}
	if err := d.startServer(ctx, m); err != nil {
		return s, err
	}
	if err := d.prepare(ctx, m, t, o.ID); err != nil {
		return s, err
	}
	if o.Checkpoint != "" {
		if err := m.call(ctx, "block-dirty-bitmap-add", map[string]any{
			"node": t.base.Name, "name": d.bitmap(o.Checkpoint, s.Size), "granularity": granularity, "persistent": t.base.keepsBitmaps(),
		}, nil); err != nil {
			return s, err
		}
	}
	var err error
	if s.Created, err = d.instant(ctx, m, t, o); err != nil {
		return s, err
	}
	if s.Since, s.Lost, err = d.freeze(ctx, m, t.base, o); err != nil {
		return s, err
	}
	return s, m.call(ctx, "block-export-add", map[string]any{
		"type": "nbd", "id": d.stem(o.ID) + kindExport + o.ID, "node-name": d.stem(o.ID) + kindFleece,
		"name": o.ID, "bitmaps": s.Since, "writable": false,
	}, nil)
}

// keepsBitmaps reports whether qemu stores a node's bitmaps when it ends.
func (n node) keepsBitmaps() bool {
	return n.Driver == "qcow2" && !n.Ro && n.Image.Specific.Data.Compat != "0.10"
}

// prepare makes the fleece, and the filter, which nobody uses yet.
func (d *Disk) prepare(ctx context.Context, m *monitor, t target, id string) error {
	f, err := newFleece(d.Dir, t.base.Image.Size)
	if err != nil {
		return err
	}
	err = d.addFleece(ctx, m, t, id, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// "discard" lets the guest's own through; what becomes of them the disk below says.
	return m.call(ctx, "blockdev-add", map[string]any{
		"driver": "copy-before-write", "node-name": d.stem(id) + kindFilter,
		"file": t.root, "target": d.stem(id) + kindFleece,
		"on-cbw-error": "break-snapshot", "cbw-timeout": guestWait,
		"discard": "unmap", "read-only": t.base.Ro,
	}, nil)
}

// addFleece gives qemu the file. The fleece stands on what the filter will stand on:
// by that qemu knows that its reads and the guest's writes must not overtake each other.
func (d *Disk) addFleece(ctx context.Context, m *monitor, t target, id string, f *os.File) error {
	var set struct {
		ID int64 `json:"fdset-id"`
	}
	if err := m.call(ctx, "add-fd", map[string]any{"opaque": d.stem(id) + kindFleece}, &set, f); err != nil {
		return err
	}
	err := m.call(ctx, "blockdev-add", map[string]any{
		"driver": "qcow2", "node-name": d.stem(id) + kindFleece, "backing": t.root, "discard": "unmap",
		"file": map[string]any{
			"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "locking": "off",
			"discard": "unmap", "cache": map[string]any{"no-flush": true}, // nobody reads it after a crash
		},
	}, nil)
	if err != nil {
		return err
	}
	// The node has its own descriptor; this one would stay as long as anybody has a
	// monitor open.
	return m.call(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil)
}

// instant puts the filter between the device and the disk: that is the point in time.
// qemu lets the guest's requests that are on their way end first.
func (d *Disk) instant(ctx context.Context, m *monitor, t target, o SnapshotOptions) (time.Time, error) {
	var created time.Time
	insert := func(ctx context.Context) error {
		now := time.Now()
		if err := setDrive(ctx, m, t.device, d.stem(o.ID)+kindFilter); err != nil {
			return fmt.Errorf("qemu: the guest's device cannot be given the snapshot's filter; does something else in this qemu write to the disk? %w", err)
		}
		created = now
		return nil
	}
	around := o.Around
	if around == nil {
		around = func(ctx context.Context, instant func(context.Context) error) error { return instant(ctx) }
	}
	if err := around(ctx, insert); err != nil {
		return created, err
	}
	if created.IsZero() {
		return created, errors.New("qemu: nobody let the snapshot be taken")
	}
	return created, nil
}

// setDrive has a device stand on another node.
func setDrive(ctx context.Context, m *monitor, dev device, node string) error {
	return m.call(ctx, "qom-set", map[string]any{"path": dev.qom(), "property": "drive", "value": node}, nil)
}

// freeze copies what changed since earlier checkpoints to the fleece, where it does not
// change any more.
func (d *Disk) freeze(ctx context.Context, m *monitor, base node, o SnapshotOptions) (since []string, lost map[string]string, err error) {
	since, lost = []string{}, map[string]string{}
	for _, name := range o.Since {
		c, ok := d.checkpoint(base, name)
		switch {
		case slices.Contains(since, name):
			continue
		case !ok:
			lost[name] = "qemu does not have this checkpoint any more: it was restarted, or the disk is another one"
			continue
		case c.Fault != "":
			lost[name] = c.Fault
			if c.forever {
				err = m.call(ctx, "block-dirty-bitmap-remove", map[string]any{"node": base.Name, "name": c.bitmap}, nil)
			}
		default:
			since = append(since, name)
			err = d.freezeOne(ctx, m, base.Name, c, d.stem(o.ID)+kindFleece)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return since, lost, nil
}

func (d *Disk) freezeOne(ctx context.Context, m *monitor, base string, c Checkpoint, fleece string) error {
	if err := m.call(ctx, "block-dirty-bitmap-add", map[string]any{
		"node": fleece, "name": c.Name, "granularity": granularity, "disabled": true,
	}, nil); err != nil {
		return err
	}
	return m.call(ctx, "block-dirty-bitmap-merge", map[string]any{
		"node": fleece, "target": c.Name,
		"bitmaps": []any{map[string]any{"node": base, "name": c.bitmap}},
	}, nil)
}

// rollback takes back what a failed snapshot has begun, on a new connection and in time
// of its own.
func (d *Disk) rollback(ctx context.Context, o SnapshotOptions) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackLimit)
	defer cancel()
	err := d.Sweep(ctx, func(id string) bool { return id != o.ID }, func(name string) bool { return name != o.Checkpoint })
	if err != nil {
		return fmt.Errorf("qemu: what was begun of the snapshot could not all be taken back, the next sweep will: %w", err)
	}
	return nil
}
