package cinderapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
)

// visible gets a thing for a caller. What is not there, what belongs to another
// project and what has no UUID are one and the same answer.
func visible[T any](c *call, what, id string, get func(context.Context, string) (T, error), project func(T) string) (T, error) {
	var none T
	if !isUUIDLike(id) {
		return none, NotFound(what, clip(id))
	}
	t, err := get(c.ctx(), canonical(id))
	var f *Fault
	switch {
	case errors.As(err, &f) && f.Status == http.StatusNotFound:
		return none, NotFound(what, id)
	case err != nil:
		return none, err
	case !c.sees(project(t)):
		return none, NotFound(what, id)
	}
	return t, nil
}

// sees says whether the caller may see what belongs to a project.
func (c *call) sees(project string) bool {
	return c.caller.Admin || project == c.caller.ProjectID && project != ""
}

func (c *call) volume(id string) (Volume, error) {
	return visible(c, "Volume", id, c.service().Volume, func(v Volume) string { return v.Project })
}

func (c *call) snapshot(id string) (Snapshot, error) {
	return visible(c, "Snapshot", id, c.service().Snapshot, func(s Snapshot) string { return s.Project })
}

func (c *call) backup(id string) (Backup, error) {
	return visible(c, "Backup", id, c.service().Backup, func(b Backup) string { return b.Project })
}

// allTenants says whether a list is of all projects: when an administrator asks
// for it. Of others the question is ignored, as clients ask it in any case.
func (c *call) allTenants() (bool, error) {
	all, err := c.truthParam("all_tenants")
	return all && c.caller.Admin, err
}

// own are those of all that belong to the caller's project. all stays as it is.
func own[T any](c *call, all []T, project func(T) string) []T {
	return slices.DeleteFunc(slices.Clone(all), func(t T) bool {
		p := project(t)
		return p == "" || p != c.caller.ProjectID
	})
}
