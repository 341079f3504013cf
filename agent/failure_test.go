package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// What goes wrong below the agent is told by kind: stores that do not answer
// are a reason to come back, not a fault of the agent.
func TestCodes(t *testing.T) {
	ctx := t.Context()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, x := range []struct {
		err  error
		want Code
	}{
		{repository.ErrTooFewStores, CodeUnavailable},
		{errors.Join(repository.ErrTooFewStores, syscall.ENOSPC), CodeUnavailable},
		{serve.ErrUnreachable, CodeUnavailable},
		{errFailed, CodeUnavailable},
		{errStopping, CodeUnavailable},
		{errInterrupted, CodeUnavailable},
		{errLeft, CodeUnavailable},
		{planeGone(ctx, io.ErrUnexpectedEOF), CodeUnavailable},
		{planeGone(ctx, nbd.ESHUTDOWN), CodeUnavailable},
		{planeGone(ctx, nbd.EIO), CodeInternal},
		{planeGone(ctx, nbd.ENOSPC), CodeNoSpace},
		{planeGone(ended, io.ErrUnexpectedEOF), CodeInternal},
		{syscall.EDQUOT, CodeNoSpace},
		{repository.ErrVersion, CodeConflict},
		{repository.ErrForeign, CodeConflict},
		{repository.ErrNotFound, CodeNotFound},
		{repository.ErrDamaged, CodeInternal},
		{restore.ErrExists, CodeConflict},
		{restore.ErrHeld, CodeBusy},
		{serve.ErrBusy, CodeBusy},
		{catalog.ErrUnavailable, CodeUnavailable},
		{catalog.ErrText, CodeInvalid},
	} {
		if e := asError(fmt.Errorf("do it: %w", x.err)); e.Code != x.want {
			t.Errorf("%v: code %s, want %s", x.err, e.Code, x.want)
		}
	}
	if err := planeGone(ctx, nil); err != nil {
		t.Error(err)
	}
}
