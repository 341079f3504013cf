package cinderapi

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
)

func quotaRoutes() []route {
	return []route{
		{method: get, path: "os-quota-sets/{id}", do: (*call).showQuota},
		{method: put, path: "os-quota-sets/{id}", action: "quota.update", object: "project", do: (*call).updateQuota},
		{method: del, path: "os-quota-sets/{id}", action: "quota.delete", object: "project", do: (*call).deleteQuota},
		{method: get, path: "os-quota-sets/{id}/defaults", do: (*call).defaultQuota},
		{method: get, path: "os-quota-class-sets/{id}", do: (*call).quotaClass},
		{method: get, path: "limits", do: (*call).limits},
	}
}

// quotaKeys are what a project has limits of.
var quotaKeys = []string{"volumes", "snapshots", "gigabytes", "backups", "backup_gigabytes", "per_volume_gigabytes", "groups"}

// project is the ID of the project that a path names. Clients send what their user
// has typed, which may be a name.
func (c *call) project(named string) (string, error) {
	if named == c.caller.ProjectID {
		return named, nil
	}
	if c.api.Project != nil && c.caller.Admin {
		id, err := c.api.Project(c.r, c.caller, named)
		if err != nil {
			return "", c.unresolved(err)
		}
		if id != "" {
			return id, nil
		}
	}
	if named == c.caller.ProjectName {
		return c.caller.ProjectID, nil
	}
	return named, nil
}

// unresolved is the fault of a project that could not be looked up.
func (c *call) unresolved(err error) error {
	var s HTTPStatuser
	if errors.As(err, &s) && s.HTTPStatus() >= 400 && s.HTTPStatus() < 500 {
		return &Fault{s.HTTPStatus(), err.Error()}
	}
	c.log.LogAttrs(c.ctx(), slog.LevelError, "a project cannot be looked up", slog.Any("error", withCause(err)))
	return Unavailable("%s", identitySilent)
}

// ownProject is project for what its members and administrators may know.
func (c *call) ownProject(policy string) (string, error) {
	p, err := c.project(c.params["id"])
	if err != nil {
		return "", err
	}
	if !c.caller.Admin && p != c.caller.ProjectID {
		return "", Forbidden(policy)
	}
	return p, nil
}

// line is one line of a quota. What the service has no limit of has none.
func (q Quota) line(key string) Usage {
	if u, ok := q[key]; ok {
		return u
	}
	return Usage{Limit: -1}
}

// limits are the limits alone.
func (q Quota) limits() object {
	o := object{}
	for _, k := range quotaKeys {
		o[k] = q.line(k).Limit
	}
	return o
}

func (c *call) showQuota() (answer, error) {
	p, err := c.ownProject("volume_extension:quotas:show")
	if err != nil {
		return answer{}, err
	}
	usage, err := c.truthParam("usage")
	if err != nil {
		return answer{}, err
	}
	q, err := c.service().Quota(c.ctx(), p)
	if err != nil {
		return answer{}, err
	}
	o := q.limits()
	if usage {
		for _, k := range quotaKeys {
			u := q.line(k)
			o[k] = object{"limit": u.Limit, "in_use": u.InUse, "reserved": u.Reserved}
		}
	}
	o["id"] = c.params["id"]
	return ok("quota_set", o)
}

var isQuota = &schema{types: []string{"object"}, open: true, minProps: 1}

func (c *call) updateQuota() (answer, error) {
	if err := c.admin("volume_extension:quotas:update"); err != nil {
		return answer{}, err
	}
	f, err := c.body("quota_set", isQuota)
	if err != nil {
		return answer{}, err
	}
	limits, err := f.quota()
	if err != nil {
		return answer{}, err
	}
	p, err := c.project(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err = c.aboveUsage(p, limits); err != nil {
		return answer{}, err
	}
	if err = c.service().SetQuota(c.ctx(), p, limits); err != nil {
		return answer{}, err
	}
	q, err := c.service().Quota(c.ctx(), p)
	if err != nil {
		return answer{}, err
	}
	return ok("quota_set", q.limits())
}

// quota are the limits in a body, which may name its project too.
func (f fields) quota() (map[string]int64, error) {
	limits := make(map[string]int64)
	var bad []string
	for _, k := range sortedKeys(f) {
		switch {
		case k == "tenant_id" || k == "id":
		case !slices.Contains(quotaKeys, k):
			bad = append(bad, k)
		default:
			s := f.text(k)
			if n, is := f[k].(json.Number); is {
				s = n.String()
			}
			n, err := integerIn(k, s, -1)
			if err != nil {
				return nil, err
			}
			limits[k] = n
		}
	}
	if len(bad) > 0 {
		return nil, invalidInput("Bad key(s) in quota set: %s", clip(strings.Join(bad, ", ")))
	}
	return limits, nil
}

// aboveUsage refuses limits below what is used, when the request asks for that.
func (c *call) aboveUsage(project string, limits map[string]int64) error {
	if !c.values().Has("skip_validation") {
		return nil
	}
	if skip, err := c.truthParam("skip_validation"); err != nil || skip {
		return err
	}
	q, err := c.service().Quota(c.ctx(), project)
	if err != nil {
		return err
	}
	for _, k := range sortedKeys(limits) {
		u := q.line(k)
		if n := limits[k]; n != -1 && u.InUse+u.Reserved > n {
			return Invalid("Quota %s limit must be equal or greater than existing resources. Current usage is %d and the requested limit is %d.", k, u.InUse+u.Reserved, n)
		}
	}
	return nil
}

func (c *call) deleteQuota() (answer, error) {
	if err := c.admin("volume_extension:quotas:delete"); err != nil {
		return answer{}, err
	}
	p, err := c.project(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err = c.service().DeleteQuota(c.ctx(), p); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK}, nil
}

func (c *call) defaultQuota() (answer, error) {
	if _, err := c.ownProject("volume_extension:quotas:show"); err != nil {
		return answer{}, err
	}
	o := c.service().DefaultQuota().limits()
	o["id"] = c.params["id"]
	return ok("quota_set", o)
}

// quotaClass answers the defaults once more: there is one class of projects.
func (c *call) quotaClass() (answer, error) {
	if err := c.admin("volume_extension:quota_classes:get"); err != nil {
		return answer{}, err
	}
	o := c.service().DefaultQuota().limits()
	o["id"] = c.params["id"]
	return ok("quota_class_set", o)
}

// limits answers the quota of a project in the words of another call of Cinder's.
func (c *call) limits() (answer, error) {
	p := c.caller.ProjectID
	if named := c.param("project_id"); named != "" && c.caller.Admin && c.since(39) {
		var err error
		if p, err = c.project(named); err != nil {
			return answer{}, err
		}
	}
	q, err := c.service().Quota(c.ctx(), p)
	if err != nil {
		return answer{}, err
	}
	return ok("limits", object{"rate": []object{}, "absolute": object{
		"maxTotalVolumes": q.line("volumes").Limit, "totalVolumesUsed": q.line("volumes").InUse,
		"maxTotalSnapshots": q.line("snapshots").Limit, "totalSnapshotsUsed": q.line("snapshots").InUse,
		"maxTotalVolumeGigabytes": q.line("gigabytes").Limit, "totalGigabytesUsed": q.line("gigabytes").InUse,
		"maxTotalBackups": q.line("backups").Limit, "totalBackupsUsed": q.line("backups").InUse,
		"maxTotalBackupGigabytes": q.line("backup_gigabytes").Limit, "totalBackupGigabytesUsed": q.line("backup_gigabytes").InUse,
	}})
}
