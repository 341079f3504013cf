package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/volume"
)

// listVolumes shows all volumes.
func (p *plane) listVolumes() []Volume {
	vs := []Volume{}
	for _, e := range p.sorted() {
		vs = append(vs, e.describe(p.fs, p.nbdDir))
	}
	return vs
}

// createVolume makes a volume and serves it, or leaves nothing of it.
func (p *plane) createVolume(ctx context.Context, req CreateVolume) (Volume, error) {
	spec, err := p.checkCreate(req)
	if err != nil {
		return Volume{}, err
	}
	p.create.Lock()
	defer p.create.Unlock()
	if err = p.checkNew(ctx, spec); err != nil {
		return Volume{}, err
	}
	if spec.ID, err = uuid.NewRandom(); err != nil {
		return Volume{}, fmt.Errorf("draw an ID: %w", err)
	}
	e := newEntry(spec.ID, filepath.Join(p.volumes, spec.ID.String()))
	v, err := volume.Create(p.options(), e.dir, spec) //nolint:contextcheck // Half a volume helps nobody: it ends by itself.
	if err != nil {
		// If the folder is complete, it is the opening that failed.
		if _, statErr := p.fs.Stat(e.dir); statErr == nil {
			err = errors.Join(err, p.discard(e))
		}
		return Volume{}, err
	}
	if err := p.serve(ctx, e, v); err != nil {
		return Volume{}, errors.Join(err, v.Close(), p.discard(e))
	}
	p.mu.Lock()
	p.entries[e.id] = e
	p.mu.Unlock()
	return e.describe(p.fs, p.nbdDir), nil
}

// checkCreate checks a request as far as nothing but itself matters, and
// translates it.
func (p *plane) checkCreate(req CreateVolume) (volume.Spec, error) {
	spec := volume.Spec{Name: req.Name, Size: req.Size, AllowFormat: req.AllowFormat}
	if err := checkFreeName("volume", req.Name); err != nil {
		return spec, err
	}
	// A backup needs a snapshot, which has an ID instead of a name.
	longest := snapshotExportName(req.Name, uuid.Nil.String())
	if path := filepath.Join(p.nbdDir, longest+socketSuffix); len(path) > maxSocketPath {
		fits := len(req.Name) - (len(path) - maxSocketPath)
		if fits < 1 {
			return spec, refuse(CodeInvalid, "the folder of the NBD sockets, %s, has too long a path: start cairn serve with a shorter --nbd-dir", p.nbdDir)
		}
		return spec, refuse(CodeInvalid, "volume name %s is too long for the sockets of its snapshots in %s: choose one of at most %d characters, or start cairn serve with a shorter --nbd-dir", req.Name, p.nbdDir, fits)
	}
	kinds := 0
	for _, given := range []bool{req.Size != 0, req.File != "", req.Device != ""} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		return spec, refuse(CodeInvalid, "volume %s needs exactly one of a size, a file and a device", req.Name)
	}
	switch {
	case req.File != "":
		return spec, resolve(&spec, "file", req.File)
	case req.Device != "":
		spec.Device = true
		return spec, resolve(&spec, "device", req.Device)
	default:
		spec.Managed = true
		return spec, checkSize(req.Name, req.Size)
	}
}

// checkSize refuses sizes that are no volume's, before anything in proportion
// to them is allocated.
func checkSize(name string, size int64) error {
	if size <= 0 || size > maxSize {
		return refuse(CodeInvalid, "volume %s cannot have %d bytes: give a size such as 4GiB, at most %dTiB", name, size, int64(maxSize)>>40)
	}
	return nil
}

// resolve finds the real path of an existing file or device, and refuses what
// is not of that kind.
func resolve(spec *volume.Spec, what, path string) error {
	if strings.ContainsRune(path, 0) || !filepath.IsAbs(path) {
		return refuse(CodeInvalid, "the path of the %s, %q, is not absolute: the data plane does not know your working folder", what, clip(path))
	}
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(CodeInvalid, "there is no %s %s: check the path", what, clip(path))
	}
	if err != nil {
		return refuse(CodeInvalid, "the path of the %s cannot be used: %v", what, err)
	}
	st, err := os.Stat(resolved)
	if err != nil {
		return refuse(CodeInvalid, "the path of the %s cannot be used: %v", what, err)
	}
	device := st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
	switch {
	case spec.Device && !device && st.Mode().IsRegular():
		return refuse(CodeInvalid, "%s is a file, not a block device: give it as a file", resolved)
	case spec.Device && !device:
		return refuse(CodeInvalid, "%s is not a block device", resolved)
	case !spec.Device && device:
		return refuse(CodeInvalid, "%s is a block device, not a file: give it as a device", resolved)
	case !spec.Device && !st.Mode().IsRegular():
		return refuse(CodeInvalid, "%s is not a regular file", resolved)
	}
	spec.Path = resolved
	if spec.Device {
		return nil // its size is known once it is open
	}
	return checkSize(spec.Name, st.Size())
}

// checkNew refuses a volume whose name or data another one has. p.create is
// held.
func (p *plane) checkNew(ctx context.Context, spec volume.Spec) error {
	if p.count() >= maxVolumes {
		return refuse(CodeConflict, "this data plane has %d volumes, and that is its limit: start another one with another --state", maxVolumes)
	}
	if found := p.named(spec.Name); len(found) > 0 {
		return refuse(CodeConflict, "there is a volume named %s already, with ID %s: choose another name", spec.Name, found[0].id)
	}
	// Before any state is made.
	if err := removeDead(ctx, filepath.Join(p.nbdDir, spec.Name+socketSuffix)); err != nil {
		return err
	}
	if spec.Managed {
		return nil
	}
	if rel, err := filepath.Rel(realPath(p.state), spec.Path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return refuse(CodeInvalid, "%s lies in the data plane's own state folder: move it elsewhere", spec.Path)
	}
	st, err := os.Stat(spec.Path)
	if err != nil {
		return refuse(CodeInvalid, "%s cannot be used: %v", spec.Path, err)
	}
	for _, e := range p.sorted() {
		e.mu.RLock()
		path := e.path()
		e.mu.RUnlock()
		other, err := os.Stat(path)
		if path == spec.Path || err == nil && os.SameFile(st, other) {
			return refuse(CodeConflict, "%s is the data of volume %s already: one volume per file", spec.Path, e.title())
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

// discard removes the state folder of a closed volume, with managed data. The
// rename is the deletion; what a crash leaves under the other name is removed
// at the next start.
func (p *plane) discard(e *entry) error {
	going := filepath.Join(p.volumes, deleting+e.id.String())
	if err := p.fs.Rename(e.dir, going); err != nil {
		return fmt.Errorf("delete volume %s: %w", e.title(), err)
	}
	if err := p.fs.SyncDir(p.volumes); err != nil {
		return fmt.Errorf("delete volume %s: %w", e.title(), err)
	}
	//nolint:gosec // Made of our own folder and an ID.
	if err := os.RemoveAll(going); err != nil {
		return fmt.Errorf("delete volume %s: it is gone, but its space is not free before the next start: %w", e.title(), err)
	}
	return nil
}

// extendVolume grows a volume, in use or not.
func (p *plane) extendVolume(ctx context.Context, ref string, size int64) (Volume, error) {
	e, v, unlock, err := p.change(ctx, ref)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	if now := v.Size(); size <= now {
		return Volume{}, refuse(CodeInvalid, "volume %s has %d bytes, and %d is not more: a volume can only grow", e.title(), now, size)
	}
	if err = checkSize(e.title(), size); err != nil {
		return Volume{}, err
	}
	err = v.Extend(size)
	e.refresh(v)
	if err != nil {
		return Volume{}, err
	}
	return e.describe(p.fs, p.nbdDir), nil
}

// change locks an open volume for a change.
func (p *plane) change(ctx context.Context, ref string) (*entry, *volume.Volume, func(), error) {
	e, err := p.find(ref)
	if err != nil {
		return nil, nil, nil, err
	}
	if err = e.lock(ctx); err != nil {
		return nil, nil, nil, err
	}
	v, err := e.live()
	if err != nil {
		e.unlock()
		return nil, nil, nil, err
	}
	return e, v, e.unlock, nil
}

// reopenVolume closes a volume, if it is open, and opens it again.
func (p *plane) reopenVolume(ctx context.Context, ref string) (Volume, error) {
	e, err := p.find(ref)
	if err != nil {
		return Volume{}, err
	}
	if err := e.lock(ctx); err != nil {
		return Volume{}, err
	}
	defer e.unlock()
	title := e.title()
	e.mu.RLock()
	gone, snaps := e.gone, make([]*snap, 0, len(e.snaps))
	for _, sn := range e.snaps {
		snaps = append(snaps, sn)
	}
	e.mu.RUnlock()
	if gone {
		return Volume{}, refuse(CodeNotFound, "volume %s has been deleted", title)
	}
	why := fmt.Sprintf("volume %s is being reopened: connect again in a moment", title)
	if err := e.access.empty(ctx, why, "volume "+title); err != nil {
		return Volume{}, err
	}
	defer e.access.reopen()
	for _, sn := range snaps {
		if err := sn.access.empty(ctx, why, fmt.Sprintf("snapshot %s of volume %s", sn.label(), title)); err != nil {
			return Volume{}, err
		}
		// Its entry is made anew, but if anything below fails it must not
		// stay shut.
		defer sn.access.reopen()
	}
	if err := e.shutDown(); err != nil {
		// A volume that had failed cannot close well.
		p.log.LogAttrs(ctx, slog.LevelWarn, "volume closed with an error", slog.String("volume", title), slog.Any("error", err))
	}
	p.open(ctx, e)
	if _, err := e.live(); err != nil {
		return Volume{}, err
	}
	return e.describe(p.fs, p.nbdDir), nil
}

// deleteVolume deletes a volume that nobody uses.
func (p *plane) deleteVolume(ctx context.Context, ref string) error {
	e, err := p.find(ref)
	if err != nil {
		return err
	}
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	title := e.title()
	if err := e.deletable(title); err != nil {
		return err
	}
	if err := e.access.empty(ctx, "volume "+title+" is being deleted", "volume "+title); err != nil {
		return err
	}
	if err := e.shutDown(); err != nil {
		// Its state was to be saved, and is about to go.
		p.log.LogAttrs(ctx, slog.LevelWarn, "deleted volume closed with an error", slog.String("volume", title), slog.Any("error", err))
	}
	if err := p.discard(e); err != nil {
		if _, statErr := p.fs.Stat(e.dir); statErr == nil { // nothing happened yet
			p.open(ctx, e)
			e.access.reopen()
			return err
		}
		p.log.LogAttrs(ctx, slog.LevelWarn, "deleted volume not wholly removed: the next start will", slog.String("volume", title), slog.Any("error", err))
	}
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
	p.mu.Lock()
	delete(p.entries, e.id)
	p.mu.Unlock()
	return nil
}

// deletable refuses what must not be deleted whoever uses it.
func (e *entry) deletable(title string) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	switch {
	case e.gone:
		return refuse(CodeNotFound, "volume %s has been deleted", title)
	case e.vol == nil && e.spec.Managed:
		return refuse(CodeConflict, "volume %s cannot be opened, because %v, so its data in %s are not deleted: mend it, or stop cairn serve and move the folder away", title, e.err, e.dir)
	case e.vol == nil && e.spec.Name == "":
		return refuse(CodeConflict, "volume %s has no readable record, so nothing in %s is deleted: mend it, or stop cairn serve and move the folder away", title, e.dir)
	case len(e.snaps) > 0:
		var names []string
		for _, sn := range e.snaps {
			names = append(names, sn.label())
		}
		slices.Sort(names)
		if len(names) == 1 {
			return refuse(CodeConflict, "volume %s still has snapshot %s: delete that first", title, names[0])
		}
		return refuse(CodeConflict, "volume %s still has %d snapshots: delete %s first", title, len(names), enumerate(names))
	}
	return nil
}

// enumerate joins names for a sentence.
func enumerate(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// dropCheckpoint forgets a checkpoint that is no snapshot's position.
func (p *plane) dropCheckpoint(ctx context.Context, ref, name string) error {
	e, v, unlock, err := p.change(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if strings.HasPrefix(name, snapshotPosition) {
		return refuse(CodeInvalid, "checkpoint %s is a snapshot's position: delete the snapshot instead", clip(name))
	}
	for _, c := range v.Checkpoints() {
		if c.Name == name {
			defer e.refresh(v)
			return v.DropCheckpoint(name)
		}
	}
	return refuse(CodeNotFound, "volume %s has no checkpoint %q: cairn volume show lists those there are", e.title(), clip(name))
}
