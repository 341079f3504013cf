package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/volume"
)

func (c *controller) status(*http.Request) (any, error) { return c.p.status(), nil }

func (c *controller) volumes(*http.Request) (any, error) { return c.p.listVolumes(), nil }

func (c *controller) volume(r *http.Request) (any, error) {
	e, err := c.p.find(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	return c.p.describe(e, changes), nil
}

func (c *controller) createVolume(r *http.Request) (any, error) {
	var req CreateVolume
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return value(c.p.createVolume(r.Context(), req))
}

func (c *controller) extendVolume(r *http.Request) (any, error) {
	var req extendVolume
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return value(c.p.extendVolume(r.Context(), r.PathValue("ref"), req.Size))
}

func (c *controller) setAttributes(r *http.Request) (any, error) {
	var req SetAttributes
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return value(c.p.setAttributes(r.PathValue("ref"), req))
}

func (c *controller) reopenVolume(r *http.Request) (any, error) {
	if err := decode(r, nil); err != nil {
		return nil, err
	}
	return value(c.p.reopenVolume(r.Context(), r.PathValue("ref")))
}

func (c *controller) deleteVolume(r *http.Request) (any, error) {
	if err := decode(r, nil); err != nil {
		return nil, err
	}
	return nil, c.p.deleteVolume(r.Context(), r.PathValue("ref"))
}

func (c *controller) createCheckpoint(r *http.Request) (any, error) {
	var req newCheckpoint
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return value(c.p.createCheckpoint(r.Context(), r.PathValue("ref"), req.Name))
}

func (c *controller) dropCheckpoint(r *http.Request) (any, error) {
	if err := decode(r, nil); err != nil {
		return nil, err
	}
	return nil, c.p.dropCheckpoint(r.Context(), r.PathValue("ref"), r.PathValue("name"))
}

func (c *controller) snapshots(r *http.Request) (any, error) {
	return value(c.p.listSnapshots(r.URL.Query().Get("volume")))
}

func (c *controller) createSnapshots(r *http.Request) (any, error) {
	var req CreateSnapshots
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return value(c.p.createSnapshots(r.Context(), req))
}

func (c *controller) snapshot(r *http.Request) (any, error) {
	return value(c.p.showSnapshot(r.PathValue("ref")))
}

func (c *controller) deleteSnapshot(r *http.Request) (any, error) {
	if err := decode(r, nil); err != nil {
		return nil, err
	}
	return nil, c.p.deleteSnapshot(r.Context(), r.PathValue("ref"))
}

func (c *controller) releaseSnapshot(r *http.Request) (any, error) {
	var req releaseSnapshot
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return nil, c.p.releaseSnapshot(r.PathValue("ref"), req.Before)
}

func (c *controller) revertVolume(r *http.Request) (any, error) {
	if err := decode(r, nil); err != nil {
		return nil, err
	}
	return nil, c.p.revertVolume(r.Context(), r.PathValue("ref"))
}

func (c *controller) aliasCheckpoint(r *http.Request) (any, error) {
	var req newCheckpoint
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return nil, c.p.aliasCheckpoint(r.Context(), r.PathValue("ref"), req.Name)
}

// value gives a typed result the type of an endpoint's.
func value[T any](v T, err error) (any, error) { return v, err }

// refusal gives any error the code that programs go by. The sentence is the
// error's own.
func refusal(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		if err.Error() == e.Text {
			return e
		}
		return &Error{Code: e.Code, Text: err.Error()}
	}
	for _, m := range []struct {
		is   error
		code Code
	}{
		{syscall.ENOSPC, CodeNoSpace},
		{syscall.EDQUOT, CodeNoSpace},
		{volume.ErrNotFound, CodeNotFound},
		{volume.ErrDeleted, CodeNotFound},
		{blockmap.ErrCheckpoint, CodeNotFound},
		{volume.ErrFormat, CodeInvalid},
		{volume.ErrInvalid, CodeInvalid},
		{syscall.EFBIG, CodeInvalid},
		{volume.ErrHeld, CodeBusy},
		{volume.ErrStale, CodeBusy},
		{volume.ErrExist, CodeConflict},
		{volume.ErrForeign, CodeConflict},
		{blockmap.ErrCheckpointExists, CodeConflict},
		{volume.ErrBroken, CodeConflict},
		{volume.ErrFailed, CodeConflict},
	} {
		if errors.Is(err, m.is) {
			return &Error{Code: m.code, Text: err.Error()}
		}
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Code: CodeInternal, Text: fmt.Sprintf("the request was canceled: %v", err)}
	}
	return &Error{Code: CodeInternal, Text: err.Error()}
}
