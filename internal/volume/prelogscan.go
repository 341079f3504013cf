package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// logHeader is what the first sector of a log says.
type logHeader struct {
	volume uuid.UUID
	epoch  uint64
	size   int64 // of the volume when the epoch began
}

// recordHeader is the first sector of a record.
type recordHeader struct {
	block   int64
	part    bool
	page    int
	length  int
	zeros   bool
	durable int64
	crc     uint32
}

// encodeLogHeader makes the header and an empty state sector.
func encodeLogHeader(volume uuid.UUID, epoch uint64, size int64) []byte {
	p := make([]byte, logHeaderSize)
	copy(p, logMagic[:])
	binary.BigEndian.PutUint32(p[8:], logVersion)
	binary.BigEndian.PutUint32(p[12:], blockmap.DefaultBlockSize)
	copy(p[16:32], volume[:])
	binary.BigEndian.PutUint64(p[32:], epoch)
	binary.BigEndian.PutUint64(p[40:], uint64(size)) //nolint:gosec // not negative
	binary.BigEndian.PutUint32(p[sectorSize-4:], crc32.Checksum(p[:sectorSize-4], castagnoli))
	return p
}

func decodeLogHeader(p []byte) (logHeader, error) {
	if len(p) < sectorSize || [8]byte(p[:8]) != logMagic || binary.BigEndian.Uint32(p[sectorSize-4:sectorSize]) != crc32.Checksum(p[:sectorSize-4], castagnoli) {
		return logHeader{}, fmt.Errorf("%w: a preimage log has no sound header", ErrDamaged)
	}
	if v := binary.BigEndian.Uint32(p[8:]); v != logVersion {
		return logHeader{}, fmt.Errorf("%w: a preimage log has version %d, this program reads version %d", ErrDamaged, v, logVersion)
	}
	h := logHeader{volume: uuid.UUID(p[16:32]), epoch: binary.BigEndian.Uint64(p[32:])}
	size := binary.BigEndian.Uint64(p[40:])
	if binary.BigEndian.Uint32(p[12:]) != blockmap.DefaultBlockSize || size == 0 || size > uint64(maxSize) {
		return logHeader{}, fmt.Errorf("%w: a preimage log has another geometry", ErrDamaged)
	}
	h.size = int64(size)
	return h, nil
}

// encodeState makes the state sector of a broken snapshot.
func encodeState(reason string) []byte {
	p := make([]byte, sectorSize)
	copy(p, stateMagic[:])
	n := copy(p[stateTextOffset:stateTextOffset+stateTextLen], reason)
	binary.BigEndian.PutUint32(p[4:], uint32(n)) //nolint:gosec // at most stateTextLen
	binary.BigEndian.PutUint32(p[sectorSize-4:], crc32.Checksum(p[:sectorSize-4], castagnoli))
	return p
}

// decodeState returns why the snapshot is broken, "" if it is not. Anything but
// zeros means broken.
func decodeState(p []byte) string {
	if allZeros(p) {
		return ""
	}
	n := binary.BigEndian.Uint32(p[4:])
	if [4]byte(p[:4]) != stateMagic || n == 0 || n > stateTextLen || binary.BigEndian.Uint32(p[sectorSize-4:]) != crc32.Checksum(p[:sectorSize-4], castagnoli) {
		return "its state is unreadable"
	}
	return string(p[stateTextOffset : stateTextOffset+n])
}

// decodeRecordHeader reads the header of the record at off of a log.
func decodeRecordHeader(p []byte, volume uuid.UUID, epoch uint64, off int64) (recordHeader, error) {
	var h recordHeader
	if len(p) != sectorSize || [4]byte(p[:4]) != recordMagic || binary.BigEndian.Uint32(p[sectorSize-4:]) != crc32.Checksum(p[:sectorSize-4], castagnoli) {
		return h, fmt.Errorf("%w: no sound preimage at %d of its log", ErrDamaged, off)
	}
	block, at, durable := binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[24:]), binary.BigEndian.Uint64(p[32:])
	length := binary.BigEndian.Uint32(p[40:])
	flags, page := binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[64:])
	if uuid.UUID(p[48:64]) != volume || binary.BigEndian.Uint64(p[16:]) != epoch || at != uint64(off) || //nolint:gosec // off is not negative
		flags&^(recordZeros|recordPart) != 0 || durable > at || length == 0 || length > blockmap.DefaultBlockSize || block > uint64(maxSize)/blockmap.DefaultBlockSize ||
		page >= blockPages || length > blockmap.DefaultBlockSize-page*pageSize {
		return h, fmt.Errorf("%w: a preimage at %d of its log is of another place", ErrDamaged, off)
	}
	return recordHeader{
		block: int64(block), part: flags&recordPart != 0, page: int(page), length: int(length), zeros: flags&recordZeros != 0,
		durable: int64(durable), crc: binary.BigEndian.Uint32(p[44:]), //nolint:gosec // at most off
	}, nil
}

// openLog reads a log back: its index, and why its snapshot is broken, "" if it is not.
//
// A record that is not sound ends the log: nothing after it was ever waited for,
// so no block was overwritten on the strength of it, and the tail is cut off.
// But a sound record further on that was written when the file was durable
// beyond this place tells that a durable record has rotted: an error.
// Records that a later one calls durable are believed without reading their content.
// limit is the volume's size, which no epoch's exceeds.
func openLog(fsys vfs.FS, name string, volume uuid.UUID, epoch uint64, limit int64, space *spaceGuard) (_ *preLog, _ *index, broken string, err error) {
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, "", fmt.Errorf("open a preimage log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	head := make([]byte, logHeaderSize)
	if _, err = f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, "", fmt.Errorf("read %s: %w", name, err)
	}
	h, err := decodeLogHeader(head)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", name, err)
	}
	if h.volume != volume || h.epoch != epoch || h.size > limit {
		return nil, nil, "", fmt.Errorf("%w: %s belongs to epoch %d of volume %s of %d bytes", ErrDamaged, name, h.epoch, h.volume, h.size)
	}
	l := &preLog{fs: fsys, name: name, volume: volume, epoch: epoch, f: f, space: space, limit: logMaxSize}
	x := newIndex((h.size + blockmap.DefaultBlockSize - 1) / blockmap.DefaultBlockSize)
	if err := l.scan(x); err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return l, x, decodeState(head[logStateOffset : logStateOffset+sectorSize]), nil
}

// unproved is a record whose content may be torn.
type unproved struct {
	block int64
	off   int64
}

// scan fills the index, finds the end, and cuts off what follows it.
func (l *preLog) scan(x *index) error {
	info, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	size := info.Size()
	if size > logMaxSize {
		return fmt.Errorf("%w: longer than %d bytes", ErrDamaged, logMaxSize)
	}
	l.end.Store(size) // so that load may read it all
	end, proved := int64(0), size
	for end != proved { // what a torn record called durable has to be proved itself
		var tail []unproved
		if end, tail, err = l.walk(x, proved); err != nil {
			return err
		}
		if proved, err = l.prove(x, tail, end); err != nil {
			return err
		}
	}
	if err := l.rotten(end, size); err != nil {
		return err
	}
	return l.cut(end, size)
}

// walk fills the index from the records' headers up to limit. It returns where
// the first that is not sound begins, and the records that no later one before
// that calls durable.
func (l *preLog) walk(x *index, limit int64) (int64, []unproved, error) {
	sector := make([]byte, sectorSize)
	var tail []unproved
	off := int64(logHeaderSize)
	for off+sectorSize <= limit {
		if _, err := l.f.ReadAt(sector, off); err != nil {
			return 0, nil, fmt.Errorf("read the preimage at %d: %w", off, err)
		}
		h, bad := decodeRecordHeader(sector, l.volume, l.epoch, off)
		if bad != nil || h.part || h.page != 0 || h.block >= x.blocks {
			break
		}
		p := preimage{length: h.length, zeros: h.zeros}
		if off+int64(p.stored()) > limit {
			break
		}
		for len(tail) > 0 && tail[0].off < h.durable {
			tail = tail[1:]
		}
		tail = append(tail, unproved{h.block, off})
		x.cell(h.block).Store(uint32(off / sectorSize))
		off += int64(p.stored())
	}
	return off, tail, nil //nolint:nilerr // what is not sound is the end
}

// prove reads the content of the records that no durability mark covers, and
// returns where the first torn one begins, or end.
func (l *preLog) prove(x *index, tail []unproved, end int64) (int64, error) {
	for i, u := range tail {
		p, err := l.load(uint32(u.off/sectorSize), u.block, false) //nolint:gosec // off is below logMaxSize
		p.free()
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrDamaged) {
			return 0, err
		}
		for _, u := range tail[i:] {
			x.cell(u.block).Store(cellAbsent)
		}
		return u.off, nil
	}
	return end, nil
}

// rotten fails if a sound record beyond end says that the file was durable beyond end.
func (l *preLog) rotten(end, size int64) error {
	const window = 1 << 20
	buf := make([]byte, window)
	for at := end; at < size; at += window {
		n, err := l.f.ReadAt(buf[:min(window, size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read at %d: %w", at, err)
		}
		for o := 0; o+sectorSize <= n; o += sectorSize {
			if [4]byte(buf[o:o+4]) != recordMagic {
				continue
			}
			h, err := decodeRecordHeader(buf[o:o+sectorSize], l.volume, l.epoch, at+int64(o))
			if err == nil && h.durable > end {
				return fmt.Errorf("%w: the preimage at %d, which was on stable storage, is unreadable", ErrDamaged, end)
			}
		}
	}
	return nil
}

// cut removes a torn tail, so that appending can go on after the last sound record.
func (l *preLog) cut(end, size int64) error {
	if size > end {
		if err := l.f.Truncate(end); err != nil {
			return fmt.Errorf("cut off the torn end: %w", err)
		}
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("cut off the torn end: %w", err)
	}
	l.start(end)
	l.space.adopt(end - logHeaderSize)
	return nil
}
