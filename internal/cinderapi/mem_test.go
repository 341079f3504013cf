package cinderapi

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/identity"
)

// memory is a Service in memory. What takes time elsewhere is done at once here,
// but for what a test makes hang.
type memory struct {
	mu        sync.Mutex
	volumes   map[string]Volume
	snapshots map[string]Snapshot
	backups   map[string]Backup
	quotas    map[string]map[string]int64
	hosts     []Host
	types     []Type
	clock     time.Time
	fail      error // what every call returns, for tests
	hang      bool  // backups stay "creating"
}

var _ Service = (*memory)(nil)

// typeID is the ID of the default volume type.
const typeID = "5fed9d7c-401d-46e2-8e80-f30c70cb7e1d"

func newMemory() *memory {
	start := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	return &memory{
		volumes: map[string]Volume{}, snapshots: map[string]Snapshot{}, backups: map[string]Backup{}, quotas: map[string]map[string]int64{},
		hosts: []Host{
			{Binary: "cinder-volume", Name: "node1@cairn", Zone: "nova", Up: true, Updated: start},
			{Binary: "cinder-backup", Name: "node1", Zone: "nova", Up: false, Disabled: "maintenance", Updated: start},
		},
		types: []Type{{ID: typeID, Name: "plain", Description: "raw files", Default: true}, {ID: uuid.NewString(), Name: "secret", Encrypted: true}},
		clock: start,
	}
}

// now is a new time each time. m.mu is held.
func (m *memory) now() time.Time {
	m.clock = m.clock.Add(time.Second)
	return m.clock
}

// all are the values of a map, in the order of their IDs.
func all[T any](m *memory, of map[string]T) ([]T, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]T, 0, len(of))
	for _, k := range slices.Sorted(maps.Keys(of)) {
		list = append(list, of[k])
	}
	return list, m.fail
}

// one is a value of a map.
func one[T any](m *memory, of map[string]T, what, id string) (T, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := of[id]
	switch {
	case m.fail != nil:
		return t, m.fail
	case !ok:
		return t, NotFound(what, id)
	}
	return t, nil
}

// change changes a value of a map; a nil change removes it.
func change[T any](m *memory, of map[string]T, what, id string, by func(*T) error) (T, error) {
	t, err := one(m, of, what, id)
	if err != nil {
		return t, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if by == nil {
		delete(of, id)
		return t, nil
	}
	if err := by(&t); err != nil {
		return t, err
	}
	of[id] = t
	return t, nil
}

func (m *memory) Volumes(context.Context) ([]Volume, error) { return all(m, m.volumes) }

func (m *memory) Volume(_ context.Context, id string) (Volume, error) {
	return one(m, m.volumes, "Volume", id)
}

func (m *memory) CreateVolume(_ context.Context, by identity.Caller, n NewVolume) (Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return Volume{}, m.fail
	}
	if n.Type == "" {
		n.Type = m.types[0].Name
	}
	v := Volume{
		ID: uuid.NewString(), Project: by.ProjectID, User: by.UserID, Name: n.Name, Description: n.Description, Status: "available",
		Size: n.Size, Type: n.Type, Metadata: n.Metadata, SnapshotID: n.SnapshotID, BackupID: n.BackupID, Host: "node1@cairn#pool", Created: m.now(),
	}
	m.volumes[v.ID] = v
	return v, nil
}

func (m *memory) UpdateVolume(_ context.Context, id string, u Update) (Volume, error) {
	return change(m, m.volumes, "Volume", id, func(v *Volume) error {
		set(&v.Name, u.Name)
		set(&v.Description, u.Description)
		set(&v.Metadata, u.Metadata)
		set(&v.Bootable, u.Bootable)
		v.Updated = m.now()
		return nil
	})
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (m *memory) ExtendVolume(_ context.Context, id string, size int64) error {
	_, err := change(m, m.volumes, "Volume", id, func(v *Volume) error {
		if size <= v.Size {
			return Invalid("Invalid input received: New size for extend must be greater than current size. (current: %d, extended: %d).", v.Size, size)
		}
		v.Size = size
		return nil
	})
	return err
}

func (m *memory) ResetVolume(_ context.Context, id, status string) error {
	_, err := change(m, m.volumes, "Volume", id, func(v *Volume) error { v.Status = status; return nil })
	return err
}

func (m *memory) DeleteVolume(ctx context.Context, id string, force bool) error {
	v, err := m.Volume(ctx, id)
	if err != nil {
		return err
	}
	if v.Status != "available" && v.Status != "error" && !force {
		return Invalid("Invalid volume: Volume status must be available or error, but the current status is %q.", v.Status)
	}
	snapshots, err := m.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		if s.VolumeID == id && !force {
			return Invalid("Invalid volume: Volume still has 1 dependent snapshots.")
		}
	}
	_, err = change(m, m.volumes, "Volume", id, nil)
	return err
}

func (m *memory) Snapshots(context.Context) ([]Snapshot, error) { return all(m, m.snapshots) }

func (m *memory) Snapshot(_ context.Context, id string) (Snapshot, error) {
	return one(m, m.snapshots, "Snapshot", id)
}

func (m *memory) CreateSnapshot(ctx context.Context, by identity.Caller, n NewSnapshot) (Snapshot, error) {
	v, err := m.Volume(ctx, n.VolumeID)
	if err != nil {
		return Snapshot{}, err
	}
	if v.Status != "available" && !n.Force {
		return Snapshot{}, Invalid("Invalid volume: Volume %s status must be available, but current status is: %s.", v.ID, v.Status)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Snapshot{
		ID: uuid.NewString(), Project: v.Project, User: by.UserID, Name: n.Name, Description: n.Description,
		Status: "available", VolumeID: v.ID, Size: v.Size, Metadata: n.Metadata, Created: m.now(),
	}
	m.snapshots[s.ID] = s
	return s, nil
}

func (m *memory) UpdateSnapshot(_ context.Context, id string, u Update) (Snapshot, error) {
	return change(m, m.snapshots, "Snapshot", id, func(s *Snapshot) error {
		set(&s.Name, u.Name)
		set(&s.Description, u.Description)
		set(&s.Metadata, u.Metadata)
		return nil
	})
}

func (m *memory) ResetSnapshot(_ context.Context, id, status string) error {
	_, err := change(m, m.snapshots, "Snapshot", id, func(s *Snapshot) error { s.Status = status; return nil })
	return err
}

func (m *memory) DeleteSnapshot(_ context.Context, id string) error {
	_, err := change(m, m.snapshots, "Snapshot", id, nil)
	return err
}

// state is all that there is, to tell whether something changed.
func (m *memory) state() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint(m.volumes, m.snapshots, m.backups, m.quotas)
}
