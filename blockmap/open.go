package blockmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// OpenTracker opens the tracker in dir. After an unclean stop what the activity
// log names counts as changed. Files that are missing, damaged, of another
// volume or of another size make no error: everything counts as changed since
// every checkpoint, and [Tracker.Changes] says why. If even the names are
// lost there are no checkpoints. An error means that dir is not there or could
// not be written.
func OpenTracker(fsys vfs.FS, dir string, o TrackerOptions) (*Tracker, error) {
	blockSize := o.BlockSize
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("open the change tracker: %w", err)
	}
	info, err := fsys.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: errors.New("it is not a directory")}
	}
	if err != nil {
		return nil, fmt.Errorf("open the change tracker: %w", err)
	}
	l, raw, doubt := readList(fsys, dir)
	if l == nil {
		if blockSize == 0 {
			blockSize = o.BlockSize
		}
		l = &list{volume: o.VolumeID, geometry: Geometry{Size: o.Size, BlockSize: blockSize}, regionSize: o.RegionSize, nextID: 1}
		l.segments = []segment{{blocks: l.geometry.Blocks()}}
	}
	if doubt == "" {
		doubt = l.mismatch(o, blockSize)
	}
	if o.Doubt != "" {
		doubt = o.Doubt
	}
	t, err := recoverTracker(fsys, dir, o, l, raw, doubt)
	if err != nil {
		return nil, fmt.Errorf("open the change tracker: %w", err)
	}
	return t, nil
}

// readList returns the list in a directory and its encoding. With a doubt the
// list has nothing but names to offer, and is nil when it has not even these.
func readList(fsys vfs.FS, dir string) (l *list, raw []byte, doubt string) {
	raw, err := vfs.ReadFile(fsys, filepath.Join(dir, listName), maxListSize)
	if err == nil {
		if l, err = decodeList(raw); err == nil {
			return l, raw, ""
		}
	}
	doubt = fmt.Sprintf("the list of checkpoints could not be read: %v", err)
	if raw, err = vfs.ReadFile(fsys, filepath.Join(dir, listCopyName), maxListSize); err == nil {
		if l, err = decodeList(raw); err == nil {
			return l, nil, doubt
		}
	}
	return nil, nil, doubt
}

// mismatch tells why l does not belong to the volume.
func (l *list) mismatch(o TrackerOptions, blockSize int) string {
	switch {
	case l.volume != o.VolumeID:
		return fmt.Sprintf("the record of changes belongs to another volume (%x)", l.volume)
	case blockSize != 0 && l.geometry.BlockSize != blockSize:
		return fmt.Sprintf("the record of changes is in blocks of %d bytes, not %d", l.geometry.BlockSize, blockSize)
	case l.geometry.Size != o.Size && (o.Resizing == 0 || l.geometry.Size != o.Resizing):
		return fmt.Sprintf("the record of changes is of a volume of %d bytes, which has %d now", l.geometry.Size, o.Size)
	}
	return ""
}

// recoverTracker makes a tracker of a list and the files it names.
func recoverTracker(fsys vfs.FS, dir string, o TrackerOptions, l *list, raw []byte, doubt string) (*Tracker, error) {
	if doubt == "" && !l.idle() {
		t := newTracker(fsys, dir, o, l)
		t.saved = raw
		var found opened
		if found, doubt = t.loadNewest(); doubt == "" {
			return t, t.settleOpened(found)
		}
		if t.bits != nil {
			_ = t.bits.close() // It was only read.
		}
	}
	if doubt != "" {
		l.restart(o, doubt)
	}
	t := newTracker(fsys, dir, o, l)
	if !l.idle() {
		var err error
		if t.bits, err = createBits(fsys, dir, l.volume, l.newest().id, nil, l.newest().blocks); err != nil {
			return nil, err
		}
	}
	return t, t.start()
}

// restart makes l a list of the same names, all distrusted, for the volume of o,
// with a new file for the newest segment.
func (l *list) restart(o TrackerOptions, doubt string) {
	// What the volume had and has no more counts as changed, too.
	most, old := l.mostBlocks(), l.geometry
	l.volume = o.VolumeID
	l.geometry = Geometry{Size: o.Size, BlockSize: o.BlockSize}
	most = max(l.geometry.Blocks(), min(most<<old.shift()>>l.geometry.shift(), maxTrackedBlocks))
	if checkRegions(l.geometry, l.regionSize) != nil {
		l.regionSize = o.RegionSize
	}
	for i := range l.segments {
		l.segments[i].blocks = most
	}
	if l.idle() {
		l.segments[0].blocks = l.geometry.Blocks()
		return
	}
	l.doubtAll(doubt)
	l.newest().id = l.nextID
	l.nextID++
	l.epoch++
}

// opened is what the files of the newest segment say.
type opened struct {
	log     activity
	seq     uint64
	torn    bool    // the log's next page was being written
	damaged []int64 // pages of bits with bad sectors
}

// clean tells whether there is nothing to mend.
func (f opened) clean(epoch uint64) bool {
	return f.log.exact && f.log.epoch == epoch && !f.torn && len(f.damaged) == 0
}

// loadNewest reads the bits of the newest segment and adds what the activity
// log names. It writes nothing. The second result is why the two cannot be
// trusted, or "".
func (t *Tracker) loadNewest() (found opened, doubt string) {
	s := t.list.newest()
	f, err := t.fsys.OpenFile(bitsName(t.dir, s.id), os.O_RDWR, 0)
	if err != nil {
		return found, fmt.Sprintf("the newest record of changes could not be read: %v", err)
	}
	t.bits = newBitsFile(t.list.volume, s.id, s.blocks)
	t.bits.file = f
	b := NewBitmap(s.blocks)
	damage := t.bits.load(b, s.blocks)
	if damage.missing != nil {
		return found, fmt.Sprintf("the newest record of changes could not be read: %v", damage.missing)
	}
	found.damaged = damage.pages
	raw, err := vfs.ReadFile(t.fsys, t.log.name, activitySlots*pageSize)
	if err == nil {
		found.log, found.seq, found.torn, err = scanActivity(t.log.seal, raw)
	}
	if err != nil {
		return found, fmt.Sprintf("the activity log could not be read: %v", err)
	}
	switch a := found.log; {
	case a.epoch > t.list.epoch:
		return found, "the list of checkpoints is older than the activity log"
	case a.epoch < t.list.epoch:
		// Nothing was written since the segment was opened.
		found.log.regions = nil
	case a.exact && len(found.damaged) == 0 && a.sum != sumOf(t.bits.sums):
		return found, "the newest record of changes is not what was written"
	default:
		t.stats.unclean = !a.exact
		for _, r := range a.regions {
			first, end := t.regionBlocks(r)
			b.Set(first, end-first)
		}
	}
	t.words = b.words
	return found, ""
}

// settleOpened makes the files exact. Until the last step they say at least
// what they said before.
func (t *Tracker) settleOpened(found opened) error {
	defer t.sweep()
	all := make([]int64, pagesOf(t.list.newest().blocks))
	for i := range all {
		all[i] = int64(i)
	}
	t.log.seq = found.seq
	if found.clean(t.list.epoch) {
		t.exact = true
		for _, r := range t.fullRegions(all) {
			t.regions.set(r, regionHot|regionUsed)
		}
		return t.log.open()
	}
	// A new log, because a page of the old one may be torn: written again
	// under the same sequence number it could mix two records.
	regions := found.log.regions
	if err := t.log.replace(activity{epoch: t.list.epoch, regions: regions}); err != nil {
		return err
	}
	for _, r := range regions {
		if r < t.regions.n {
			t.regions.logged = append(t.regions.logged, r)
		}
	}
	t.unsure = found.damaged
	for _, r := range t.fullRegions(all) {
		t.regions.set(r, regionHot|regionUsed)
	}
	if err := t.flush(); err != nil {
		return errors.Join(err, t.log.close(), t.bits.close())
	}
	return nil
}
