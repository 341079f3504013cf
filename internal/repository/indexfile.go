package repository

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// The table of the dedup index: a file of pages, each a set of entries. A chunk
// belongs to the page that its ID names, so that a lookup reads one page; a full
// page forgets. See FORMAT.md.
const (
	pageSize    = 4096
	pageHeader  = 64
	entrySize   = 64
	pageEntries = (pageSize - pageHeader) / entrySize
	pageTag     = 16
)

// table is the open table file. Lookups may run at once, changes exclude them.
type table struct {
	key   [32]byte
	pages int64
	f     vfs.File

	mu         sync.RWMutex
	generation ident
	buffers    sync.Pool // *[pageSize]byte
}

// openTable opens or makes the table file. Its size is fixed by pages; a file
// of another size is another table, whose pages do not authenticate.
func openTable(fsys vfs.FS, dir string, key [32]byte, size int64, generation ident) (*table, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, "table"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the dedup index: %w", err)
	}
	t := &table{key: key, pages: max(size/pageSize, 1), f: f, generation: generation}
	t.buffers.New = func() any { return new([pageSize]byte) }
	if err := f.Truncate(t.pages * pageSize); err != nil {
		return nil, errors.Join(fmt.Errorf("size the dedup index: %w", err), f.Close())
	}
	return t, nil
}

func (t *table) page(id chunk.ID) int64 {
	return int64(binary.BigEndian.Uint64(id[:8]) % uint64(t.pages)) //nolint:gosec // below pages
}

// tag authenticates a page: its content, its place, and the generation, so that
// pages of a table that was dropped are never believed again.
func (t *table) tag(page int64, p *[pageSize]byte) ([]byte, error) {
	h, err := blake3.NewKeyed(t.key[:])
	if err != nil {
		return nil, fmt.Errorf("key the dedup index: %w", err)
	}
	var place [32]byte
	copy(place[:], t.generation[:])
	binary.BigEndian.PutUint64(place[16:], uint64(page))    //nolint:gosec // not negative
	binary.BigEndian.PutUint64(place[24:], uint64(t.pages)) //nolint:gosec // not negative
	_, _ = h.Write(place[:])
	_, _ = h.Write(p[pageTag:])
	return h.Sum(nil)[:pageTag], nil
}

// read fills p with a page; one that is damaged, or was never written, is
// empty.
func (t *table) read(page int64, p *[pageSize]byte) error {
	if _, err := t.f.ReadAt(p[:], page*pageSize); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the dedup index: %w", err)
	}
	if *p == [pageSize]byte{} {
		return nil
	}
	tag, err := t.tag(page, p)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(tag, p[:pageTag]) != 1 || pageCount(p) > pageEntries {
		clear(p[:])
	}
	return nil
}

func (t *table) write(page int64, p *[pageSize]byte) error {
	tag, err := t.tag(page, p)
	if err != nil {
		return err
	}
	copy(p[:], tag)
	if _, err := t.f.WriteAt(p[:], page*pageSize); err != nil {
		return fmt.Errorf("write the dedup index: %w", err)
	}
	return nil
}

func pageCount(p *[pageSize]byte) int { return int(binary.BigEndian.Uint16(p[pageTag:])) }
func pageNext(p *[pageSize]byte) int  { return int(binary.BigEndian.Uint16(p[pageTag+2:])) }

func setPage(p *[pageSize]byte, count, next int) {
	binary.BigEndian.PutUint16(p[pageTag:], uint16(count))  //nolint:gosec // at most pageEntries
	binary.BigEndian.PutUint16(p[pageTag+2:], uint16(next)) //nolint:gosec // as above
}

func pageEntry(p *[pageSize]byte, i int) []byte { return p[pageHeader+i*entrySize:][:entrySize] }

func encodeEntry(b []byte, ref chunk.Ref) {
	copy(b, ref.ID[:])
	copy(b[20:], ref.Pack[:])
	binary.BigEndian.PutUint32(b[52:], ref.Offset)
	binary.BigEndian.PutUint32(b[56:], ref.Length)
	clear(b[60:entrySize])
}

func decodeEntry(b []byte) chunk.Ref {
	return chunk.Ref{
		ID: chunk.ID(b[:20]),
		Location: chunk.Location{
			Pack:   chunk.PackID(b[20:52]),
			Offset: binary.BigEndian.Uint32(b[52:]),
			Length: binary.BigEndian.Uint32(b[56:]),
		},
	}
}

// lookup returns where a chunk is.
func (t *table) lookup(id chunk.ID) (chunk.Location, bool, error) {
	p, ok := t.buffers.Get().(*[pageSize]byte)
	if !ok {
		p = new([pageSize]byte)
	}
	defer t.buffers.Put(p)
	t.mu.RLock()
	err := t.read(t.page(id), p)
	t.mu.RUnlock()
	if err != nil {
		return chunk.Location{}, false, err
	}
	for i := range pageCount(p) {
		if e := pageEntry(p, i); chunk.ID(e[:20]) == id {
			return decodeEntry(e).Location, true, nil
		}
	}
	return chunk.Location{}, false, nil
}

// insertPage adds entries that all belong to one page. A full page forgets its
// entries in turn.
func (t *table) insertPage(page int64, refs []chunk.Ref) error {
	p := new([pageSize]byte)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.read(page, p); err != nil {
		return err
	}
	count, next := pageCount(p), pageNext(p)
	for _, ref := range refs {
		at := -1
		for i := range count {
			if chunk.ID(pageEntry(p, i)[:20]) == ref.ID {
				at = i // newer is as good
			}
		}
		switch {
		case at >= 0:
		case count < pageEntries:
			at = count
			count++
		default:
			at = next % pageEntries
			next = (at + 1) % pageEntries
		}
		encodeEntry(pageEntry(p, at), ref)
	}
	setPage(p, count, next)
	return t.write(page, p)
}

// remove drops all entries that lie in packs that bad names.
func (t *table) remove(bad func(chunk.PackID) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := new([pageSize]byte)
	for off := int64(0); off < t.pages*pageSize; {
		start, end, err := t.f.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the dedup index: %w", err)
		}
		for page := start / pageSize; page*pageSize < end; page++ {
			if err := t.removeFrom(page, p, bad); err != nil {
				return err
			}
		}
		off = end
	}
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("sync the dedup index: %w", err)
	}
	return nil
}

func (t *table) removeFrom(page int64, p *[pageSize]byte, bad func(chunk.PackID) bool) error {
	if err := t.read(page, p); err != nil {
		return err
	}
	before := pageCount(p)
	kept := 0
	for i := range before {
		e := pageEntry(p, i)
		if bad(chunk.PackID(e[20:52])) {
			continue
		}
		copy(pageEntry(p, kept), e)
		kept++
	}
	if kept == before {
		return nil
	}
	for i := kept; i < before; i++ {
		clear(pageEntry(p, i))
	}
	setPage(p, kept, 0)
	return t.write(page, p)
}

// drop forgets everything: under a new generation no page authenticates. The
// caller has made the generation durable.
func (t *table) drop(generation ident) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.generation = generation
	if err := t.f.Truncate(0); err != nil {
		return fmt.Errorf("empty the dedup index: %w", err)
	}
	if err := t.f.Truncate(t.pages * pageSize); err != nil {
		return fmt.Errorf("size the dedup index: %w", err)
	}
	return nil
}
