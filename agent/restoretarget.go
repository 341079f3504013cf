package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
)

// restoreTarget checks where a restore goes and describes its job.
func (s *server) restoreTarget(ctx context.Context, req *Restore, b Backup) (Job, error) {
	j := Job{Kind: catalog.RestoreJob, Backup: b.ID, Progress: Progress{Phase: "waiting", Total: b.Size}}
	given := 0
	for _, x := range []string{req.Volume, req.NewVolume, req.File, req.NBD} {
		if x != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return j, refuse(CodeInvalid, "several targets are named: restore to a volume, to a new volume, to a file or to an NBD server")
	case req.Overwrite && req.File == "":
		return j, refuse(CodeInvalid, "overwrite is for files: an existing volume named as the target is overwritten anyway")
	case req.Volume != "":
		v, err := s.serve.Volume(ctx, req.Volume)
		if err != nil {
			return j, err
		}
		j.Volume, j.VolumeID, j.Target = v.Name, v.ID, v.Name
		if err = mayRestoreTo(v, b); err == nil {
			_, err = s.notOpenElsewhere(ctx, v, "end that")
		}
		return j, err
	case req.File != "":
		if !filepath.IsAbs(req.File) {
			return j, refuse(CodeInvalid, "the path %q is not absolute: the agent does not know the folder you are in", req.File)
		}
		req.File = filepath.Clean(req.File)
		j.Target = req.File
		if err := s.foreignFile(ctx, req.File); err != nil {
			return j, err
		}
		if err := restore.CheckFile(req.File, req.Overwrite); err != nil {
			return j, refuse(CodeConflict, "%v", err)
		}
		return j, nil
	case req.NBD != "":
		j.Target = req.NBD
		return j, s.exportTarget(ctx, req.NBD, b)
	case req.NewVolume == "":
		// The whole ID would be too long for the socket in the default folder.
		req.NewVolume = "restore_backup_" + b.ID[:8]
	}
	if err := s.freeVolumeName(req.NewVolume); err != nil {
		return j, err
	}
	_, err := s.serve.Volume(ctx, req.NewVolume)
	switch {
	case err == nil || errors.Is(err, serve.ErrConflict):
		return j, refuse(CodeConflict, "volume %s is there already: restore to it as an existing volume, or name another", req.NewVolume)
	case !errors.Is(err, serve.ErrNotFound):
		return j, err
	}
	j.Volume, j.Target = req.NewVolume, req.NewVolume
	return j, nil
}

// outside refuses a file in the agent's state folder or in a store.
func (s *server) outside(name string) error {
	dir := realPath(filepath.Dir(name))
	within := func(folder string) bool {
		rel, err := filepath.Rel(realPath(folder), dir)
		return err == nil && filepath.IsLocal(rel)
	}
	if within(s.o.State) {
		return refuse(CodeInvalid, "%s lies in the agent's own state folder %s: name a file elsewhere", name, s.o.State)
	}
	for _, o := range s.all() {
		if o.closed() != nil {
			continue
		}
		for _, url := range o.repo.URLs() {
			if filepath.IsAbs(url) && within(url) {
				return refuse(CodeInvalid, "%s lies in the store %s: name a file elsewhere", name, url)
			}
		}
	}
	return nil
}

// foreignFile refuses a file that belongs to Cairn itself: the agent's state, a
// store's object, a volume's data, also of a volume that is not open. A folder
// that is not there is for [restore.CheckFile] to explain.
func (s *server) foreignFile(ctx context.Context, name string) error {
	if err := s.outside(name); err != nil {
		return err
	}
	old, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return refuse(CodeConflict, "restore to %s: %v", name, err)
	}
	volumes, err := s.serve.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if data, err := os.Stat(v.Path); err == nil && os.SameFile(old, data) {
			return refuse(CodeInvalid, "%s is the data of volume %s: restore to the volume instead", name, v.Name)
		}
	}
	return nil
}

// realPath follows symbolic links where it can.
func realPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// mayRestoreTo refuses a volume that cannot take the backup.
func mayRestoreTo(v Volume, b Backup) error {
	if err := source.Refuse(v, source.Fill); err != nil {
		return err
	}
	switch {
	case v.Status == serve.StatusError:
		return refuse(CodeConflict, "volume %s cannot be restored to: %s", v.Name, v.Error)
	case v.InUse:
		return refuse(CodeBusy, "volume %s is used by %s: disconnect it before its content is replaced", v.Name, orElse(v.Writer, "a client"))
	case v.Size < b.Size:
		return refuse(CodeInvalid, "volume %s has %d bytes and backup %s has %d: extend the volume, or restore to a new one", v.Name, v.Size, b.ID, b.Size)
	}
	return nil
}
