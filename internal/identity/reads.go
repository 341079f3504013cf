package identity

import (
	"net/http"
	"net/url"
	"strings"
)

// wants applies the filters of a list's query to something with a name. As in Keystone,
// those that it does not know filter nothing.
func wants(q url.Values, name string) bool {
	is := func(key, value string) bool { return !q.Has(key) || q.Get(key) == value }
	enabled := !q.Has("enabled") || !falsy(q.Get("enabled"))
	domain := q.Has("is_domain") && !falsy(q.Get("is_domain"))
	return is("name", name) && is("domain_id", domainID) && is("parent_id", domainID) && enabled && !domain
}

func falsy(s string) bool {
	switch strings.ToLower(s) {
	case "0", "false", "no", "off", "n", "f":
		return true
	}
	return false
}

// projectList is the projects that a user has a role in, or all for nil.
func (c *call) projectList(d *Directory, u *User) []object {
	q, out := c.r.URL.Query(), []object{}
	for _, p := range d.projects {
		if (u == nil || len(u.Roles(p.ID)) > 0) && wants(q, p.Name) {
			out = append(out, c.projectObject(p))
		}
	}
	return out
}

// ownProjects is GET /v3/auth/projects.
func (c *call) ownProjects() error {
	x, err := c.caller()
	if err != nil {
		return err
	}
	return c.sendList("projects", "/auth/projects", c.projectList(x.dir, x.user))
}

// ownCatalog is GET /v3/auth/catalog.
func (c *call) ownCatalog() error {
	x, err := c.caller()
	switch {
	case err != nil:
		return err
	case x.project == nil:
		return refuse(http.StatusForbidden, "You are not authorized to perform the requested action.")
	}
	return c.send(http.StatusOK, object{"catalog": c.catalog(x.project.ID), "links": c.self("/auth/catalog")})
}

// projects is GET /v3/projects.
func (c *call) projects() error {
	x, err := c.caller()
	if err == nil {
		err = may(x.admin(), "list_projects")
	}
	if err != nil {
		return err
	}
	return c.sendList("projects", "/projects", c.projectList(x.dir, nil))
}

// project is GET /v3/projects/ID: one's own, or any for an administrator.
func (c *call) project() error {
	id := c.args[0]
	x, err := c.caller()
	if err == nil {
		err = may(x.admin() || x.project != nil && x.project.ID == id, "get_project")
	}
	if err != nil {
		return err
	}
	p := x.dir.projectByID(id)
	if p == nil {
		return refuse(http.StatusNotFound, "Could not find project: %s.", id)
	}
	return c.send(http.StatusOK, object{"project": c.projectObject(p)})
}

// users is GET /v3/users.
func (c *call) users() error {
	x, err := c.caller()
	if err == nil {
		err = may(x.admin(), "list_users")
	}
	if err != nil {
		return err
	}
	q, out := c.r.URL.Query(), []object{}
	for _, u := range x.dir.users {
		if wants(q, u.Name) {
			out = append(out, c.userObject(u))
		}
	}
	return c.sendList("users", "/users", out)
}

// asked is the user whose ID the path names: oneself, or anybody for an administrator.
func (c *call) asked(action string) (*session, *User, error) {
	id := c.args[0]
	x, err := c.caller()
	if err == nil {
		err = may(x.admin() || x.user.ID == id, action)
	}
	if err != nil {
		return nil, nil, err
	}
	u := x.dir.userByID(id)
	if u == nil {
		return nil, nil, refuse(http.StatusNotFound, "Could not find user: %s.", id)
	}
	return x, u, nil
}

// user is GET /v3/users/ID.
func (c *call) user() error {
	_, u, err := c.asked("get_user")
	if err != nil {
		return err
	}
	return c.send(http.StatusOK, object{"user": c.userObject(u)})
}

// userProjects is GET /v3/users/ID/projects.
func (c *call) userProjects() error {
	x, u, err := c.asked("list_user_projects")
	if err != nil {
		return err
	}
	return c.sendList("projects", "/users/"+u.ID+"/projects", c.projectList(x.dir, u))
}

// domains is GET /v3/domains.
func (c *call) domains() error {
	x, err := c.caller()
	if err == nil {
		err = may(x.admin(), "list_domains")
	}
	if err != nil {
		return err
	}
	out := []object{}
	if q := c.r.URL.Query(); (!q.Has("name") || q.Get("name") == domainName) && (!q.Has("enabled") || !falsy(q.Get("enabled"))) {
		out = append(out, c.domainObject())
	}
	return c.sendList("domains", "/domains", out)
}

// domain is GET /v3/domains/ID.
func (c *call) domain() error {
	id := c.args[0]
	x, err := c.caller()
	if err == nil {
		err = may(x.admin() || x.project != nil && id == domainID, "get_domain")
	}
	switch {
	case err != nil:
		return err
	case id != domainID:
		return refuse(http.StatusNotFound, "Could not find domain: %s.", id)
	}
	return c.send(http.StatusOK, object{"domain": c.domainObject()})
}
