package cinderapi

import (
	"context"
	"encoding/base64"
	"encoding/json"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/identity"
)

func (m *memory) Backups(_ context.Context, project string) ([]Backup, error) {
	list, err := all(m, m.backups)
	for i := range list {
		list[i].Metadata = nil // as it may be
	}
	if project == "" {
		return list, err
	}
	var of []Backup
	for _, b := range list {
		if b.Project == project {
			of = append(of, b)
		}
	}
	return of, err
}

func (m *memory) BackupMetadata(_ context.Context, ids []string) (map[string]map[string]string, error) {
	got := map[string]map[string]string{}
	for _, id := range ids {
		if b, err := one(m, m.backups, "Backup", id); err == nil {
			got[id] = b.Metadata
		}
	}
	return got, nil
}

func (m *memory) Backup(_ context.Context, id string) (Backup, error) {
	return one(m, m.backups, "Backup", id)
}

func (m *memory) CreateBackup(ctx context.Context, by identity.Caller, n NewBackup) (Backup, error) {
	v, err := m.Volume(ctx, n.VolumeID)
	if err != nil {
		return Backup{}, err
	}
	if v.Status == "in-use" && !n.Force && n.SnapshotID == "" {
		return Backup{}, Invalid("Invalid volume: Backing up an in-use volume must use the force flag.")
	}
	if v.Status != "available" && v.Status != "in-use" {
		return Backup{}, Invalid("Invalid volume: Volume to be backed up must be available or in-use, but the current status is %q.", v.Status)
	}
	if n.SnapshotID != "" {
		s, gone := m.Snapshot(ctx, n.SnapshotID)
		if gone != nil {
			return Backup{}, gone
		}
		if s.VolumeID != v.ID {
			return Backup{}, Invalid("Invalid volume: Volume %s does not match with snapshot.volume_id %s.", v.ID, s.VolumeID)
		}
	}
	q, err := m.Quota(ctx, by.ProjectID)
	if err != nil {
		return Backup{}, err
	}
	if u := q["backups"]; u.Limit >= 0 && u.InUse >= u.Limit {
		return Backup{}, OverQuota("Maximum number of backups allowed (%d) exceeded", u.Limit)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var parent *Backup
	for _, b := range m.backups {
		if b.VolumeID == v.ID && b.Project == by.ProjectID && b.Status == "available" && (parent == nil || b.DataTime.After(parent.DataTime)) {
			parent = &b
		}
	}
	if n.Incremental {
		if parent == nil {
			return Backup{}, Invalid("Invalid backup: No backups available to do an incremental backup.")
		}
		parent.Dependent = true
		m.backups[parent.ID] = *parent
	}
	at := m.now()
	b := Backup{
		ID: uuid.NewString(), Project: by.ProjectID, User: by.UserID, Name: n.Name, Description: n.Description, Status: "creating",
		VolumeID: v.ID, SnapshotID: n.SnapshotID, Container: n.Container, Size: v.Size, Objects: 7, Incremental: n.Incremental,
		Metadata: n.Metadata, Host: "node1", Created: at, DataTime: at,
	}
	done := b
	if !m.hang {
		done.Status, done.Updated = "available", m.now()
	}
	m.backups[b.ID] = done
	return b, nil
}

func (m *memory) UpdateBackup(_ context.Context, id string, u Update) (Backup, error) {
	return change(m, m.backups, "Backup", id, func(b *Backup) error {
		set(&b.Name, u.Name)
		set(&b.Description, u.Description)
		set(&b.Metadata, u.Metadata)
		return nil
	})
}

func (m *memory) DeleteBackup(ctx context.Context, id string, force bool) error {
	b, err := m.Backup(ctx, id)
	if err != nil {
		return err
	}
	if b.Status != "available" && b.Status != "error" && !force {
		return Invalid("Invalid backup: Backup status must be available or error")
	}
	_, err = change(m, m.backups, "Backup", id, nil)
	return err
}

func (m *memory) ResetBackup(_ context.Context, id, status string) error {
	_, err := change(m, m.backups, "Backup", id, func(b *Backup) error { b.Status = status; return nil })
	return err
}

func (m *memory) Restore(ctx context.Context, by identity.Caller, id string, r NewRestore) (Restoring, error) {
	b, err := m.Backup(ctx, id)
	if err != nil {
		return Restoring{}, err
	}
	if b.Status != "available" {
		return Restoring{}, Invalid("Invalid backup: Backup status must be available")
	}
	if r.VolumeID == "" {
		if r.Name == "" {
			r.Name = "restore_backup_" + b.ID
		}
		v, failed := m.CreateVolume(ctx, by, NewVolume{Name: r.Name, Size: b.Size, BackupID: b.ID})
		return Restoring{b.ID, v.ID, v.Name}, failed
	}
	v, err := m.Volume(ctx, r.VolumeID)
	if err != nil {
		return Restoring{}, err
	}
	if v.Size < b.Size {
		return Restoring{}, Invalid("Invalid volume: volume size %d is too small to restore backup of size %d.", v.Size, b.Size)
	}
	return Restoring{b.ID, v.ID, v.Name}, nil
}

func (m *memory) ExportBackup(ctx context.Context, id string) (Record, error) {
	b, err := m.Backup(ctx, id)
	if err != nil {
		return Record{}, err
	}
	j, err := json.Marshal(b)
	return Record{"cinder.backup.drivers.cairn", base64.StdEncoding.EncodeToString(j)}, err
}

func (m *memory) ImportBackup(_ context.Context, by identity.Caller, r Record) (Backup, error) {
	j, err := base64.StdEncoding.DecodeString(r.URL)
	if err != nil {
		return Backup{}, Invalid("Invalid input received: Can't parse backup record.")
	}
	var b Backup
	if err := json.Unmarshal(j, &b); err != nil || !isUUIDLike(b.ID) {
		return Backup{}, Invalid("Invalid input received: Can't parse backup record.")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.backups[b.ID]; there {
		return Backup{}, Invalid("Invalid backup: Backup already exists in database.")
	}
	b.Project = by.ProjectID
	m.backups[b.ID] = b
	return b, m.fail
}
