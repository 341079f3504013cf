package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Suffixes of state folders that are not complete yet, or no longer.
const (
	makingSuffix = ".new"
	goneSuffix   = ".deleted"
)

// Create makes the state folder dir of a new volume, and its data file when it
// is managed, and opens the volume. dir must not exist; it appears complete or
// not at all, and after an error nothing is left. An existing file or device keeps its content; it is refused when
// it looks like an image format (unless AllowFormat) or when another process
// holds it.
func Create(o Options, dir string, s Spec) (*Volume, error) {
	o.setDefaults()
	if err := create(o, dir, s); err != nil {
		return nil, fmt.Errorf("create volume %s: %w", s.Name, err)
	}
	v, err := Open(o, dir)
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", s.Name, errors.Join(err, Destroy(o, dir)))
	}
	return v, nil
}

func create(o Options, dir string, s Spec) (err error) {
	if err = s.check(dir); err != nil {
		return err
	}
	if _, err = o.FS.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = ErrExist
		}
		return fmt.Errorf("state folder %s: %w", dir, err)
	}
	making := dir + makingSuffix
	if err = removeAll(o.FS, making); err != nil {
		return fmt.Errorf("remove what an interrupted try left: %w", err)
	}
	if err = vfs.MkdirAll(o.FS, making, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(o.FS, making))
		}
	}()
	if s.Managed {
		if err := makeManaged(o.FS, making, s.Size); err != nil {
			return err
		}
	}
	if err := makeState(o, making, &s); err != nil {
		return err
	}
	if err := o.FS.SyncDir(making); err != nil {
		return fmt.Errorf("sync %s: %w", making, err)
	}
	if err := o.FS.Rename(making, dir); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	if err := o.FS.SyncDir(filepath.Dir(dir)); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", filepath.Dir(dir), err), Destroy(o, dir))
	}
	return nil
}

// check completes a spec and refuses what makes no sense.
func (s *Spec) check(dir string) error {
	if s.ID == uuid.Nil {
		s.ID = uuid.New()
	}
	if s.Created.IsZero() {
		s.Created = time.Now()
	}
	s.Created = s.Created.UTC().Round(0)
	var err error
	if s.Attributes, err = attributes.Normal(s.Attributes); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if s.Managed {
		if s.Device {
			return fmt.Errorf("%w: a device is not managed", ErrInvalid)
		}
		if s.Path != "" && filepath.Clean(s.Path) != filepath.Join(dir, managedFile) {
			return fmt.Errorf("%w: the data file of a managed volume is %s in its state folder, not %s", ErrInvalid, managedFile, s.Path)
		}
		s.Path = ""
		return checkSize(s.Size)
	}
	if s.Path == "" {
		return fmt.Errorf("%w: name a file or device", ErrInvalid)
	}
	abs, err := filepath.Abs(s.Path)
	if err != nil {
		return fmt.Errorf("path of the data file: %w", err)
	}
	s.Path = abs
	if strings.HasPrefix(abs, filepath.Clean(dir)+string(filepath.Separator)) {
		return fmt.Errorf("%w: %s lies in the volume's own state folder", ErrInvalid, abs)
	}
	if s.Size != 0 {
		return checkSize(s.Size)
	}
	return nil
}

// makeState fills a state folder that nobody sees yet.
func makeState(o Options, dir string, s *Spec) (err error) {
	r := record{
		Format: recordFormat, Version: recordVersion, ID: s.ID, Name: s.Name, Path: s.Path, Kind: kindFile, Managed: s.Managed,
		BlockSize: blockmap.DefaultBlockSize, Created: s.Created, Snapshots: []snapshotRecord{},
	}
	if s.Device {
		r.Kind = kindDevice
	}
	d, err := openData(o.FS, r.dataPath(dir), s.Device, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	// First, as an image may have any size, and to round that up is no help.
	if !s.Managed && !s.AllowFormat {
		if err = checkRaw(d, s.Path, d.size); err != nil {
			return err
		}
	}
	if r.Size, err = usableSize(d, r.dataPath(dir), s); err != nil {
		return err
	}
	for _, sub := range []string{preimagesDir, trackerDir} {
		if err = vfs.MkdirAll(o.FS, filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	t, err := blockmap.CreateTracker(o.FS, filepath.Join(dir, trackerDir), trackerOptions(&r, ""))
	if err != nil {
		return fmt.Errorf("create the change tracker: %w", err)
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("create the change tracker: %w", err)
	}
	if err := makeBeat(o, dir, &r, d); err != nil {
		return err
	}
	if s.Attributes != nil {
		if err := writeAttributes(o.FS, dir, r.ID, s.Attributes); err != nil {
			return err
		}
	}
	return writeRecord(o.FS, dir, &r)
}

// makeBeat writes the first heartbeat: nobody has written to the data file yet.
func makeBeat(o Options, dir string, r *record, d *dataFile) error {
	boot, _, err := o.Host.Boot()
	if err != nil {
		return err
	}
	b := beatRecord{Volume: r.ID, Boot: boot}
	h, err := openBeat(o.FS, o.Host, new(gate), filepath.Join(dir, beatFile), &b)
	if err != nil {
		return err
	}
	return errors.Join(h.stop(d), h.close())
}

// usableSize returns the size of the volume on a data file.
func usableSize(d *dataFile, path string, s *Spec) (int64, error) {
	if s.Size == 0 || s.Size == d.size {
		if err := checkSize(d.size); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		return d.size, nil
	}
	if s.Device && s.Size < d.size {
		return s.Size, nil
	}
	return 0, fmt.Errorf("%w: %s has %d bytes, not %d; leave the size out to use it as it is", ErrInvalid, path, d.size, s.Size)
}

func trackerOptions(r *record, doubt string) blockmap.TrackerOptions {
	return blockmap.TrackerOptions{VolumeID: r.ID, Size: r.Size, BlockSize: r.BlockSize, Doubt: doubt, Resizing: r.Extending}
}
