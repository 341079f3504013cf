package qemu

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Info is what qemu says of a disk.
type Info struct {
	Version  string // "7.2.22"
	Device   string // path of the guest's device in qemu
	Node     string // that the disk is, below all snapshots' filters
	Format   string // "qcow2", "raw"
	Size     int64
	ReadOnly bool   // for the guest
	State    string // of the guest: "running", "paused", …

	Checkpoints []Checkpoint
	Snapshots   []State
}

// Checkpoint is a point in time since which qemu tracks changes.
type Checkpoint struct {
	Name       string
	Dirty      int64  // bytes, in whole blocks, that changed since
	Persistent bool   // qemu keeps it across an orderly end
	Fault      string // why it says nothing of what changed; "" if it does
}

// State is an open snapshot.
type State struct {
	ID    string
	Saved int64 // bytes in the file of what the guest overwrote
}

// Info asks qemu about the disk.
func (d *Disk) Info(ctx context.Context) (Info, error) {
	var info Info
	err := d.with(ctx, func(m *monitor) error {
		version, err := checkVersion(ctx, m)
		if err != nil {
			return err
		}
		v, err := look(ctx, m)
		if err != nil {
			return err
		}
		t, err := v.resolve(d.Node)
		if err != nil {
			return err
		}
		info = Info{
			Version:  version,
			Device:   t.device.qom(),
			Node:     t.base.Name,
			Format:   t.base.Driver,
			Size:     t.base.Image.Size,
			ReadOnly: t.base.Ro,
		}
		info.Checkpoints = d.checkpoints(t.base)
		info.Snapshots = d.snapshots(v)
		info.State, err = state(ctx, m)
		return err
	})
	return info, err
}

func (d *Disk) checkpoints(base node) []Checkpoint {
	var found []Checkpoint
	for _, b := range base.Bitmaps {
		if name, ok := strings.CutPrefix(b.Name, d.prefix()); ok {
			found = append(found, Checkpoint{Name: name, Dirty: b.Count, Persistent: b.Persistent, Fault: b.fault()})
		}
	}
	slices.SortFunc(found, func(a, b Checkpoint) int { return strings.Compare(a.Name, b.Name) })
	return found
}

func (d *Disk) snapshots(v *view) []State {
	var found []State
	for _, e := range v.exports {
		if id, ok := d.snapshotID(e.ID); ok {
			fleece, _ := v.node(d.stem(id) + kindFleece)
			found = append(found, State{ID: id, Saved: fleece.Image.Actual})
		}
	}
	slices.SortFunc(found, func(a, b State) int { return strings.Compare(a.ID, b.ID) })
	return found
}

// fault says why a checkpoint's bitmap does not tell what changed.
func (b bitmap) fault() string {
	switch {
	case b.Inconsistent:
		return "qemu ended without storing what had changed"
	case !b.Recording:
		return "qemu has stopped tracking changes since this checkpoint"
	case b.Busy:
		return "another operation of qemu has its bitmap"
	}
	return ""
}

// checkVersion returns qemu's version, or says that it is too old.
func checkVersion(ctx context.Context, m *monitor) (string, error) {
	var q struct {
		Qemu struct{ Major, Minor, Micro int }
	}
	if err := m.call(ctx, "query-version", nil, &q); err != nil {
		return "", err
	}
	v := q.Qemu
	text := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if v.Major < 7 || v.Major == 7 && v.Minor < 1 {
		return text, fmt.Errorf("qemu: this is qemu %s, which can only fail the guest's writes when a snapshot fails: 7.1 or newer is needed (%w)", text, ErrState)
	}
	return text, nil
}

func state(ctx context.Context, m *monitor) (string, error) {
	var q struct {
		Status string `json:"status"`
	}
	if err := m.call(ctx, "query-status", nil, &q); err != nil {
		return "", noGuest(err)
	}
	return q.Status, nil
}

// checkState refuses while the disks are, or are about to be, somebody else's.
func checkState(ctx context.Context, m *monitor) error {
	now, err := state(ctx, m)
	if err != nil {
		return err
	}
	switch now {
	case "inmigrate", "postmigrate", "finish-migrate", "restore-vm", "save-vm", "colo":
		return fmt.Errorf("qemu: the guest is in the state %s, in which its disks are not this qemu's to read: try again later (%w)", now, ErrState)
	}
	var migration struct {
		Status string `json:"status"`
	}
	if err := m.call(ctx, "query-migrate", nil, &migration); err != nil {
		return err
	}
	switch migration.Status {
	case "", "none", "completed", "failed", "cancelled": //nolint:misspell // qemu's word
		return nil
	}
	return fmt.Errorf("qemu: the guest is being migrated (%s): a snapshot would stay behind; try again later (%w)", migration.Status, ErrState)
}
