package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/qemu"
	"github.com/cairnbackup/cairn/internal/serve"
)

// stateTimeout is how long a qemu is asked how its disk is. Lists wait for it, and its
// monitor, which serves one client at a time, may be held by a snapshot.
const stateTimeout = 2 * time.Second

// qemuDisk is the kind qemu: the disk of a running guest. Its snapshots are kept and served
// by its qemu, and its checkpoints are bitmaps there.
type qemuDisk struct {
	dir string // for what guests overwrite

	mu    sync.Mutex
	turns map[string]chan struct{} // by monitor, which has little room for clients that wait
}

var _ driver = (*qemuDisk)(nil)

func newQEMUDisk(dir string) *qemuDisk { return &qemuDisk{dir: dir, turns: map[string]chan struct{}{}} }

// with calls f with the disk of a record, while nothing else of this process wants the
// monitor.
func (d *qemuDisk) with(ctx context.Context, r Record, f func(*qemu.Disk) error) error {
	d.mu.Lock()
	turn, ok := d.turns[r.Socket]
	if !ok {
		turn = make(chan struct{}, 1)
		d.turns[r.Socket] = turn
	}
	d.mu.Unlock()
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-turn }()
	err := f(d.disk(r))
	switch {
	case errors.Is(err, qemu.ErrUnreachable):
		return away(r, err)
	case errors.Is(err, qemu.ErrNoRoom):
		return refuse(serve.CodeNoSpace, "volume %s: %v", r.Name, err)
	}
	return err
}

func (d *qemuDisk) disk(r Record) *qemu.Disk {
	return &qemu.Disk{Monitor: r.Socket, Node: r.Node, Tag: tag(r.ID), Dir: d.dir}
}

func (d *qemuDisk) room(r Record) error {
	if err := d.disk(r).Room(); err != nil {
		return refuse(serve.CodeNoSpace, "the snapshot of volume %s was ended: %v", r.Name, err)
	}
	return nil
}

// tag stands for a volume in the names of what belongs to it in its qemu, which have no
// room for its ID. IDs that somebody chose may well begin alike.
func tag(volumeID string) string {
	sum := sha256.Sum256([]byte(volumeID))
	return hex.EncodeToString(sum[:4])
}

func (d *qemuDisk) info(ctx context.Context, r Record) (info qemu.Info, err error) {
	err = d.with(ctx, r, func(x *qemu.Disk) (ierr error) {
		info, ierr = x.Info(ctx)
		return ierr
	})
	return info, err
}

func (d *qemuDisk) look(ctx context.Context, r Record) (int64, error) {
	info, err := d.info(ctx, r)
	return info.Size, err
}

func (d *qemuDisk) state(ctx context.Context, r Record) state {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	s := state{writer: "its qemu", doubts: make(map[string]string, len(r.Checkpoints))}
	for _, c := range r.Checkpoints {
		s.doubts[c.Name] = c.Doubt
	}
	info, err := d.info(ctx, r)
	switch {
	case errors.Is(err, qemu.ErrBusy), ctx.Err() != nil: // the next snapshot tells
		return s
	case err != nil:
		return state{err: err, doubts: s.doubts}
	}
	s.dirty = make(map[string]int64, len(info.Checkpoints))
	for _, c := range info.Checkpoints {
		s.dirty[c.Name] = c.Dirty
	}
	for _, c := range r.Checkpoints {
		if c.Doubt == "" {
			s.doubts[c.Name] = fault(info, c.Name)
		}
	}
	return s
}

// fault is why a checkpoint says nothing of what changed, as far as that can be told before
// a snapshot: one that is in use now may be free then.
func fault(info qemu.Info, checkpoint string) string {
	i := slices.IndexFunc(info.Checkpoints, func(c qemu.Checkpoint) bool { return c.Name == checkpoint })
	if i < 0 {
		return "qemu does not have this checkpoint any more: it was restarted, or the disk is another one"
	}
	return info.Checkpoints[i].Fault
}

func (d *qemuDisk) begin(ctx context.Context, r Record, b beginning) (t taken, err error) {
	o := qemu.SnapshotOptions{ID: b.snapshot, Checkpoint: b.checkpoint, Around: b.still}
	for _, c := range r.Checkpoints {
		if c.Doubt == "" {
			o.Since = append(o.Since, c.Name)
		}
	}
	err = d.with(ctx, r, func(x *qemu.Disk) error {
		s, serr := x.Snapshot(ctx, o)
		t = taken{uri: s.URI, size: s.Size, at: s.Created, lost: s.Lost}
		return serr
	})
	return t, err
}

func (d *qemuDisk) verify(ctx context.Context, r Record, snapshot string) error {
	return d.with(ctx, r, func(x *qemu.Disk) error { return x.Verify(ctx, snapshot) })
}

func (d *qemuDisk) end(ctx context.Context, r Record, snapshot string) error {
	return d.with(ctx, r, func(x *qemu.Disk) error { return x.DropSnapshot(ctx, snapshot) })
}

func (d *qemuDisk) forget(ctx context.Context, r Record, checkpoint string) error {
	return d.with(ctx, r, func(x *qemu.Disk) error { return x.DropCheckpoint(ctx, checkpoint) })
}

func (d *qemuDisk) sweep(ctx context.Context, r Record) error {
	known := func(name string) bool {
		return slices.ContainsFunc(r.Checkpoints, func(c Checkpoint) bool { return c.Name == name })
	}
	return d.with(ctx, r, func(x *qemu.Disk) error { return x.Sweep(ctx, func(string) bool { return false }, known) })
}
