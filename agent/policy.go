package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// maxKeep is the largest number in a policy.
const maxKeep = 100_000

// policyKey is the catalog's setting with the policy of a volume.
func policyKey(volumeID string) string { return "policy " + volumeID }

// policyOf returns the policy of a volume; the empty one if it has none.
func (s *server) policyOf(ctx context.Context, volumeID string) (Keep, error) {
	var k Keep
	text, err := s.cat.Setting(ctx, policyKey(volumeID))
	if err != nil || text == "" {
		return k, err
	}
	if err := json.Unmarshal([]byte(text), &k); err != nil {
		return k, fmt.Errorf("policy of volume %s: %w", volumeID, err)
	}
	return k, nil
}

func (s *server) policy(ctx context.Context, r request) (any, error) {
	v, err := s.serve.Volume(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	return s.policyOf(ctx, v.ID)
}

// setPolicy gives a volume a policy; the empty one takes it away.
func (s *server) setPolicy(ctx context.Context, r request) (any, error) {
	var k Keep
	if err := r.decode(&k); err != nil {
		return nil, err
	}
	for _, n := range []int{k.Last, k.Hourly, k.Daily, k.Weekly, k.Monthly, k.Yearly} {
		if n < 0 || n > maxKeep {
			return nil, refuse(CodeInvalid, "%d is no number of backups to keep: it is 0 to %d", n, maxKeep)
		}
	}
	v, err := s.serve.Volume(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	text := []byte{}
	if !k.Empty() {
		if text, err = json.Marshal(k); err != nil {
			return nil, fmt.Errorf("policy of volume %s: %w", v.Name, err)
		}
	}
	return k, s.cat.SetSetting(ctx, policyKey(v.ID), string(text))
}

// applyPolicy deletes what the policy of a volume does not keep, behind a backup of
// it. What cannot be deleted now is tried again behind the next: stores that do not
// answer are not waited for once more for each backup, and nobody for an agent that
// stops.
func (s *server) applyPolicy(ctx context.Context, volumeID string, log *slog.Logger, stopping func() bool) {
	k, err := s.policyOf(ctx, volumeID)
	if err == nil && k.Empty() {
		return
	}
	var l []Backup
	if err == nil {
		l, err = s.cat.BackupsOf(ctx, volumeID)
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "policy not applied", slog.Any("error", err))
		return
	}
	for _, d := range k.Decide(l, time.Local) {
		if d.Keep {
			continue
		}
		if stopping() {
			return
		}
		err := s.drop(ctx, d.Backup.ID)
		switch {
		case err == nil:
			log.LogAttrs(ctx, slog.LevelInfo, "backup deleted by the policy of its volume", slog.String("deleted", d.Backup.ID), slog.Time("created", d.Backup.Created))
		case errors.Is(err, ErrBusy), errors.Is(err, ErrConflict):
			log.LogAttrs(ctx, slog.LevelInfo, "backup kept though no policy does", slog.String("kept", d.Backup.ID), slog.Any("reason", err))
		default:
			log.LogAttrs(ctx, slog.LevelWarn, "backup not deleted by the policy of its volume", slog.String("kept", d.Backup.ID), slog.Any("error", err))
			if asError(err).Code == CodeUnavailable {
				return
			}
		}
	}
}
