package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/volume"
)

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
	e := newEntry(spec.ID, filepath.Join(p.volumes, spec.ID.String()))
	e.attrs = spec.Attributes
	v, err := volume.Create(p.options(), e.dir, spec) //nolint:contextcheck // Half a volume helps nobody: it ends by itself.
	if err != nil {
		return Volume{}, err
	}
	if err := p.serve(ctx, e, v); err != nil {
		return Volume{}, errors.Join(err, v.Close(), volume.Destroy(p.options(), e.dir))
	}
	p.mu.Lock()
	p.entries[e.id] = e
	p.mu.Unlock()
	return p.describe(e, changes), nil
}

// checkCreate checks a request as far as nothing but itself matters, and
// translates it.
func (p *plane) checkCreate(req CreateVolume) (volume.Spec, error) {
	spec := volume.Spec{Name: req.Name, Size: req.Size, AllowFormat: req.AllowFormat}
	if err := checkFreeName("volume", req.Name); err != nil {
		return spec, err
	}
	var err error
	if spec.ID, err = newID("volume", req.ID); err != nil {
		return spec, err
	}
	if spec.Attributes, err = attributes.Normal(req.Attributes); err != nil {
		return spec, refuse(CodeInvalid, "volume %s: %v", req.Name, err)
	}
	// A backup needs a snapshot, which has an ID instead of a name.
	longest := snapshotExportName(req.Name, uuid.Nil.String())
	if path := filepath.Join(p.at.dir, longest+socketSuffix); len(path) > maxSocketPath {
		fits := len(req.Name) - (len(path) - maxSocketPath)
		if fits < 1 {
			return spec, refuse(CodeInvalid, "the folder of the NBD sockets, %s, has too long a path: start cairn serve with a shorter --nbd-dir", p.at.dir)
		}
		return spec, refuse(CodeInvalid, "volume name %s is too long for the sockets of its snapshots in %s: choose one of at most %d characters, or start cairn serve with a shorter --nbd-dir", req.Name, p.at.dir, fits)
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

// newID reads the ID that a new volume or snapshot is to have, or draws one.
func newID(what, asked string) (uuid.UUID, error) {
	if asked == "" {
		id, err := uuid.NewRandom()
		if err != nil {
			return uuid.Nil, fmt.Errorf("draw an ID: %w", err)
		}
		return id, nil
	}
	id, ok := parseID(asked)
	if !ok || id == uuid.Nil {
		return uuid.Nil, refuse(CodeInvalid, "the ID %q of the new %s is no UUID: leave it out, and one is drawn", clip(asked), what)
	}
	return id, nil
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
	if _, err := p.find(spec.ID.String()); err == nil {
		return refuse(CodeConflict, "there is a volume with the ID %s already: leave the ID out, and one is drawn", spec.ID)
	}
	if err := p.roomForAttributes(nil, spec.Attributes); err != nil {
		return err
	}
	if found := p.named(spec.Name); len(found) > 0 {
		return refuse(CodeConflict, "there is a volume named %s already, with ID %s: choose another name", spec.Name, found[0].id)
	}
	// Before any state is made.
	if err := removeDead(ctx, filepath.Join(p.at.dir, spec.Name+socketSuffix)); err != nil {
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
