package cinderapi

import (
	"net/http"
	"slices"
)

// otherRoutes are the calls about the service itself, and those about things that
// there are none of: their lists are empty, so that clients go on.
func otherRoutes() []route {
	rs := []route{
		{method: get, path: "os-services", do: (*call).listServices},
		{method: get, path: "os-availability-zone", do: (*call).listZones},
		{method: get, path: "extensions", do: func(*call) (answer, error) { return ok("extensions", []object{}) }},
		{method: get, path: "resource_filters", since: 33, do: (*call).listFilters},
		{method: post, path: "workers/cleanup", since: 24, do: func(c *call) (answer, error) {
			if err := c.admin("workers:cleanup"); err != nil {
				return answer{}, err
			}
			return answer{status: http.StatusAccepted, body: object{"cleaning": []object{}, "unavailable": []object{}}}, nil
		}},
	}
	for _, e := range []struct {
		path, key, what string
		since           minor
		policy          string // "" = for everybody
	}{
		{"messages", "messages", "Message", 3, ""},
		{"clusters", "clusters", "Cluster", 7, "clusters:get_all"},
		{"group_types", "group_types", "Group type", 11, ""},
		{"groups", "groups", "Group", 13, ""},
		{"group_snapshots", "group_snapshots", "GroupSnapshot", 14, ""},
		{"attachments", "attachments", "Volume attachment", 27, ""},
		{"default-types", "default_types", "Default type", 62, "volume_extension:default_get_all"},
		{"qos-specs", "qos_specs", "QoS specs", 0, "volume_extension:qos_specs_manage:get_all"},
		{"os-volume-transfer", "transfers", "Transfer", 0, ""},
		{"volume-transfers", "transfers", "Transfer", 55, ""},
		{"consistencygroups", "consistencygroups", "ConsistencyGroup", 0, ""},
		{"cgsnapshots", "cgsnapshots", "CgSnapshot", 0, ""},
	} {
		allowed := func(c *call) error {
			if e.policy == "" {
				return nil
			}
			return c.admin(e.policy)
		}
		empty := func(c *call) (answer, error) {
			if err := allowed(c); err != nil {
				return answer{}, err
			}
			return ok(e.key, []object{})
		}
		rs = append(rs,
			route{method: get, path: e.path, since: e.since, do: empty},
			route{method: get, path: e.path + "/detail", since: e.since, do: empty},
			route{method: get, path: e.path + "/{id}", since: e.since, do: func(c *call) (answer, error) {
				if err := allowed(c); err != nil {
					return answer{}, err
				}
				return answer{}, NotFound(e.what, clip(c.params["id"]))
			}})
	}
	return rs
}

func (c *call) listServices() (answer, error) {
	if err := c.admin("volume_extension:services:index"); err != nil {
		return answer{}, err
	}
	hosts, err := c.service().Hosts(c.ctx())
	if err != nil {
		return answer{}, err
	}
	binary := c.param("binary")
	if binary == "" {
		binary = c.param("service") // as it was called before
	}
	rows := []object{}
	for _, h := range hosts {
		if host := c.param("host"); binary != "" && h.Binary != binary || host != "" && h.Name != host {
			continue
		}
		rows = append(rows, c.serviceBody(h))
	}
	return ok("services", rows)
}

func (c *call) serviceBody(h Host) object {
	o := object{
		"binary": h.Binary, "host": h.Name, "zone": h.Zone, "status": "enabled", "state": "down",
		"updated_at": stamp(h.Updated), "disabled_reason": orNull(h.Disabled),
	}
	if h.Disabled != "" {
		o["status"] = "disabled"
	}
	if h.Up {
		o["state"] = "up"
	}
	if c.since(7) {
		o["cluster"] = nil
	}
	if h.Binary == "cinder-volume" {
		o["replication_status"], o["active_backend_id"], o["frozen"] = "disabled", nil, false
		if c.since(49) {
			o["backend_state"] = o["state"]
		}
	}
	return o
}

func (c *call) listZones() (answer, error) {
	return ok("availabilityZoneInfo", []object{{"zoneName": c.service().Zone(), "zoneState": object{"available": true}}})
}

func (c *call) listFilters() (answer, error) {
	all := []object{
		{"resource": "backup", "filters": backupList.filters()},
		{"resource": "snapshot", "filters": snapshotList.filters()},
		{"resource": "volume", "filters": volumeList.filters()},
	}
	if want := c.param("resource"); want != "" {
		all = slices.DeleteFunc(all, func(o object) bool { return o["resource"] != want })
	}
	return ok("resource_filters", all)
}
