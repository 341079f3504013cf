package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"
)

// object is a JSON object of an answer.
type object = map[string]any

// region is the only one.
const region = "RegionOne"

// fixedID is the ID of something that is the same everywhere: a role, a service.
func fixedID(kind, name string) string {
	sum := sha256.Sum256([]byte("cairn " + kind + " " + name))
	return hex.EncodeToString(sum[:16])
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

func (c *call) versionObject() object {
	return object{
		"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
		"links":       []object{{"rel": "self", "href": c.base + root + "/v3/"}},
		"media-types": []object{{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}},
	}
}

// versions is GET /identity, and of the places where Identity v2 would be.
func (c *call) versions() error {
	c.w.Header().Set("Location", c.base+root+"/v3/")
	return c.send(http.StatusMultipleChoices, object{"versions": object{"values": []object{c.versionObject()}}})
}

// version is GET /identity/v3.
func (c *call) version() error {
	return c.send(http.StatusOK, object{"version": c.versionObject()})
}

func domainRef() object { return object{"id": domainID, "name": domainName} }

// sendToken answers with what a token says.
func (c *call) sendToken(status int, x *session) error {
	audits := []string{auditText(x.audit)}
	if x.parent != (ident{}) {
		audits = append(audits, auditText(x.parent))
	}
	t := object{
		"methods":    x.methods.names(),
		"user":       object{"domain": domainRef(), "id": x.user.ID, "name": x.user.Name, "password_expires_at": nil},
		"audit_ids":  audits,
		"expires_at": stamp(micros(x.expires)),
		"issued_at":  stamp(micros(x.issued)),
	}
	if p := x.project; p != nil {
		roles := []object{}
		for _, r := range x.user.Roles(p.ID) {
			roles = append(roles, object{"id": fixedID("role", r), "name": r})
		}
		t["project"] = object{"domain": domainRef(), "id": p.ID, "name": p.Name}
		t["is_domain"] = false
		t["roles"] = roles
		if _, without := c.r.URL.Query()["nocatalog"]; !without {
			t["catalog"] = c.catalog(p.ID)
		}
	}
	return c.send(status, object{"token": t})
}

// catalog is what else the agent serves, for a project. Clients that ask for
// "block-storage" find "volumev3": it is an alias in the service types authority,
// which keystoneauth, the SDK and gophercloud go by. A second entry would only be
// shown twice.
func (c *call) catalog(project string) []object {
	out := []object{}
	for _, e := range []struct{ kind, name, path string }{
		{"identity", "keystone", root},
		{"image", "glance", "/image"},
		{"volumev3", "cinderv3", "/volume/v3/" + project},
	} {
		out = append(out, object{
			"id": fixedID("service", e.kind), "type": e.kind, "name": e.name,
			"endpoints": []object{{
				"id": fixedID("endpoint", e.kind), "interface": "public",
				"region_id": region, "region": region, "url": c.base + e.path,
			}},
		})
	}
	return out
}

func (c *call) projectObject(p *Project) object {
	return object{
		"id": p.ID, "name": p.Name, "domain_id": domainID, "description": p.Description, "enabled": true,
		"parent_id": domainID, "is_domain": false, "tags": []string{}, "options": object{},
		"links": c.self("/projects/" + p.ID),
	}
}

func (c *call) userObject(u *User) object {
	o := object{
		"id": u.ID, "name": u.Name, "domain_id": domainID, "enabled": true, "password_expires_at": nil,
		"options": object{}, "links": c.self("/users/" + u.ID),
	}
	if u.DefaultProject != "" {
		o["default_project_id"] = u.DefaultProject
	}
	return o
}

func (c *call) domainObject() object {
	return object{
		"id": domainID, "name": domainName, "description": "The default domain", "enabled": true,
		"tags": []string{}, "options": object{}, "links": c.self("/domains/" + domainID),
	}
}

func (c *call) self(path string) object { return object{"self": c.base + root + "/v3" + path} }

// sendList answers with a list, whole: there are no pages.
func (c *call) sendList(key, path string, items []object) error {
	links := c.self(path)
	if q := c.r.URL.RawQuery; q != "" {
		links = c.self(path + "?" + q)
	}
	links["next"], links["previous"] = nil, nil
	return c.send(http.StatusOK, object{key: items, "links": links})
}
