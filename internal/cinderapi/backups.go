package cinderapi

import (
	"net/http"
	"time"
)

func backupRoutes() []route {
	return []route{
		{method: get, path: "backups", do: func(c *call) (answer, error) { return c.listBackups(false) }},
		{method: get, path: "backups/detail", do: func(c *call) (answer, error) { return c.listBackups(true) }},
		{method: post, path: "backups", action: "backup.create", object: "backup", do: (*call).createBackup},
		{method: post, path: "backups/import_record", action: "backup.import", object: "backup", do: (*call).importBackup},
		{method: get, path: "backups/{id}", do: (*call).showBackup},
		{method: put, path: "backups/{id}", since: 9, action: "backup.update", object: "backup", do: (*call).updateBackup},
		{method: del, path: "backups/{id}", action: "backup.delete", object: "backup", do: (*call).deleteBackup},
		{method: post, path: "backups/{id}/action", action: "backup.action", object: "backup", do: actions("backup", backupActions)},
		{method: post, path: "backups/{id}/restore", action: "backup.restore", object: "backup", do: (*call).restoreBackup},
		{method: get, path: "backups/{id}/export_record", do: (*call).exportBackup},
	}
}

// backupList is how backups are listed.
var backupList = &listing[Backup]{plural: "backups", what: "Backup", columns: map[string]column[Backup]{
	"id":                text(func(b Backup) string { return b.ID }),
	"name":              text(func(b Backup) string { return b.Name }),
	"display_name":      text(func(b Backup) string { return b.Name }),
	"description":       text(func(b Backup) string { return b.Description }),
	"status":            text(func(b Backup) string { return b.Status }),
	"volume_id":         text(func(b Backup) string { return b.VolumeID }),
	"snapshot_id":       text(func(b Backup) string { return b.SnapshotID }),
	"container":         text(func(b Backup) string { return b.Container }),
	"size":              integer(func(b Backup) int64 { return b.Size }),
	"object_count":      integer(func(b Backup) int64 { return b.Objects }),
	"availability_zone": zone[Backup](),
	"metadata":          {since: 43, match: matchMetadata(func(b Backup) map[string]string { return b.Metadata })},
	"created_at":        moment(func(b Backup) time.Time { return b.Created }),
	"updated_at":        moment(func(b Backup) time.Time { return b.Updated }),
	"data_timestamp":    moment(func(b Backup) time.Time { return b.DataTime }),
	"project_id":        forAdmins(text(func(b Backup) string { return b.Project })),
	"user_id":           forAdmins(text(func(b Backup) string { return b.User })),
	"host":              forAdmins(text(func(b Backup) string { return b.Host })),
}}

func (c *call) listBackups(detail bool) (answer, error) {
	everyone, err := c.allTenants()
	if err != nil {
		return answer{}, err
	}
	project := "" // all
	if !everyone {
		project = c.caller.ProjectID
	}
	all, err := c.service().Backups(c.ctx(), project)
	if err != nil {
		return answer{}, err
	}
	if !everyone {
		// A caller without a project has asked for all.
		all = own(c, all, func(b Backup) string { return b.Project })
	}
	// Metadata may be large: they are read of those that are shown, unless all are asked about.
	_, asked := c.values()["metadata"]
	if asked && c.since(43) {
		if err = c.fillMetadata(all); err != nil {
			return answer{}, err
		}
	}
	if !detail {
		return list(c, backupList, all, c.backupSummary, "")
	}
	var page []Backup
	var bodies []object
	a, err := list(c, backupList, all, func(b Backup) object {
		page, bodies = append(page, b), append(bodies, c.backupDetail(b))
		return bodies[len(bodies)-1]
	}, "/detail")
	if err == nil && c.since(43) && !asked {
		err = c.fillMetadata(page)
		for i, o := range bodies {
			o["metadata"] = pairs(page[i].Metadata)
		}
	}
	return a, err
}

// fillMetadata reads the metadata of backups.
func (c *call) fillMetadata(l []Backup) error {
	ids := make([]string, len(l))
	for i, b := range l {
		ids[i] = b.ID
	}
	got, err := c.service().BackupMetadata(c.ctx(), ids)
	if err != nil {
		return err
	}
	for i, b := range l {
		l[i].Metadata = got[b.ID]
	}
	return nil
}

func (c *call) backupSummary(b Backup) object { return c.summary("backups", b.ID, b.Name) }

// backupDetail is the whole body of a backup.
func (c *call) backupDetail(b Backup) object {
	o := object{
		"id": b.ID, "status": b.Status, "size": b.Size, "object_count": b.Objects,
		"availability_zone": c.service().Zone(), "container": orNull(b.Container),
		"created_at": stamp(b.Created), "updated_at": stamp(b.Updated),
		"name": orNull(b.Name), "description": orNull(b.Description), "fail_reason": orNull(b.FailReason),
		"volume_id": b.VolumeID, "links": c.links("backups", b.ID),
		"is_incremental": b.Incremental, "has_dependent_backups": b.Dependent,
		"snapshot_id": orNull(b.SnapshotID), "data_timestamp": stamp(b.DataTime),
	}
	if c.since(18) && c.caller.Admin {
		o["os-backup-project-attr:project_id"] = orNull(b.Project)
	}
	if c.since(43) {
		o["metadata"] = pairs(b.Metadata)
	}
	if c.since(56) && c.caller.Admin {
		o["user_id"] = orNull(b.User)
	}
	if c.since(64) && b.EncryptionKeyID != "" {
		o["encryption_key_id"] = b.EncryptionKeyID
	}
	return o
}

func (c *call) showBackup() (answer, error) {
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	return ok("backup", c.backupDetail(b))
}

var (
	isBackupCreate = &schema{types: []string{"object"}, required: []string{"volume_id"}, props: map[string]*schema{
		"volume_id": isUUID, "container": isText, "name": isText, "description": isDescription,
		"incremental": isBool, "force": isBool, "snapshot_id": isUUIDMaybe,
	}}
	isBackupCreate43 = isBackupCreate.plus("metadata", isMetadataMaybe)
	isBackupCreate51 = isBackupCreate43.plus("availability_zone", isText)
)

func (c *call) createBackup() (answer, error) {
	s := isBackupCreate
	switch {
	case c.since(51):
		s = isBackupCreate51
	case c.since(43):
		s = isBackupCreate43
	}
	f, err := c.body("backup", s)
	if err != nil {
		return answer{}, err
	}
	v, err := c.volume(f.text("volume_id"))
	if err != nil {
		return answer{}, err
	}
	n := NewBackup{
		VolumeID: v.ID, Name: f.name("name"), Description: f.name("description"), Container: f.text("container"),
		Incremental: f.truth("incremental"), Force: f.truth("force"), Metadata: f.metadata(),
	}
	if f.text("snapshot_id") != "" {
		var of Snapshot
		if of, err = c.snapshot(f.text("snapshot_id")); err != nil {
			return answer{}, err
		}
		n.SnapshotID = of.ID
	}
	if z := f.text("availability_zone"); z != "" && z != c.service().Zone() {
		return answer{}, Unavailable("Service cinder-backup could not be found in availability zone %s.", z)
	}
	b, err := c.service().CreateBackup(c.ctx(), c.caller, n)
	if err != nil {
		return answer{}, err
	}
	c.object = b.ID
	return answer{status: http.StatusAccepted, body: object{"backup": c.backupSummary(b)}}, nil
}

var (
	isBackupUpdate   = &schema{types: []string{"object", "null"}, props: map[string]*schema{"name": isText, "description": isDescription}}
	isBackupUpdate43 = isBackupUpdate.plus("metadata", isMetadata)
)

func (c *call) updateBackup() (answer, error) {
	s := isBackupUpdate
	if c.since(43) {
		s = isBackupUpdate43
	}
	f, err := c.body("backup", s)
	if err != nil {
		return answer{}, err
	}
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if len(f) == 0 {
		return answer{}, Invalid("Must specify body parameters 'name', 'description' or 'metadata' for the request.")
	}
	if b, err = c.service().UpdateBackup(c.ctx(), b.ID, f.update()); err != nil {
		return answer{}, err
	}
	return ok("backup", c.backupSummary(b))
}

func (c *call) deleteBackup() (answer, error) {
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().DeleteBackup(c.ctx(), b.ID, false); err != nil {
		return answer{}, err
	}
	return accepted()
}
