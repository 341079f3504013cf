package cinderapi

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"
)

func volumeRoutes() []route {
	return slices.Concat([]route{
		{method: get, path: "volumes", do: func(c *call) (answer, error) { return c.listVolumes(false) }},
		{method: get, path: "volumes/detail", do: func(c *call) (answer, error) { return c.listVolumes(true) }},
		{method: get, path: "volumes/summary", since: 12, do: (*call).summarizeVolumes},
		{method: post, path: "volumes", action: "volume.create", object: "volume", do: (*call).createVolume},
		{method: get, path: "volumes/{id}", do: (*call).showVolume},
		{method: put, path: "volumes/{id}", action: "volume.update", object: "volume", do: (*call).updateVolume},
		{method: del, path: "volumes/{id}", action: "volume.delete", object: "volume", do: (*call).deleteVolume},
		{method: get, path: "volumes/{id}/encryption", do: (*call).volumeEncryption},
		{method: post, path: "volumes/{id}/action", action: "volume.action", object: "volume", do: actions("volume", volumeActions)},
	}, metadataRoutes("volumes", "volume", (*call).volumeMetadata))
}

// volumeList is how volumes are listed.
var volumeList = &listing[Volume]{plural: "volumes", what: "Volume", columns: map[string]column[Volume]{
	"id":                text(func(v Volume) string { return v.ID }),
	"name":              text(func(v Volume) string { return v.Name }),
	"display_name":      text(func(v Volume) string { return v.Name }),
	"description":       text(func(v Volume) string { return v.Description }),
	"status":            text(func(v Volume) string { return v.Status }),
	"volume_type":       text(func(v Volume) string { return v.Type }),
	"snapshot_id":       text(func(v Volume) string { return v.SnapshotID }),
	"size":              integer(func(v Volume) int64 { return v.Size }),
	"bootable":          {compare: func(a, b Volume) int { return cmp.Compare(word(a.Bootable), word(b.Bootable)) }, match: matchBootable},
	"metadata":          {match: matchMetadata(func(v Volume) map[string]string { return v.Metadata })},
	"availability_zone": zone[Volume](),
	"migration_status":  none[Volume](),
	"group_id":          none[Volume](),
	"created_at":        moment(func(v Volume) time.Time { return v.Created }),
	"updated_at":        moment(func(v Volume) time.Time { return v.Updated }),
	"consumes_quota":    {since: 65, match: matchTruth[Volume]("consumes_quota", true)},
	"project_id":        forAdmins(text(func(v Volume) string { return v.Project })),
	"user_id":           forAdmins(text(func(v Volume) string { return v.User })),
	"host":              forAdmins(text(func(v Volume) string { return v.Host })),
}}

// seenVolumes are the volumes that a list of the caller's is about.
func (c *call) seenVolumes() ([]Volume, error) {
	everyone, err := c.allTenants()
	if err != nil {
		return nil, err
	}
	all, err := c.service().Volumes(c.ctx())
	if err != nil || everyone {
		return all, err
	}
	return own(c, all, func(v Volume) string { return v.Project }), nil
}

func (c *call) listVolumes(detail bool) (answer, error) {
	all, err := c.seenVolumes()
	if err != nil {
		return answer{}, err
	}
	if !detail {
		return list(c, volumeList, all, func(v Volume) object { return c.summary("volumes", v.ID, v.Name) }, "")
	}
	return list(c, volumeList, all, c.volumeDetail, "/detail")
}

func (c *call) summarizeVolumes() (answer, error) {
	all, err := c.seenVolumes()
	if err != nil {
		return answer{}, err
	}
	if all, err = volumeList.filter(c, all); err != nil {
		return answer{}, err
	}
	var size int64
	metadata := make(map[string][]string)
	for _, v := range all {
		size += v.Size
		for k, s := range v.Metadata {
			if !slices.Contains(metadata[k], s) {
				metadata[k] = append(metadata[k], s)
			}
		}
	}
	body := object{"total_count": len(all), "total_size": size}
	if c.since(36) {
		for _, s := range metadata {
			slices.Sort(s)
		}
		body["metadata"] = metadata
	}
	return ok("volume-summary", body)
}

func (c *call) showVolume() (answer, error) {
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	return ok("volume", c.volumeDetail(v))
}

var (
	isVolumeUpdate = &schema{types: []string{"object"}, props: map[string]*schema{
		"name": isText, "description": isText, "display_name": isText, "display_description": isText, "metadata": isMetadata,
	}}
	isVolumeUpdate53 = func() *schema {
		s := *isVolumeUpdate
		s.anyOf = []string{"name", "description", "display_name", "display_description", "metadata"}
		return &s
	}()
)

func (c *call) updateVolume() (answer, error) {
	s := isVolumeUpdate
	if c.since(53) {
		s = isVolumeUpdate53
	}
	f, err := c.body("volume", s)
	if err != nil {
		return answer{}, err
	}
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	c.api.metadata.Lock()
	defer c.api.metadata.Unlock()
	if v, err = c.service().UpdateVolume(c.ctx(), v.ID, f.update()); err != nil {
		return answer{}, err
	}
	return ok("volume", c.volumeBody(v))
}

// update is the change of names and metadata that a body asks for.
func (f fields) update() Update {
	u := Update{Name: f.change("name", "display_name"), Description: f.change("description", "display_description")}
	if f.has("metadata") {
		m := f.metadata()
		u.Metadata = &m
	}
	return u
}

// deletable are the states in which a volume is deleted along with its snapshots.
var deletable = []string{"available", "error", "error_restoring", "error_deleting"}

func (c *call) deleteVolume() (answer, error) {
	cascade, err := c.truthParam("cascade")
	if err != nil {
		return answer{}, err
	}
	force := false
	if c.since(23) {
		if force, err = c.truthParam("force"); err != nil {
			return answer{}, err
		}
	}
	if force {
		if err = c.admin("volume:force_delete"); err != nil {
			return answer{}, err
		}
	}
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if cascade {
		// Not one snapshot is gone when the volume stays.
		if !slices.Contains(deletable, v.Status) && !force {
			return answer{}, Invalid("Invalid volume: Volume status must be %s to be deleted with its snapshots, but the current status is %q.", strings.Join(deletable, " or "), v.Status)
		}
		all, err := c.service().Snapshots(c.ctx())
		if err != nil {
			return answer{}, err
		}
		for _, s := range all {
			if s.VolumeID == v.ID {
				if err := c.service().DeleteSnapshot(c.ctx(), s.ID); err != nil {
					return answer{}, err
				}
			}
		}
	}
	if err := c.service().DeleteVolume(c.ctx(), v.ID, force); err != nil {
		return answer{}, err
	}
	return accepted()
}

func (c *call) volumeEncryption() (answer, error) {
	if _, err := c.volume(c.params["id"]); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: object{"encryption_key_id": nil}}, nil
}
