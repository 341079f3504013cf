package cinderapi

import "github.com/google/uuid"

// volumeBody is the body of a volume as creating and updating answer it.
func (c *call) volumeBody(v Volume) object {
	o := object{
		"id": v.ID, "status": v.Status, "size": v.Size,
		"availability_zone": c.service().Zone(),
		"created_at":        stamp(v.Created), "updated_at": stamp(v.Updated),
		"name": orNull(v.Name), "description": orNull(v.Description),
		"volume_type": orNull(v.Type), "snapshot_id": orNull(v.SnapshotID), "source_volid": nil,
		"metadata": pairs(v.Metadata), "links": c.links("volumes", v.ID), "user_id": orNull(v.User),
		"bootable": word(v.Bootable), "encrypted": v.Encrypted, "multiattach": false,
		"replication_status": nil, "consistencygroup_id": nil,
		"attachments": c.attachments(v),
	}
	if c.caller.Admin {
		o["migration_status"] = nil
	}
	if c.since(13) {
		o["group_id"] = nil
	}
	if c.since(21) && c.caller.Admin {
		o["provider_id"] = nil
	}
	if c.since(48) {
		o["shared_targets"], o["service_uuid"] = false, nil
	}
	if c.since(61) && c.caller.Admin {
		o["cluster_name"] = nil
	}
	if c.since(63) {
		o["volume_type_id"] = c.typeID(v.Type)
	}
	if c.since(65) {
		o["consumes_quota"] = true
	}
	return o
}

// volumeDetail is the body of a volume as showing and listing answer it.
func (c *call) volumeDetail(v Volume) object {
	o := c.volumeBody(v)
	o["os-vol-tenant-attr:tenant_id"] = orNull(v.Project)
	if c.caller.Admin {
		o["os-vol-host-attr:host"] = orNull(v.Host)
		o["os-vol-mig-status-attr:migstat"], o["os-vol-mig-status-attr:name_id"] = nil, nil
	}
	return o
}

// attachments says who uses a volume. Its user is named by one text here, where
// Cinder has the UUID of a machine: without one, a UUID is made of the name.
func (c *call) attachments(v Volume) []object {
	if v.Attached == "" {
		return []object{}
	}
	id := uuid.NewSHA1(uuid.NameSpaceOID, []byte(v.ID+" "+v.Attached)).String()
	server := canonical(v.Attached)
	if !isUUIDLike(server) {
		server = uuid.NewSHA1(uuid.NameSpaceOID, []byte(v.Attached)).String()
	}
	o := object{"id": v.ID, "attachment_id": id, "volume_id": v.ID, "server_id": server, "host_name": nil, "device": nil, "attached_at": nil}
	if c.caller.Admin {
		o["host_name"] = v.Attached
	}
	return []object{o}
}

// typeID is the ID of a volume type, or null.
func (c *call) typeID(name string) any {
	if c.types == nil {
		c.types = make(map[string]string)
		for _, t := range c.service().Types() {
			c.types[t.Name] = t.ID
		}
	}
	return orNull(c.types[name])
}
