package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Layout of a preimage log (FORMAT.md).
const (
	logHeaderSize  = 4096 // header sector, state sector, unused
	logStateOffset = sectorSize
	logVersion     = 1
	logMaxSize     = int64(cellMask) * sectorSize
	tempMaxSize    = int64(cellPart) * sectorSize

	recordZeros     = 1 // flag: the content is all zeros and not stored
	recordPart      = 2 // flag: single pages of the block
	stateTextLen    = 400
	stateTextOffset = 16
)

var (
	logMagic    = [8]byte{'C', 'A', 'I', 'R', 'N', 'P', 'R', 'E'}
	recordMagic = [4]byte{'C', 'P', 'R', 'E'}
	stateMagic  = [4]byte{'C', 'B', 'R', 'K'}
)

// preLog is one append-only file of preimages of one epoch. Appends are in
// order and without gaps; each record says up to where the file was durable
// when it was written.
type preLog struct {
	fs     vfs.FS
	name   string
	volume uuid.UUID
	epoch  uint64
	f      vfs.File
	flush  syncer
	space  *spaceGuard
	limit  int64 // of its size

	mu       sync.Mutex // held while appending
	tail     tail
	end      atomic.Int64
	durable  atomic.Int64
	unlinked atomic.Bool // nothing is appended any more, because the next open will not find it; set under mu
}

// preimage is one record: the old content of a block, or of pages of it.
type preimage struct {
	block  int64
	part   bool
	page   int // of a part: the first page; else 0
	length int // of the content
	zeros  bool
	crc    uint32
	buf    *recordBuf // header sector and content
}

// recordBuf has room for a header sector and a block.
type recordBuf [sectorSize + blockmap.DefaultBlockSize]byte

var recordBufs = sync.Pool{New: func() any { return new(recordBuf) }}

func newRecordBuf() *recordBuf {
	b, ok := recordBufs.Get().(*recordBuf)
	if !ok {
		return new(recordBuf)
	}
	return b
}

// content is the part of the buffer that the caller fills before seal.
func (p *preimage) content() []byte { return p.buf[sectorSize : sectorSize+p.length] }

// seal computes what append needs.
func (p *preimage) seal() {
	c := p.content()
	p.zeros = allZeros(c)
	p.crc = crc32.Checksum(c, castagnoli)
}

// stored is the number of bytes of the record in the log.
func (p *preimage) stored() int {
	if p.zeros {
		return sectorSize
	}
	return sectorSize + (p.length+sectorSize-1)/sectorSize*sectorSize
}

func allZeros(p []byte) bool {
	var acc uint64
	for ; len(p) >= 64; p = p[64:] {
		acc = binary.NativeEndian.Uint64(p) | binary.NativeEndian.Uint64(p[8:]) | binary.NativeEndian.Uint64(p[16:]) | binary.NativeEndian.Uint64(p[24:]) |
			binary.NativeEndian.Uint64(p[32:]) | binary.NativeEndian.Uint64(p[40:]) | binary.NativeEndian.Uint64(p[48:]) | binary.NativeEndian.Uint64(p[56:])
		if acc != 0 {
			return false
		}
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// createLog makes an empty log. With durable set it exists under its name,
// complete, on stable storage when createLog returns.
func createLog(fsys vfs.FS, name string, volume uuid.UUID, epoch uint64, size int64, space *spaceGuard, durable bool) (_ *preLog, err error) {
	temp := name + ".new"
	f, err := fsys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create a preimage log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create a preimage log: %w", err), f.Close())
			for _, n := range []string{temp, name} {
				_ = fsys.Remove(n) // what is left is removed by the next open
			}
		}
	}()
	if _, err := f.WriteAt(encodeLogHeader(volume, epoch, size), 0); err != nil {
		return nil, err
	}
	if durable {
		if err := f.Sync(); err != nil {
			return nil, err
		}
	}
	if err := fsys.Rename(temp, name); err != nil {
		return nil, err
	}
	if durable {
		if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
			return nil, err
		}
	}
	l := &preLog{fs: fsys, name: name, volume: volume, epoch: epoch, f: f, space: space, limit: logMaxSize}
	if !durable {
		l.limit, l.tail.limit = tempMaxSize, tailSize
	}
	l.start(logHeaderSize)
	return l, nil
}

func (l *preLog) start(end int64) {
	l.end.Store(end)
	l.durable.Store(end)
	l.flush.init(func() error {
		end := l.end.Load()
		if err := l.f.Sync(); err != nil {
			return fmt.Errorf("sync preimages: %w", err)
		}
		l.durable.Store(end)
		return nil
	})
}

// append adds a record at the end and returns its sector. It is durable after
// a following l.flush.wait(), but in a temporary log it may stay in memory. On an error
// nothing was appended.
func (l *preLog) append(p *preimage) (cell uint32, err error) {
	n := int64(p.stored())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unlinked.Load() {
		return 0, errUnlinked
	}
	off := l.end.Load()
	if off+n > l.limit {
		return 0, fmt.Errorf("the preimage log has reached its limit of %d bytes", l.limit)
	}
	if err := l.space.take(n); err != nil {
		return 0, err
	}
	l.encodeRecordHeader(p, off)
	if err := l.tail.append(l.f, p.buf[:n], off); err != nil {
		l.space.give(n)
		return 0, fmt.Errorf("write a preimage: %w", err)
	}
	l.end.Store(off + n)
	return uint32(off / sectorSize), nil //nolint:gosec // below cellTemp, or cellPart, because off is below the limit
}

func (l *preLog) encodeRecordHeader(p *preimage, off int64) {
	h := p.buf[:sectorSize]
	clear(h)
	copy(h, recordMagic[:])
	var flags uint32
	if p.zeros {
		flags |= recordZeros
	}
	if p.part {
		flags |= recordPart
	}
	binary.BigEndian.PutUint32(h[4:], flags)
	binary.BigEndian.PutUint64(h[8:], uint64(p.block)) //nolint:gosec // not negative
	binary.BigEndian.PutUint64(h[16:], l.epoch)
	binary.BigEndian.PutUint64(h[24:], uint64(off))              //nolint:gosec // not negative
	binary.BigEndian.PutUint64(h[32:], uint64(l.durable.Load())) //nolint:gosec // not negative
	binary.BigEndian.PutUint32(h[40:], uint32(p.length))         //nolint:gosec // at most a block
	binary.BigEndian.PutUint32(h[44:], p.crc)
	copy(h[48:64], l.volume[:])
	binary.BigEndian.PutUint32(h[64:], uint32(p.page)) //nolint:gosec // below blockPages
	binary.BigEndian.PutUint32(h[sectorSize-4:], crc32.Checksum(h[:sectorSize-4], castagnoli))
	// Content that is no multiple of a sector is followed by zeros.
	if end := sectorSize + p.length; p.length%sectorSize != 0 {
		clear(p.buf[end:min(len(p.buf), end+sectorSize-p.length%sectorSize)])
	}
}

// markBroken records durably that the snapshot of this epoch lost its content.
// It writes a sector that is there already, so that it works on a full disk.
func (l *preLog) markBroken(reason string) error {
	if l.unlinked.Load() {
		return errUnlinked
	}
	if _, err := l.f.WriteAt(encodeState(reason), logStateOffset); err != nil {
		return fmt.Errorf("mark a snapshot broken: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("mark a snapshot broken: %w", err)
	}
	return nil
}

var errUnlinked = errors.New("the preimage log could not be written, and is removed")

// unlink removes the log's name for good. What is in it can be read until it is
// closed. Callers take turns.
func (l *preLog) unlink() error {
	if err := l.fs.Remove(l.name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a preimage log: %w", err)
	}
	l.mu.Lock()
	l.unlinked.Store(true)
	l.mu.Unlock()
	if err := l.fs.SyncDir(filepath.Dir(l.name)); err != nil {
		return fmt.Errorf("remove a preimage log: %w", err)
	}
	return nil
}

// size is the number of bytes in the file.
func (l *preLog) size() int64 { return l.end.Load() }

// remove closes and deletes the log.
func (l *preLog) remove() error {
	l.space.give(l.end.Load() - logHeaderSize)
	err := l.f.Close()
	if rerr := l.fs.Remove(l.name); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return fmt.Errorf("remove a preimage log: %w", err)
	}
	return nil
}
