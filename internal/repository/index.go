package repository

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// The dedup index knows where chunks are that earlier sessions of this host
// stored. It is a cache that may forget, and must never be wrong: a location
// that a prune removed would become part of a backup that cannot be restored.
// So it keeps the set of prunes whose lists it has applied, and
//
//   - a session applies every list that it saw (W2) before its first lookup;
//     a prune of which only "done" or "closed" is left empties the index;
//   - removals are on the disk before the set says so, and what a session
//     stored is added only when it was told committed, and only when no list was
//     applied since it began;
//   - the pages are authenticated, so that damage reads as absence.
//
// Any error of its files switches it off until the repository is opened again;
// backups go on without.
type index struct {
	fsys vfs.FS
	dir  string
	key  [32]byte
	lock vfs.File
	warn func(ctx context.Context, text string, attrs ...slog.Attr)

	broken atomic.Bool

	mu      sync.Mutex // of all that follows, and of changes to files
	table   *table
	applied map[ident]struct{}
	epoch   int // counts changes of applied
	empty   bool
}

const maxIndexState = 64 << 20

// openIndex opens the index of a repository below the cache folder; nil when
// that cannot be.
func openIndex(ctx context.Context, r *Repository) *index {
	x := &index{fsys: r.o.FS, key: r.keys.index, warn: r.warn, applied: make(map[ident]struct{})}
	if x.fsys == nil {
		x.fsys = vfs.OS()
	}
	x.dir = filepath.Join(r.o.CacheDir, "index-"+r.id.String())
	if err := x.open(r.o.Cache.Index); err != nil {
		r.warn(ctx, "no dedup index", slog.String("folder", x.dir), slog.Any("error", err))
		return nil
	}
	return x
}

func (x *index) open(size int64) error {
	if err := vfs.MkdirAll(x.fsys, x.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the dedup index: %w", err)
	}
	lock, err := x.fsys.OpenFile(filepath.Join(x.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of the dedup index: %w", err)
	}
	if err = vfs.Lock(lock); err != nil {
		return errors.Join(fmt.Errorf("another process uses the dedup index: %w", err), lock.Close())
	}
	x.lock = lock
	generation, err := x.loadState()
	if err != nil {
		// Absent, damaged or another repository's: begin with an empty one.
		if generation, err = newIdent(); err == nil {
			clear(x.applied)
			err = x.saveState(generation)
		}
		x.empty = true
	}
	if err == nil {
		x.table, err = openTable(x.fsys, x.dir, x.key, size, generation)
	}
	if err == nil {
		err = x.dropJournals()
	}
	if err != nil {
		return errors.Join(err, x.lock.Close())
	}
	return nil
}

func (x *index) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := errors.Join(x.table.f.Close(), x.lock.Close()); err != nil {
		return fmt.Errorf("close the dedup index: %w", err)
	}
	return nil
}

// The state file: generation, applied prunes, tag; see FORMAT.md.
func (x *index) loadState() (ident, error) {
	b, err := vfs.ReadFile(x.fsys, filepath.Join(x.dir, "state"), maxIndexState)
	if err != nil {
		return ident{}, fmt.Errorf("read the state of the dedup index: %w", err)
	}
	generation, applied, err := decodeIndexState(b, x.key)
	if err != nil {
		return ident{}, err
	}
	x.applied = applied
	return generation, nil
}

const indexMagic = "CAIRNIDX1"

func decodeIndexState(b []byte, key [32]byte) (ident, map[ident]struct{}, error) {
	const head, tail = len(indexMagic), 32
	if len(b) < head+16+tail || string(b[:head]) != indexMagic || (len(b)-head-tail)%16 != 0 {
		return ident{}, nil, fmt.Errorf("state of the dedup index: %w", errEnvelope)
	}
	tag, err := indexTag(b[:len(b)-tail], key)
	if err != nil {
		return ident{}, nil, err
	}
	if subtle.ConstantTimeCompare(tag, b[len(b)-tail:]) != 1 {
		return ident{}, nil, fmt.Errorf("state of the dedup index: %w", errEnvelope)
	}
	b = b[head : len(b)-tail]
	generation := ident(b[:16])
	applied := make(map[ident]struct{})
	for b = b[16:]; len(b) > 0; b = b[16:] {
		applied[ident(b[:16])] = struct{}{}
	}
	return generation, applied, nil
}

func encodeIndexState(generation ident, applied map[ident]struct{}, key [32]byte) ([]byte, error) {
	b := append([]byte(indexMagic), generation[:]...)
	for _, id := range sortedIdents(applied) {
		b = append(b, id[:]...)
	}
	tag, err := indexTag(b, key)
	return append(b, tag...), err
}

func sortedIdents(set map[ident]struct{}) []ident {
	ids := make([]ident, 0, len(set))
	for id := range set {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b ident) int { return slices.Compare(a[:], b[:]) })
	return ids
}

func indexTag(b []byte, key [32]byte) ([]byte, error) {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		return nil, fmt.Errorf("key the dedup index: %w", err)
	}
	_, _ = h.WriteString("state")
	_, _ = h.Write(b)
	return h.Sum(nil)[:32], nil
}

func (x *index) saveState(generation ident) error {
	b, err := encodeIndexState(generation, x.applied, x.key)
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(x.fsys, filepath.Join(x.dir, "state"), b, 0o600); err != nil {
		return fmt.Errorf("write the state of the dedup index: %w", err)
	}
	return nil
}

// fail switches the index off.
func (x *index) fail(ctx context.Context, err error) {
	if !x.broken.Swap(true) {
		x.warn(ctx, "dedup index switched off", slog.String("folder", x.dir), slog.Any("error", err))
	}
}

// apply takes the lists of prunes, and of damaged packs, into account: the index's
// part of W2. What a list of damaged packs named stays dropped when the list turns
// out to be wrong: that costs space.
func (x *index) apply(c condemned, d *damage) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	unread, fresh := false, false
	for id := range c.traces {
		if _, ok := x.applied[id]; !ok {
			if _, ok := c.lists[id]; !ok {
				unread = true
			}
		}
	}
	sets := []map[ident]struct{}{c.lists, c.traces}
	if d.size() > 0 {
		sets = append(sets, d.lists)
	}
	for _, set := range sets {
		for id := range set {
			if _, ok := x.applied[id]; !ok {
				fresh = true
			}
		}
	}
	if !fresh {
		return nil
	}
	generation := x.table.generation
	switch {
	case unread:
		var err error
		if generation, err = newIdent(); err != nil {
			return err
		}
	default:
		if err := x.table.remove(func(p chunk.PackID) bool { return c.has(p) || d.has(p) }); err != nil {
			return err
		}
	}
	for _, set := range sets {
		for id := range set {
			x.applied[id] = struct{}{}
		}
	}
	x.epoch++
	// For a drop the state comes first: it is what makes the pages void. For
	// removals the pages are synced already.
	if err := x.saveState(generation); err != nil {
		return err
	}
	if unread {
		x.empty = true
		return x.table.drop(generation)
	}
	return nil
}

// begin prepares the index for a session behind its W2; nil when there is none
// to use.
func (x *index) begin(ctx context.Context, s *Session) *journal {
	if x.broken.Load() {
		return nil
	}
	if err := x.apply(s.avoid, s.damage); err != nil {
		x.fail(ctx, err)
		return nil
	}
	j, err := x.newJournal(s.id.String())
	if err != nil {
		x.fail(ctx, err)
		return nil
	}
	return j
}

func (x *index) newJournal(session string) (*journal, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	j := &journal{x: x, name: filepath.Join(x.dir, journalPrefix+session), epoch: x.epoch}
	var err error
	if j.f, err = x.fsys.OpenFile(j.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("make a journal of the dedup index: %w", err)
	}
	return j, nil
}

const journalPrefix = "journal-"

// dropJournals removes what sessions left that did not end: nobody knows
// whether they were committed.
func (x *index) dropJournals() error {
	entries, err := x.fsys.ReadDir(x.dir)
	if err != nil {
		return fmt.Errorf("read the folder of the dedup index: %w", err)
	}
	for _, e := range entries {
		if len(e.Name()) <= len(journalPrefix) || e.Name()[:len(journalPrefix)] != journalPrefix {
			continue
		}
		if err := x.fsys.Remove(filepath.Join(x.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an old journal of the dedup index: %w", err)
		}
	}
	return nil
}

// insert adds entries, unless lists were applied since epoch.
func (x *index) insert(epoch int, refs []chunk.Ref) (bool, error) {
	slices.SortFunc(refs, func(a, b chunk.Ref) int { return cmp.Compare(x.table.page(a.ID), x.table.page(b.ID)) })
	x.mu.Lock()
	defer x.mu.Unlock()
	if epoch != x.epoch {
		return false, nil
	}
	for len(refs) > 0 {
		page := x.table.page(refs[0].ID)
		n := 1
		for n < len(refs) && x.table.page(refs[n].ID) == page {
			n++
		}
		if err := x.table.insertPage(page, refs[:n]); err != nil {
			return false, err
		}
		refs = refs[n:]
	}
	x.empty = false
	return true, nil
}

// journal collects what one session stores, on the disk, for the index to take
// over when the session is told committed. A nil journal does nothing.
type journal struct {
	x     *index
	name  string
	epoch int // of the index, when the session began

	mu   sync.Mutex
	f    vfs.File
	size int64
	buf  []byte
	err  error
}

const journalBuffer = 256 << 10

func (j *journal) lookup(id chunk.ID) (chunk.Location, bool) {
	if j == nil || j.x.broken.Load() {
		return chunk.Location{}, false
	}
	at, ok, err := j.x.table.lookup(id)
	if err != nil {
		j.x.broken.Store(true)
		return chunk.Location{}, false
	}
	return at, ok
}

// add notes a chunk that the session stored.
func (j *journal) add(ref chunk.Ref) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil || j.f == nil {
		return
	}
	var b [entrySize]byte
	encodeEntry(b[:], ref)
	j.buf = append(j.buf, b[:]...)
	if len(j.buf) >= journalBuffer {
		j.flushLocked()
	}
}

func (j *journal) flushLocked() {
	if _, err := j.f.WriteAt(j.buf, j.size); err != nil {
		j.err = fmt.Errorf("write a journal of the dedup index: %w", err)
	}
	j.size += int64(len(j.buf))
	j.buf = j.buf[:0]
}

// commit moves the journal's entries into the index.
func (j *journal) commit(ctx context.Context) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil || j.x.broken.Load() {
		return
	}
	j.flushLocked()
	if err := j.mergeLocked(); err != nil {
		j.x.fail(ctx, err)
	}
}

func (j *journal) mergeLocked() error {
	if j.err != nil {
		return j.err
	}
	// Batches keep the memory bounded and still hit each page rarely.
	buf := make([]byte, 16<<10*entrySize)
	for off := int64(0); off < j.size; {
		n, err := j.f.ReadAt(buf[:min(int64(len(buf)), j.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return fmt.Errorf("read a journal of the dedup index: %w", err)
		}
		off += int64(n)
		refs := make([]chunk.Ref, 0, n/entrySize)
		for b := buf[:n]; len(b) >= entrySize; b = b[entrySize:] {
			refs = append(refs, decodeEntry(b))
		}
		if more, err := j.x.insert(j.epoch, refs); err != nil || !more {
			return err
		}
	}
	return nil
}

// close removes the journal.
func (j *journal) close() {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return
	}
	// What stays is removed when the index is opened again.
	_ = errors.Join(j.f.Close(), j.x.fsys.Remove(j.name))
	j.f = nil
}
