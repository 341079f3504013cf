package volume

import (
	"log/slog"

	"github.com/google/uuid"
)

func attrVolume(v *Volume) slog.Attr     { return slog.String("volume", v.name) }
func attrID(id uuid.UUID) slog.Attr      { return slog.String("id", id.String()) }
func attrSnapshot(s *Snapshot) slog.Attr { return slog.String("snapshot", s.id.String()) }
func attrReason(r string) slog.Attr      { return slog.String("reason", r) }

func attrError(err error) slog.Attr {
	if err == nil {
		return slog.String("error", "")
	}
	return slog.String("error", err.Error())
}
