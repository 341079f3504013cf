package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cairnbackup/cairn/internal/unixhttp"
)

// Volumes returns all volumes, ordered by name.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	return ask[[]Volume](ctx, c, http.MethodGet, "/v1/volumes", nil)
}

// Volume returns the volume with this name or ID.
func (c *Client) Volume(ctx context.Context, ref string) (Volume, error) {
	return ask[Volume](ctx, c, http.MethodGet, "/v1/volumes/"+unixhttp.Segment(ref), nil)
}

// CreateVolume makes a volume, which is exported at once.
func (c *Client) CreateVolume(ctx context.Context, req CreateVolume) (Volume, error) {
	return ask[Volume](ctx, c, http.MethodPost, "/v1/volumes", req)
}

// ExtendVolume grows a volume to size bytes.
func (c *Client) ExtendVolume(ctx context.Context, ref string, size int64) (Volume, error) {
	return ask[Volume](ctx, c, http.MethodPost, "/v1/volumes/"+unixhttp.Segment(ref)+"/extend", extendVolume{Size: size})
}

// ReopenVolume has a volume closed and opened: one that could not be opened when
// the data plane started, or that refuses writes after a failed fsync. It is
// refused while a job works on the volume or anybody is connected to it or its
// snapshots (ErrBusy).
func (c *Client) ReopenVolume(ctx context.Context, ref string) (Volume, error) {
	return ask[Volume](ctx, c, http.MethodPost, "/v1/volumes/"+unixhttp.Segment(ref)+"/reopen", nil)
}

// DeleteVolume deletes a volume; its backups stay. It is refused while a job
// works on the volume (ErrBusy).
func (c *Client) DeleteVolume(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/volumes/"+unixhttp.Segment(ref), nil)
}

// SetQuiesce says how a volume is quiesced for backups; [Quiesce.Empty]: it is not.
func (c *Client) SetQuiesce(ctx context.Context, volumeRef string, q Quiesce) (Volume, error) {
	return ask[Volume](ctx, c, http.MethodPut, "/v1/volumes/"+unixhttp.Segment(volumeRef)+"/quiesce", q)
}

// CreateSnapshots snapshots volumes at one instant: all of them or none.
func (c *Client) CreateSnapshots(ctx context.Context, req CreateSnapshots) ([]Snapshot, error) {
	return ask[[]Snapshot](ctx, c, http.MethodPost, "/v1/snapshots", req)
}

// CreateQuiescedSnapshots is CreateSnapshots while the volumes are quiesced, each of which
// has to say how.
func (c *Client) CreateQuiescedSnapshots(ctx context.Context, req CreateSnapshots) ([]Snapshot, error) {
	return ask[[]Snapshot](ctx, c, http.MethodPost, "/v1/snapshots", newSnapshots{req, true})
}

// Snapshots returns the snapshots of a volume, or all with "".
func (c *Client) Snapshots(ctx context.Context, volumeRef string) ([]Snapshot, error) {
	return ask[[]Snapshot](ctx, c, http.MethodGet, "/v1/snapshots?volume="+url.QueryEscape(volumeRef), nil)
}

// Snapshot returns the snapshot with this ID, name, or VOLUME@NAME.
func (c *Client) Snapshot(ctx context.Context, ref string) (Snapshot, error) {
	return ask[Snapshot](ctx, c, http.MethodGet, "/v1/snapshots/"+unixhttp.Segment(ref), nil)
}

// DeleteSnapshot deletes a snapshot. It is refused while a job reads it (ErrBusy).
func (c *Client) DeleteSnapshot(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/snapshots/"+unixhttp.Segment(ref), nil)
}

// RevertVolume makes the content of a snapshot's volume that of the snapshot.
// It is refused while the volume is used, or a job works on it (ErrBusy).
func (c *Client) RevertVolume(ctx context.Context, snapshotRef string) error {
	return c.call(ctx, http.MethodPost, "/v1/snapshots/"+unixhttp.Segment(snapshotRef)+"/revert", nil)
}

// Checkpoints returns the checkpoints of a volume, oldest first, with what changed
// since each.
func (c *Client) Checkpoints(ctx context.Context, volume string) ([]Checkpoint, error) {
	return ask[[]Checkpoint](ctx, c, http.MethodGet, checkpointsPath(volume), nil)
}

// CreateCheckpoint makes a checkpoint of a volume's present, under a name that looks
// like no ID. It stays until it is deleted, or the volume is. When it is answered, it
// and all that was written before it are on stable storage.
func (c *Client) CreateCheckpoint(ctx context.Context, volume, name string) (Checkpoint, error) {
	return ask[Checkpoint](ctx, c, http.MethodPost, checkpointsPath(volume), newCheckpoint{Name: name})
}

// DeleteCheckpoint forgets a checkpoint. One of Cairn's own, from which incrementals
// start, is refused (ErrConflict) without force.
func (c *Client) DeleteCheckpoint(ctx context.Context, volume, name string, force bool) error {
	return c.call(ctx, http.MethodDelete, checkpointsPath(volume)+"/"+unixhttp.Segment(name)+"?force="+strconv.FormatBool(force), nil)
}

func checkpointsPath(volume string) string {
	return "/v1/volumes/" + unixhttp.Segment(volume) + "/checkpoints"
}

// Policy returns the retention policy of a volume, the empty one if it has none.
func (c *Client) Policy(ctx context.Context, volume string) (Keep, error) {
	return ask[Keep](ctx, c, http.MethodGet, "/v1/volumes/"+unixhttp.Segment(volume)+"/policy", nil)
}

// SetPolicy gives a volume a retention policy, which is applied behind each of its
// backups; the empty one takes it away.
func (c *Client) SetPolicy(ctx context.Context, volume string, k Keep) error {
	_, err := ask[Keep](ctx, c, http.MethodPut, "/v1/volumes/"+unixhttp.Segment(volume)+"/policy", k)
	return err
}

// CreateBackup starts a backup and returns its job; the job's Backup is the
// ID of the record, which is there at once with the state "creating".
func (c *Client) CreateBackup(ctx context.Context, req CreateBackup) (Job, error) {
	return ask[Job](ctx, c, http.MethodPost, "/v1/backups", req)
}

// Backups returns all backups, oldest first.
func (c *Client) Backups(ctx context.Context) ([]Backup, error) {
	return ask[[]Backup](ctx, c, http.MethodGet, "/v1/backups", nil)
}

// Backup returns the backup with this name or ID. A name that several have is
// refused (ErrConflict).
func (c *Client) Backup(ctx context.Context, ref string) (Backup, error) {
	return ask[Backup](ctx, c, http.MethodGet, "/v1/backups/"+unixhttp.Segment(ref), nil)
}

// DeleteBackup deletes a backup. Others that started from it are complete and
// stay. It is refused while the backup is exported, being restored or being
// made.
func (c *Client) DeleteBackup(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/backups/"+unixhttp.Segment(ref), nil)
}

// RebuildCatalog records all backups that the repository has and the catalog has not.
func (c *Client) RebuildCatalog(ctx context.Context) (Rebuilt, error) {
	return ask[Rebuilt](ctx, c, http.MethodPost, "/v1/catalog/rebuild", nil)
}

// Pins returns who uses backups of the repository, through any agent.
func (c *Client) Pins(ctx context.Context) ([]Pin, error) {
	return ask[[]Pin](ctx, c, http.MethodGet, "/v1/pins", nil)
}

// Trash returns the deleted backups of the repository that no prune has removed.
func (c *Client) Trash(ctx context.Context) ([]Backup, error) {
	return ask[[]Backup](ctx, c, http.MethodGet, "/v1/trash", nil)
}

// Undelete takes a backup out of the trash.
func (c *Client) Undelete(ctx context.Context, ref string) (Backup, error) {
	return ask[Backup](ctx, c, http.MethodPost, "/v1/trash/"+unixhttp.Segment(ref)+"/undelete", nil)
}

// Restore starts a restore and returns its job.
func (c *Client) Restore(ctx context.Context, req Restore) (Job, error) {
	return ask[Job](ctx, c, http.MethodPost, "/v1/restores", req)
}

// Export returns where a volume or a snapshot is served, or starts to serve a
// backup, until [Client.Unexport] and also after a restart of the agent.
func (c *Client) Export(ctx context.Context, req Export) (ExportInfo, error) {
	return ask[ExportInfo](ctx, c, http.MethodPost, "/v1/exports", req)
}

// Exports returns the exports of backups by name.
func (c *Client) Exports(ctx context.Context) ([]ExportInfo, error) {
	return ask[[]ExportInfo](ctx, c, http.MethodGet, "/v1/exports", nil)
}

// Unexport stops to serve a backup; name is that of the export, or the name
// or ID of the backup. What was written to an overlay is discarded; while a
// client is connected to one, that is refused.
func (c *Client) Unexport(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/exports/"+unixhttp.Segment(name), nil)
}

// ForceUnexport is Unexport also while a client writes to the overlay.
func (c *Client) ForceUnexport(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/exports/"+unixhttp.Segment(name)+"?force=true", nil)
}

// call sends a request whose answer says nothing.
func (c *Client) call(ctx context.Context, method, path string, in any) error {
	_, err := ask[struct{}](ctx, c, method, path, in)
	return err
}

// DecodeRestore returns the result of a restore job that succeeded.
func DecodeRestore(j Job) (RestoreResult, error) {
	var r RestoreResult
	if err := json.Unmarshal(j.Result, &r); err != nil {
		return r, fmt.Errorf("result of job %s: %w", j.ID, err)
	}
	return r, nil
}

// extendVolume is the body of a request to extend.
type extendVolume struct {
	Size int64 `json:"size"`
}
