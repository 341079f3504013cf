package serve

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/cairnbackup/cairn/internal/unixhttp"
)

// Client speaks the control API on the data plane's unix socket. It is safe
// for concurrent use. Its errors are *Error (the data plane refused: the text
// is a sentence for the operator), wrap ErrUnreachable, or are the context's.
type Client struct{ http *unixhttp.Client }

// NewClient returns a client of the control socket at path. It connects when
// it is first used, and again whenever the data plane was restarted.
func NewClient(socket string) *Client {
	return &Client{unixhttp.New(unixhttp.Server{
		Socket: socket, Name: "data plane", Idle: controlIdle, Refusal: decodeRefusal,
		Unreachable: ErrUnreachable, Hint: "is cairn serve running, and does it belong to this user?",
	})}
}

// controlIdle is how long the server keeps an idle control connection.
const controlIdle = time.Minute

// Close closes idle connections. The client may still be used.
func (c *Client) Close() { c.http.Close() }

// Status returns the state of the data plane.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.http.Do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Volumes returns all volumes, ordered by name.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	var vs []Volume
	return vs, c.http.Do(ctx, http.MethodGet, "/v1/volumes", nil, &vs)
}

// Volume returns the volume with this name or ID. A name that several
// volumes have is refused (ErrConflict).
func (c *Client) Volume(ctx context.Context, ref string) (Volume, error) {
	var v Volume
	return v, c.http.Do(ctx, http.MethodGet, volumePath(ref), nil, &v)
}

// CreateVolume makes a volume and exports it.
func (c *Client) CreateVolume(ctx context.Context, req CreateVolume) (Volume, error) {
	var v Volume
	return v, c.http.Do(ctx, http.MethodPost, "/v1/volumes", req, &v)
}

// ExtendVolume grows a volume to size bytes. Connections that are open keep
// the old size; new ones see the new one.
func (c *Client) ExtendVolume(ctx context.Context, ref string, size int64) (Volume, error) {
	var v Volume
	return v, c.http.Do(ctx, http.MethodPost, volumePath(ref)+"/extend", extendVolume{Size: size}, &v)
}

// ReopenVolume closes and opens a volume again: one that could not be opened
// when the data plane started, or one that a failed fsync has stopped. It is
// refused while anybody is connected to the volume or one of its snapshots.
// Temporary snapshots end.
func (c *Client) ReopenVolume(ctx context.Context, ref string) (Volume, error) {
	var v Volume
	return v, c.http.Do(ctx, http.MethodPost, volumePath(ref)+"/reopen", nil, &v)
}

// SetAttributes replaces what the data plane keeps with a volume for its control
// plane, whether the volume is served or not. It is refused (ErrConflict) when the
// attributes are no longer those of req.Was. The volume is returned as in a list.
func (c *Client) SetAttributes(ctx context.Context, ref string, req SetAttributes) (Volume, error) {
	var v Volume
	return v, c.http.Do(ctx, http.MethodPut, volumePath(ref)+"/attributes", req, &v)
}

// DeleteVolume deletes a volume, and its data if we made the data file. It is
// refused while somebody is connected (ErrBusy) or it has snapshots
// (ErrConflict).
func (c *Client) DeleteVolume(ctx context.Context, ref string) error {
	return c.http.Do(ctx, http.MethodDelete, volumePath(ref), nil, nil)
}

// CreateCheckpoint makes the present of a volume, which may be in use, a position
// that changes are counted from. It is durable before the answer, and so is all that
// was written before it. A name that the volume has already is refused (ErrConflict).
func (c *Client) CreateCheckpoint(ctx context.Context, volumeRef, name string) (Checkpoint, error) {
	var p Checkpoint
	return p, c.http.Do(ctx, http.MethodPost, volumePath(volumeRef)+"/checkpoints", newCheckpoint{Name: name}, &p)
}

// DropCheckpoint forgets a checkpoint of a volume. Positions of snapshots
// cannot be dropped: delete the snapshot.
func (c *Client) DropCheckpoint(ctx context.Context, volumeRef, name string) error {
	return c.http.Do(ctx, http.MethodDelete, volumePath(volumeRef)+"/checkpoints/"+unixhttp.Segment(name), nil, nil)
}

// CreateSnapshots snapshots one or more volumes at one instant and exports
// the snapshots. Either all are made or none; the answer has the order of
// req.Volumes. A volume in use is refused (ErrBusy) unless req.Force.
func (c *Client) CreateSnapshots(ctx context.Context, req CreateSnapshots) ([]Snapshot, error) {
	var ss []Snapshot
	return ss, c.http.Do(ctx, http.MethodPost, "/v1/snapshots", req, &ss)
}

// Snapshots returns the snapshots of one volume, or of all with "", ordered
// by volume and age.
func (c *Client) Snapshots(ctx context.Context, volumeRef string) ([]Snapshot, error) {
	path := "/v1/snapshots"
	if volumeRef != "" {
		path += "?volume=" + url.QueryEscape(volumeRef)
	}
	var ss []Snapshot
	return ss, c.http.Do(ctx, http.MethodGet, path, nil, &ss)
}

// Snapshot returns the snapshot with this ID, name, or VOLUME@NAME. A name
// that several snapshots have is refused (ErrConflict).
func (c *Client) Snapshot(ctx context.Context, ref string) (Snapshot, error) {
	var s Snapshot
	return s, c.http.Do(ctx, http.MethodGet, snapshotPath(ref), nil, &s)
}

// ReleaseSnapshot says that nobody will read what lies before an offset of a temporary
// snapshot any more: guests overwrite it without its being saved, and reads of it fail
// from then on. A lower offset than before changes nothing. A snapshot that is not
// temporary is refused (ErrInvalid); a data plane that is too old for the request knows
// nothing of it (ErrNotFound).
func (c *Client) ReleaseSnapshot(ctx context.Context, ref string, before int64) error {
	return c.http.Do(ctx, http.MethodPost, snapshotPath(ref)+"/release", releaseSnapshot{Before: before}, nil)
}

// DeleteSnapshot deletes a snapshot. It is refused while somebody reads it
// (ErrBusy); a reader that has just hung up is waited for, and so is a snapshot
// still being made whose ID is given.
func (c *Client) DeleteSnapshot(ctx context.Context, ref string) error {
	return c.http.Do(ctx, http.MethodDelete, snapshotPath(ref), nil, nil)
}

// AliasCheckpoint adds a checkpoint to a snapshot's volume, at the very
// position of the snapshot. It outlives the snapshot. A name that the volume
// has already is refused (ErrConflict).
func (c *Client) AliasCheckpoint(ctx context.Context, snapshotRef, name string) error {
	return c.http.Do(ctx, http.MethodPost, snapshotPath(snapshotRef)+"/checkpoints", newCheckpoint{Name: name}, nil)
}

// RevertVolume makes the content of a snapshot's volume that of the
// snapshot, which may not be a temporary one. It is refused while the volume
// is in use (ErrBusy). Once it changes the volume ctx does not stop it; if it
// fails then, the volume refuses writes until a revert succeeds.
func (c *Client) RevertVolume(ctx context.Context, snapshotRef string) error {
	return c.http.Do(ctx, http.MethodPost, snapshotPath(snapshotRef)+"/revert", nil, nil)
}

func volumePath(ref string) string   { return "/v1/volumes/" + unixhttp.Segment(ref) }
func snapshotPath(ref string) string { return "/v1/snapshots/" + unixhttp.Segment(ref) }

// decodeRefusal makes an *Error of an answer that is no success.
func decodeRefusal(status int, body []byte) error {
	var e Error
	if err := json.Unmarshal(body, &e); err != nil || e.Code == "" || e.Text == "" {
		return refuse(CodeInternal, "the data plane answered HTTP %d without saying why: is the socket another program's?", status)
	}
	return &e
}
