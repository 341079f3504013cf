package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
)

// backend is what the API calls this program behind a host's name.
const backend = "cairn"

// blockStorage is the agent as the Block Storage API sees it: the volumes of the data
// plane, and the backups in the default repository.
type blockStorage struct {
	*server
	host   string
	strict bool // a backup that others were started from is not deleted, as Cinder has it
}

var _ cinderapi.Service = (*blockStorage)(nil)

// blockStorage is the API's view of the agent.
func (h *hub) blockStorage() *blockStorage {
	return &blockStorage{server: h.servers[0], host: h.host, strict: h.o.API != nil && h.o.API.StrictChains}
}

// Zone is what Cinder calls the zone when nobody chose another.
func (*blockStorage) Zone() string { return "nova" }

// types are the volume types that there are. Cairn encrypts all backups; the second
// says that the volume's content is encrypted by whoever uses it.
var types = []cinderapi.Type{
	{ID: "6a3c4c38-6b8c-4f1e-9d53-1f2f5d0a7c01", Name: "__DEFAULT__", Description: "A volume on the agent's host", Default: true},
	{ID: "6a3c4c38-6b8c-4f1e-9d53-1f2f5d0a7c02", Name: "encrypted", Description: "A volume whose content its user encrypts", Encrypted: true},
}

// Types returns the volume types.
func (*blockStorage) Types() []cinderapi.Type { return types }

// typeOf returns the type of this name or ID; "" is the default.
func typeOf(ref string) (cinderapi.Type, bool) {
	for _, t := range types {
		if t.Name == ref || t.ID == ref || ref == "" && t.Default {
			return t, true
		}
	}
	return cinderapi.Type{}, false
}

// What a project may have when nobody said otherwise, as in Cinder.
var defaultLimits = map[string]int64{
	catalog.QuotaVolumes: 10, catalog.QuotaSnapshots: 10, catalog.QuotaSize: 1000, catalog.QuotaBackups: 10, catalog.QuotaGigabytes: 1000,
	catalog.QuotaOneSize: -1, "groups": 10,
}

// DefaultQuota returns the defaults.
func (*blockStorage) DefaultQuota() cinderapi.Quota {
	q := cinderapi.Quota{}
	for resource, most := range defaultLimits {
		q[resource] = cinderapi.Usage{Limit: most}
	}
	return q
}

// Quota returns what a project may have, and what it has, counted now.
func (b *blockStorage) Quota(ctx context.Context, project string) (cinderapi.Quota, error) {
	set, err := b.cat.Limits(ctx, project)
	if err != nil {
		return nil, err
	}
	used, err := b.cat.BackupUsage(ctx, project)
	if err != nil {
		return nil, err
	}
	// Without a data plane what it had counts.
	if err = b.tellVolumes(ctx); err != nil && !errors.Is(err, serve.ErrUnreachable) {
		return nil, fault(err, "")
	}
	volumes, err := b.cat.VolumeUsage(ctx, project)
	if err != nil {
		return nil, err
	}
	maps.Copy(used, volumes)
	q := b.DefaultQuota()
	for resource, u := range q {
		if most, ok := set[resource]; ok {
			u.Limit = most
		}
		u.InUse = used[resource]
		q[resource] = u
	}
	return q, nil
}

// SetQuota sets limits.
func (b *blockStorage) SetQuota(ctx context.Context, project string, limits map[string]int64) error {
	for resource := range limits {
		if _, ok := defaultLimits[resource]; !ok {
			return cinderapi.Invalid("Bad key(s) in quota set: %s", resource)
		}
	}
	return b.cat.SetLimits(ctx, project, limits)
}

// DeleteQuota forgets what was set.
func (b *blockStorage) DeleteQuota(ctx context.Context, project string) error {
	return b.cat.RemoveLimits(ctx, project)
}

// gib is a size in GiB, rounded up.
func gib(bytes int64) int64 {
	const unit = 1 << 30
	return bytes/unit + min(1, bytes%unit)
}

// fault makes what the agent refuses an answer of the API: what begins the sentence is
// what Cinder begins it with.
func fault(err error, begin string) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*cinderapi.Fault](err); ok {
		return f
	}
	if q, ok := errors.AsType[*catalog.QuotaError](err); ok {
		switch q.Resource {
		case catalog.QuotaBackups, catalog.QuotaVolumes, catalog.QuotaSnapshots:
			return cinderapi.OverQuota("Maximum number of %s allowed (%d) exceeded", q.Resource, q.Limit)
		case catalog.QuotaOneSize:
			return cinderapi.OverQuota("Requested volume size %dG is larger than maximum allowed limit %dG.", q.Requested, q.Limit)
		case catalog.QuotaSize:
			return cinderapi.OverQuota("Requested volume or snapshot exceeds allowed gigabytes quota. Requested %dG, quota is %dG and %dG has been consumed.", q.Requested, q.Limit, q.Used)
		}
		return cinderapi.OverQuota("Requested backup exceeds allowed Backup gigabytes quota. Requested %dG, quota is %dG and %dG has been consumed.", q.Requested, q.Limit, q.Used)
	}
	if e, ok := errors.AsType[*elsewhereError](err); ok {
		return cinderapi.Invalid("%sbackup %s is in use: try again later", begin, e.backup)
	}
	// Where sockets and stores are is nobody's business who is not on this machine.
	switch {
	case errors.Is(err, serve.ErrUnreachable):
		return cinderapi.Unavailable("Service cinder-volume could not be found: it does not answer, try again later.")
	case errors.Is(err, repository.ErrTooFewStores):
		return cinderapi.Unavailable("Service cinder-backup could not be found: too few of its stores answer, try again later.")
	case errors.Is(err, catalog.ErrUnavailable):
		return noCatalog()
	}
	e := asError(err)
	switch text := withoutPlaces(e.Text); e.Code {
	case CodeInvalid, CodeBusy, CodeConflict:
		return cinderapi.Invalid("%s%s", begin, text)
	case CodeNotFound:
		return &cinderapi.Fault{Status: http.StatusNotFound, Message: text}
	case CodeUnavailable, CodeNoSpace:
		return cinderapi.Unavailable("Service unavailable: %s", text)
	default:
		return err
	}
}

// noCatalog is the API's answer while the database of the catalog is out of reach.
func noCatalog() error {
	return cinderapi.Unavailable("Service unavailable: its database does not answer, try again later.")
}

// explain makes what is no fault yet one if it says that something does not answer now: the
// catalog, or what another host needs. What that is stays in the log.
func explain(err error) error {
	_, done := errors.AsType[*cinderapi.Fault](err)
	switch {
	case done:
		return err
	case errors.Is(err, catalog.ErrUnavailable):
		return fmt.Errorf("%w (%w)", noCatalog(), err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded): // the request's own end
		return err
	case asError(err).Code == CodeUnavailable:
		return fmt.Errorf("%w (%w)", cinderapi.Unavailable("Service unavailable: what it needs does not answer, try again later."), err)
	default:
		return err
	}
}

// notOpen is the API's answer while the repository is not open. Why is for the operator.
func notOpen() error {
	return cinderapi.Unavailable("Service cinder-backup could not be found: its repository is not open, try again later.")
}

// notThere makes an ID that the data plane does not know the API's 404.
func notThere(err error, what, id string) error {
	if errors.Is(err, serve.ErrNotFound) || errors.Is(err, catalog.ErrNotFound) || errors.Is(err, ErrNotFound) {
		return cinderapi.NotFound(what, id)
	}
	return fault(err, "")
}
