package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// Hold asks for a backup to be served for as long as the caller lives.
type Hold struct {
	Ref     string `json:"ref"`     // the backup's name or ID
	Purpose string `json:"purpose"` // shown to whoever wants to delete the backup, such as "mounted on /mnt by process 12"
}

// HoldExport serves a backup read-only until release is called or the calling
// process ends, whichever is first: for a mount. ctx bounds only the start.
func (c *Client) HoldExport(ctx context.Context, req Hold) (info ExportInfo, release func(), err error) {
	holding, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	resp, err := c.send(holding, http.MethodPost, "/v1/holds", req)
	if err == nil {
		if err = json.NewDecoder(resp.Body).Decode(&info); err != nil {
			err = errors.Join(c.unreachable(ctx, err), resp.Body.Close())
		}
	}
	if !stop() && err == nil {
		err = errors.Join(fmt.Errorf("ask agent: %w", context.Cause(ctx)), resp.Body.Close())
	}
	if err != nil {
		cancel()
		return ExportInfo{}, nil, err
	}
	return info, func() {
		cancel()
		_ = resp.Body.Close() //nolint:errcheck // the connection was just given up
	}, nil
}

// holdExport serves a backup until the client goes.
func (s *server) holdExport(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	var req Hold
	if err == nil {
		err = request{body: body}.decode(&req)
	}
	var info ExportInfo
	if err == nil {
		info, err = s.startHold(ctx, req)
	}
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer func() {
		if err := s.exports.remove(context.WithoutCancel(ctx), info.Name); err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "export not ended", slog.String("export", info.Name), slog.Any("error", err))
		}
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	data, err := json.Marshal(info)
	if err != nil {
		return // it is always JSON
	}
	if _, err := w.Write(append(data, '\n')); err != nil || http.NewResponseController(w).Flush() != nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-s.ending:
	}
}

func (s *server) startHold(ctx context.Context, req Hold) (ExportInfo, error) {
	if len(req.Purpose) > maxText {
		return ExportInfo{}, refuse(CodeInvalid, "the purpose is longer than %d bytes", maxText)
	}
	s.deciding.Lock()
	defer s.deciding.Unlock()
	b, err := s.findBackup(ctx, req.Ref)
	if err != nil {
		return ExportInfo{}, err
	}
	if err := mayRead(b, "opened"); err != nil {
		return ExportInfo{}, err
	}
	e := catalog.Export{Name: "hold-" + strings.ToLower(rand.Text()[:12]), Backup: b.ID}
	return s.exports.add(ctx, e, "in use ("+orElse(req.Purpose, "held by a client")+"): end that")
}

// mayRead refuses a backup of which there is nothing to read.
func mayRead(b Backup, done string) error {
	if b.Status == catalog.Available || b.Status == catalog.Restoring {
		return nil
	}
	return refuse(CodeConflict, "backup %s cannot be %s, as it is not available but in the state %q%s", b.ID, done, b.Status, inBrackets(b.FailReason))
}
