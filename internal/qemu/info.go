package qemu

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

// maxControllers is how many controllers a device may hang on, one behind the other.
const maxControllers = 8

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

	bitmap  string // its name on the disk's node
	forever bool   // the fault does not go away
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
		version, err := askVersion(ctx, m)
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
			Version:  version.String(),
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
		name, size, ok := d.checkpointOf(b.Name)
		if !ok {
			continue
		}
		c := Checkpoint{Name: name, Dirty: b.Count, Persistent: b.Persistent, Fault: b.fault(), bitmap: b.Name, forever: b.Inconsistent}
		if c.Fault == "" && size != base.Image.Size {
			c.Fault, c.forever = fmt.Sprintf("the disk was resized from %d to %d bytes since", size, base.Image.Size), true
		}
		found = append(found, c)
	}
	slices.SortFunc(found, func(a, b Checkpoint) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// checkpoint finds one.
func (d *Disk) checkpoint(base node, name string) (Checkpoint, bool) {
	all := d.checkpoints(base)
	i := slices.IndexFunc(all, func(c Checkpoint) bool { return c.Name == name })
	if i < 0 {
		return Checkpoint{}, false
	}
	return all[i], true
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

// version is qemu's.
type version struct{ Major, Minor, Micro int }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

func (v version) before(major, minor int) bool {
	return v.Major < major || v.Major == major && v.Minor < minor
}

func askVersion(ctx context.Context, m *monitor) (version, error) {
	var q struct {
		Qemu version `json:"qemu"`
	}
	err := m.call(ctx, "query-version", nil, &q)
	return q.Qemu, err
}

// checkVersion refuses a qemu that is too old for the guest to be safe.
func checkVersion(ctx context.Context, m *monitor, t target) error {
	v, err := askVersion(ctx, m)
	switch {
	case err != nil:
		return err
	case v.before(7, 1):
		return fmt.Errorf("qemu: this is qemu %v, which can only fail the guest's writes when a snapshot fails: 7.1 or newer is needed (%w)", v, ErrState)
	case !v.before(9, 0):
		return nil
	}
	thread, err := threadOf(ctx, m, t.device.qom())
	if err == nil && thread != "" {
		err = fmt.Errorf("qemu: %s is in the I/O thread %s, and qemu %v ends, with the guest, when a reader of such a disk hangs up: "+
			"9.0 or newer is needed, or a device without iothread= (%w)", t.base.Name, thread, v, ErrState)
	}
	return err
}

// threadOf returns the I/O thread that a device, or the controller that it hangs on,
// was given.
func threadOf(ctx context.Context, m *monitor, device string) (string, error) {
	var threads []struct{}
	if err := m.call(ctx, "query-iothreads", nil, &threads); err != nil || len(threads) == 0 {
		return "", err
	}
	for range maxControllers {
		thread, err := property(ctx, m, device, "iothread")
		if err != nil || thread != "" {
			return thread, err
		}
		bus, err := property(ctx, m, device, "parent_bus")
		if err != nil || bus == "" {
			return "", err
		}
		device = path.Dir(bus)
	}
	return "", nil
}

// property asks for one that is the path of another object; "" if there is none.
func property(ctx context.Context, m *monitor, object, name string) (string, error) {
	var value string
	err := m.call(ctx, "qom-get", map[string]any{"path": object, "property": name}, &value)
	if refused(err) {
		return "", nil
	}
	return value, err
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
