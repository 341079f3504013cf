package cinderapi

import (
	"net/http"
	"slices"
)

var (
	isVolumeCreate = &schema{types: []string{"object"}, open: true, props: map[string]*schema{
		"name": isText, "description": isText, "display_name": isText, "display_description": isText,
		"volume_type": isText, "metadata": isMetadataMaybe, "size": isSizeMaybe,
		"snapshot_id": isUUIDMaybe, "source_volid": isUUIDMaybe, "consistencygroup_id": isUUIDMaybe,
		"availability_zone": isText, "multiattach": isBoolMaybe, "image_id": isText, "imageRef": isText,
	}}
	isVolumeCreate13 = isVolumeCreate.plus("group_id", isText)
	isVolumeCreate47 = isVolumeCreate13.plus("backup_id", isUUIDMaybe)
	isVolumeCreate53 = func() *schema {
		s := *isVolumeCreate47
		s.open = false
		return &s
	}()
)

// volumeCreateSchema is the schema of a request's microversion. Beside the volume a
// body may say what a scheduler should mind, which is not used.
func (c *call) volumeCreateSchema() *schema {
	s := isVolumeCreate
	switch {
	case c.since(53):
		s = isVolumeCreate53
	case c.since(47):
		s = isVolumeCreate47
	case c.since(13):
		s = isVolumeCreate13
	}
	return in("volume", s).plus("OS-SCH-HNT:scheduler_hints", &schema{types: []string{"object", "null"}, open: true})
}

func (c *call) createVolume() (answer, error) {
	f, err := c.bodyOf("volume", c.volumeCreateSchema())
	if err != nil {
		return answer{}, err
	}
	if err = c.volumeWithout(f); err != nil {
		return answer{}, err
	}
	n := NewVolume{
		Name: f.name("name", "display_name"), Description: f.name("description", "display_description"),
		Size: f.integer("size"), Metadata: f.metadata(),
	}
	if n.Type, err = c.typeNamed(f.text("volume_type")); err != nil {
		return answer{}, err
	}
	if err = c.volumeSource(f, &n); err != nil {
		return answer{}, err
	}
	if n.Size == 0 {
		return answer{}, invalidInput("Invalid volume size provided for create request: %s (size argument must be an integer (or string representation of an integer) and greater than zero).", show(f["size"]))
	}
	v, err := c.service().CreateVolume(c.ctx(), c.caller, n)
	if err != nil {
		return answer{}, err
	}
	c.object = v.ID
	return answer{status: http.StatusAccepted, body: object{"volume": c.volumeBody(v)}}, nil
}

// volumeWithout refuses what a body asks for that there is not.
func (c *call) volumeWithout(f fields) error {
	switch group := f.text("group_id") + f.text("consistencygroup_id"); {
	case f.text("imageRef") != "" || f.text("image_id") != "":
		return Invalid("Invalid image identifier or unable to access requested image.")
	case group != "" && (c.since(13) || !f.has("group_id")):
		return NotFound("Group", group)
	case f.truth("multiattach"):
		return invalidInput("A volume has one writer at a time: multiattach is not supported.")
	case f.text("availability_zone") != "" && f.text("availability_zone") != c.service().Zone():
		return invalidInput("Availability zone '%s' is invalid.", f.text("availability_zone"))
	}
	return nil
}

// volumeSource sets what the volume is to be a copy of, and its size when the body
// names none.
func (c *call) volumeSource(f fields, n *NewVolume) error {
	sources := 0
	if id := f.uuid("snapshot_id"); id != "" {
		s, err := c.snapshot(id)
		if err != nil {
			return err
		}
		sources++
		n.SnapshotID, n.Size = s.ID, orSize(n.Size, s.Size)
	}
	if id := f.uuid("source_volid"); id != "" {
		v, err := c.volume(id)
		if err != nil {
			return err
		}
		sources++
		n.SourceID, n.Size = v.ID, orSize(n.Size, v.Size)
	}
	if id := f.uuid("backup_id"); id != "" && c.since(47) {
		b, err := c.backup(id)
		if err != nil {
			return err
		}
		sources++
		n.BackupID, n.Size = b.ID, orSize(n.Size, b.Size)
	}
	if sources > 1 {
		return invalidInput("A volume is made of a snapshot, of a volume or of a backup: name one of them.")
	}
	return nil
}

func orSize(n, otherwise int64) int64 {
	if n != 0 {
		return n
	}
	return otherwise
}

// typeNamed is the name of the volume type with this ID or name, "" for "".
func (c *call) typeNamed(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	types := c.service().Types()
	i := slices.IndexFunc(types, func(t Type) bool { return t.ID == s || t.Name == s })
	if i < 0 {
		return "", NotFound("Volume type", s)
	}
	return types[i].Name, nil
}
