package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
)

// export finds what is meant by a name or ID and says where it is served.
// Volumes and snapshots are served by the data plane from the start.
func (s *server) export(ctx context.Context, r request) (any, error) {
	var req Export
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if req.Ref == "" {
		return nil, refuse(CodeInvalid, "nothing is named: say which volume, snapshot or backup to export")
	}
	var found []ExportInfo
	b, backupErr := s.findBackup(ctx, req.Ref)
	if backupErr != nil && !errors.Is(backupErr, ErrNotFound) {
		return nil, backupErr
	}
	v, volumeErr := s.serve.Volume(ctx, req.Ref)
	switch {
	case volumeErr == nil:
		if err := source.Refuse(v, source.Attach); err != nil {
			return nil, err
		}
		found = append(found, ExportInfo{Name: v.Name, URI: v.URI, TCPURI: v.TCPURI, Socket: v.Socket, Kind: "volume", Size: v.Size, Clients: v.Writers + v.Readers, Created: v.Created})
	case errors.Is(volumeErr, serve.ErrUnreachable) && backupErr == nil:
		// Backups are served without the data plane.
	case !errors.Is(volumeErr, serve.ErrNotFound):
		return nil, volumeErr
	}
	if volumeErr != nil && errors.Is(volumeErr, serve.ErrNotFound) || volumeErr == nil {
		snap, err := s.serve.Snapshot(ctx, req.Ref)
		switch {
		case err == nil:
			found = append(found, ExportInfo{Name: orElse(snap.Name, snap.ID), URI: snap.URI, TCPURI: snap.TCPURI, Socket: snap.Socket, Kind: "snapshot", Size: snap.Size, Clients: snap.Readers, Created: snap.Created})
		case !errors.Is(err, serve.ErrNotFound) && backupErr != nil:
			return nil, err
		}
	}
	switch {
	case backupErr == nil && len(found) > 0:
		return nil, refuse(CodeConflict, "%q is a backup and a %s: give the ID of the one that is meant", req.Ref, found[0].Kind)
	case backupErr == nil:
		return s.exportBackup(ctx, req, b)
	case len(found) > 1:
		return nil, refuse(CodeConflict, "%q is a volume and a snapshot: give the ID of the one that is meant", req.Ref)
	case len(found) == 0:
		return nil, refuse(CodeNotFound, "there is no volume, snapshot or backup %q: \"cairn volume list\", \"cairn snapshot list\" and \"cairn backup list\" show what there is", req.Ref)
	case req.Overlay || req.Name != "":
		return nil, refuse(CodeInvalid, "%q is a %s: an overlay or another name is for exports of backups", req.Ref, found[0].Kind)
	}
	return found[0], nil
}

// exportBackup serves a backup.
func (s *server) exportBackup(ctx context.Context, req Export, b Backup) (any, error) {
	if err := s.closed(); err != nil {
		return nil, err
	}
	// The backup must not be deleted between the check and the export.
	b, release, err := s.claimBackup(ctx, b.ID, "exported")
	if err != nil {
		return nil, err
	}
	defer release()
	if err = checkText("purpose", req.Purpose); err != nil {
		return nil, err
	}
	name := b.ID
	if req.Name != "" {
		if err = checkName("an export", req.Name); err != nil {
			return nil, err
		}
		if _, err = s.serve.Volume(ctx, req.Name); err == nil {
			return nil, refuse(CodeConflict, "there is a volume %s: give the export another name", req.Name)
		}
		name = req.Name
	}
	for _, o := range s.all() {
		if _, ok := o.exports.get(name); ok && o != s {
			return nil, refuse(CodeConflict, "repository %s has an export named %s already: give this one another name", o.name, name)
		}
	}
	info, err := s.exports.add(ctx, catalog.Export{Name: name, Backup: b.ID, Overlay: req.Overlay, Purpose: req.Purpose, Created: time.Now().UTC()})
	if err == nil && req.Purpose == "" {
		s.wakeTidy() // to pin it
	}
	return info, err
}

// unexport ends the export of this name, or the only one of this backup.
func (s *server) unexport(ctx context.Context, r request) (any, error) {
	defer s.wakeTidy() // to remove its pin
	force := r.value("force") == "true"
	if _, ok := s.exports.get(r.ref); ok {
		return nil, s.exports.remove(ctx, r.ref, force)
	}
	b, err := s.findBackup(ctx, r.ref)
	if err != nil {
		return nil, refuse(CodeNotFound, "there is no export %q: \"cairn export\" lists those there are", r.ref)
	}
	var names []string
	for _, x := range s.exports.list() {
		if x.Backup == b.ID {
			names = append(names, x.Name)
		}
	}
	switch len(names) {
	case 0:
		return nil, refuse(CodeNotFound, "backup %s is not exported: there is nothing to end", b.ID)
	case 1:
		return nil, s.exports.remove(ctx, names[0], force)
	default:
		return nil, refuse(CodeConflict, "backup %s is exported as %s: name one of them", b.ID, strings.Join(names, ", "))
	}
}
