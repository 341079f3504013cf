package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// Close waits for reclaiming in the background, makes everything durable and
// gives the data file back. Temporary snapshots end here. It is called once, when
// no other call is running; on an error the next Open may find reason to doubt,
// but nothing acknowledged by Flush is lost.
func (v *Volume) Close() error {
	v.back.Wait()
	v.admin.Lock()
	defer v.admin.Unlock()
	err := v.closeData()
	if set := v.snaps.set.Load(); set != nil {
		for _, e := range set.epochs {
			for _, l := range e.logs() {
				err = errors.Join(err, l.f.Close())
			}
		}
	}
	if err != nil {
		return fmt.Errorf("close volume %s: %w", v.name, err)
	}
	return nil
}

// closeData ends the tracker and the heartbeat cleanly, in this order: a clean
// heartbeat vouches for everything else.
func (v *Volume) closeData() error {
	var err error
	if v.failed.Load() == nil {
		err = v.syncData()
	}
	err = errors.Join(err, v.tracker.Close())
	if err == nil && v.failed.Load() == nil {
		err = v.beat.stop(v.data)
	}
	return errors.Join(err, v.beat.close(), v.data.Close())
}

// stop records that the data file is left as it is now.
func (h *heartbeat) stop(d *dataFile) error {
	info, err := d.Stat()
	if err != nil {
		return fmt.Errorf("stat the data file: %w", err)
	}
	var counter uint64
	if info.Mode()&fs.ModeDevice != 0 {
		if counter, err = h.host.DeviceWrites(d.os); err != nil {
			return nil //nolint:nilerr // without the counter the record stays unclean, which is the truth
		}
	}
	return h.save(func(b *beatRecord) {
		b.Clean, b.Mtime, b.Size, b.Inode, b.Counter = true, info.ModTime(), d.size, d.inode, counter
	})
}

// Destroy removes the state folder of a volume that is not open, with the data
// file of a managed one. The folder goes at once, by a rename: if it is still
// there after an error, the volume is whole, and if not, Sweep removes what is
// left of it under the other name. Data files that were there before the volume
// are left alone.
func Destroy(o Options, dir string) error {
	o.setDefaults()
	gone := dir + goneSuffix
	if err := removeAll(o.FS, gone); err != nil {
		return fmt.Errorf("remove state folder %s: %w", dir, err)
	}
	if err := o.FS.Rename(dir, gone); err != nil {
		return fmt.Errorf("remove state folder %s: %w", dir, err)
	}
	if err := o.FS.SyncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("remove state folder %s: %w", dir, err)
	}
	if err := removeAll(o.FS, gone); err != nil {
		return fmt.Errorf("remove state folder %s: the volume is gone, but its space is not free before the next start: %w", dir, err)
	}
	return nil
}

// Sweep removes what interrupted Creates and Destroys left in a folder of state
// folders. No volume in it may be being created or destroyed meanwhile.
func Sweep(o Options, parent string) error {
	o.setDefaults()
	entries, err := o.FS.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep %s: %w", parent, err)
	}
	for _, e := range entries {
		if e.IsDir() && (strings.HasSuffix(e.Name(), makingSuffix) || strings.HasSuffix(e.Name(), goneSuffix)) {
			if err := removeAll(o.FS, filepath.Join(parent, e.Name())); err != nil {
				return fmt.Errorf("sweep %s: %w", parent, err)
			}
		}
	}
	return nil
}

// removeAll removes a file or folder with all that is in it; it may be absent.
func removeAll(fsys vfs.FS, name string) error {
	err := fsys.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, derr := fsys.ReadDir(name)
	if derr != nil {
		return err
	}
	for _, e := range entries {
		if err := removeAll(fsys, filepath.Join(name, e.Name())); err != nil {
			return err
		}
	}
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
