package blockmap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairnbackup/cairn/internal/vfs"
)

const (
	listName     = "checkpoints"
	listCopyName = "checkpoints.copy"
)

// save makes l the durable list and the one in use. When that fails the old one
// remains in use, provided that it is the durable one without a doubt;
// otherwise the tracker takes no more marks, because nobody knows in which
// segment they would be looked for.
func (t *Tracker) save(l *list) error {
	if t.failed != nil {
		return t.failed
	}
	l.generation = t.list.generation + 1
	data := l.encode()
	if err := l.validate(); err != nil {
		return fmt.Errorf("save the list of checkpoints: %w", err)
	}
	if len(data) > maxListSize || len(l.segments) > maxSegments {
		return fmt.Errorf("save the list of checkpoints: %w", errTooMany)
	}
	name := filepath.Join(t.dir, listName)
	if err := vfs.WriteFile(t.fsys, name, data, 0o600); err != nil {
		err = fmt.Errorf("save the list of checkpoints: %w", err)
		if t.saved == nil {
			return err
		}
		seen, rerr := vfs.ReadFile(t.fsys, name, maxListSize)
		if rerr == nil && bytes.Equal(seen, t.saved) {
			return err
		}
		if werr := vfs.WriteFile(t.fsys, name, t.saved, 0o600); werr != nil {
			t.fail(fmt.Errorf("%w: reopen the volume", errors.Join(err, werr)))
		}
		return err
	}
	t.list, t.saved = l, data
	t.saveCopy(data)
	return nil
}

// saveCopy keeps a copy of the list's names, for the day that the list is
// damaged. Everything is distrusted then, so the copy need not be durable, nor
// even new.
func (t *Tracker) saveCopy(data []byte) {
	f, err := t.fsys.OpenFile(filepath.Join(t.dir, listCopyName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteAt(data, 0) // See above.
	_ = f.Close()
}

// fail makes every further mark an error. The io mutex is held.
func (t *Tracker) fail(err error) {
	t.failed = err
	t.regions.setAll(false)
}

// sweep removes files of segments that are not in the list. What it cannot
// remove it leaves for the next time.
func (t *Tracker) sweep() {
	entries, err := t.fsys.ReadDir(t.dir)
	if err != nil {
		return
	}
	keep := map[string]bool{}
	for _, s := range t.list.segments {
		if s.id != 0 {
			keep[filepath.Base(bitsName(t.dir, s.id))] = true
		}
	}
	if t.spare != nil {
		keep[filepath.Base(bitsName(t.dir, t.spare.seal.owner))] = true
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), bitsPrefix) && !keep[e.Name()] {
			_ = t.fsys.Remove(filepath.Join(t.dir, e.Name()))
		}
	}
}
