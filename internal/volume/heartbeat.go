package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"sync/atomic"
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

// The lease is the heartbeat: before the first write of every second the record
// is moved ahead, without fsync (it has to outlive the process, not the kernel).
// After a kill, a file time later than the lease is somebody else's write. The
// margin keeps a write that was stuck behind others from looking like one; in
// exchange a stranger's write within it after the kill goes unseen here, and is
// left to the audit.
const (
	leaseLength = 4 * time.Second
	leaseMargin = 3 * time.Second
)

// heartbeat keeps the record of an open volume.
type heartbeat struct {
	host  Host
	fresh atomic.Bool // the lease was moved within the last second

	mu    sync.Mutex
	f     vfs.File
	rec   beatRecord
	timer *time.Timer // ends fresh
}

// pulse is called before every change of the data file. It costs one load, for
// a clock would cost more than the rest of the write path.
func (h *heartbeat) pulse() {
	if !h.fresh.Load() {
		h.renew()
	}
}

// renew moves the lease. A failure costs a false doubt at the worst, so the
// guest's write goes on.
func (h *heartbeat) renew() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fresh.Load() {
		return
	}
	h.rec.Lease = h.host.Now().Add(leaseLength)
	if _, err := h.f.WriteAt(h.rec.encode(), 0); err == nil {
		h.fresh.Store(true)
		h.timer = time.AfterFunc(leaseLength-leaseMargin, func() { h.fresh.Store(false) })
	}
}

// close gives the file back; the record stays as it is.
func (h *heartbeat) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	if err := h.f.Close(); err != nil {
		return fmt.Errorf("close the heartbeat record: %w", err)
	}
	return nil
}

// save changes the record and makes it durable.
func (h *heartbeat) save(change func(*beatRecord)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.rec)
	if _, err := h.f.WriteAt(h.rec.encode(), 0); err != nil {
		return fmt.Errorf("write the heartbeat record: %w", err)
	}
	if err := h.f.Sync(); err != nil {
		return fmt.Errorf("sync the heartbeat record: %w", err)
	}
	return nil
}

// readBeat reads the record of the last owner.
func readBeat(fsys vfs.FS, name string) (beatRecord, error) {
	p, err := vfs.ReadFile(fsys, name, beatSize)
	if err != nil {
		return beatRecord{}, fmt.Errorf("read the heartbeat record: %w", err)
	}
	return decodeBeat(p)
}

// openBeat takes the heartbeat over: from here on the data file may be changed.
func openBeat(fsys vfs.FS, host Host, name string, rec *beatRecord) (_ *heartbeat, err error) {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the heartbeat record: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	h := &heartbeat{host: host, f: f, rec: *rec}
	h.rec.Lease = host.Now().Add(leaseLength)
	if err := h.save(func(*beatRecord) {}); err != nil {
		return nil, err
	}
	return h, nil
}
