package cinderapi

import (
	"net/http"
	"slices"
	"time"
)

func snapshotRoutes() []route {
	return slices.Concat([]route{
		{method: get, path: "snapshots", do: func(c *call) (answer, error) { return c.listSnapshots(false) }},
		{method: get, path: "snapshots/detail", do: func(c *call) (answer, error) { return c.listSnapshots(true) }},
		{method: post, path: "snapshots", action: "snapshot.create", object: "snapshot", do: (*call).createSnapshot},
		{method: get, path: "snapshots/{id}", do: (*call).showSnapshot},
		{method: put, path: "snapshots/{id}", action: "snapshot.update", object: "snapshot", do: (*call).updateSnapshot},
		{method: del, path: "snapshots/{id}", action: "snapshot.delete", object: "snapshot", do: (*call).deleteSnapshot},
		{method: post, path: "snapshots/{id}/action", action: "snapshot.action", object: "snapshot", do: actions("snapshot", snapshotActions)},
	}, metadataRoutes("snapshots", "snapshot", (*call).snapshotMetadata))
}

// snapshotList is how snapshots are listed.
var snapshotList = &listing[Snapshot]{plural: "snapshots", what: "Snapshot", columns: map[string]column[Snapshot]{
	"id":                text(func(s Snapshot) string { return s.ID }),
	"name":              text(func(s Snapshot) string { return s.Name }),
	"display_name":      text(func(s Snapshot) string { return s.Name }),
	"description":       text(func(s Snapshot) string { return s.Description }),
	"status":            text(func(s Snapshot) string { return s.Status }),
	"volume_id":         text(func(s Snapshot) string { return s.VolumeID }),
	"size":              integer(func(s Snapshot) int64 { return s.Size }),
	"volume_size":       integer(func(s Snapshot) int64 { return s.Size }),
	"metadata":          {match: matchMetadata(func(s Snapshot) map[string]string { return s.Metadata })},
	"availability_zone": zone[Snapshot](),
	"created_at":        moment(func(s Snapshot) time.Time { return s.Created }),
	"updated_at":        moment(func(s Snapshot) time.Time { return s.Updated }),
	"consumes_quota":    {since: 65, match: matchTruth[Snapshot]("consumes_quota", true)},
	"project_id":        forAdmins(text(func(s Snapshot) string { return s.Project })),
	"user_id":           forAdmins(text(func(s Snapshot) string { return s.User })),
}}

func (c *call) listSnapshots(detail bool) (answer, error) {
	everyone, err := c.allTenants()
	if err != nil {
		return answer{}, err
	}
	all, err := c.service().Snapshots(c.ctx())
	if err != nil {
		return answer{}, err
	}
	if !everyone {
		all = own(c, all, func(s Snapshot) string { return s.Project })
	}
	if !detail {
		return list(c, snapshotList, all, snapshotSummary, "")
	}
	return list(c, snapshotList, all, c.snapshotDetail, "/detail")
}

// snapshotSummary is the body of a snapshot in a short list.
func snapshotSummary(s Snapshot) object {
	return object{
		"id": s.ID, "created_at": stamp(s.Created), "updated_at": stamp(s.Updated),
		"name": orNull(s.Name), "description": orNull(s.Description),
		"volume_id": s.VolumeID, "status": s.Status, "size": s.Size, "metadata": pairs(s.Metadata),
	}
}

// snapshotBody is the body of a snapshot as creating and updating answer it.
func (c *call) snapshotBody(s Snapshot) object {
	o := snapshotSummary(s)
	if c.since(14) {
		o["group_snapshot_id"] = nil
	}
	if c.since(41) {
		o["user_id"] = orNull(s.User)
	}
	if c.since(65) {
		o["consumes_quota"] = true
	}
	return o
}

// snapshotDetail is the body of a snapshot as showing and listing answer it.
func (c *call) snapshotDetail(s Snapshot) object {
	o := c.snapshotBody(s)
	o["os-extended-snapshot-attributes:project_id"] = orNull(s.Project)
	progress := "0%"
	if s.Status == "available" || s.Status == "backing-up" {
		progress = "100%"
	}
	o["os-extended-snapshot-attributes:progress"] = progress
	return o
}

func (c *call) showSnapshot() (answer, error) {
	s, err := c.snapshot(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	return ok("snapshot", c.snapshotDetail(s))
}

var isSnapshotCreate = &schema{types: []string{"object"}, required: []string{"volume_id"}, props: map[string]*schema{
	"name": isText, "display_name": isText, "description": isDescription,
	"volume_id": isUUID, "force": isBoolMaybe, "metadata": isMetadataMaybe,
}}

func (c *call) createSnapshot() (answer, error) {
	f, err := c.body("snapshot", isSnapshotCreate)
	if err != nil {
		return answer{}, err
	}
	force := f.truth("force")
	if c.since(66) {
		// Snapshots of volumes in use need no force any more; to insist on none is
		// to misunderstand that.
		if f["force"] != nil && !force {
			return answer{}, Invalid("Invalid input for field/attribute force. Value: %s. Since microversion 3.66 the 'force' flag is invalid for this request. For backward compatibility, however, when the 'force' flag is passed with a value evaluating to True, it is silently ignored.", show(f["force"]))
		}
		force = true
	}
	v, err := c.volume(f.text("volume_id"))
	if err != nil {
		return answer{}, err
	}
	s, err := c.service().CreateSnapshot(c.ctx(), c.caller, NewSnapshot{
		VolumeID: v.ID, Name: f.name("name", "display_name"), Description: f.name("description"),
		Force: force, Metadata: f.metadata(),
	})
	if err != nil {
		return answer{}, err
	}
	c.object = s.ID
	return answer{status: http.StatusAccepted, body: object{"snapshot": c.snapshotBody(s)}}, nil
}

var isSnapshotUpdate = &schema{
	types: []string{"object"},
	props: map[string]*schema{"name": isText, "description": isDescription, "display_name": isText, "display_description": isDescription},
	anyOf: []string{"name", "description", "display_name", "display_description"},
}

func (c *call) updateSnapshot() (answer, error) {
	f, err := c.body("snapshot", isSnapshotUpdate)
	if err != nil {
		return answer{}, err
	}
	s, err := c.snapshot(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if s, err = c.service().UpdateSnapshot(c.ctx(), s.ID, f.update()); err != nil {
		return answer{}, err
	}
	return ok("snapshot", c.snapshotBody(s))
}

func (c *call) deleteSnapshot() (answer, error) {
	s, err := c.snapshot(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().DeleteSnapshot(c.ctx(), s.ID); err != nil {
		return answer{}, err
	}
	return accepted()
}

// snapshotActions are the actions on a snapshot.
var snapshotActions = map[string]func(*call, any) (answer, error){
	"os-reset_status": (*call).resetSnapshot,
	"os-force_delete": func(c *call, _ any) (answer, error) {
		if err := c.admin("volume_extension:snapshot_admin_actions:force_delete"); err != nil {
			return answer{}, err
		}
		return c.deleteSnapshot()
	},
}

// snapshotStates are the states that a snapshot may be set to.
var snapshotStates = []string{"creating", "available", "backing-up", "error", "deleting"}

// isReset is the argument of an action that sets a status.
var isReset = &schema{types: []string{"object"}, required: []string{"status"}, props: map[string]*schema{"status": {types: []string{"string"}}}}

func (c *call) resetSnapshot(arg any) (answer, error) {
	if err := c.admin("volume_extension:snapshot_admin_actions:reset_status"); err != nil {
		return answer{}, err
	}
	f, err := argument("os-reset_status", arg, isReset)
	if err != nil {
		return answer{}, err
	}
	status, err := state("Snapshot", f.text("status"), snapshotStates)
	if err != nil {
		return answer{}, err
	}
	s, err := c.snapshot(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().ResetSnapshot(c.ctx(), s.ID, status); err != nil {
		return answer{}, err
	}
	return accepted()
}
