package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/serve"
)

// cluster is all the hosts that share a catalog, as the Block Storage API sees them: any
// agent answers for all. What this host has comes from its data plane; what
// others have from what they told; and what has to be done at a volume's host is done
// there.
type cluster struct{ *blockStorage }

var _ cinderapi.Service = cluster{}

// service is what the API is an interface to.
func (h *hub) service() cinderapi.Service {
	b := h.blockStorage()
	if b.cat.Shared() {
		return cluster{b}
	}
	return b
}

// theirs are records of what other hosts have, the one of several of a volume first that
// speaks for it, and which hosts are up. Of a host that hangs its own are among them.
func (c cluster) theirs(ctx context.Context, l []catalog.Volume) ([]catalog.Volume, map[string]bool, error) {
	hosts, err := c.cat.Hosts(ctx)
	if err != nil {
		return nil, nil, err
	}
	up := map[string]bool{}
	for _, h := range hosts {
		up[h.Name] = h.Up
	}
	l = slices.DeleteFunc(l, func(v catalog.Volume) bool { return v.Kind == catalog.GoneKind || v.Reserved() })
	rank := func(v catalog.Volume) int { // of a volume that several have: who writes to it, or else who answers
		switch {
		case up[v.Host] && v.Open:
			return 0
		case v.Host == c.host:
			return 1
		case up[v.Host]:
			return 2
		default:
			return 3
		}
	}
	slices.SortStableFunc(l, func(a, b catalog.Volume) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), rank(a)-rank(b))
	})
	return slices.CompactFunc(l, func(a, b catalog.Volume) bool { return a.ID == b.ID }), up, nil
}

// toldVolume is a volume as its host told of it. Of one that is down nothing goes on.
func toldVolume(v catalog.Volume, up bool) (cinderapi.Volume, error) {
	var out cinderapi.Volume
	if err := json.Unmarshal(v.Data, &out); err != nil {
		return out, fmt.Errorf("volume %s of host %s in the catalog: %w", v.ID, v.Host, err)
	}
	if !up {
		switch out.Status {
		case "backing-up":
			out.Status = "available"
		case noteRestoring:
			out.Status = noteErrorRestore
		}
	}
	return out, nil
}

func toldSnapshot(v catalog.Volume, up bool) (cinderapi.Snapshot, error) {
	var out cinderapi.Snapshot
	if err := json.Unmarshal(v.Data, &out); err != nil {
		return out, fmt.Errorf("snapshot %s of host %s in the catalog: %w", v.ID, v.Host, err)
	}
	if !up && out.Status == "backing-up" {
		out.Status = "available"
	}
	return out, nil
}

// merge puts what other hosts have of a kind to what this one has.
func merge[T any](ctx context.Context, c cluster, kind string, own []T, err error, id func(T) string, read func(catalog.Volume, bool) (T, error)) ([]T, error) {
	away := isUnavailable(err)
	if err != nil && !away {
		return nil, err
	}
	all, err := c.cat.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	l, up, err := c.theirs(ctx, all)
	if err != nil {
		return nil, err
	}
	have := make(map[string]int, len(own))
	for i, x := range own {
		have[id(x)] = i
	}
	for _, v := range l {
		if v.Kind != kind || v.Host == c.host && !away {
			continue
		}
		x, err := read(v, up[v.Host])
		if err != nil {
			return nil, err
		}
		if i, ok := have[v.ID]; ok { // of both: the other host writes to it
			own[i] = x
			continue
		}
		own = append(own, x)
	}
	return own, nil
}

// isUnavailable says whether the own data plane does not answer.
func isUnavailable(err error) bool {
	f, ok := errors.AsType[*cinderapi.Fault](err)
	return ok && f.Status == http.StatusServiceUnavailable
}

// Volumes returns those of all hosts.
func (c cluster) Volumes(ctx context.Context) ([]cinderapi.Volume, error) {
	own, err := c.blockStorage.Volumes(ctx)
	return merge(ctx, c, catalog.VolumeKind, own, err, func(v cinderapi.Volume) string { return v.ID }, toldVolume)
}

// Snapshots returns those of all hosts.
func (c cluster) Snapshots(ctx context.Context) ([]cinderapi.Snapshot, error) {
	own, err := c.blockStorage.Snapshots(ctx)
	return merge(ctx, c, catalog.SnapshotKind, own, err, func(s cinderapi.Snapshot) string { return s.ID }, toldSnapshot)
}

// Volume returns one of any host.
func (c cluster) Volume(ctx context.Context, id string) (cinderapi.Volume, error) {
	v, up, err := c.record(ctx, catalog.VolumeKind, "Volume", id)
	if err != nil {
		return cinderapi.Volume{}, err
	}
	if v.Host == c.host {
		own, oerr := c.blockStorage.Volume(ctx, v.ID)
		if !isUnavailable(oerr) || len(v.Data) == 0 {
			return own, oerr
		}
	}
	return toldVolume(v, up)
}

// Snapshot returns one of any host.
func (c cluster) Snapshot(ctx context.Context, id string) (cinderapi.Snapshot, error) {
	v, up, err := c.record(ctx, catalog.SnapshotKind, "Snapshot", id)
	if err != nil {
		return cinderapi.Snapshot{}, err
	}
	if v.Host == c.host {
		own, oerr := c.blockStorage.Snapshot(ctx, v.ID)
		if !isUnavailable(oerr) || len(v.Data) == 0 {
			return own, oerr
		}
	}
	return toldSnapshot(v, up)
}

// record finds whose a volume or snapshot is: this host's if nobody told of it, who knows
// best whether it is there.
func (c cluster) record(ctx context.Context, kind, what, id string) (v catalog.Volume, up bool, err error) {
	if uuid.Validate(id) != nil {
		return v, false, cinderapi.NotFound(what, id)
	}
	id = strings.ToLower(id)
	l, err := c.cat.VolumeAt(ctx, id)
	if err != nil {
		return v, false, err
	}
	l, hosts, err := c.theirs(ctx, l)
	if err != nil {
		return v, false, err
	}
	l = slices.DeleteFunc(l, func(v catalog.Volume) bool { return v.Kind != kind })
	if len(l) == 0 {
		return catalog.Volume{ID: id, Host: c.host}, true, nil
	}
	return l[0], hosts[l[0].Host], nil
}

// volumeHost is the host at which a volume is worked on, and whose it is.
func (c cluster) volumeHost(ctx context.Context, id string) (string, whose, error) {
	return c.hostOf(ctx, catalog.VolumeKind, "Volume", id)
}

func (c cluster) snapshotHost(ctx context.Context, id string) (string, whose, error) {
	return c.hostOf(ctx, catalog.SnapshotKind, "Snapshot", id)
}

func (c cluster) hostOf(ctx context.Context, kind, what, id string) (string, whose, error) {
	v, _, err := c.record(ctx, kind, what, id)
	if v.Kind == "" || err != nil {
		return v.Host, whose{}, err
	}
	return v.Host, whose{&v.Project}, nil
}

// place is the host for a new volume: this one, or, when it shall get no work or its data plane does
// not answer, the one of the others with the least on it.
func (c cluster) place(ctx context.Context) (string, error) {
	hosts, err := c.cat.Hosts(ctx)
	if err != nil {
		return "", err
	}
	_, perr := c.serve.Status(ctx)
	free := map[string]bool{}
	for _, h := range hosts {
		if h.Up && h.Disabled == "" && (h.Name != c.host || !errors.Is(perr, serve.ErrUnreachable)) {
			free[h.Name] = true
		}
	}
	if free[c.host] {
		return c.host, nil
	}
	all, err := c.cat.Volumes(ctx)
	if err != nil {
		return "", err
	}
	load := map[string]int64{}
	for _, v := range all {
		load[v.Host] += v.Gigabytes
	}
	best := ""
	for _, h := range hosts {
		if free[h.Name] && (best == "" || load[h.Name] < load[best]) {
			best = h.Name
		}
	}
	if best == "" {
		return "", cinderapi.Unavailable("Service cinder-volume could not be found: no host takes new volumes now, try again later.")
	}
	return best, nil
}
