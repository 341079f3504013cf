package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"time"

	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/unixhttp"
)

// Quota is what a project may have, and what it has, by the words of the Block Storage
// API; a limit of -1 is none.
type Quota = cinderapi.Quota

// Host is one line of the service list.
type Host = cinderapi.Host

// projectID is what an Identity service gives a project.
var projectID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// assignVolume is the body of a request to give a volume to a project.
type assignVolume struct {
	Project string `json:"project"` // ID; empty = nobody's but the operator's
}

// assignVolume says whose a volume is. Backups that there are stay whose they are.
func (s *server) assignVolume(ctx context.Context, r request) (any, error) {
	var req assignVolume
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if req.Project != "" && !projectID.MatchString(req.Project) {
		return nil, refuse(CodeInvalid, "%q is not the ID of a project: \"cairn project list\" shows them", clip(req.Project))
	}
	v, err := s.idleVolume(ctx, r.ref, "assign it")
	if err != nil {
		return nil, err
	}
	v, err = s.note(ctx, v.ID, func(n *volumeNotes) { n.Project, n.User, n.Updated = req.Project, "", time.Now().UTC() })
	if err == nil { // other hosts must not show it to whom it was
		err = s.tellVolumes(ctx)
	}
	return v, err
}

// quota shows what a project may have.
func (s *server) quota(ctx context.Context, r request) (any, error) {
	return s.hub.blockStorage().Quota(ctx, r.ref)
}

// setQuota sets limits of a project, and shows them all.
func (s *server) setQuota(ctx context.Context, r request) (any, error) {
	var limits map[string]int64
	if err := r.decode(&limits); err != nil {
		return nil, err
	}
	if !projectID.MatchString(r.ref) {
		return nil, refuse(CodeInvalid, "%q is not the ID of a project: \"cairn project list\" shows them", clip(r.ref))
	}
	for resource, most := range limits {
		if _, ok := defaultLimits[resource]; !ok {
			return nil, refuse(CodeInvalid, "there is no quota of %q", clip(resource))
		}
		if most < -1 {
			return nil, refuse(CodeInvalid, "%d is no limit of %s: give a number, or -1 for none", most, resource)
		}
	}
	if err := s.hub.blockStorage().SetQuota(ctx, r.ref, limits); err != nil {
		return nil, err
	}
	return s.quota(ctx, r)
}

// VolumeOf are the attributes of a new volume of a project.
func VolumeOf(project string) json.RawMessage {
	n := volumeNotes{Project: project}
	data, err := n.encode()
	if err != nil {
		return nil // a project's ID is always JSON
	}
	return data
}

// AssignVolume gives a volume to a project, by the project's ID; "" takes it back.
func (c *Client) AssignVolume(ctx context.Context, ref, project string) (Volume, error) {
	return ask[Volume](ctx, c, http.MethodPost, "/v1/volumes/"+unixhttp.Segment(ref)+"/assign", assignVolume{project})
}

// Quota returns what a project may have and has, by the project's ID.
func (c *Client) Quota(ctx context.Context, project string) (Quota, error) {
	return ask[Quota](ctx, c, http.MethodGet, "/v1/quotas/"+unixhttp.Segment(project), nil)
}

// SetQuota sets those limits of a project that are named.
func (c *Client) SetQuota(ctx context.Context, project string, limits map[string]int64) (Quota, error) {
	return ask[Quota](ctx, c, http.MethodPut, "/v1/quotas/"+unixhttp.Segment(project), limits)
}

// DisableHost has a host get no new volumes, for a reason; "" lets it have them again.
func (c *Client) DisableHost(ctx context.Context, host, reason string) error {
	_, err := ask[struct{}](ctx, c, http.MethodPut, "/v1/services/"+unixhttp.Segment(host), serviceState{reason})
	return err
}

// ForgetHost forgets a host that is down (ErrConflict), and what it told of its volumes.
func (c *Client) ForgetHost(ctx context.Context, host string) error {
	_, err := ask[struct{}](ctx, c, http.MethodDelete, "/v1/services/"+unixhttp.Segment(host), nil)
	return err
}

// Hosts returns the services of the Block Storage API and whether they run.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	return ask[[]Host](ctx, c, http.MethodGet, "/v1/services", nil)
}
