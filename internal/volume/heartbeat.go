package volume

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// beatRecord is the content of the heartbeat file (FORMAT.md): who used the data
// file last, until when, and in what state it was left.
type beatRecord struct {
	Volume     uuid.UUID
	Generation uint64    // bumped by every open
	Boot       string    // boot ID of the kernel that the owner ran on
	Lease      time.Time // not clean: the owner wrote nothing after this moment
	Clean      bool      // closed by Close; the next fields hold
	Failed     bool      // an fsync of the data file failed
	Mtime      time.Time // of the data file after the last write
	Size       int64     // of the data file
	Inode      uint64    // 0 = not known
	Counter    uint64    // of a device: the kernel's write counter
}

const (
	beatSize    = 512 // one sector: replaced whole or not at all
	beatVersion = 1
	beatClean   = 1
	beatFailed  = 2
	beatBootLen = 64
)

var (
	beatMagic  = [8]byte{'C', 'A', 'I', 'R', 'N', 'H', 'B', '\n'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func (b *beatRecord) encode() []byte {
	p := make([]byte, beatSize)
	copy(p, beatMagic[:])
	var flags uint32
	if b.Clean {
		flags |= beatClean
	}
	if b.Failed {
		flags |= beatFailed
	}
	binary.BigEndian.PutUint32(p[8:], beatVersion)
	binary.BigEndian.PutUint32(p[12:], flags)
	copy(p[16:32], b.Volume[:])
	binary.BigEndian.PutUint64(p[32:], b.Generation)
	binary.BigEndian.PutUint64(p[40:], encodeTime(b.Lease))
	binary.BigEndian.PutUint64(p[48:], encodeTime(b.Mtime))
	binary.BigEndian.PutUint64(p[56:], uint64(b.Size)) //nolint:gosec // sizes are not negative
	binary.BigEndian.PutUint64(p[64:], b.Inode)
	binary.BigEndian.PutUint64(p[72:], b.Counter)
	n := min(len(b.Boot), beatBootLen)
	p[80] = byte(n)
	copy(p[81:81+beatBootLen], b.Boot[:n])
	binary.BigEndian.PutUint32(p[beatSize-4:], crc32.Checksum(p[:beatSize-4], castagnoli))
	return p
}

func decodeBeat(p []byte) (beatRecord, error) {
	if len(p) != beatSize || [8]byte(p[:8]) != beatMagic {
		return beatRecord{}, fmt.Errorf("%w: the heartbeat record is missing", ErrDamaged)
	}
	if binary.BigEndian.Uint32(p[beatSize-4:]) != crc32.Checksum(p[:beatSize-4], castagnoli) {
		return beatRecord{}, fmt.Errorf("%w: the heartbeat record fails its checksum", ErrDamaged)
	}
	if ver := binary.BigEndian.Uint32(p[8:]); ver != beatVersion {
		return beatRecord{}, fmt.Errorf("%w: the heartbeat record has version %d", ErrDamaged, ver)
	}
	flags := binary.BigEndian.Uint32(p[12:])
	return beatRecord{
		Volume:     uuid.UUID(p[16:32]),
		Generation: binary.BigEndian.Uint64(p[32:]),
		Lease:      decodeTime(binary.BigEndian.Uint64(p[40:])),
		Mtime:      decodeTime(binary.BigEndian.Uint64(p[48:])),
		Size:       int64(binary.BigEndian.Uint64(p[56:])), //nolint:gosec // only compared
		Inode:      binary.BigEndian.Uint64(p[64:]),
		Counter:    binary.BigEndian.Uint64(p[72:]),
		Boot:       string(p[81 : 81+min(int(p[80]), beatBootLen)]),
		Clean:      flags&beatClean != 0,
		Failed:     flags&beatFailed != 0,
	}, nil
}

// encodeTime gives nanoseconds since 1970, 0 for no time.
func encodeTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func decodeTime(n uint64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)) //nolint:gosec // two's complement on disk
}

// readBeat reads the record of the last owner.
func readBeat(fsys vfs.FS, name string) (beatRecord, error) {
	p, err := vfs.ReadFile(fsys, name, beatSize)
	if err != nil {
		return beatRecord{}, fmt.Errorf("read the heartbeat record: %w", err)
	}
	return decodeBeat(p)
}
